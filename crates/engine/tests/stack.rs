//! Stacks of layers against the same layers written over each other, however little memory the merged map may take.
#![cfg(test)]

use catena_engine::{Disk, Extent, ExtentKind, FileRole, GuestOffset, HostOffset, Image, Result, Stack};
use catena_storage::{MemoryStorage, Storage};
use catena_testkit::dice::Dice;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const UNIT: u64 = 1 << 20;
/// Larger than what is merged as one piece.
const UNITS: u64 = 300;

/// A layer that says something about some units, and counts how often it is asked.
#[derive(Debug)]
struct Patches {
    size: u64,
    kinds: Vec<ExtentKind>,
    store: Arc<dyn Storage>,
    asked: AtomicU64,
}

impl Patches {
    fn new(dice: &mut Dice, number: u8, units: u64) -> Self {
        let store = MemoryStorage::with_len(units * UNIT);
        let kinds = (0..units).map(|unit| match dice.below(6) {
            0 => {
                let bytes = [number, unit as u8, (unit >> 8) as u8, 1];
                store.write_all_at(&bytes, unit * UNIT).unwrap();
                ExtentKind::Data {
                    file: FileRole::Image,
                    offset: HostOffset(unit * UNIT),
                }
            }
            1 => ExtentKind::Zero { offset: None },
            _ => ExtentKind::Unallocated,
        });
        Self {
            size: units * UNIT,
            kinds: kinds.collect(),
            store: Arc::new(store),
            asked: AtomicU64::new(0),
        }
    }
}

impl Image for Patches {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn map(&self, start: GuestOffset, end: GuestOffset, extents: &mut Vec<Extent>) -> Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        for (unit, kind) in (0..).zip(&self.kinds) {
            let extent = Extent {
                start: GuestOffset(unit * UNIT),
                len: UNIT,
                kind: *kind,
                layer: 0,
            };
            if let Some(part) = extent.clip(start, end) {
                part.push_to(extents);
            }
        }
        Ok(())
    }

    fn storage(&self, _: FileRole) -> Result<&Arc<dyn Storage>> {
        Ok(&self.store)
    }

    fn cluster_size(&self) -> u64 {
        UNIT
    }
}

/// The first bytes of each unit as a guest sees them that reads layer by layer.
fn plainly(layers: &[Arc<Patches>], unit: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    for layer in layers {
        match layer.kinds.get(unit as usize) {
            Some(ExtentKind::Unallocated) => {}
            Some(ExtentKind::Data { offset, .. }) => {
                layer.store.read_at(&mut bytes, offset.0).unwrap();
                return bytes;
            }
            // Zeros, or the layer ends here, and nobody below is asked.
            _ => return bytes,
        }
    }
    bytes
}

fn layers(dice: &mut Dice, depth: u8) -> Vec<Arc<Patches>> {
    let patches = (0..depth).map(|number| {
        let units = if number > 0 && dice.chance(20) {
            dice.within(1..UNITS)
        } else {
            UNITS
        };
        Arc::new(Patches::new(dice, number, units))
    });
    patches.collect()
}

fn stack(layers: &[Arc<Patches>]) -> Stack {
    let images = layers
        .iter()
        .map(|layer| (Arc::clone(layer) as Arc<dyn Image>, PathBuf::from("layer")));
    Stack::new(images)
}

fn asked(layers: &[Arc<Patches>]) -> u64 {
    layers
        .iter()
        .map(|layer| layer.asked.swap(0, Ordering::Relaxed))
        .sum()
}

#[test]
fn what_was_dropped_is_made_again_and_reads_as_before() {
    let mut dice = Dice::new(11);
    for depth in [1, 2, 7, 30] {
        let layers = layers(&mut dice, depth);
        for disk in [
            stack(&layers),
            stack(&layers).with_index_bytes(0),
            stack(&layers).with_index_bytes(3000),
            stack(&layers).for_walking().with_index_bytes(5000),
        ] {
            for _ in 0..600 {
                let unit = dice.below(UNITS);
                let mut bytes = [0; 4];
                disk.read_at(&mut bytes, GuestOffset(unit * UNIT)).unwrap();
                assert_eq!(bytes, plainly(&layers, unit));
            }
            // A read over several stretches.
            let from = dice.below(UNITS / 2);
            let mut bytes = vec![0xff; (130 * UNIT) as usize];
            disk.read_at(&mut bytes, GuestOffset(from * UNIT)).unwrap();
            for (unit, found) in (from..).zip(bytes.chunks(UNIT as usize)) {
                assert_eq!(found[..4], plainly(&layers, unit));
                assert!(found[4..].iter().all(|byte| *byte == 0));
            }
        }
    }
}

#[test]
fn the_map_keeps_to_its_memory_and_a_dropped_stretch_costs_one_merge() {
    let mut dice = Dice::new(12);
    let layers = layers(&mut dice, 5);
    let read = |disk: &Stack, unit: u64| disk.read_at(&mut [0; 4], GuestOffset(unit * UNIT)).unwrap();
    let all = stack(&layers);
    for unit in (0..UNITS).chain(0..UNITS) {
        read(&all, unit);
    }
    let whole = all.index_bytes();
    assert!(
        asked(&layers) <= 5 * 5,
        "each layer once for each of five stretches"
    );

    let some = stack(&layers).with_index_bytes(whole / 2);
    for unit in 0..UNITS {
        read(&some, unit);
        assert!(some.index_bytes() <= whole / 2);
    }
    asked(&layers);
    read(&some, 0);
    let again = asked(&layers);
    read(&some, 1);
    assert!(again > 0 && again <= 5);
    assert_eq!(asked(&layers), 0);
}

#[test]
fn threads_read_the_same_while_stretches_come_and_go() {
    let mut dice = Dice::new(13);
    let layers = layers(&mut dice, 9);
    let disk = stack(&layers).with_index_bytes(3000);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (disk, layers) = (&disk, &layers);
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                for _ in 0..3000 {
                    let unit = dice.below(UNITS);
                    let mut bytes = [0; 4];
                    disk.read_at(&mut bytes, GuestOffset(unit * UNIT)).unwrap();
                    assert_eq!(bytes, plainly(layers, unit));
                }
            });
        }
    });
}
