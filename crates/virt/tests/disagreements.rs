//! Where XML and the headers of images disagree: each way in which they can, and the sentence that says it.
#![cfg(test)]

use catena::Policy;
use catena::doctor::Finding;
use catena_testkit::Folder;
use catena_virt::{Document, Place, disagreements, snapshot_disagreements, volume_disagreements};

/// base.raw <- mid.qcow2 <- top.qcow2, and an image that keeps its data in a file of its own.
fn images() -> Folder {
    let folder = Folder::new();
    folder.img("create -q -f raw base.raw 1M");
    folder.img("create -q -f qcow2 -b base.raw -F raw mid.qcow2");
    folder.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    folder.img("create -q -f qcow2 -o data_file=data.raw data.qcow2 1M");
    folder.img("create -q -f raw other.raw 1M");
    folder
}

/// A text in which `@` is the folder.
fn document(folder: &Folder, text: &str) -> Document {
    Document::parse(text.replace('@', folder.path().to_str().unwrap())).unwrap()
}

/// A disk of an image, with what stands in its `<source>` and behind that.
fn disk(folder: &Folder, image: &str, format: &str, inside: &str, below: &str) -> Document {
    document(
        folder,
        &format!(
            "<disk><driver name='qemu' type='{format}'/><source file='@/{image}'>{inside}</source>{below}<target dev='vda'/></disk>"
        ),
    )
}

fn below(image: &str, format: &str, below: &str) -> String {
    format!(
        "<backingStore type='file'><format type='{format}'/><source file='@/{image}'/>{below}</backingStore>"
    )
}

/// The findings as `severity code layer: cause`, in which `@` is the folder.
fn said(folder: &Folder, findings: &[Finding]) -> Vec<String> {
    let line = |finding: &Finding| {
        let Finding {
            severity,
            code,
            layer,
            cause,
            ..
        } = finding;
        format!("{severity} {code} {layer}: {cause}").replace(folder.path().to_str().unwrap(), "@")
    };
    findings.iter().map(line).collect()
}

fn found(folder: &Folder, document: &Document) -> Vec<String> {
    let disk = &document.disks[0];
    let policy = Policy::libvirt();
    said(
        folder,
        &disagreements(disk, &disk.chain(&policy).unwrap(), &policy),
    )
}

#[test]
fn every_disagreement_of_a_disk_is_said() {
    let folder = images();
    let whole = below("mid.qcow2", "qcow2", &below("base.raw", "raw", "<backingStore/>"));
    let store = |name: &str| {
        format!("<dataStore type='file'><format type='raw'/><source file='@/{name}'/></dataStore>")
    };
    let slice = |size: u64| format!("<slices><slice type='storage' offset='512' size='{size}'/></slices>");
    let none = String::new;
    for (image, inside, below, expected) in [
        ("top.qcow2", none(), none(), vec![]),
        ("top.qcow2", none(), whole, vec![]),
        // The terminator.
        (
            "top.qcow2",
            none(),
            "<backingStore/>".to_owned(),
            vec![
                "error xml-hides-backing 0: the XML ends the chain here, and the header records the backing image 'mid.qcow2'",
            ],
        ),
        // The path.
        (
            "top.qcow2",
            none(),
            below("other.raw", "raw", ""),
            vec![
                "error xml-backing-differs 0: the XML gives the backing image '@/other.raw', and the header records 'mid.qcow2'",
            ],
        ),
        (
            "data.qcow2",
            store("data.raw"),
            below("other.raw", "raw", ""),
            vec![
                "warning xml-backing-differs 0: the XML gives the backing image '@/other.raw', and the header records none",
            ],
        ),
        // The order.
        (
            "top.qcow2",
            none(),
            below("base.raw", "qcow2", &below("mid.qcow2", "qcow2", "")),
            vec![
                "error xml-backing-differs 0: the XML gives the backing image '@/base.raw', and the header records 'mid.qcow2', \
                 which the XML has as layer 2: the order is another",
            ],
        ),
        // The format.
        (
            "top.qcow2",
            none(),
            below("mid.qcow2", "raw", ""),
            vec![
                "error xml-format-differs 0: the XML gives the backing image '@/mid.qcow2' as raw, and the header records the \
                 format 'qcow2'",
            ],
        ),
        (
            "mid.qcow2",
            none(),
            below("base.raw", "raw", &below("other.raw", "raw", "")),
            vec![
                "error xml-backing-unused 1: the XML gives a backing image to this layer, whose format raw has none",
            ],
        ),
        // The data file.
        (
            "data.qcow2",
            store("data.raw"),
            "<backingStore/>".to_owned(),
            vec![],
        ),
        (
            "data.qcow2",
            none(),
            "<backingStore/>".to_owned(),
            vec![
                "warning xml-data-store-missing 0: the image keeps its data in 'data.raw', and the XML gives the chain without \
                 that file",
            ],
        ),
        (
            "data.qcow2",
            store("other.raw"),
            none(),
            vec![
                "error xml-data-store-differs 0: the XML gives the data file '@/other.raw', and the header records 'data.raw'",
            ],
        ),
        (
            "top.qcow2",
            store("data.raw"),
            none(),
            vec![
                "error xml-data-store-differs 0: the XML gives the data file '@/data.raw', and the image has none",
            ],
        ),
        // The size of a part.
        ("base.raw", slice((1 << 20) - 512), none(), vec![]),
        (
            "base.raw",
            slice(1 << 20),
            none(),
            vec![
                "error xml-slice-beyond-end 0: the XML gives 1048576 bytes from 512 of the image, which ends at 1048576",
            ],
        ),
    ] {
        let format = image.rsplit('.').next().unwrap();
        let document = disk(&folder, image, format, &inside, &below);
        assert_eq!(found(&folder, &document), expected, "{image} {inside} {below}");
    }
}

#[test]
fn a_snapshot_that_reuses_an_overlay_of_another_base_is_said() {
    let folder = images();
    let domain = disk(&folder, "mid.qcow2", "qcow2", "", "");
    folder.img("create -q -f qcow2 -b base.raw -F raw wrong.qcow2");
    for (overlay, expected) in [
        ("top.qcow2", vec![]),
        ("missing.qcow2", vec![]),
        (
            "wrong.qcow2",
            vec![
                "error xml-snapshot-base-differs 0: the overlay records the backing image '@/base.raw', and the disk's active layer \
                 is '@/mid.qcow2'",
            ],
        ),
        (
            "data.qcow2",
            vec![
                "error xml-snapshot-base-differs 0: the overlay records no backing image, and the disk's active layer is \
                 '@/mid.qcow2'",
            ],
        ),
    ] {
        let snapshot = document(
            &folder,
            &format!(
                "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external'><source file='@/{overlay}'/></disk>\
                 </disks></domainsnapshot>"
            ),
        );
        let found = snapshot_disagreements(&snapshot, &domain, &Policy::libvirt());
        let found: Vec<_> = found.into_iter().map(|(_, finding)| finding).collect();
        assert_eq!(said(&folder, &found), expected, "{overlay}");
    }
}

#[test]
fn a_volume_of_another_size_or_base_is_said() {
    let folder = images();
    let policy = Policy::libvirt();
    let found = |capacity: u64, backing: &str| {
        let document = document(
            &folder,
            &format!(
                "<volume><name>v</name><capacity unit='bytes'>{capacity}</capacity><target><path>@/mid.qcow2</path>\
                 <format type='qcow2'/></target>{backing}</volume>"
            ),
        );
        let volume = document.volume.as_ref().unwrap();
        let chain = volume.chain(&policy).unwrap();
        assert_eq!(chain.layers.len(), 2);
        said(&folder, &volume_disagreements(volume, &chain, &policy))
    };
    let given = |name: &str, format: &str| {
        format!("<backingStore><path>@/{name}</path><format type='{format}'/></backingStore>")
    };
    let none: [&str; 0] = [];
    assert_eq!(found(1 << 20, &given("base.raw", "raw")), none);
    assert_eq!(
        found(1 << 30, &given("base.raw", "raw")),
        ["warning xml-size-differs 0: the volume's XML states 1073741824 bytes, and the image has 1048576"]
    );
    assert_eq!(
        found(1 << 20, &given("base.raw", "qcow2")),
        [
            "warning xml-format-differs 0: the volume's XML gives the backing image '@/base.raw' as qcow2, and the header records the \
             format 'raw'"
        ]
    );
    assert_eq!(
        found(1 << 20, &given("other.raw", "raw")),
        [
            "warning xml-backing-differs 0: the volume's XML gives the backing image '@/other.raw', and the header records 'base.raw'"
        ]
    );
    assert_eq!(
        found(1 << 20, ""),
        [
            "warning xml-backing-differs 0: the volume's XML gives no backing image, and the header records 'base.raw'"
        ]
    );
}

#[test]
fn a_disk_whose_volume_libvirt_has_in_another_size_is_said() {
    let folder = images();
    let text = "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='p' volume='top'/><target dev='vda'/></disk>";
    for (capacity, expected) in [
        (1 << 20, vec![]),
        (
            3 << 20,
            vec![
                "warning xml-size-differs 0: the volume's XML states 3145728 bytes, and the image has 1048576",
            ],
        ),
    ] {
        let mut document = document(&folder, text);
        let volume = Document::parse(format!(
            "<volume><name>top</name><capacity>{capacity}</capacity><target><path>{}</path></target></volume>",
            folder.file("top.qcow2").display()
        ))
        .unwrap();
        document
            .find_volumes(|_, _| Ok::<_, ()>(volume.volume.clone()))
            .unwrap();
        assert!(matches!(
            &document.disks[0].layers[0].place,
            Place::Volume { found: Some(_), .. }
        ));
        assert_eq!(found(&folder, &document), expected);
    }
}
