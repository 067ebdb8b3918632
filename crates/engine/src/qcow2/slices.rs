//! The active L1 table, and the L2 tables in slices: what is read and changed of the mapping, in memory.
//!
//! A slice holds at most 4 KiB of a table. Slices that nobody uses are dropped when there are too many; those that have been changed are
//! held by whoever will write them. So whoever holds a slice holds the only one there is of its kind.

use super::numbers::Numbers;
use super::places::be64s;
use crate::error::Result;
use catena_format::qcow2::Layout;
use catena_storage::Storage;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Most bytes of a slice.
const SLICE_BYTES: u64 = 4096;
/// The cache is split, so that threads seldom meet.
const SHARDS: u64 = 16;

/// Which slice: the index of its table in the L1 table, and its number within the table.
pub(crate) type Key = (u64, u64);

/// A part of an L2 table: one number for each entry, or two with extended entries.
#[derive(Debug)]
pub(crate) struct Slice {
    words: RwLock<Vec<u64>>,
    used: AtomicBool,
    /// It is known to have space on the medium.
    kept: AtomicBool,
}

impl Slice {
    fn new(words: Vec<u64>) -> Arc<Self> {
        Arc::new(Self {
            words: RwLock::new(words),
            used: AtomicBool::new(true),
            kept: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    pub(crate) fn set_kept(&self) {
        self.kept.store(true, Ordering::Release);
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Vec<u64>> {
        self.words.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Vec<u64>> {
        self.words.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slice as it is on disk.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.read().iter().flat_map(|word| word.to_be_bytes()).collect()
    }
}

/// The sizes of slices, which the layout decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceShape {
    pub(crate) layout: Layout,
    /// Entries of a slice.
    pub(crate) entries: u64,
}

impl SliceShape {
    pub(crate) fn of(layout: Layout) -> Self {
        let table = layout.cluster_bits.size();
        let bytes = table.min(SLICE_BYTES);
        Self {
            layout,
            entries: bytes / layout.l2_entry_size(),
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        self.entries * self.layout.l2_entry_size()
    }

    /// Which slice a guest cluster's entry is in, and where in it.
    pub(crate) fn place(self, cluster: u64) -> (Key, u64) {
        let per_table = self.layout.l2_entries();
        let in_table = cluster % per_table;
        (
            (cluster / per_table, in_table / self.entries),
            in_table % self.entries,
        )
    }
}

/// The slices that are in memory.
#[derive(Debug)]
pub(crate) struct Slices {
    shape: SliceShape,
    shards: Vec<Mutex<Shard>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Shard {
    slices: Numbers<Key, Arc<Slice>>,
    turn: VecDeque<Key>,
    /// How often something was dropped: what was read from the disk before may be old.
    dropped: u64,
}

impl Slices {
    /// Keeps about `bytes` of slices that nobody uses.
    pub(crate) fn new(shape: SliceShape, bytes: u64) -> Self {
        let most = bytes / shape.bytes() / SHARDS;
        Self {
            shape,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most: usize::try_from(most).unwrap_or(usize::MAX).max(4),
        }
    }

    fn shard(&self, key: Key) -> Option<std::sync::MutexGuard<'_, Shard>> {
        let number = (key.0.wrapping_mul(31).wrapping_add(key.1)) % SHARDS;
        let shard = self.shards.get(usize::try_from(number).ok()?)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The slice, if it is in memory.
    pub(crate) fn get(&self, key: Key) -> Option<Arc<Slice>> {
        let shard = self.shard(key)?;
        let slice = shard.slices.get(&key)?;
        slice.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(slice))
    }

    /// The slice, read where it is not in memory: `table` says where its table is, nowhere meaning that it is all zeros.
    ///
    /// It is asked for each attempt, since a table may move meanwhile.
    pub(crate) fn load(
        &self,
        key: Key,
        storage: &dyn Storage,
        table: impl Fn() -> Result<Option<u64>>,
    ) -> Result<Arc<Slice>> {
        loop {
            if let Some(slice) = self.get(key) {
                return Ok(slice);
            }
            let dropped = self.shard(key).map(|shard| shard.dropped);
            let words = self.fetch(key, storage, table()?)?;
            let Some(mut shard) = self.shard(key) else {
                return Ok(Slice::new(words));
            };
            if let Some(slice) = shard.slices.get(&key) {
                return Ok(Arc::clone(slice));
            }
            if dropped == Some(shard.dropped) {
                let slice = Slice::new(words);
                shard.insert(key, Arc::clone(&slice), self.most);
                return Ok(slice);
            }
        }
    }

    fn fetch(&self, key: Key, storage: &dyn Storage, table: Option<u64>) -> Result<Vec<u64>> {
        let len = usize::try_from(self.shape.bytes()).unwrap_or_default();
        let mut bytes = vec![0; len];
        if let Some(table) = table {
            // Past the end of the file there are zeros, as QEMU has it.
            storage.read_at(
                &mut bytes,
                table.saturating_add(key.1.saturating_mul(self.shape.bytes())),
            )?;
        }
        Ok(be64s(&bytes).collect())
    }
}

impl Shard {
    fn insert(&mut self, key: Key, slice: Arc<Slice>, most: usize) {
        // Each slice gets a second chance if it was used; those in use stay.
        let mut chances = self.turn.len().saturating_mul(2).min(64);
        while self.slices.len() >= most && chances > 0 {
            chances -= 1;
            let Some(candidate) = self.turn.pop_front() else {
                break;
            };
            let idle = self.slices.get(&candidate).is_some_and(|slice| {
                Arc::strong_count(slice) == 1 && !slice.used.swap(false, Ordering::Relaxed)
            });
            if idle {
                self.slices.remove(&candidate);
                self.dropped = self.dropped.wrapping_add(1);
            } else {
                self.turn.push_back(candidate);
            }
        }
        self.slices.insert(key, slice);
        self.turn.push_back(key);
    }
}

/// The active L1 table.
#[derive(Debug)]
pub(crate) struct L1 {
    pub(crate) entries: Vec<u64>,
    /// Tables that are not on the disk yet, by L1 index: each a copy of the table named, or empty.
    pub(crate) fresh: Numbers<u64, Option<u64>>,
}

impl L1 {
    /// The entry of an index; 0 past the end.
    pub(crate) fn entry(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.entries.get(index))
            .copied()
            .unwrap_or(0)
    }

    /// The bytes of a stretch of the table.
    pub(crate) fn to_bytes(&self, first: u64, count: u64) -> Vec<u8> {
        let skip = usize::try_from(first).unwrap_or(usize::MAX);
        let take = usize::try_from(count).unwrap_or(usize::MAX);
        self.entries
            .iter()
            .skip(skip)
            .take(take)
            .flat_map(|entry| entry.to_be_bytes())
            .collect()
    }
}
