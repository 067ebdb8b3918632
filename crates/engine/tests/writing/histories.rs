//! Random histories of what guests do, on all kinds of images.

use super::lab::{Lab, PLAIN, Shape, act};
use catena_engine::Disk;
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
