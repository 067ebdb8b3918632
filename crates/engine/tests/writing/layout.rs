//! Where things lie: as with QEMU, where that can be seen.

use super::lab::{Lab, PLAIN, Shape, file};
use catena_engine::qcow2::{Preallocation, Qcow2Disk};
use catena_engine::{Disk, GuestOffset, Unmap, WritableDisk};
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use std::sync::Arc;

/// What QEMU says of where the guest's data is, and of the file.
fn seen(folder: &Folder, image: &str) -> (String, String, u64) {
    let map = folder.img(&format!("map --output=json -f qcow2 {image}"));
    let check = folder.img(&format!("check --output=json -f qcow2 {image}"));
    let len = std::fs::metadata(folder.file(image)).unwrap().len();
    (map, check.replace(image, "image"), len)
}

fn open(folder: &Folder, image: &str) -> Qcow2Disk {
    Qcow2Disk::open(file(&folder.file(image)), None, None).unwrap()
}

#[test]
fn what_is_written_in_the_same_order_lies_in_the_same_place_as_with_qemu() {
    for (seed, options) in [
        (1, "cluster_size=65536"),
        (2, "cluster_size=512"),
        (3, "cluster_size=2M"),
        (4, "cluster_size=4096,refcount_bits=1"),
        (5, "cluster_size=64k,extended_l2=on"),
        (6, "compat=0.10"),
    ] {
        let folder = Folder::new();
        let mut dice = Dice::new(seed);
        folder.img(&format!("create -q -f qcow2 -o {options} theirs.qcow2 20M"));
        std::fs::copy(folder.file("theirs.qcow2"), folder.file("ours.qcow2")).unwrap();
        let disk = open(&folder, "ours.qcow2");
        let mut commands = Vec::new();
        let mut at = 0;
        while at < 18 << 20 {
            let len = 512 * (1 + dice.below(if seed == 2 { 100 } else { 1000 }));
            commands.push(format!("write -q -P {} {at} {len}", 1 + seed));
            disk.write_at(&vec![1 + seed as u8; len as usize], GuestOffset(at))
                .unwrap();
            at += len + 512 * dice.below(1000);
        }
        disk.close().unwrap();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        folder.io("qcow2", "theirs.qcow2", &commands);
        let (ours, theirs) = (seen(&folder, "ours.qcow2"), seen(&folder, "theirs.qcow2"));
        assert_eq!(ours.0, theirs.0, "map with {options}");
        assert_eq!(ours.1, theirs.1, "check with {options}");
        assert_eq!(ours.2, theirs.2, "length with {options}");
    }
}

#[test]
fn zeroes_and_discards_leave_the_entries_that_qemu_leaves() {
    for (seed, options) in [
        (1, "cluster_size=65536"),
        (2, "cluster_size=64k,extended_l2=on"),
        (3, "compat=0.10"),
    ] {
        let folder = Folder::new();
        let mut dice = Dice::new(seed);
        folder.img(&format!("create -q -f qcow2 -o {options} theirs.qcow2 4M"));
        std::fs::copy(folder.file("theirs.qcow2"), folder.file("ours.qcow2")).unwrap();
        let disk = open(&folder, "ours.qcow2");
        let mut commands = Vec::new();
        for _ in 0..60 {
            let at = 512 * dice.below(8000);
            let len = (512 * (1 + dice.below(600))).min((4 << 20) - at);
            let (start, bytes) = (GuestOffset(at), vec![7; len as usize]);
            commands.push(match dice.below(4) {
                0 => {
                    disk.write_at(&bytes, start).unwrap();
                    format!("write -q -P 7 {at} {len}")
                }
                1 => {
                    disk.write_zeroes(start, len, Unmap::Keep).unwrap();
                    format!("write -q -z {at} {len}")
                }
                2 => {
                    disk.write_zeroes(start, len, Unmap::Allow).unwrap();
                    format!("write -q -z -u {at} {len}")
                }
                _ => {
                    disk.discard(start, len).unwrap();
                    format!("discard -q {at} {len}")
                }
            });
        }
        disk.close().unwrap();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        folder.io("qcow2", "theirs.qcow2", &commands);
        // What was let go is taken again at other times, so that clusters lie elsewhere.
        let kinds = |image: &str| {
            let map: serde_json::Value = serde_json::from_str(&seen(&folder, image).0).unwrap();
            let mut sectors = Vec::new();
            for extent in map.as_array().unwrap() {
                let kind = [
                    &extent["present"],
                    &extent["zero"],
                    &extent["data"],
                    &extent["offset"].is_null().into(),
                ]
                .map(|flag| flag.as_bool().unwrap());
                let len = extent["length"].as_u64().unwrap() / 512;
                sectors.extend((0..len).map(|_| kind));
            }
            sectors
        };
        let (ours, theirs) = (kinds("ours.qcow2"), kinds("theirs.qcow2"));
        let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "{options}: a sector after {commands:#?}");
    }
}

#[test]
fn a_disk_grows_over_any_backing_and_shows_zeros_there() {
    for (size, backing, bits, extended) in [
        (1 << 20, None, 16, false),
        ((1 << 20) + 512, Some(3 << 20), 16, false),
        (1 << 20, Some(1 << 19), 12, false),
        (100 << 10, Some(3 << 20), 9, false),
        ((1 << 20) + 512, Some(3 << 20), 16, true),
    ] {
        let shape = Shape {
            name: "growing",
            size,
            backing,
            cluster_bits: bits,
            extended,
            ..PLAIN
        };
        let mut dice = Dice::new(size);
        let mut lab = Lab::new(&shape, &mut dice);
        let disk = lab.open();
        disk.write_at(&[9; 700], GuestOffset(size / 2)).unwrap();
        lab.model[size as usize / 2..][..700].fill(9);
        for new in [size + 512, 2 << 20, 40 << 20] {
            disk.grow(new).unwrap();
            assert_eq!(disk.size(), new);
            lab.model.resize(new as usize, 0);
            disk.write_at(&[8; 300], GuestOffset(new - 400)).unwrap();
            lab.model[new as usize - 400..][..300].fill(8);
        }
        assert!(disk.grow(1 << 20).is_err());
        assert!(disk.grow(1 << 62).is_err());
        lab.compare(&disk, "grown");
        disk.close().unwrap();
        lab.settle("grown");
    }
}

#[test]
fn preallocated_space_reads_as_before_and_is_written_in_place() {
    for how in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for (backing, extended, data_file) in [
            (None, false, None),
            (None, true, None),
            (Some(3 << 20), true, None),
            (Some(3 << 20), false, None),
            (None, false, Some(true)),
        ] {
            let shape = Shape {
                name: "preallocated",
                backing,
                extended,
                data_file,
                ..PLAIN
            };
            let mut dice = Dice::new(3);
            let mut lab = Lab::new(&shape, &mut dice);
            let disk = lab.open();
            disk.write_at(&[9; 700_000], GuestOffset(100_000)).unwrap();
            lab.model[100_000..800_000].fill(9);
            disk.discard(GuestOffset(0), 300_000).unwrap();
            let mut now = vec![0; 300_000];
            disk.read_at(&mut now, GuestOffset(0)).unwrap();
            lab.model[..300_000].copy_from_slice(&now);
            disk.preallocate(0..shape.size, how).unwrap();
            lab.compare(&disk, "preallocated");
            disk.write_at(&[5; 70_000], GuestOffset(3_500_000)).unwrap();
            lab.model[3_500_000..3_570_000].fill(5);
            disk.close().unwrap();
            lab.settle("preallocated");
        }
    }
}

#[test]
fn the_map_of_a_disk_being_written_is_that_of_the_stack_it_becomes() {
    for backing in [None, Some(2_500_096)] {
        let shape = Shape {
            name: "mapped",
            backing,
            ..PLAIN
        };
        let mut dice = Dice::new(11);
        let mut lab = Lab::new(&shape, &mut dice);
        let disk = lab.open();
        for _ in 0..40 {
            super::lab::act(&disk, &mut lab.model, 0..shape.size, &mut dice);
        }
        disk.flush().unwrap();
        let layers = lab.layers();
        let stack = catena_engine::Stack::new(layers);
        assert_eq!(extents(&disk), extents(&stack));
    }
}

fn extents(disk: &dyn Disk) -> Vec<catena_engine::Extent> {
    let mut all = Vec::new();
    let (mut at, end) = (GuestOffset(0), GuestOffset(disk.size()));
    while at < end {
        for extent in disk.extents(at, end).unwrap() {
            at = extent.end();
            extent.push_to(&mut all);
        }
    }
    all
}

#[test]
fn compressed_clusters_pack_as_with_qemu() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 theirs.qcow2 20M");
    std::fs::copy(folder.file("theirs.qcow2"), folder.file("ours.qcow2")).unwrap();
    let disk = Arc::new(open(&folder, "ours.qcow2"));
    let mut commands = Vec::new();
    for cluster in 0..100u64 {
        let at = cluster << 16;
        commands.push(format!("write -q -c -P 3 {at} 65536"));
        disk.write_compressed(&[3; 65536], GuestOffset(at)).unwrap();
    }
    Arc::into_inner(disk).unwrap().close().unwrap();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    folder.io("qcow2", "theirs.qcow2", &commands);
    let clusters = |image: &str| {
        let check: serde_json::Value = serde_json::from_str(&seen(&folder, image).1).unwrap();
        (
            check["compressed-clusters"].clone(),
            check["image-end-offset"].clone(),
        )
    };
    assert_eq!(clusters("ours.qcow2"), clusters("theirs.qcow2"));
}

#[test]
fn the_metadata_of_a_disk_that_grows_is_preallocated_as_with_qemu() {
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=64k,extended_l2=on",
    ] {
        let folder = Folder::new();
        folder.img(&format!("create -q -f qcow2 -o {options} theirs.qcow2 3M"));
        folder.io("qcow2", "theirs.qcow2", &["write -q -P 1 100k 1M"]);
        std::fs::copy(folder.file("theirs.qcow2"), folder.file("ours.qcow2")).unwrap();
        let disk = open(&folder, "ours.qcow2");
        disk.grow(20 << 20).unwrap();
        disk.preallocate(3 << 20..20 << 20, Preallocation::Metadata)
            .unwrap();
        disk.close().unwrap();
        folder.img("resize -q --preallocation=metadata theirs.qcow2 20M");
        assert_eq!(
            seen(&folder, "ours.qcow2"),
            seen(&folder, "theirs.qcow2"),
            "{options}"
        );
    }
}

#[test]
fn metadata_that_is_preallocated_takes_up_no_space_for_data() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -o cluster_size=4k ours.qcow2 200M");
    let disk = open(&folder, "ours.qcow2");
    disk.preallocate(0..200 << 20, Preallocation::Metadata).unwrap();
    disk.close().unwrap();
    folder.img("create -q -f qcow2 -o cluster_size=4k,preallocation=metadata theirs.qcow2 200M");
    let blocks = |name: &str| std::fs::metadata(folder.file(name)).unwrap().blocks();
    let (ours, theirs) = (blocks("ours.qcow2"), blocks("theirs.qcow2"));
    assert!(ours <= theirs + theirs / 4, "{ours} blocks, with QEMU {theirs}");
}

#[test]
fn what_was_cut_off_in_the_middle_of_a_cluster_does_not_come_back() {
    for options in [
        "cluster_size=64k",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=2M",
        "compat=0.10",
    ] {
        let folder = Folder::new();
        folder.img(&format!("create -q -f qcow2 -o {options} image.qcow2 3M"));
        folder.io("qcow2", "image.qcow2", &["write -q -P 7 0 3M"]);
        folder.img("resize -q --shrink image.qcow2 1000448");
        let disk = open(&folder, "image.qcow2");
        for size in [1_000_960, 3 << 20] {
            disk.grow(size).unwrap();
        }
        let mut bytes = vec![1; 3 << 20];
        disk.read_at(&mut bytes, GuestOffset(0)).unwrap();
        disk.close().unwrap();
        assert!(bytes[..1_000_448].iter().all(|byte| *byte == 7), "{options}");
        assert!(bytes[1_000_448..].iter().all(|byte| *byte == 0), "{options}");
        folder.io(
            "qcow2",
            "image.qcow2",
            &["read -q -P 7 0 1000448", "read -q -P 0 1000448 2145280"],
        );
        folder.img("check -q -f qcow2 image.qcow2");
    }
}
