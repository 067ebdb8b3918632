//! The walk over all tables of an image, which counts the references to each cluster.
//!
//! It goes in QEMU's order, so that what it finds can be told in that order. L1 tables are walked in pieces by several
//! threads; what the pieces found is put together in order.

use super::counts::Counts;
use super::finding::FindingKind;
use super::found::{Found, Room};
use super::refcounts::{Refcounts, be64};
use super::roots::{Endless, Roots};
use super::table::{Shape, Tally};
use super::watch::Watch;
use crate::error::Result;
use catena_format::limits;
use catena_storage::Storage;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bits of an L1 entry that must not be set.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of an L1 or L2 entry that are an offset.
pub(in crate::qcow2) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The refcount is exactly one.
pub(in crate::qcow2) const COPIED: u64 = 1 << 63;
/// Pieces that are walked before their findings are put together.
const BATCH: usize = 4096;
/// Bytes of tables that are read before that is told.
const TOLD_AFTER: u64 = 1 << 20;

/// What the guest clusters of the active disk are, as QEMU counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Those with a host cluster.
    pub allocated: u64,
    /// Those of them that do not follow the one before, and all compressed ones.
    pub fragmented: u64,
    /// Those that are compressed.
    pub compressed: u64,
}

/// What all threads of a walk share.
pub(in crate::qcow2) struct Walk<'a> {
    /// The image.
    pub storage: &'a dyn Storage,
    /// Bytes of the image.
    pub file_len: u64,
    /// Where the references begin.
    pub roots: &'a Roots,
    /// The references that were counted.
    pub counts: &'a Counts,
    /// The refcounts on disk, where `COPIED` is to be checked against them.
    pub refcounts: Option<&'a Refcounts>,
    /// How often each L2 table is referred to, where others may refer to it, too.
    pub tables: Option<&'a Counts>,
    /// How many findings may be kept.
    pub room: &'a Room,
    /// One past the last cluster that is in the file or is referred to.
    pub clusters: AtomicU64,
    /// How many threads walk.
    pub threads: usize,
    /// Who watches.
    pub watch: Watch<'a>,
    /// L1 entries that have been walked.
    passed: AtomicU64,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(in crate::qcow2) struct Walked {
    /// About references.
    pub found: Found,
    /// About `COPIED` flags, which QEMU checks after everything else.
    pub copied: Found,
    /// What the active disk is made of.
    pub mapped: Mapped,
}

impl Walked {
    fn append(&mut self, later: Self) {
        self.found.append(later.found);
        self.copied.append(later.copied);
        self.mapped.allocated += later.mapped.allocated;
        self.mapped.fragmented += later.mapped.fragmented;
        self.mapped.compressed += later.mapped.compressed;
    }
}

/// A piece of an L1 table.
#[derive(Clone, Debug)]
struct Piece {
    /// Offset of the L1 table.
    table: u64,
    /// Entries of the whole table.
    entries: u64,
    /// Those of the piece.
    indices: Range<u64>,
    /// Whether it is the active L1 table.
    active: bool,
}

impl<'a> Walk<'a> {
    /// A walk with everything in it still to be counted.
    pub fn new(
        storage: &'a dyn Storage,
        file_len: u64,
        roots: &'a Roots,
        counts: &'a Counts,
        room: &'a Room,
        threads: usize,
    ) -> Self {
        Self {
            storage,
            file_len,
            roots,
            counts,
            refcounts: None,
            tables: None,
            room,
            clusters: AtomicU64::new(roots.header.cluster_bits.clusters(file_len)),
            threads,
            watch: Watch::default(),
            passed: AtomicU64::new(0),
        }
    }

    /// Counts every reference but those of the refcount structures themselves.
    pub fn all(&self) -> Result<Walked> {
        let mut walked = Walked::default();
        let header = &self.roots.header;
        self.count(0, header.cluster_bits.size(), &mut walked.found);
        self.pieces(self.active_pieces(), &mut walked)?;
        if header.has_data_file() && header.snapshot_count > 0 {
            let count = header.snapshot_count;
            walked
                .found
                .push(self.room, FindingKind::SnapshotsWithDataFile { count });
        }
        self.snapshots(&mut walked)?;
        self.count(
            header.snapshots_offset,
            self.roots.snapshots_len,
            &mut walked.found,
        );
        Ok(walked)
    }

    /// Counts what the header names beside: the refcount table, encryption, bitmaps.
    pub fn rest(&self, found: &mut Found) -> Result<()> {
        let header = &self.roots.header;
        let table = u64::from(header.refcount_table_clusters) * header.cluster_bits.size();
        self.count(header.refcount_table_offset, table, found);
        self.beside_refcounts(found)
    }

    /// Counts encryption and bitmaps.
    pub fn beside_refcounts(&self, found: &mut Found) -> Result<()> {
        let header = &self.roots.header;
        if let Some((offset, length)) = header.crypto_header() {
            self.count(offset, length, found);
        }
        if !self.roots.bitmaps_believed() {
            return Ok(());
        }
        if let Some(extension) = header.bitmaps() {
            self.count(extension.directory_offset, extension.directory_size, found);
        }
        for bitmap in &self.roots.bitmaps {
            let len = u64::from(bitmap.table_entries) * 8;
            self.count(bitmap.table_offset, len, found);
            self.bitmap_table(bitmap.table_offset, len, found)?;
        }
        Ok(())
    }

    fn bitmap_table(&self, offset: u64, len: u64, found: &mut Found) -> Result<()> {
        /// Bits of a bitmap table entry that must not be set.
        const RESERVED: u64 = 0xff00_0000_0000_01fe;
        let bits = self.roots.header.cluster_bits;
        let end = offset.saturating_add(len).min(self.file_len);
        let mut buf = vec![0; 1 << 16];
        let mut at = offset;
        while at < end {
            let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            let now = buf.get_mut(..n).unwrap_or_default();
            Endless(self.storage).fill(now, at)?;
            for entry in now.chunks_exact(8).map(be64) {
                let place = entry & OFFSET_MASK;
                if entry & RESERVED != 0
                    || bits.offset_in_cluster(place) != 0
                    || (place != 0 && entry & 1 != 0)
                {
                    let why = format!("invalid bitmap table entry {entry:#x}");
                    found.push(self.room, FindingKind::Bitmaps { why });
                } else if place != 0 {
                    self.count(place, bits.size(), found);
                }
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Counts a reference to each cluster of a range of bytes, unless the range is no part of the file.
    pub fn count(&self, offset: u64, size: u64, found: &mut Found) {
        if size == 0 {
            return;
        }
        let bits = self.roots.header.cluster_bits;
        let Some(last) = offset
            .checked_add(size - 1)
            .filter(|last| last.saturating_add(1) < self.file_len.saturating_add(bits.size()))
        else {
            found.push(self.room, FindingKind::PastEnd { offset, size });
            return;
        };
        let (first, last) = (offset >> bits.get(), last >> bits.get());
        self.count_clusters(first, last - first + 1, found);
    }

    /// Counts a reference to each cluster of a range that is known to be in the file.
    pub fn count_clusters(&self, first: u64, count: u64, found: &mut Found) {
        let bits = self.roots.header.cluster_bits;
        self.counts.add(first, count, |cluster| {
            let offset = cluster << bits.get();
            found.push(self.room, FindingKind::RefcountOverflow { offset });
        });
        let end = first.saturating_add(count);
        if end > self.clusters.load(Ordering::Relaxed) {
            self.clusters.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// Tells that so many more L1 entries have been walked.
    fn pass(&self, entries: u64) -> Result<()> {
        let layout = Shape::of(&self.roots.header).layout;
        let bytes = layout.l2_entries().saturating_mul(layout.cluster_bits.size());
        let snapshots = self.roots.snapshots.iter();
        let all = snapshots.map(|record| u64::from(record.l1_entries)).sum::<u64>()
            + u64::from(self.roots.header.l1_entries);
        let passed = self.passed.fetch_add(entries, Ordering::Relaxed) + entries;
        self.watch
            .tell(passed.saturating_mul(bytes), all.saturating_mul(bytes))
    }

    fn active_pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        let header = &self.roots.header;
        cut(header.l1_offset, header.l1_entries.into(), true, self.threads)
    }

    fn snapshots(&self, walked: &mut Walked) -> Result<()> {
        let bits = self.roots.header.cluster_bits;
        let mut pieces = Vec::new();
        for record in &self.roots.snapshots {
            let strings = || {
                // A string ends at its first NUL for whoever writes C.
                let text = |bytes: &[u8]| {
                    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                    String::from_utf8_lossy(bytes).into_owned()
                };
                (text(&record.id), text(&record.name))
            };
            let fault = if bits.offset_in_cluster(record.l1_offset) != 0 {
                let ((id, name), offset) = (strings(), record.l1_offset);
                Some(FindingKind::SnapshotL1Unaligned { id, name, offset })
            } else if u64::from(record.l1_entries) * 8 > limits::QCOW2_L1_BYTES {
                let ((id, name), entries) = (strings(), record.l1_entries);
                Some(FindingKind::SnapshotL1TooLarge { id, name, entries })
            } else {
                None
            };
            if let Some(fault) = fault {
                self.pieces(pieces.drain(..), walked)?;
                walked.found.push(self.room, fault);
                continue;
            }
            pieces.extend(cut(
                record.l1_offset,
                record.l1_entries.into(),
                false,
                self.threads,
            ));
            if pieces.len() > BATCH {
                self.pieces(pieces.drain(..), walked)?;
            }
        }
        self.pieces(pieces.into_iter(), walked)
    }

    /// Walks pieces in parallel and puts what they found together in order.
    fn pieces(&self, pieces: impl Iterator<Item = Piece>, walked: &mut Walked) -> Result<()> {
        let mut pieces = pieces.peekable();
        while pieces.peek().is_some() {
            let batch: Vec<Piece> = pieces.by_ref().take(BATCH).collect();
            let results: Vec<_> = batch.iter().map(|_| Mutex::new(None)).collect();
            let next = AtomicUsize::new(0);
            let work = || {
                let mut tally = Tally::new(self);
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(piece), Some(slot)) = (batch.get(index), results.get(index)) else {
                        return;
                    };
                    let result = self.piece(piece, &mut tally);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            };
            std::thread::scope(|scope| {
                for _ in 1..self.threads.min(batch.len()) {
                    scope.spawn(work);
                }
                work();
            });
            for result in results {
                if let Some(result) = result.into_inner().unwrap_or_else(PoisonError::into_inner) {
                    walked.append(result?);
                }
            }
        }
        Ok(())
    }

    fn piece(&self, piece: &Piece, tally: &mut Tally<'_, 'a>) -> Result<Walked> {
        if piece.indices.start == 0 {
            self.count(piece.table, piece.entries * 8, &mut tally.walked.found);
        }
        // Pieces that are left when it is to stop end here.
        self.pass(0)?;
        let (mut said, mut read) = (piece.indices.start, 0);
        let len = (piece.indices.end - piece.indices.start) * 8;
        let mut l1 = vec![0; usize::try_from(len).unwrap_or_default()];
        let at = piece.table.saturating_add(piece.indices.start * 8);
        Endless(self.storage).fill(&mut l1, at)?;
        for (index, entry) in piece.indices.clone().zip(l1.chunks_exact(8).map(be64)) {
            if entry == 0 {
                continue;
            }
            if entry & L1_RESERVED != 0 {
                tally.push(FindingKind::L1Reserved { entry });
            }
            let offset = entry & OFFSET_MASK;
            let bits = self.roots.header.cluster_bits;
            self.count(offset, bits.size(), &mut tally.walked.found);
            if bits.offset_in_cluster(offset) != 0 {
                tally.push(FindingKind::L2Unaligned { offset });
            }
            // A table whose refcount must be one is known to have no other reference when flags have been checked.
            let flags_checked = piece.active && self.refcounts.is_some();
            let alone = flags_checked && self.roots.snapshots.is_empty() && entry & COPIED != 0;
            if let Some(tables) = self.tables.filter(|_| !alone) {
                tables.add(offset >> bits.get(), 1, |_| ());
            }
            // An entry without an offset has no flag to be checked. Where the refcount of a table cannot be read, QEMU
            // does not check the flags in it either.
            let cluster = offset >> bits.get();
            let known = |refcounts: &Refcounts| refcounts.unreadable_block_of(cluster).is_none();
            let check_copied = piece.active && offset != 0 && self.refcounts.is_some_and(known);
            if check_copied {
                tally.l1_copied(index, entry)?;
            }
            tally.table(offset, piece.active, check_copied)?;
            read += bits.size();
            if read >= TOLD_AFTER {
                self.pass(index + 1 - said)?;
                (said, read) = (index + 1, 0);
            }
        }
        self.pass(piece.indices.end - said)?;
        Ok(std::mem::take(&mut tally.walked))
    }
}

/// An L1 table in pieces that several threads can share.
fn cut(table: u64, entries: u64, active: bool, threads: usize) -> impl Iterator<Item = Piece> + use<> {
    let len = (entries / (threads as u64 * 8).max(1)).clamp(16, 4096);
    (0..entries.div_ceil(len)).map(move |n| Piece {
        table,
        entries,
        indices: n * len..((n + 1) * len).min(entries),
        active,
    })
}
