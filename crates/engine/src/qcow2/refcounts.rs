//! The refcounts of an image's clusters, in memory as far as they are used, and the clusters that are free.
//!
//! Nothing here is written: what has changed is taken by a flush, and given back where the flush fails. Free clusters are found in QEMU's
//! way, so that what is written in the same order lies in the same order.

use super::numbers::Numbers;
use super::places::{Places, Section, be64s};
use super::room;
use crate::error::{Error, ErrorKind, Result};
use catena_format::limits;
use catena_format::qcow2::{ClusterBits, Header, RefcountWidth, refcount};
use catena_storage::Storage;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Blocks kept in memory, in bytes, beside those that have changed.
const CACHE_BYTES: u64 = 8 << 20;
/// The first host offset that no L2 entry can name.
const OFFSET_LIMIT: u64 = 1 << 56;
/// What has changed of a block is written in pieces of this many bytes.
const PIECE: usize = 512;

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// The pieces that have changed.
    changed: Range<usize>,
    /// What of it is known to have space on the medium.
    kept: Range<usize>,
    /// A flush is writing what it was; the disk may hold something older.
    writing: bool,
    used: bool,
}

/// Where the refcount table is, and how long: what the header says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TablePlace {
    pub(crate) offset: u64,
    pub(crate) clusters: u32,
}

/// Refcounts, and where free clusters are looked for.
#[derive(Debug)]
pub(crate) struct Refcounts {
    storage: Arc<dyn Storage>,
    cluster_bits: ClusterBits,
    width: RefcountWidth,
    /// The refcount table; always as long as its clusters.
    table: Vec<u64>,
    place: TablePlace,
    blocks: Numbers<u64, Block>,
    most_blocks: usize,
    dirty_blocks: BTreeSet<u64>,
    /// Indices of table entries that name blocks the table on disk does not know.
    dirty_entries: BTreeSet<u64>,
    /// The table on disk that is to be replaced by a new one at `place`.
    replaced: Option<TablePlace>,
    /// No cluster before this one is free.
    free: u64,
    /// Where the next compressed cluster goes if there is room; 0 where a new host cluster is needed.
    free_byte: u64,
    /// Everything from this offset on has never been used: it is past the end of the file.
    untouched: u64,
}

/// A run of host clusters that is somebody's own now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) offset: u64,
    pub(crate) clusters: u64,
    /// Nothing was ever written there: it reads as zeros.
    pub(crate) untouched: bool,
}

/// What a flush has to write of the refcounts.
#[derive(Debug, Default)]
pub(crate) struct RefcountChanges {
    /// Pieces of blocks.
    pub(crate) blocks: Vec<(u64, Vec<u8>)>,
    /// A whole new table and its place, to be named by the header.
    pub(crate) table: Option<(TablePlace, Vec<u8>)>,
    /// The table that is let go then.
    pub(crate) replaced: Option<TablePlace>,
    /// Pieces of the table where it is.
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
    taken_blocks: BTreeSet<u64>,
    taken_entries: BTreeSet<u64>,
}

impl RefcountChanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.table.is_none() && self.entries.is_empty()
    }
}

impl Refcounts {
    /// Reads the refcount table, and tells `places` where table and blocks are.
    pub(crate) fn open(storage: &Arc<dyn Storage>, header: &Header, places: &mut Places) -> Result<Self> {
        let cluster_bits = header.cluster_bits;
        let place = TablePlace {
            offset: header.refcount_table_offset,
            clusters: header.refcount_table_clusters,
        };
        let len = u64::from(place.clusters) << cluster_bits.get();
        let mut bytes = vec![0; usize::try_from(len.min(limits::QCOW2_REFCOUNT_TABLE_BYTES)).unwrap_or(0)];
        storage.read_at(&mut bytes, place.offset)?;
        let table: Vec<u64> = be64s(&bytes).collect();
        places.add(place.offset, len, Section::RefcountTable);
        for entry in &table {
            if let Ok(Some(block)) = refcount::block_offset(*entry, cluster_bits) {
                places.add(block, cluster_bits.size(), Section::RefcountBlock);
            }
        }
        let most = CACHE_BYTES >> cluster_bits.get();
        Ok(Self {
            cluster_bits,
            width: RefcountWidth::of(header),
            table,
            place,
            blocks: Numbers::default(),
            most_blocks: usize::try_from(most).unwrap_or(usize::MAX).max(4),
            dirty_blocks: BTreeSet::new(),
            dirty_entries: BTreeSet::new(),
            replaced: None,
            free: 0,
            free_byte: 0,
            untouched: storage.len()?,
            storage: Arc::clone(storage),
        })
    }

    /// Where what was ever in use ends.
    pub(crate) fn used(&self) -> u64 {
        self.untouched
    }

    /// Bytes of blocks that wait for a flush.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        (self.dirty_blocks.len() as u64) << self.cluster_bits.get()
    }

    fn per_block(&self) -> u64 {
        self.width.entries_per_block(self.cluster_bits)
    }

    fn entry(&self, block: u64) -> u64 {
        usize::try_from(block)
            .ok()
            .and_then(|block| self.table.get(block))
            .copied()
            .unwrap_or(0)
    }

    /// The block in memory; `None` where there is none.
    fn block(&mut self, number: u64) -> Result<Option<&mut Block>> {
        if !self.blocks.contains_key(&number) {
            let Some(offset) =
                refcount::block_offset(self.entry(number), self.cluster_bits).map_err(|_| {
                    Error::new(
                        ErrorKind::Corrupt,
                        format!(
                            "Refblock offset {:#x} unaligned (reftable index: {number:#x})",
                            self.entry(number)
                        ),
                    )
                })?
            else {
                return Ok(None);
            };
            let mut bytes = vec![0; usize::try_from(self.cluster_bits.size()).unwrap_or_default()];
            self.storage.read_at(&mut bytes, offset)?;
            self.make_room();
            self.blocks.insert(number, Block::new(bytes));
        }
        let mut block = self.blocks.get_mut(&number);
        if let Some(block) = &mut block {
            block.used = true;
        }
        Ok(block)
    }

    /// Drops blocks that neither have changed nor were used since the last time.
    fn make_room(&mut self) {
        while self.blocks.len() >= self.most_blocks {
            let before = self.blocks.len();
            let excess = before.saturating_sub(self.most_blocks * 3 / 4);
            let mut dropped = 0;
            self.blocks.retain(|_, block| {
                let keep = !block.changed.is_empty() || block.writing || std::mem::take(&mut block.used);
                let keep = keep || dropped >= excess;
                dropped += usize::from(!keep);
                keep
            });
            let all_busy = self
                .blocks
                .values()
                .all(|block| !block.changed.is_empty() || block.writing);
            if all_busy {
                break;
            }
        }
    }

    /// The refcount of a host cluster.
    pub(crate) fn get(&mut self, cluster: u64) -> Result<u64> {
        let (per_block, width) = (self.per_block(), self.width);
        let block = self.block(cluster / per_block)?;
        Ok(block
            .and_then(|block| width.get(&block.bytes, cluster % per_block))
            .unwrap_or(0))
    }

    /// Changes a refcount whose block there is.
    fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        self.set_run(cluster, 1, value)
    }

    /// Changes the refcounts of a run that one block counts.
    fn set_run(&mut self, cluster: u64, count: u64, value: u64) -> Result<()> {
        let (per_block, width) = (self.per_block(), self.width);
        let number = cluster / per_block;
        let first = cluster % per_block;
        let last = first.saturating_add(count.max(1)) - 1;
        let (from, to) = (piece_of(width, first), piece_of(width, last) + PIECE);
        self.keep_room(number, from..to)?;
        let Some(block) = self.block(number)? else {
            return Err(Error::new(ErrorKind::Corrupt, "a refcount has no block"));
        };
        for index in first..=last {
            if width.set(&mut block.bytes, index, value).is_none() {
                return Err(Error::new(ErrorKind::TooLarge, "refcount overflow"));
            }
        }
        block.changed = if block.changed.is_empty() {
            from..to
        } else {
            block.changed.start.min(from)..block.changed.end.max(to)
        };
        self.dirty_blocks.insert(number);
        Ok(())
    }

    /// Keeps space for pieces of a block that are about to change.
    fn keep_room(&mut self, number: u64, pieces: Range<usize>) -> Result<()> {
        const PAGE: usize = room::PAGE as usize;
        let Some(block) = self.block(number)? else {
            return Ok(());
        };
        let kept = block.kept.clone();
        if kept.start <= pieces.start && pieces.end <= kept.end {
            return Ok(());
        }
        let (start, end) = (
            pieces.start / PAGE * PAGE,
            pieces.end.next_multiple_of(PAGE).min(block.bytes.len()),
        );
        let offset = self.entry(number).saturating_add(start as u64);
        room::keep(&*self.storage, offset, end.saturating_sub(start) as u64)?;
        if let Some(block) = self.blocks.get_mut(&number) {
            let goes_on = start <= kept.end && kept.start <= end;
            block.kept = match goes_on {
                true => start.min(kept.start)..end.max(kept.end),
                false => start..end,
            };
        }
        Ok(())
    }

    /// Keeps space for an entry of the table.
    fn keep_room_in_table(&self, number: u64) -> Result<()> {
        let end = u64::from(self.place.clusters) << self.cluster_bits.get();
        let start = (number * 8).min(end) / room::PAGE * room::PAGE;
        let len = room::PAGE.min(end - start);
        Ok(room::keep(
            &*self.storage,
            self.place.offset.saturating_add(start),
            len,
        )?)
    }

    /// The first run of that many free clusters from where free ones are looked for.
    fn find(&mut self, clusters: u64) -> Result<u64> {
        let (per_block, width) = (self.per_block(), self.width);
        let mut start = self.free;
        let mut at = start;
        while at - start < clusters {
            let number = at / per_block;
            let index = at % per_block;
            let want = (start + clusters - at).min(per_block - index);
            let Some(block) = self.block(number)? else {
                at += want;
                continue;
            };
            match width.first_free(&block.bytes, index, index + 1) {
                // Free: as many as there are up to the first that is not.
                Some(_) => {
                    let free = (index..index + want)
                        .take_while(|index| width.get(&block.bytes, *index) == Some(0))
                        .count() as u64;
                    at += free;
                }
                None => {
                    let next = width
                        .first_free(&block.bytes, index, per_block)
                        .unwrap_or(per_block);
                    at = number * per_block + next;
                    start = at;
                }
            }
        }
        let end = (start + clusters)
            .checked_mul(self.cluster_bits.size())
            .filter(|end| *end <= OFFSET_LIMIT);
        if end.is_none() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the image cannot grow further: no offset is left for its clusters",
            ));
        }
        self.free = start + clusters;
        Ok(start)
    }

    /// Makes a run of free clusters somebody's own.
    pub(crate) fn reserve(&mut self, clusters: u64, places: &mut Places) -> Result<Reserved> {
        let mut turns = 0;
        // Blocks that are added for the run come behind it, and say nothing about what was there.
        let never_used = self.untouched;
        loop {
            let before = self.free;
            let start = self.find(clusters)?;
            if start == 0 {
                // A free header is no place for anything.
                places.check(0, 1, None)?;
            }
            let Some(missing) = self.first_uncovered(start, clusters) else {
                let offset = start << self.cluster_bits.get();
                let len = clusters << self.cluster_bits.get();
                if let Err(error) = places.check(offset, len, None) {
                    self.free = before;
                    return Err(error);
                }
                self.set_all(start, clusters, 1)?;
                let untouched = offset >= never_used;
                self.untouched = self.untouched.max(offset.saturating_add(len));
                return Ok(Reserved {
                    offset,
                    clusters,
                    untouched,
                });
            };
            // The run stays where it is, and the block that counts it comes behind.
            self.add_block(missing, places)?;
            self.free = start;
            turns += 1;
            if turns > clusters.saturating_add(8) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the refcount table leads in circles",
                ));
            }
        }
    }

    /// Changes the refcounts of a run from nothing, undoing what was done where one fails.
    fn set_all(&mut self, start: u64, clusters: u64, value: u64) -> Result<()> {
        let per_block = self.per_block();
        let end = start + clusters;
        let mut at = start;
        while at < end {
            let count = (per_block - at % per_block).min(end - at);
            if let Err(error) = self.set_run(at, count, value) {
                // What of this run was changed before it failed had none before either.
                for done in start..at + count {
                    if self.get(done)? == value {
                        self.set(done, 0)?;
                    }
                }
                self.free = self.free.min(start);
                return Err(error);
            }
            at += count;
        }
        Ok(())
    }

    /// The number of the first block that is missing for a run.
    fn first_uncovered(&self, start: u64, clusters: u64) -> Option<u64> {
        let per_block = self.per_block();
        let last = start.saturating_add(clusters.max(1)) - 1;
        (start / per_block..=last / per_block).find(|number| self.entry(*number) == 0)
    }

    /// Adds the block of that number, somewhere free. Where that place is in a block that is missing too, it becomes that block.
    fn add_block(&mut self, number: u64, places: &mut Places) -> Result<()> {
        self.grow_table_for(number, places)?;
        let before = self.free;
        let home = self.find(1)?;
        let own = home / self.per_block();
        let number = if self.entry(own) == 0 { own } else { number };
        self.grow_table_for(number, places)?;
        let offset = home << self.cluster_bits.get();
        let size = self.cluster_bits.size();
        let counts_itself = number == own;
        let ready = places
            .check(offset, size, None)
            .and_then(|()| self.keep_room_in_table(number))
            .and_then(|()| Ok(room::keep(&*self.storage, offset, size)?))
            .and_then(|()| match counts_itself {
                true => Ok(()),
                false => self.set(home, 1),
            });
        if let Err(error) = ready {
            self.free = before;
            return Err(error);
        }
        self.put_block(number, offset, places);
        match counts_itself {
            true => self.set(home, 1),
            false => Ok(()),
        }
    }

    /// Adds a block at a place that has space on the medium.
    fn put_block(&mut self, number: u64, offset: u64, places: &mut Places) {
        let Some(entry) = usize::try_from(number)
            .ok()
            .and_then(|number| self.table.get_mut(number))
        else {
            return;
        };
        *entry = offset;
        let size = self.cluster_bits.size();
        let mut block = Block::new(vec![0; usize::try_from(size).unwrap_or_default()]);
        // The whole of it is written, whatever the place held before.
        block.changed = 0..block.bytes.len();
        block.kept = block.changed.clone();
        self.make_room();
        self.blocks.insert(number, block);
        self.dirty_blocks.insert(number);
        self.dirty_entries.insert(number);
        self.untouched = self.untouched.max(offset.saturating_add(size));
        places.add(offset, size, Section::RefcountBlock);
    }

    /// Makes the table long enough for a block of that number: in memory, and with a place beside the old one.
    ///
    /// The new table and the blocks that count it come behind everything there is, so that they need nothing that is not there.
    fn grow_table_for(&mut self, number: u64, places: &mut Places) -> Result<()> {
        if number < self.table.len() as u64 {
            return Ok(());
        }
        let size = self.cluster_bits.size();
        let per_block = self.per_block();
        let per_cluster = size / 8;
        // Where nothing is counted yet: behind the last block, and behind what is being allocated.
        let base = (number + 1)
            .max(self.free.div_ceil(per_block))
            .max(self.table.len() as u64);
        let mut blocks = 1;
        let entries = loop {
            let needed = base + blocks;
            let entries = (needed + needed.div_ceil(2)).next_multiple_of(per_cluster);
            let clusters = entries / per_cluster + blocks;
            let want = clusters.div_ceil(per_block);
            if want <= blocks {
                break entries;
            }
            blocks = want;
        };
        let most = limits::QCOW2_REFCOUNT_TABLE_BYTES / 8;
        let entries = if entries > most && base + blocks <= most {
            most
        } else {
            entries
        };
        let start = base * per_block;
        let clusters = entries / per_cluster;
        let end = (start + clusters + blocks)
            .checked_mul(size)
            .filter(|end| *end <= OFFSET_LIMIT);
        if entries > most || end.is_none() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the image cannot grow further: its refcount table has reached its limit",
            ));
        }
        places.check(start * size, (clusters + blocks) * size, None)?;
        room::keep(&*self.storage, start * size, (clusters + blocks) * size)?;
        self.table.resize(usize::try_from(entries).unwrap_or_default(), 0);
        for block in 0..blocks {
            self.put_block(base + block, (start + block) * size, places);
        }
        self.set_all(start, blocks + clusters, 1)?;
        let place = TablePlace {
            offset: (start + blocks) * size,
            clusters: u32::try_from(clusters).unwrap_or(u32::MAX),
        };
        places.add(place.offset, clusters * size, Section::RefcountTable);
        self.untouched = self.untouched.max(place.offset + clusters * size);
        // A table that never reached the disk is let go at once; the one on disk after the switch.
        if self.replaced.is_some() {
            let old = self.place;
            self.give_back_table(old, places)?;
        } else {
            self.replaced = Some(self.place);
        }
        self.place = place;
        Ok(())
    }

    fn give_back_table(&mut self, old: TablePlace, places: &mut Places) -> Result<()> {
        let size = self.cluster_bits.size();
        places.remove(old.offset, u64::from(old.clusters) * size, Section::RefcountTable);
        self.drop_reference(old.offset / size, u64::from(old.clusters))
    }

    /// One reference less to each cluster of a run. What has none already keeps none.
    pub(crate) fn drop_reference(&mut self, start: u64, clusters: u64) -> Result<()> {
        for cluster in start..start.saturating_add(clusters) {
            let count = self.get(cluster)?;
            if count == 0 {
                continue;
            }
            self.set(cluster, count - 1)?;
            if count == 1 {
                self.free = self.free.min(cluster);
                if self.free_byte >> self.cluster_bits.get() == cluster {
                    self.free_byte = 0;
                }
            }
        }
        Ok(())
    }

    /// Keeps bytes for a compressed cluster: behind the last one where they fit, or where that one's refcount has come to its end in a host
    /// cluster of their own.
    pub(crate) fn reserve_bytes(&mut self, len: u64, places: &mut Places) -> Result<Reserved> {
        let bits = self.cluster_bits;
        let size = bits.size();
        let mut offset = self.free_byte;
        if offset != 0 {
            let count = self.get(offset >> bits.get())?;
            if count == 0 || count >= self.width.max() {
                offset = 0;
            }
        }
        let room = match offset {
            0 => 0,
            offset => size - bits.offset_in_cluster(offset),
        };
        let mut fresh = None;
        if room < len {
            let new = self.reserve(1, places)?;
            fresh = Some(new.offset);
            // Going on into the next host cluster, where it is the next: both count this one.
            if offset == 0 || offset.next_multiple_of(size) != new.offset {
                offset = new.offset;
            }
        }
        let first = offset >> bits.get();
        let last = offset.saturating_add(len).saturating_sub(1) >> bits.get();
        for cluster in first..=last {
            if fresh == Some(cluster << bits.get()) {
                continue;
            }
            let count = self.get(cluster)?;
            self.set(cluster, count + 1)?;
        }
        let end = offset.saturating_add(len);
        self.free_byte = match bits.offset_in_cluster(end) {
            0 => 0,
            _ => end,
        };
        Ok(Reserved {
            offset,
            clusters: last - first + 1,
            untouched: false,
        })
    }

    /// What a flush has to write; from now on it counts as being written.
    pub(crate) fn take_changes(&mut self) -> RefcountChanges {
        let mut changes = RefcountChanges {
            taken_blocks: std::mem::take(&mut self.dirty_blocks),
            taken_entries: std::mem::take(&mut self.dirty_entries),
            ..RefcountChanges::default()
        };
        for number in &changes.taken_blocks {
            let offset = self.entry(*number);
            let Some(block) = self.blocks.get_mut(number) else {
                continue;
            };
            let changed = std::mem::replace(&mut block.changed, 0..0);
            block.writing = true;
            let from = changed.start;
            if let Some(bytes) = block.bytes.get(changed) {
                changes.blocks.push((offset + from as u64, bytes.to_vec()));
            }
        }
        if let Some(old) = self.replaced.take() {
            let bytes = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            changes.table = Some((self.place, bytes));
            changes.replaced = Some(old);
        } else {
            let sectors: BTreeSet<u64> = changes.taken_entries.iter().map(|entry| entry / 64).collect();
            for sector in sectors {
                let skip = usize::try_from(sector * 64).unwrap_or(usize::MAX);
                let bytes: Vec<u8> = self
                    .table
                    .iter()
                    .skip(skip)
                    .take(64)
                    .flat_map(|entry| entry.to_be_bytes())
                    .collect();
                changes.entries.push((self.place.offset + sector * 512, bytes));
            }
        }
        changes
    }

    /// What was taken is on the disk, and the header names the table.
    pub(crate) fn written(&mut self, changes: &RefcountChanges) {
        for number in &changes.taken_blocks {
            if let Some(block) = self.blocks.get_mut(number) {
                block.writing = false;
            }
        }
    }

    /// What was taken may not be on the disk, and the header names the old table: it is taken again by the next flush.
    pub(crate) fn not_written(&mut self, changes: &RefcountChanges, places: &mut Places) -> Result<()> {
        for number in &changes.taken_blocks {
            if let Some(block) = self.blocks.get_mut(number) {
                block.writing = false;
                // Which pieces it was does not matter any more.
                block.changed = 0..block.bytes.len();
            }
            self.dirty_blocks.insert(*number);
        }
        self.dirty_entries.extend(&changes.taken_entries);
        if let Some(old) = changes.replaced {
            // Where it has grown again meanwhile, what was to replace it never will.
            if let Some(never) = self.replaced.replace(old) {
                self.give_back_table(never, places)?;
            }
        }
        Ok(())
    }
}

/// Where the piece begins that a refcount is in.
fn piece_of(width: RefcountWidth, index: u64) -> usize {
    let byte = match width.order() {
        // Narrow refcounts share bytes.
        0..=2 => index / (8 >> width.order()),
        _ => width.bytes_of(index),
    };
    let byte = usize::try_from(byte).unwrap_or_default();
    byte - byte % PIECE
}

impl Block {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            changed: 0..0,
            kept: 0..0,
            writing: false,
            used: true,
        }
    }
}
