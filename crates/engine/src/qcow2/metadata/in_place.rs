//! Changes that are safe where they are: single entries, each of which is right by itself.

use super::tables;
use crate::error::Result;
use crate::qcow2::check::counts::{Counts, max_of_order};
use crate::qcow2::check::refcounts::{self, Refcounts, be64};
use crate::qcow2::check::roots::{Endless, Roots};
use crate::qcow2::check::table::{Kind, Shape, ZERO};
use crate::qcow2::check::walk::{COPIED, OFFSET_MASK, Walk};
use crate::qcow2::check::{self, CheckOptions, Found, Room};
use catena_format::qcow2::RefcountWidth;
use catena_storage::Storage;
use std::ops::Range;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Refcounts that are gathered before they are written.
const BATCH: usize = 1 << 16;
/// Runs of clusters that have become free of which the caller is told.
const FREED: usize = 1 << 17;

/// An image with what is known of its clusters.
pub(super) struct Ground<'a> {
    storage: &'a dyn Storage,
    roots: &'a Roots,
    /// References to each cluster.
    counts: Counts,
    /// Those of them that are of L1 entries.
    tables: Counts,
    refcounts: Refcounts,
    clusters: u64,
}

impl<'a> Ground<'a> {
    /// Counts all references of an image.
    pub fn of(storage: &'a dyn Storage, roots: &'a Roots, options: &CheckOptions<'a>) -> Result<Self> {
        let header = &roots.header;
        let (file_len, threads) = (storage.len()?, options.threads.max(1));
        let all = check::clusters_of(header, file_len)?;
        let table = refcounts::read_table(storage, header)?;
        let refcounts = Refcounts::read(storage, header, table, (0, all, all), usize::MAX, threads)?;
        // More than a refcount can hold: what is shared must not look as if it were alone.
        let counts = Counts::new(0, all, u64::MAX, usize::MAX);
        let tables = Counts::new(0, all, u64::MAX, usize::MAX);
        let room = Room::new(0);
        let mut found = Found::default();
        let mut walk = Walk::new(storage, file_len, roots, &counts, &room, threads);
        walk.tables = Some(&tables);
        walk.watch = options.watch;
        walk.all()?;
        walk.rest(&mut found)?;
        let bits = header.cluster_bits;
        for entry in refcounts
            .table
            .iter()
            .filter(|entry| **entry != 0 && bits.offset_in_cluster(**entry) == 0)
        {
            walk.count(*entry, bits.size(), &mut found);
        }
        let clusters = walk.clusters.load(std::sync::atomic::Ordering::Relaxed);
        Ok(Self {
            storage,
            roots,
            counts,
            tables,
            refcounts,
            clusters,
        })
    }

    /// Makes refcounts what the references say: lower, and higher where `raise` says so. Each is in a block already.
    /// Tells which clusters are free now; they still hold what they held.
    pub fn mend_refcounts(&self, raise: bool) -> Result<Vec<Range<u64>>> {
        let most = max_of_order(self.roots.header.refcount_order);
        let mut changes: Vec<(u64, u64)> = Vec::new();
        let mut freed: Vec<Range<u64>> = Vec::new();
        for start in self.counts.chunk_starts() {
            let (Some(on_disk), Some(counted)) =
                (self.refcounts.counts.snapshot(start), self.counts.snapshot(start))
            else {
                continue;
            };
            let within = |at: u64| start + at < self.clusters;
            for (at, refcount, references) in on_disk.differences(&counted) {
                let references = references.min(most);
                if !within(at) || refcount == references || (references > refcount && !raise) || refcount == 0
                {
                    continue;
                }
                let cluster = start + at;
                changes.push((cluster, references));
                if references > 0 {
                    continue;
                }
                if let Some(last) = freed.last_mut().filter(|last| last.end == cluster) {
                    last.end += 1;
                } else if freed.len() < FREED {
                    freed.push(cluster..cluster + 1);
                }
            }
            if changes.len() >= BATCH {
                self.write_refcounts(&changes)?;
                changes.clear();
            }
        }
        self.write_refcounts(&changes)?;
        Ok(freed)
    }

    /// Writes refcounts, given in the order of their clusters.
    fn write_refcounts(&self, changes: &[(u64, u64)]) -> Result<()> {
        let header = &self.roots.header;
        let width = RefcountWidth::of(header);
        let per_block = self.refcounts.per_block();
        let mut block = vec![0; usize::try_from(header.cluster_bits.size()).unwrap_or_default()];
        let mut changes = changes.iter().peekable();
        while let Some((cluster, _)) = changes.peek() {
            let index = *cluster / per_block;
            let offset = self.refcounts.block_offset(index);
            Endless(self.storage).fill(&mut block, offset)?;
            let before = block.clone();
            while let Some((cluster, value)) = changes.next_if(|(cluster, _)| *cluster / per_block == index) {
                // The counts stop at what the width holds.
                let _ = width.set(&mut block, cluster % per_block, *value);
            }
            self.write_changed(&before, &block, offset)?;
        }
        Ok(())
    }

    /// Writes the sectors of a table that have changed, those in a row at once: each is right by itself, so it does not matter which of
    /// them arrive.
    fn write_changed(&self, before: &[u8], now: &[u8], offset: u64) -> Result<()> {
        let sectors: Vec<_> = before.chunks(SECTOR).zip(now.chunks(SECTOR)).collect();
        let mut at = offset;
        for row in sectors.chunk_by(|(a, b), (c, d)| (a == b) == (c == d)) {
            let len = row.iter().map(|(_, now)| now.len()).sum();
            if row.first().is_some_and(|(before, now)| before != now) {
                let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
                let bytes = now.get(start..).and_then(|rest| rest.get(..len));
                self.storage.write_all_at(bytes.unwrap_or_default(), at)?;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Whether a cluster is an L2 table and nothing else.
    fn is_table(&self, offset: u64) -> bool {
        let bits = self.roots.header.cluster_bits;
        let cluster = offset >> bits.get();
        let references = self.counts.get(cluster);
        bits.offset_in_cluster(offset) == 0 && (references == 1 || references == self.tables.get(cluster))
    }

    /// Sets `COPIED` flags of the active disk where the refcount is one, and clears them elsewhere.
    pub fn mend_flags(&self) -> Result<()> {
        let header = &self.roots.header;
        let shape = Shape::of(header);
        let mut l1 = tables::read_l1(self.storage, header.l1_offset, header.l1_entries)?;
        let before = bytes_of(&l1);
        let mut table = vec![0; usize::try_from(header.cluster_bits.size()).unwrap_or_default()];
        for entry in l1.iter_mut().filter(|entry| **entry & OFFSET_MASK != 0) {
            let offset = *entry & OFFSET_MASK;
            let cluster = offset >> header.cluster_bits.get();
            if self.refcounts.unreadable_block_of(cluster).is_some() {
                continue;
            }
            let alone = self.refcounts.counts.get(cluster) == 1;
            *entry = *entry & !COPIED | if alone { COPIED } else { 0 };
            if !self.is_table(offset) {
                continue;
            }
            Endless(self.storage).fill(&mut table, offset)?;
            let before = table.clone();
            if tables::settle_copied(shape, &self.refcounts.counts, &mut table) {
                self.write_changed(&before, &table, offset)?;
            }
        }
        self.write_changed(&before, &bytes_of(&l1), header.l1_offset)
    }

    /// Makes zeros of clusters that are kept behind zeros at a place where no cluster begins. Tells how many there were.
    pub fn zero_misplaced(&self) -> Result<u64> {
        let header = &self.roots.header;
        let snapshots = self
            .roots
            .snapshots
            .iter()
            .filter(|record| record.check(header).is_ok());
        let mut fixed = 0;
        for (offset, entries) in std::iter::once((header.l1_offset, header.l1_entries))
            .chain(snapshots.map(|record| (record.l1_offset, record.l1_entries)))
        {
            for entry in tables::read_l1(self.storage, offset, entries)? {
                let table = entry & OFFSET_MASK;
                if table != 0 && self.is_table(table) {
                    fixed += self.zero_misplaced_in(table)?;
                }
            }
        }
        Ok(fixed)
    }

    fn zero_misplaced_in(&self, offset: u64) -> Result<u64> {
        let header = &self.roots.header;
        let (shape, bits) = (Shape::of(header), header.cluster_bits);
        let mut table = vec![0; usize::try_from(bits.size()).unwrap_or_default()];
        Endless(self.storage).fill(&mut table, offset)?;
        let (before, mut fixed) = (table.clone(), 0);
        let step = usize::try_from(shape.layout.l2_entry_size()).unwrap_or(8);
        for raw in table.chunks_exact_mut(step) {
            let Some((entry, bitmap)) = raw.split_at_mut_checked(8) else {
                continue;
            };
            let old = be64(entry);
            let holds_data = if shape.extended {
                be64(bitmap) & 0xffff_ffff != 0
            } else {
                old & ZERO == 0
            };
            if shape.kind(old) != Kind::Allocated
                || bits.offset_in_cluster(old & OFFSET_MASK) == 0
                || holds_data
            {
                continue;
            }
            // A bitmap says by itself which subclusters are zeros, and where the backing image goes on to show.
            let zero = if shape.extended { 0 } else { ZERO };
            entry.copy_from_slice(&zero.to_be_bytes());
            fixed += 1;
        }
        if fixed > 0 {
            self.write_changed(&before, &table, offset)?;
        }
        Ok(fixed)
    }
}

fn bytes_of(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
