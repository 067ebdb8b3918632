//! A change made beside: new tables in free space, then one sector that makes them the image.
//!
//! All roots of an image are in its first sector. So whatever tables change, they are written to clusters that are free
//! before the change, with refcounts that are those after it, and made durable; then the header changes. Cut off before
//! that, the image is the old one; after, the new one, and what only the old one used is free by its refcounts.

use super::space::{Run, Space};
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::check::counts::{CHUNK, Counts, max_of_order};
use crate::qcow2::check::refcounts::{self, Refcounts};
use crate::qcow2::check::roots::{Endless, Roots};
use crate::qcow2::check::walk::Walk;
use crate::qcow2::check::{self, CheckOptions, Counted, Found, Room, Watch};
use catena_format::limits;
use catena_format::qcow2::{Autoclear, Header, Incompatible, SnapshotRecord, rewrite};
use catena_storage::Storage;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ranges that are given back to the file system; what is more stays allocated there, though free in the image.
pub(super) const MOST_PUNCHED: usize = 1 << 20;
/// What is smaller stays allocated, too: the file system would keep more books on it than it is worth.
pub(super) const LEAST_PUNCHED: u64 = 64 << 10;
/// Refcount blocks that are encoded and written at once, in bytes.
const WRITE_BYTES: u64 = 4 << 20;

/// What becomes of the bytes in clusters that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Freed {
    /// The file system gets the space.
    GiveBack,
    /// They stay until something is written there: they may be what a damaged structure no longer names.
    Keep,
}

/// A change in the making.
pub(in crate::qcow2) struct Beside<'a> {
    /// The image.
    pub storage: &'a dyn Storage,
    /// Its roots as they are on disk.
    pub old: Roots,
    space: Space,
    counted: Option<Counts>,
    threads: usize,
    watch: Watch<'a>,
}

impl<'a> Beside<'a> {
    /// Begins a change of a sound image: one that the check finds no fault with but leaks.
    pub fn begin(storage: &'a dyn Storage, options: &CheckOptions<'a>) -> Result<Self> {
        let (room, mut found) = (Room::new(1), Found::default());
        let roots = Roots::read(storage, &room, &mut found)?;
        if roots.header.incompatible.contains(Incompatible::CORRUPT) {
            return Err(
                Error::new(ErrorKind::Corrupt, "the image is marked corrupt").with_hint("repair it first")
            );
        }
        let (state, counted) = check::examine_counting(storage, &roots, options)?;
        let report = state.into_report(found);
        if !report.is_sound() {
            let fault = report.findings.first().map(ToString::to_string);
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the image is corrupt: {}", fault.unwrap_or_default()),
            )
            .with_hint("repair it first"));
        }
        let Some(Counted { refcounts, counts }) = counted else {
            return Self::of(storage, roots, options, true);
        };
        let all = check::clusters_of(&roots.header, storage.len()?)?;
        let used = used(&refcounts, all);
        let counts = counts.reaching(used.end());
        let bits = roots.header.cluster_bits;
        counts.remove(
            roots.header.refcount_table_offset >> bits.get(),
            roots.header.refcount_table_clusters.into(),
        );
        for block in refcounts.table.iter().filter(|entry| **entry != 0) {
            counts.remove(block >> bits.get(), 1);
        }
        Ok(Self {
            storage,
            space: Space::new(used, bits, all),
            old: roots,
            counted: Some(counts),
            threads: options.threads.max(1),
            watch: options.watch,
        })
    }

    /// Begins a change of an image that was checked. Where its refcounts are not `sound`, clusters are free only if nothing
    /// refers to them either.
    pub fn of(storage: &'a dyn Storage, old: Roots, options: &CheckOptions<'a>, sound: bool) -> Result<Self> {
        let header = &old.header;
        let file_len = storage.len()?;
        let all = check::clusters_of(header, file_len)?;
        let threads = options.threads.max(1);
        let table = refcounts::read_table(storage, header)?;
        let on_disk = Refcounts::read(storage, header, table, (0, all, all), usize::MAX, threads)?;
        let used = used(&on_disk, all);
        if !sound {
            let room = Room::new(0);
            let mut walk = Walk::new(storage, file_len, &old, &used, &room, threads);
            walk.watch = options.watch;
            let mut walked = walk.all()?;
            walk.rest(&mut walked.found)?;
            for entry in &on_disk.table {
                walk.count(entry & !0x1ff, header.cluster_bits.size(), &mut walked.found);
            }
        }
        let space = Space::new(used, header.cluster_bits, all);
        Ok(Self {
            storage,
            old,
            space,
            counted: None,
            threads,
            watch: options.watch,
        })
    }

    /// How many threads work on it.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Who watches it.
    pub fn watch(&self) -> Watch<'a> {
        self.watch
    }

    /// Takes free clusters: `most`, or as many as there are in a row.
    pub fn take(&mut self, most: u64) -> Result<Run> {
        self.space.take(most)
    }

    /// Where a run begins, in bytes.
    pub fn offset(&self, run: Run) -> u64 {
        self.space.place(run).0
    }

    /// Writes bytes to free clusters, in one run; tells where. None for no bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let bits = self.old.header.cluster_bits;
        let run = self.space.take_all(bits.clusters(bytes.len() as u64))?;
        let (offset, len) = self.space.place(run);
        self.storage.write_all_at(bytes, offset)?;
        // The rest of the last cluster is not left as whatever it was.
        let rest = len - bytes.len() as u64;
        if rest > 0 {
            self.storage.write_zeroes(offset + bytes.len() as u64, rest)?;
        }
        Ok(offset)
    }

    /// Writes an L1 table; tells where.
    pub fn put_l1(&mut self, entries: &[u64]) -> Result<u64> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.put(&bytes)
    }

    /// Writes a snapshot table and makes the roots refer to it.
    pub fn put_snapshots(&mut self, roots: &mut Roots, snapshots: Vec<SnapshotRecord>) -> Result<()> {
        let mut bytes = Vec::new();
        for record in &snapshots {
            bytes.extend(record.encode()?);
        }
        if bytes.len() as u64 > limits::QCOW2_SNAPSHOT_TABLE_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the snapshot table would become too large",
            ));
        }
        roots.header.snapshots_offset = self.put(&bytes)?;
        roots.header.snapshot_count = u32::try_from(snapshots.len())
            .ok()
            .filter(|count| *count <= limits::QCOW2_SNAPSHOTS)
            .ok_or_else(|| Error::new(ErrorKind::TooLarge, "there are too many snapshots"))?;
        roots.snapshots_len = bytes.len() as u64;
        roots.snapshots = snapshots;
        Ok(())
    }

    /// The references of the image as it is, but for its refcount structures: to be made those of what is to become the image.
    pub fn counted(&mut self) -> Result<Counts> {
        match self.counted.take() {
            Some(counts) => Ok(counts),
            None => self.count(&self.old),
        }
    }

    /// Counts a table's clusters, or takes them back. What cannot be counted any more is [`too_narrow`].
    pub fn recount(&self, counts: &Counts, offset: u64, len: u64, more: bool) {
        let bits = self.old.header.cluster_bits;
        let clusters = bits.clusters(bits.offset_in_cluster(offset).saturating_add(len));
        match more {
            _ if len == 0 => {}
            true => counts.add(offset >> bits.get(), clusters, |_| ()),
            false => counts.remove(offset >> bits.get(), clusters),
        }
    }

    /// Counts the references of what is to become the image, but for its refcount structures.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] where there are more references to a cluster than `refcount_order` can count.
    pub fn count(&self, roots: &Roots) -> Result<Counts> {
        let (counts, found) = self.count_leniently(roots)?;
        if found.totals.corruptions > 0 {
            return Err(too_narrow(&roots.header));
        }
        Ok(counts)
    }

    /// The same, whatever is found on the way.
    pub fn count_leniently(&self, roots: &Roots) -> Result<(Counts, Found)> {
        let header = &roots.header;
        let file_len = self
            .storage
            .len()?
            .max(self.space.end() << header.cluster_bits.get());
        let counts = Counts::new(
            0,
            self.space.used().end(),
            max_of_order(header.refcount_order),
            usize::MAX,
        );
        let room = Room::new(0);
        let mut walked = Walk::new(self.storage, file_len, roots, &counts, &room, self.threads).all()?;
        Walk::new(self.storage, file_len, roots, &counts, &room, self.threads)
            .beside_refcounts(&mut walked.found)?;
        Ok((counts, walked.found))
    }

    /// Makes the roots the image: refcounts for `counts`, then the header. After it, nothing is left to be given back.
    pub fn commit(self, roots: Roots, counts: &Counts) -> Result<()> {
        self.commit_and(roots, counts, Freed::GiveBack)
    }

    /// As [`Self::commit`], with a say in what becomes of the bytes in clusters that are free from now on.
    pub fn commit_and(mut self, mut roots: Roots, counts: &Counts, freed: Freed) -> Result<()> {
        self.put_refcounts(&mut roots.header, counts)?;
        // What an unknown writer kept up to date for itself no longer is; the refcounts are.
        roots.header.autoclear &= Autoclear::KNOWN;
        roots.header.incompatible -= Incompatible::DIRTY;
        self.storage.flush()?;
        write_header(self.storage, &self.old.header, &roots.header)?;
        match freed {
            Freed::GiveBack => self.give_back(counts),
            Freed::Keep => Ok(()),
        }
    }

    /// Writes refcount blocks and table for what `counts` says, themselves included.
    fn put_refcounts(&mut self, header: &mut Header, counts: &Counts) -> Result<()> {
        let bits = header.cluster_bits;
        let per_block = refcounts::per_block(bits, header.refcount_order);
        let mut table: Vec<u64> = Vec::new();
        let mut table_run = Run { first: 0, count: 0 };
        // Blocks are counted by blocks, and the table by one, too; each turn places those that are still missing, so
        // that this ends when a turn adds none.
        loop {
            let blocks = self.space.end().div_ceil(per_block);
            table.resize(usize::try_from(blocks).unwrap_or_default(), 0);
            let missing: Vec<usize> = (0..table.len())
                .filter(|index| {
                    table.get(*index) == Some(&0) && in_use(counts, *index as u64 * per_block, per_block)
                })
                .collect();
            let entries = table
                .iter()
                .rposition(|entry| *entry != 0)
                .map_or(0, |last| last + 1);
            let entries = missing.last().map_or(entries, |last| entries.max(last + 1));
            let table_clusters = bits.clusters(entries as u64 * 8).max(1);
            if missing.is_empty() && table_run.count >= table_clusters {
                break;
            }
            if table_run.count < table_clusters {
                counts.remove(table_run.first, table_run.count);
                if table_clusters * bits.size() > limits::QCOW2_REFCOUNT_TABLE_BYTES {
                    return Err(Error::new(
                        ErrorKind::TooLarge,
                        "the refcount table would become too large",
                    ));
                }
                table_run = self.space.take_all(table_clusters)?;
                counts.add(table_run.first, table_run.count, |_| ());
            }
            let mut missing = missing.into_iter().peekable();
            let mut left = missing.len() as u64;
            while missing.peek().is_some() {
                let run = self.space.take(left)?;
                counts.add(run.first, run.count, |_| ());
                for (cluster, index) in (run.first..run.first + run.count).zip(missing.by_ref()) {
                    if let Some(entry) = table.get_mut(index) {
                        *entry = cluster << bits.get();
                    }
                }
                left -= run.count.min(left);
            }
        }
        self.write_blocks(&table, header.refcount_order, per_block, counts)?;
        let (offset, len) = self.space.place(table_run);
        let mut bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
        self.storage.write_all_at(&bytes, offset)?;
        header.refcount_table_offset = offset;
        header.refcount_table_clusters = u32::try_from(table_run.count).unwrap_or(u32::MAX);
        Ok(())
    }

    fn write_blocks(&self, table: &[u64], order: u32, per_block: u64, counts: &Counts) -> Result<()> {
        let size = self.old.header.cluster_bits.size();
        let at_once = usize::try_from((WRITE_BYTES / size).max(1)).unwrap_or(1);
        let next = AtomicUsize::new(0);
        in_parallel(self.threads, || {
            let (mut bytes, mut start) = (Vec::new(), 0);
            loop {
                let group = next.fetch_add(1, Ordering::Relaxed).saturating_mul(at_once);
                let Some(entries) = table.get(group..).filter(|entries| !entries.is_empty()) else {
                    return Ok(());
                };
                for (index, entry) in (group..)
                    .zip(entries.iter().take(at_once))
                    .filter(|(_, entry)| **entry != 0)
                {
                    // Blocks that lie one behind the other are written in one go.
                    if *entry != start + bytes.len() as u64 {
                        self.storage.write_all_at(&bytes, start)?;
                        bytes.clear();
                        start = *entry;
                    }
                    encode(counts, index as u64 * per_block, per_block, order, &mut bytes);
                }
                self.storage.write_all_at(&bytes, start)?;
                bytes.clear();
                start = 0;
            }
        })
    }

    /// Gives what is free now back to the file system: holes where something was used before, and the free end.
    fn give_back(&self, counts: &Counts) -> Result<()> {
        let bits = self.old.header.cluster_bits;
        let file_len = self.storage.len()?;
        let mut last = 0;
        let mut freed: Vec<(u64, u64)> = Vec::new();
        for start in counts.chunk_starts() {
            let (Some(now), Some(before)) = (counts.snapshot(start), self.space.used().snapshot(start))
            else {
                continue;
            };
            if let Some(at) = now.last_before(CHUNK) {
                last = start + at + 1;
            }
            for run in before.lost(&now) {
                let (first, length) = (start + run.start, run.end - run.start);
                let follows = |(last, count): &&mut (u64, u64)| *last + *count == first;
                if let Some((_, count)) = freed.last_mut().filter(follows) {
                    *count += length;
                } else if freed.len() < MOST_PUNCHED {
                    freed.push((first, length));
                }
            }
        }
        let end = last << bits.get();
        for (first, count) in freed {
            let (from, to) = (first << bits.get(), (first + count) << bits.get());
            let to = to.min(end).min(file_len);
            if from < to && to - from >= LEAST_PUNCHED {
                // That the space is not given back is no reason to fail: it is free in the image.
                let _ = self.storage.punch_hole(from, to - from);
            }
        }
        if file_len > end {
            self.storage.set_len(end)?;
        }
        Ok(())
    }
}

/// One for each cluster that has a refcount. What is free past the end of the file is used, too, when it is given out.
fn used(on_disk: &Refcounts, all: u64) -> Counts {
    let grown = all.saturating_mul(2).saturating_add(64 * CHUNK);
    let used = Counts::new(0, grown, 1, usize::MAX);
    for start in on_disk.counts.chunk_starts() {
        if let Some(chunk) = on_disk.counts.snapshot(start) {
            used.mark(start, &chunk);
        }
    }
    used
}

/// There are more references to a cluster than refcounts can count.
pub(super) fn too_narrow(header: &Header) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "refcounts of {} bits cannot count so many references",
            1u32 << header.refcount_order
        ),
    )
}

fn in_use(counts: &Counts, first: u64, count: u64) -> bool {
    let end = first + count;
    let mut at = first;
    while at < end {
        let n = (CHUNK - at % CHUNK).min(end - at);
        if counts.any(at, n) {
            return true;
        }
        at += n;
    }
    false
}

/// Appends the block of these clusters' refcounts.
fn encode(counts: &Counts, first: u64, count: u64, order: u32, bytes: &mut Vec<u8>) {
    let end = first + count;
    let mut at = first;
    let mut values = Vec::new();
    while at < end {
        let n = (CHUNK - at % CHUNK).min(end - at);
        counts.runs(at, n, |value, n| {
            let n = usize::try_from(n).unwrap_or_default();
            match order {
                0..=2 => values.extend(std::iter::repeat_n(value, n)),
                _ => {
                    let raw = value.to_be_bytes();
                    let width = raw.len() >> (6 - order);
                    let raw = raw.get(raw.len() - width..).unwrap_or_default();
                    bytes.extend(raw.repeat(n));
                }
            }
        });
        at += n;
    }
    if order < 3 {
        bytes.extend(refcounts::encode(&values, order));
    }
}

/// Writes a header over another one: at every instant it is one or the other, and it is durable at the end. What the new
/// one refers to must be durable before.
pub(in crate::qcow2) fn write_header(storage: &dyn Storage, old: &Header, new: &Header) -> Result<()> {
    let len = usize::try_from(old.cluster_bits.size()).unwrap_or_default();
    let mut area = vec![0; len];
    Endless(storage).fill(&mut area, 0)?;
    for (offset, bytes) in rewrite::plan(&area, old, new)? {
        storage.write_all_at(&bytes, offset)?;
        storage.flush()?;
    }
    Ok(())
}

/// Runs the same work on several threads; the first error wins.
pub(super) fn in_parallel(threads: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mine = work();
        others
            .into_iter()
            .map(|other| other.join().unwrap_or(Ok(())))
            .fold(mine, Result::and)
    })
}
