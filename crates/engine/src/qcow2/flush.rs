//! What has changed in memory goes to the disk, in an order in which every cut leaves the image whole.
//!
//! 1. Refcounts, whole new tables, and the data: nothing refers to them yet. Made durable.
//! 2. Where refcount blocks are new, the refcount table, or the header that names a new table. Made durable.
//! 3. L2 slices and L1 entries. What they name has been durable since step 1, refcounts included. Made durable.
//! 4. What they named before is free: on the disk nothing names it any more.
//!
//! Entries that change during a flush are the next one's business. Where a step fails because the medium is full, everything that was
//! taken is taken again by the next flush.

use super::disk::{LetGo, Qcow2Disk, Was};
use super::places::Section;
use super::refcounts::RefcountChanges;
use super::slices::{Key, Slice};
use crate::error::Result;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Entries of a sector of the L1 table.
pub(super) const L1_SECTOR: u64 = 64;

/// What a flush has taken upon itself.
#[derive(Default)]
struct Taken {
    /// Held so that they stay in memory, with their bytes as they were.
    slices: HashMap<Key, (Arc<Slice>, Vec<u8>)>,
    /// Sectors of the L1 table, with their bytes.
    l1: Vec<(u64, Vec<u8>)>,
    /// New tables, and what they are copies of.
    fresh: Vec<(u64, u64, Option<u64>)>,
    refcounts: RefcountChanges,
    let_go: Vec<LetGo>,
    len: u64,
}

impl Qcow2Disk {
    /// Makes everything durable that was written before.
    pub(super) fn flush_all(&self) -> Result<()> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        let unsynced = self.unsynced.swap(false, Ordering::AcqRel);
        let mut taken = self.take();
        if !unsynced && taken.is_empty() {
            return Ok(());
        }
        let mut refcounts_done = false;
        let done = self
            .write_taken(&mut taken, unsynced, &mut refcounts_done)
            .map_err(|error| self.damaged(error));
        if let Err(error) = done {
            self.unsynced.fetch_or(unsynced, Ordering::AcqRel);
            self.put_back(taken, refcounts_done)?;
            return Err(error);
        }
        self.release(&taken.let_go)
    }

    /// Flushes until nothing is left to write: also the refcounts of what the flush itself has made free.
    pub(super) fn settle(&self) -> Result<()> {
        self.flush_all()?;
        self.flush_all()
    }

    fn take(&self) -> Taken {
        let mut meta = self.meta();
        let slices: HashMap<_, _> = std::mem::take(&mut meta.dirty_slices)
            .into_iter()
            .map(|(key, slice)| {
                let bytes = slice.to_bytes();
                (key, (slice, bytes))
            })
            .collect();
        let l1 = self.l1();
        let sectors = std::mem::take(&mut meta.dirty_l1);
        Taken {
            slices,
            l1: sectors
                .into_iter()
                .map(|sector| (sector, l1.to_bytes(sector * L1_SECTOR, L1_SECTOR)))
                .collect(),
            fresh: l1
                .fresh
                .iter()
                .filter_map(|(index, from)| {
                    let table = catena_format::qcow2::L1Entry(l1.entry(*index)).offset()?;
                    Some((*index, table, *from))
                })
                .collect(),
            refcounts: meta.refcounts.take_changes(),
            let_go: std::mem::take(&mut meta.let_go),
            len: meta.len,
        }
    }

    fn put_back(&self, taken: Taken, refcounts_done: bool) -> Result<()> {
        let mut meta = self.meta();
        for (key, (slice, _)) in taken.slices {
            meta.dirty_slices.entry(key).or_insert(slice);
        }
        meta.dirty_l1.extend(taken.l1.iter().map(|(sector, _)| *sector));
        let later = std::mem::replace(&mut meta.let_go, taken.let_go);
        meta.let_go.extend(later);
        if refcounts_done {
            return Ok(());
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        meta.refcounts.not_written(&taken.refcounts, &mut places)
    }

    fn write_taken(&self, taken: &mut Taken, unsynced: bool, refcounts_done: &mut bool) -> Result<()> {
        let entries = !taken.slices.is_empty() || !taken.l1.is_empty();
        let metadata = entries || !taken.refcounts.is_empty();
        if metadata {
            self.write_unreferenced(taken)?;
        }
        if unsynced && let Some(data_file) = &self.data_file {
            self.attempt(data_file.flush())?;
        }
        if metadata || self.data_file.is_none() {
            self.attempt(self.storage.flush())?;
        }
        self.switch_refcounts(taken)?;
        *refcounts_done = true;
        if entries {
            self.write_entries(taken)?;
            self.attempt(self.storage.flush())?;
        }
        Ok(())
    }

    /// What nothing on the disk refers to, or refers to as what it stays.
    fn write_unreferenced(&self, taken: &Taken) -> Result<()> {
        self.reach(taken.len)?;
        for (offset, bytes) in &taken.refcounts.blocks {
            self.write_section(bytes, *offset, Section::RefcountBlock)?;
        }
        if let Some((place, bytes)) = &taken.refcounts.table {
            self.write_section(bytes, place.offset, Section::RefcountTable)?;
        }
        for (index, table, from) in &taken.fresh {
            let mut bytes = vec![0; usize::try_from(self.cluster_size()).unwrap_or_default()];
            if let Some(from) = from {
                self.storage.read_at(&mut bytes, *from)?;
            }
            let slice_bytes = usize::try_from(self.shape.bytes()).unwrap_or(usize::MAX);
            for (number, to) in bytes.chunks_exact_mut(slice_bytes).enumerate() {
                if let Some((_, new)) = taken.slices.get(&(*index, number as u64)) {
                    to.copy_from_slice(new);
                }
            }
            self.write_section(&bytes, *table, Section::ActiveL2)?;
        }
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        for (index, _, _) in &taken.fresh {
            l1.fresh.remove(index);
        }
        Ok(())
    }

    /// Sees to it that the file is so long at least. Requests under way may be making it longer: what they wrote meanwhile would be cut off.
    fn reach(&self, len: u64) -> Result<()> {
        if self.storage.len()? >= len {
            return Ok(());
        }
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if self.storage.len()? < len {
            self.attempt(self.storage.set_len(len))?;
        }
        Ok(())
    }

    fn switch_refcounts(&self, taken: &mut Taken) -> Result<()> {
        if let Some((place, _)) = &taken.refcounts.table {
            self.write_header_fields(&[
                (48, &place.offset.to_be_bytes()),
                (56, &place.clusters.to_be_bytes()),
            ])?;
            let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
            header.refcount_table_offset = place.offset;
            header.refcount_table_clusters = place.clusters;
            drop(header);
            if let Some(old) = taken.refcounts.replaced {
                taken.let_go.push(LetGo {
                    cluster: self.cluster_of(old.offset),
                    clusters: old.clusters.into(),
                    was: Was::RefcountTable,
                });
            }
        }
        for (offset, bytes) in &taken.refcounts.entries {
            self.write_section(bytes, *offset, Section::RefcountTable)?;
        }
        if !taken.refcounts.entries.is_empty() {
            self.attempt(self.storage.flush())?;
        }
        self.meta().refcounts.written(&taken.refcounts);
        Ok(())
    }

    fn write_entries(&self, taken: &Taken) -> Result<()> {
        let fresh: BTreeSet<u64> = taken.fresh.iter().map(|(index, _, _)| *index).collect();
        let mut writes: Vec<(u64, &[u8])> = Vec::with_capacity(taken.slices.len());
        for (key, (_, bytes)) in &taken.slices {
            if fresh.contains(&key.0) {
                continue;
            }
            if let Some((table, _)) = self.table_of(key.0)? {
                writes.push((table + key.1 * self.shape.bytes(), bytes));
            }
        }
        writes.sort_unstable_by_key(|(offset, _)| *offset);
        for (offset, bytes) in writes {
            self.write_section(bytes, offset, Section::ActiveL2)?;
        }
        let l1_offset = self.header().l1_offset;
        for (sector, bytes) in &taken.l1 {
            let offset = l1_offset + sector * L1_SECTOR * 8;
            self.write_section(bytes, offset, Section::ActiveL1)?;
        }
        Ok(())
    }

    /// Writes metadata, after a look at what is there.
    pub(super) fn write_section(&self, bytes: &[u8], offset: u64, section: Section) -> Result<()> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.check(offset, bytes.len() as u64, Some(section))?;
        drop(places);
        self.attempt(self.storage.write_all_at(bytes, offset))
    }

    /// Makes free what nothing on the disk refers to any more. Requests under way may still use it: it waits for them.
    pub(super) fn release(&self, let_go: &[LetGo]) -> Result<()> {
        if let_go.is_empty() {
            return Ok(());
        }
        self.wait_for_requests();
        for holes in self.unused_ranges(let_go)? {
            // An offer to the file system; the clusters are free whatever comes of it.
            let _ = self.storage.punch_hole(holes.start, holes.end - holes.start);
        }
        let bits = self.layout.cluster_bits.get();
        let mut meta = self.meta();
        let mut outcome = Ok(());
        for go in let_go {
            let section = match go.was {
                Was::Data | Was::Discarded => None,
                Was::Compressed(host) => {
                    self.decompressed.remove(&host);
                    None
                }
                Was::L2Table => Some(Section::ActiveL2),
                Was::L1Table => Some(Section::ActiveL1),
                Was::RefcountTable => Some(Section::RefcountTable),
            };
            if let Some(section) = section {
                self.places
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(go.cluster << bits, go.clusters << bits, section);
            }
            // What fails here is leaked; everything else is still done.
            let dropped = meta.refcounts.drop_reference(go.cluster, go.clusters);
            outcome = outcome.and(dropped);
        }
        drop(meta);
        outcome.map_err(|error| self.damaged(error))
    }

    /// The host ranges of discarded clusters that have no other reference.
    fn unused_ranges(&self, let_go: &[LetGo]) -> Result<Vec<Range<u64>>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        if self.keep_freed {
            return Ok(ranges);
        }
        let bits = self.layout.cluster_bits.get();
        let mut meta = self.meta();
        for go in let_go.iter().filter(|go| go.was == Was::Discarded) {
            for cluster in go.cluster..go.cluster.saturating_add(go.clusters) {
                if meta.refcounts.get(cluster)? != 1 {
                    continue;
                }
                let (from, to) = (cluster << bits, (cluster + 1) << bits);
                match ranges.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => ranges.push(from..to),
                }
            }
        }
        Ok(ranges)
    }
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.l1.is_empty() && self.refcounts.is_empty() && self.let_go.is_empty()
    }
}
