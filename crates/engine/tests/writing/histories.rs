//! Random histories of what guests do, on all kinds of images.

use super::lab::{Lab, PLAIN, Shape, act, assert_same};
use catena_engine::{Disk, GuestOffset, WritableDisk};
use catena_format::qcow2::{Compression, Version};
use catena_testkit::dice::Dice;

pub fn shapes() -> Vec<Shape> {
    vec![
        PLAIN,
        Shape {
            name: "version 2",
            version: Version::V2,
            ..PLAIN
        },
        Shape {
            name: "version 2 over a backing",
            version: Version::V2,
            backing: Some(3 << 20),
            cluster_bits: 12,
            ..PLAIN
        },
        Shape {
            name: "over a shorter backing",
            backing: Some(3_000_320),
            ..PLAIN
        },
        Shape {
            name: "over a longer backing",
            size: (4 << 20) + 512 * 7,
            backing: Some(6 << 20),
            ..PLAIN
        },
        Shape {
            name: "smallest clusters",
            size: 1 << 20,
            cluster_bits: 9,
            ..PLAIN
        },
        Shape {
            name: "smallest clusters, wide refcounts",
            size: 1 << 20,
            cluster_bits: 9,
            refcount_order: 6,
            backing: Some(1 << 19),
            ..PLAIN
        },
        Shape {
            name: "largest clusters",
            size: 21 << 20,
            cluster_bits: 21,
            backing: Some(10 << 20),
            ..PLAIN
        },
        Shape {
            name: "refcounts of one bit",
            cluster_bits: 12,
            refcount_order: 0,
            ..PLAIN
        },
        Shape {
            name: "refcounts of two bits, zstd",
            cluster_bits: 14,
            refcount_order: 1,
            compression: Compression::Zstd,
            ..PLAIN
        },
        Shape {
            name: "refcounts of a byte",
            cluster_bits: 13,
            refcount_order: 3,
            ..PLAIN
        },
        Shape {
            name: "subclusters",
            extended: true,
            ..PLAIN
        },
        Shape {
            name: "small subclusters over a backing",
            extended: true,
            cluster_bits: 14,
            backing: Some(3_000_320),
            ..PLAIN
        },
        Shape {
            name: "large subclusters over a backing",
            size: 13 << 20,
            extended: true,
            cluster_bits: 20,
            backing: Some(13 << 20),
            ..PLAIN
        },
        Shape {
            name: "data file",
            data_file: Some(false),
            backing: Some(3 << 20),
            ..PLAIN
        },
        Shape {
            name: "raw data file",
            data_file: Some(true),
            ..PLAIN
        },
        Shape {
            name: "raw data file with subclusters",
            data_file: Some(true),
            extended: true,
            ..PLAIN
        },
    ]
}

#[test]
fn the_guest_sees_what_it_wrote_and_qemu_finds_nothing_wrong() {
    for (number, shape) in shapes().iter().enumerate() {
        let mut dice = Dice::new(number as u64);
        let mut lab = Lab::new(shape, &mut dice);
        for round in 0..3 {
            let disk = lab.open();
            let mut done = Vec::new();
            for _ in 0..60 {
                let size = disk.size();
                done.push(act(&disk, &mut lab.model, 0..size, &mut dice));
                if dice.chance(10) {
                    lab.compare(&disk, &format!("after {done:?}"));
                }
            }
            lab.compare(&disk, &format!("after {done:?}"));
            disk.close().unwrap();
            lab.settle(&format!("after round {round}, {done:?}"));
        }
    }
}

#[test]
fn many_guests_write_at_once_beside_each_other() {
    const GUESTS: u64 = 4;
    for (number, shape) in shapes().iter().enumerate() {
        let mut dice = Dice::new(1000 + number as u64);
        let mut lab = Lab::new(shape, &mut dice);
        for round in 0..2u64 {
            let disk = lab.open();
            // Neighbours share clusters, and sectors.
            let mut ends: Vec<u64> = (1..GUESTS).map(|_| 1 + dice.below(shape.size - 1)).collect();
            ends.sort_unstable();
            ends.push(disk.size());
            let mut start = 0;
            let ranges = ends.iter().map(|end| std::mem::replace(&mut start, *end)..*end);
            let model = &lab.model;
            let parts: Vec<_> = std::thread::scope(|scope| {
                let guests: Vec<_> = (0..)
                    .zip(ranges)
                    .map(|(guest, range): (u64, _)| {
                        let disk = &disk;
                        let mut own = model.clone();
                        scope.spawn(move || {
                            let mut dice = Dice::new(number as u64 * 100 + guest * 10 + round);
                            for _ in 0..if range.is_empty() { 0 } else { 50 } {
                                act(disk, &mut own, range.clone(), &mut dice);
                            }
                            (range, own)
                        })
                    })
                    .collect();
                guests.into_iter().map(|guest| guest.join().unwrap()).collect()
            });
            for (range, own) in parts {
                let range = range.start as usize..range.end as usize;
                lab.model[range.clone()].copy_from_slice(&own[range]);
            }
            lab.compare(&disk, "when all are done");
            disk.close().unwrap();
            lab.settle(&format!("after round {round} of many guests"));
        }
    }
}

#[test]
fn what_a_snapshot_shows_stays_whatever_is_written_later() {
    for (number, shape) in shapes()
        .iter()
        .filter(|shape| shape.data_file.is_none())
        .enumerate()
    {
        let mut dice = Dice::new(2000 + number as u64);
        let mut lab = Lab::new(shape, &mut dice);
        let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..4 {
            let disk = lab.open();
            let done: Vec<_> = (0..40)
                .map(|_| act(&disk, &mut lab.model, 0..shape.size, &mut dice))
                .collect();
            disk.close().unwrap();
            lab.settle(&format!("after round {round}, {done:?}"));
            for (name, model) in &snapshots {
                lab.folder.img(&format!(
                    "convert -f qcow2 -O raw -t unsafe -l snapshot.name={name} image.qcow2 shown.raw"
                ));
                let shown = std::fs::read(lab.folder.file("shown.raw")).unwrap();
                assert_same(&shown, model, &format!("{} snapshot {name}", shape.name));
            }
            // One bit counts to one: there is no room for a snapshot.
            if shape.refcount_order > 1 {
                match round {
                    2 => {
                        lab.folder.img("snapshot -d s0 image.qcow2");
                        snapshots.remove(0);
                    }
                    _ => {
                        lab.folder.img(&format!("snapshot -c s{round} image.qcow2"));
                        snapshots.push((format!("s{round}"), lab.model.clone()));
                    }
                }
            }
        }
    }
}

#[test]
fn qemu_writes_where_we_wrote_and_we_where_qemu_did() {
    for (number, shape) in shapes().iter().enumerate() {
        let mut dice = Dice::new(3000 + number as u64);
        let mut lab = Lab::new(shape, &mut dice);
        for round in 0..2 {
            let mut commands = Vec::new();
            let cluster = 1u64 << shape.cluster_bits;
            // QEMU does not compress over anything, and in version 2 discards nothing over a backing. Compressed clusters come first:
            // once one of them was let go, QEMU 10 packs the next into clusters that have become somebody else's.
            let compresses =
                shape.data_file.is_none() && (shape.version == Version::V3 || shape.backing.is_none());
            for _ in 0..if compresses { 6 } else { 0 } {
                let at = dice.below(shape.size / cluster) * cluster;
                let byte = 1 + dice.below(255) as u8;
                commands.push(format!("discard -q {at} {cluster}"));
                commands.push(format!("write -q -c -P {byte} {at} {cluster}"));
                lab.model[at as usize..][..cluster as usize].fill(byte);
            }
            for _ in 0..15 {
                let at = dice.below(shape.size / 512) * 512;
                let len = (512 * (1 + dice.below(300))).min(shape.size - at);
                let byte = dice.below(4) as u8;
                commands.push(match byte {
                    0 => format!("write -q -z {at} {len}"),
                    _ => format!("write -q -P {byte} {at} {len}"),
                });
                lab.model[at as usize..][..len as usize].fill(byte);
            }
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            lab.folder.io("qcow2", "image.qcow2", &commands);
            lab.settle(&format!("after round {round} of QEMU's, {commands:#?}"));
            let disk = lab.open();
            for _ in 0..30 {
                act(&disk, &mut lab.model, 0..shape.size, &mut dice);
            }
            disk.close().unwrap();
            lab.settle(&format!("after round {round} of two writers"));
        }
    }
}

#[test]
fn the_refcount_table_grows_as_the_image_does() {
    for (order, size) in [(6, 24 << 20), (4, 20 << 20), (2, 40 << 20)] {
        let shape = Shape {
            name: "growing refcount table",
            size,
            cluster_bits: 9,
            refcount_order: order,
            ..PLAIN
        };
        let mut dice = Dice::new(order.into());
        let mut lab = Lab::new(&shape, &mut dice);
        let disk = lab.open();
        let mut at = 0;
        while at < size {
            let len = (1 + dice.below(600_000)).min(size - at);
            let byte = dice.any() as u8;
            lab.model[at as usize..][..len as usize].fill(byte);
            let part = vec![byte; len as usize];
            disk.write_at(&part, GuestOffset(at)).unwrap();
            if dice.chance(30) {
                disk.flush().unwrap();
            }
            at += len;
        }
        let before = lab.header().refcount_table_clusters;
        disk.close().unwrap();
        let after = lab.header().refcount_table_clusters;
        assert!(after > 1, "it had {before}, and has {after}");
        lab.settle("grown");
        let disk = lab.open();
        for _ in 0..100 {
            act(&disk, &mut lab.model, 0..size, &mut dice);
        }
        disk.close().unwrap();
        lab.settle("written again");
    }
}
