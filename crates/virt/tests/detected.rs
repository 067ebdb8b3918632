//! Detected chains put into documents: what is completed or pinned is the chain that was detected.
#![cfg(test)]

use catena::chain::End;
use catena::{Chain, Policy};
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use catena_virt::edit::Edit;
use catena_virt::{Below, Disk, Document};

/// A folder of images, and a `<disk>` about them.
struct Generated {
    _folder: Folder,
    disk: String,
}

/// Chains of one to five layers over raw or qcow2 bases, written out in the XML as far as it happens.
fn generate(seed: u64) -> Generated {
    let mut dice = Dice::new(seed);
    let folder = Folder::new();
    let depth = dice.within(1..6);
    let mut layers: Vec<(String, &str)> = Vec::new();
    for number in 0..depth {
        let name = format!("l{number}");
        let format = match number {
            0 => *dice.one_of(&["raw", "qcow2", "raw", "vmdk", "vdi", "data"]),
            _ => "qcow2",
        };
        match (layers.last(), format) {
            (None, "data") => {
                folder.img("create -q -f qcow2 -o data_file=l0.data,data_file_raw=on l0 1M");
            }
            (None, format) => {
                folder.img(&format!("create -q -f {format} {name} 1M"));
            }
            (Some((below, format)), _) => {
                // A leaf may be without a recorded format.
                folder.img(&format!("create -q -f qcow2 -b {below} -F {format} {name}"));
                if number == 1 && dice.chance(20) && matches!(*format, "raw" | "qcow2") && !has_data(&folder)
                {
                    folder.forget_format(&name);
                }
            }
        }
        layers.push((name, if format == "data" { "qcow2" } else { format }));
    }
    layers.reverse();
    if dice.chance(8) {
        // Somewhere it breaks.
        let (name, _) = dice.one_of(&layers).clone();
        std::fs::remove_file(folder.file(&name)).unwrap();
    }
    let given = if dice.chance(40) {
        1
    } else {
        1 + dice.index(layers.len())
    };
    let closed = if given == layers.len() && dice.chance(50) {
        "<backingStore/>"
    } else {
        ""
    };
    let mut nested = closed.to_owned();
    let path = |name: &str| folder.file(name).to_str().unwrap().to_owned();
    for (name, format) in layers[1..given].iter().rev() {
        nested = format!(
            "<backingStore type='file'><format type='{format}'/><source file='{}'/>{nested}</backingStore>",
            path(name)
        );
    }
    let (top, format) = &layers[0];
    let mut driver = String::new();
    for (attribute, values) in [
        (
            "cache",
            ["none", "writeback", "unsafe", "directsync", "writethrough"].as_slice(),
        ),
        ("discard", &["unmap", "ignore"]),
        ("detect_zeroes", &["on", "unmap", "off"]),
        ("copy_on_read", &["on"]),
        ("io", &["threads"]),
    ] {
        if dice.chance(30) {
            driver.push_str(&format!(" {attribute}='{}'", dice.one_of(values)));
        }
    }
    let cache = if *format == "qcow2" && dice.chance(20) {
        "><metadata_cache><max_size unit='KiB'>128</max_size></metadata_cache></driver>"
    } else {
        "/>"
    };
    let slice = if *format == "raw" && dice.chance(40) {
        "><slices><slice type='storage' offset='512' size='65536'/></slices></source>"
    } else {
        "/>"
    };
    let flags = *dice.one_of(&["", "", "<readonly/>"]);
    // Copies of what is read need a disk that is written.
    let driver = if flags.is_empty() {
        driver
    } else {
        driver.replace(" copy_on_read='on'", "")
    };
    let disk = format!(
        "<disk type='file' device='disk'>\n  <driver name='qemu' type='{format}'{driver}{cache}\n  \
         <source file='{}'{slice}\n  {nested}<target dev='vda' bus='virtio'/>{flags}</disk>",
        path(top)
    );
    Generated {
        _folder: folder,
        disk,
    }
}

fn has_data(folder: &Folder) -> bool {
    folder.file("l0.data").exists()
}

/// A document is the same disk after it was changed back, and another where it was changed.
fn reread(text: &str) -> Disk {
    Document::parse(text)
        .unwrap_or_else(|error| panic!("{error}: {text}"))
        .disks
        .remove(0)
}

#[test]
fn what_is_completed_or_pinned_is_the_chain_that_was_detected() {
    for seed in 100..140 {
        let generated = generate(seed);
        let document = Document::parse(generated.disk.as_str()).unwrap();
        let disk = &document.disks[0];
        let chain = disk.chain(&Policy::libvirt()).unwrap();
        if !matches!(chain.end, End::Terminated) {
            assert!(Edit::new(&document).pin(disk, &chain).is_err());
            continue;
        }
        let names = |chain: &Chain| -> Vec<_> {
            chain
                .layers
                .iter()
                .map(|layer| (layer.name(), layer.format))
                .collect()
        };
        let mut edit = Edit::new(&document);
        edit.pin(disk, &chain).unwrap();
        let pinned = edit.finish().unwrap();
        let again = Document::parse(pinned.as_str()).unwrap();
        assert_eq!(again.disks[0].layers.len(), chain.layers.len(), "{pinned}");
        assert_eq!(
            names(&again.disks[0].chain(&Policy::libvirt()).unwrap()),
            names(&chain),
            "{pinned}"
        );
        // Pinned twice is pinned once.
        let mut edit = Edit::new(&again);
        edit.pin(&again.disks[0], &chain).unwrap();
        assert!(edit.is_empty(), "{}", edit.finish().unwrap());
        let mut edit = Edit::new(&again);
        edit.strip(&again.disks[0]);
        let stripped = reread(&edit.finish().unwrap());
        assert_eq!((stripped.layers.len(), stripped.below), (1, Below::Unsaid));
        let mut edit = Edit::new(&document);
        edit.complete(disk, &chain).unwrap();
        let completed = reread(&edit.finish().unwrap());
        assert_eq!(completed.layers.len(), chain.layers.len());
        assert_eq!(completed.below == Below::Unsaid, disk.below == Below::Unsaid);
    }
}
