//! What is done to an image as a whole, between its guests.

use std::sync::Arc;

use catena_engine::qcow2::bitmap::{Bitmaps, Bits, NewBitmap};
use catena_engine::qcow2::metadata::snapshot::{self, NewSnapshot};
use catena_engine::qcow2::metadata::{Amend, Repair, amend, repair, shrink};
use catena_engine::{ErrorKind, Result, StorageBytes};
use catena_format::Bytes;
use catena_format::qcow2::{Extension, Header, Version, rewrite};
use catena_storage::Storage;
use catena_testkit::storage::SECTOR;

use crate::history::{History, check_options, look};
use crate::model::Snapshots;

/// Internal snapshots at a time.
const SNAPSHOTS: usize = 3;

/// A change that is made beside what there is, and then at once.
#[derive(Clone, Debug)]
pub enum Change {
    Snapshot { name: String },
    Apply { index: usize },
    Delete { index: usize },
    Shrink { size: u64 },
    Amend(Amend),
    Repair,
}

impl History {
    /// Does something to the image as a whole.
    pub fn maintain(&mut self) {
        match self.dice.below(8) {
            0 => self.relink(),
            1 => self.grow(),
            2 | 3 => self.bitmaps(),
            _ => {
                self.close();
                let change = self.draw_change();
                self.note(&format!("{change:?}"));
                let image = Arc::clone(&self.image);
                let outcome = self.make(&change, &*image);
                self.made(&change, outcome);
            }
        }
    }

    /// The header names another backing image, which holds the same.
    fn relink(&mut self) {
        self.close();
        let bytes = StorageBytes::new(&*self.image).unwrap();
        let old = Header::read(&bytes).unwrap();
        let mut new = old.clone();
        if let Some(backing) = &mut new.backing {
            backing.name = vec![b'a'; 1 + self.dice.index(60)];
        }
        let kind = 0xca7e_0001;
        new.extensions.retain(|extension| extension.kind() != kind);
        if old.version == Version::V3 {
            let data = vec![0xee; self.dice.index(24)];
            new.extensions.push(Extension::Unknown { kind, data });
        }
        let area = bytes.read_some(0, old.cluster_bits.size() as usize).unwrap();
        // A small first cluster may be full.
        let plan = rewrite::plan(&area, &old, &new).unwrap_or_default();
        self.note(&format!("header rewritten in {} writes", plan.len()));
        for (offset, bytes) in plan {
            self.image.write_all_at(&bytes, offset).unwrap();
            self.image.flush().unwrap();
        }
    }

    /// The disk becomes larger, at once; what it held before is durable then.
    fn grow(&mut self) {
        let size = self.model.live.len() as u64;
        let grown = size + (1 + self.dice.below(24)) * SECTOR;
        if grown > self.layout.size * 3 / 2 {
            return;
        }
        self.note(&format!("grows from {size} to {grown}"));
        self.disk().grow(grown).unwrap();
        let mut live = self.model.live.clone();
        live.resize(grown as usize, 0);
        let seen = look(&self.files(), self.backing()).unwrap();
        assert!(seen.disk == live, "what is new is not zeros: {}", self.told());
        let snapshots = self.model.snapshots().clone();
        self.model.replaced(self.step, live, snapshots);
    }

    /// Persistent bitmaps come, go and change.
    fn bitmaps(&mut self) {
        self.close();
        let bytes = StorageBytes::new(&*self.image).unwrap();
        if Header::read(&bytes).unwrap().version == Version::V2 {
            return;
        }
        let kind = self.dice.below(4);
        let name = format!("bitmap {}", self.dice.below(3));
        let bit = self.dice.below(self.model.live.len() as u64);
        self.note(&format!("bitmaps, {kind}, {name}"));
        let size = self.model.live.len() as u64;
        let disk = self.disk();
        let mut bitmaps = Bitmaps::read(disk).unwrap();
        let there = bitmaps.list().any(|bitmap| bitmap.name == name);
        let mut records = None;
        if !there {
            bitmaps
                .add(&NewBitmap {
                    name: name.clone(),
                    granularity: Some(512),
                    enabled: kind != 0,
                })
                .unwrap();
            records = Some(true);
        } else if kind == 0 {
            bitmaps.remove(&name).unwrap();
            records = Some(false);
        } else if kind == 1 {
            bitmaps.clear(&name).unwrap();
            records = Some(true);
        } else {
            let mut bits = Bits::new(size, 512);
            bits.set(bit..bit + 5000);
            bitmaps.merge(&name, &bits, disk).unwrap();
        }
        bitmaps.store(disk).unwrap();
        if let Some(there) = records {
            self.model.clean(self.step, &name, there);
        }
    }

    /// Draws what to do to the image as a whole.
    pub fn draw_change(&mut self) -> Change {
        let count = self.model.snapshots().len();
        let size = self.model.live.len() as u64;
        match self.dice.below(13) {
            0..4 if count < SNAPSHOTS && self.layout.data_file.is_none() => Change::Snapshot {
                name: format!("snapshot of step {}", self.step),
            },
            4 | 5 if count > 0 => Change::Apply {
                index: self.dice.index(count),
            },
            0..8 if count > 0 => Change::Delete {
                index: self.dice.index(count),
            },
            8 => Change::Repair,
            9..12 => Change::Amend(self.draw_amendment()),
            _ => Change::Shrink {
                size: (size - self.dice.below(size / 3))
                    .next_multiple_of(SECTOR)
                    .min(size),
            },
        }
    }

    fn draw_amendment(&mut self) -> Amend {
        let mut amend = Amend::default();
        match self.dice.below(3) {
            0 => amend.version = Some(*self.dice.one_of(&[Version::V2, Version::V3])),
            1 => amend.lazy_refcounts = Some(self.dice.chance(50)),
            _ => amend.refcount_order = Some(*self.dice.one_of(&[0, 1, 2, 3, 4, 5, 6])),
        }
        amend
    }

    /// Does it.
    pub fn make(&self, change: &Change, image: &dyn Storage) -> Result<()> {
        let options = check_options();
        match change {
            Change::Snapshot { name } => {
                let new = NewSnapshot {
                    name: name.clone().into_bytes(),
                    ..NewSnapshot::default()
                };
                snapshot::create(image, &new, &options).map(|_| ())
            }
            Change::Apply { index } => snapshot::apply(image, *index, &options),
            Change::Delete { index } => snapshot::delete(image, *index, &options),
            Change::Shrink { size } => shrink(image, *size, &options),
            Change::Amend(amendment) => amend(image, amendment, &options),
            Change::Repair => repair(image, Repair::Leaks, &options).map(|_| ()),
        }
    }

    /// What the image is to be after it.
    pub fn after(&self, change: &Change) -> (Vec<u8>, Snapshots) {
        let mut live = self.model.live.clone();
        let mut snapshots = self.model.snapshots().clone();
        match change {
            Change::Snapshot { name } => snapshots.push((name.clone(), Arc::new(live.clone()))),
            Change::Apply { index } => live = snapshots[*index].1.to_vec(),
            Change::Delete { index } => drop(snapshots.remove(*index)),
            Change::Shrink { size } => live.truncate(*size as usize),
            Change::Amend(_) | Change::Repair => {}
        }
        (live, snapshots)
    }

    /// It was done, or refused: the model follows, and the image must agree.
    pub fn made(&mut self, change: &Change, outcome: Result<()>) {
        match outcome {
            Ok(()) => {
                let (live, snapshots) = self.after(change);
                let seen = look(&self.files(), self.backing()).unwrap();
                assert!(seen.disk == live, "another disk: {}", self.told());
                assert!(seen.snapshots == snapshots, "other snapshots: {}", self.told());
                self.model.replaced(self.step, live, snapshots);
            }
            Err(error) => {
                // Narrow refcounts, bitmaps, data files and version 2 set limits.
                let kinds = [ErrorKind::TooLarge, ErrorKind::Conflict, ErrorKind::Unsupported];
                assert!(kinds.contains(&error.kind()), "{}: {}", error.full(), self.told());
                self.note("refused");
            }
        }
    }
}
