//! Zero writes and discards: what of them is a matter of entries alone.
//!
//! What becomes of an entry is what QEMU makes of it. A discard never uncovers what a backing image holds.

use super::disk::{Qcow2Disk, Was};
use super::guest_write::{Old, ZEROS};
use super::lookup::Found;
use super::slices::Key;
use crate::disk::Unmap;
use crate::error::Result;
use catena_format::qcow2::Cluster;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// What may be there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Anything,
    /// No data: others may write to the rest of a cluster of which a part is to be zeros.
    Nothing,
}

impl Over {
    /// Whether an entry holds no data of those subclusters, where that matters.
    fn allows(self, old: Old, mask: u32) -> bool {
        self == Self::Anything || old.masks().0 & mask == 0
    }
}

/// What is done to whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wipe {
    Zero(Unmap),
    Discard,
}

impl Qcow2Disk {
    pub(super) fn zero_guest(&self, start: u64, end: u64, unmap: Unmap) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        self.prepare(start..end)?;
        if !self.v3 && self.backing.is_some() {
            // Version 2 has no word for zeros over something else.
            return self.write_zero_bytes(start, end);
        }
        let size = self.layout.subcluster_size();
        let is_end = end == self.size.load(Ordering::Acquire);
        let first = start.next_multiple_of(size);
        let last = if is_end { end } else { end - end % size };
        if first >= last {
            return self.zero_parts(start..end, unmap);
        }
        self.zero_parts(start..first, unmap)?;
        self.zero_whole(first, last, unmap)?;
        self.zero_parts(last..end, unmap)
    }

    /// Zeros that start or end within a subcluster: at most one boundary lies in the range.
    fn zero_parts(&self, range: Range<u64>, unmap: Unmap) -> Result<()> {
        let size = self.layout.subcluster_size();
        let mut at = range.start;
        while at < range.end {
            let from = at - at % size;
            let to = (from + size).min(self.size.load(Ordering::Acquire));
            let stop = to.min(range.end);
            let (found, whole) = {
                let _inside = self.enter();
                let (found, _) = self.look_up(at, stop).map_err(|error| self.damaged(error))?;
                let whole = found == Found::Nothing && self.reads_zero(from, to)?;
                (found, whole)
            };
            // Nobody sees the difference, and no cluster is needed; unless somebody writes beside us meanwhile.
            let all_zero = whole || matches!(found, Found::Zero(_));
            if !(all_zero && self.zero_unwritten(from, to, unmap)?) {
                self.write_zero_bytes(at, stop)?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Zeros over one subcluster that nothing was written to; `false` where something is by now.
    fn zero_unwritten(&self, start: u64, end: u64, unmap: Unmap) -> Result<bool> {
        if self.layout.l2_entry_size() == 16 && self.layout.subcluster_size() < self.cluster_size() {
            return self.zero_subclusters_of(start, end, Over::Nothing);
        }
        let _inside = self.enter();
        let cluster = self.cluster_of(start);
        let (key, index) = self.shape.place(cluster);
        let wipe = Wipe::Zero(unmap);
        self.wipe_slice(key, index, cluster..cluster + 1, wipe, Over::Nothing)
            .map_err(|error| self.damaged(error))
    }

    fn write_zero_bytes(&self, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            // No piece ends within a sector: after a cut each is old or new.
            let most = ZEROS.len() as u64;
            let len = (end - at).min(most - at % most);
            let piece = ZEROS
                .get(..usize::try_from(len).unwrap_or_default())
                .unwrap_or(&ZEROS);
            self.write_guest(piece, at)?;
            at += len;
        }
        Ok(())
    }

    /// Zeros over whole subclusters; the last may be cut off by the end of the disk.
    fn zero_whole(&self, start: u64, end: u64, unmap: Unmap) -> Result<()> {
        let size = self.cluster_size();
        let is_end = end == self.size.load(Ordering::Acquire);
        let first = start.next_multiple_of(size);
        let last = if is_end { end } else { end - end % size };
        if first > last || (first == last && first != start && last != end) {
            return self.zero_subclusters(start, end);
        }
        self.zero_subclusters(start, first)?;
        self.wipe(first, last, Wipe::Zero(unmap))?;
        self.zero_subclusters(last, end)
    }

    pub(super) fn discard_guest(&self, start: u64, end: u64) -> Result<()> {
        let size = self.cluster_size();
        let first = start.next_multiple_of(size);
        let last = if end == self.size.load(Ordering::Acquire) {
            end
        } else {
            end - end % size
        };
        if first >= last {
            return Ok(());
        }
        if !self.v3 && self.backing.is_some() {
            // There is no word for zeros that would hide the backing.
            return self.check_poison();
        }
        self.prepare(first..last)?;
        self.wipe(first, last, Wipe::Discard)
    }

    /// What becomes of an entry whose whole cluster is wiped; `None` where it stays.
    fn wiped(&self, old: Old, wipe: Wipe) -> Option<Cluster> {
        let (host, allocated) = match old.cluster {
            Cluster::Compressed { .. } => (None, true),
            Cluster::Data { host } => (Some(host), true),
            Cluster::Zero { host } | Cluster::Subclusters { host, .. } => (host, host.is_some()),
            Cluster::Unallocated => (None, false),
        };
        let new = match wipe {
            Wipe::Discard if !allocated && self.backing.is_none() => old.cluster,
            _ if !self.v3 => Cluster::Unallocated,
            Wipe::Discard | Wipe::Zero(Unmap::Allow) => Cluster::Zero { host: None },
            Wipe::Zero(Unmap::Keep) => Cluster::Zero { host },
        };
        (new != old.cluster).then_some(new)
    }

    /// Wipes whole clusters; the last may be cut off by the end of the disk.
    fn wipe(&self, start: u64, end: u64, wipe: Wipe) -> Result<()> {
        let mut at = start;
        while at < end {
            let _inside = self.enter();
            let first = self.cluster_of(at);
            let (key, index) = self.shape.place(first);
            let in_slice = self.shape.entries - index;
            let to = (first.saturating_add(in_slice) << self.layout.cluster_bits.get()).min(end);
            let count = self.cluster_of(to - 1) + 1 - first;
            if let Some(to) = self.untouched_until(at, end, wipe)? {
                at = to;
                continue;
            }
            self.wipe_slice(key, index, first..first + count, wipe, Over::Anything)
                .map_err(|error| self.damaged(error))?;
            at = to;
        }
        Ok(())
    }

    /// Where there is no table and a discard has nothing to do, how far that goes.
    fn untouched_until(&self, at: u64, end: u64, wipe: Wipe) -> Result<Option<u64>> {
        if self.raw_data || self.backing.is_some() || (wipe != Wipe::Discard && self.v3) {
            return Ok(None);
        }
        let coverage = self.layout.l2_coverage();
        let index = at / coverage;
        match self.table_of(index).map_err(|error| self.damaged(error))? {
            Some(_) => Ok(None),
            None => Ok(Some((index + 1).saturating_mul(coverage).min(end))),
        }
    }

    /// `false` where there is what may not be wiped.
    fn wipe_slice(&self, key: Key, index: u64, clusters: Range<u64>, wipe: Wipe, over: Over) -> Result<bool> {
        // Brings the slice into memory before the lock is taken.
        let _held = self.slice(key)?;
        let mut meta = self.wait_unclaimed(clusters.clone());
        self.check_poison()?;
        if over == Over::Nothing
            && let Some(slice) = self.slice(key)?
        {
            let words = slice.read();
            for n in 0..clusters.end - clusters.start {
                if !over.allows(self.old(&words, key, index + n)?, u32::MAX) {
                    return Ok(false);
                }
            }
        }
        if self.data_file.is_some() {
            meta.claimed.add(clusters.clone());
            drop(meta);
            let wiped = self.wipe_data_file(clusters.clone(), wipe);
            meta = self.meta();
            meta.claimed.remove(&clusters);
            self.unclaimed.notify_all();
            wiped?;
        }
        let changes = |words: &[u64]| -> Result<Vec<(u64, Old, Cluster)>> {
            let mut changes = Vec::new();
            for n in 0..clusters.end - clusters.start {
                let old = self.old(words, key, index + n)?;
                if let Some(new) = self.wiped(old, wipe) {
                    changes.push((index + n, old, new));
                }
            }
            Ok(changes)
        };
        let wanted = match self.slice(key)? {
            Some(slice) => changes(&slice.read())?,
            None => changes(&[])?,
        };
        if wanted.is_empty() {
            return Ok(true);
        }
        let slice = self.own_slice(&mut meta, key)?;
        let mut words = slice.write();
        for (index, old, new) in wanted {
            let (entry, bitmap) = self.layout.encode(new, old.own)?;
            self.set_words(&mut words, index, entry, bitmap);
            let keeps = matches!(new, Cluster::Zero { host: Some(_) });
            if !keeps {
                self.let_go(&mut meta, old, Was::Discarded);
            }
        }
        drop(words);
        self.slice_changed(&mut meta, key, &slice);
        Ok(true)
    }

    /// The data file holds zeros where it must show them; elsewhere its space is given back where that works. Nobody else can own the
    /// place, so there is nothing to wait for.
    fn wipe_data_file(&self, clusters: Range<u64>, wipe: Wipe) -> Result<()> {
        let Some(data_file) = &self.data_file else {
            return Ok(());
        };
        let bits = self.layout.cluster_bits.get();
        let start = clusters.start << bits;
        let end = (clusters.end << bits).min(self.size.load(Ordering::Acquire));
        let len = end.saturating_sub(start);
        if self.raw_data {
            let zeroed = match wipe {
                Wipe::Zero(Unmap::Keep) => data_file.write_zeroes(start, len),
                _ => data_file.punch_hole(start, len),
            };
            self.attempt(zeroed)?;
            self.wrote(start, len);
        } else if !self.keep_freed && wipe != Wipe::Zero(Unmap::Keep) {
            // An offer: whatever comes of it, the entries say zero.
            let _ = data_file.punch_hole(start, len);
        }
        Ok(())
    }

    /// Zeros over some subclusters of one cluster.
    fn zero_subclusters(&self, start: u64, end: u64) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        if self.layout.l2_entry_size() == 8 {
            return self.write_zero_bytes(start, end);
        }
        // Two boundaries of subclusters may lie in two clusters.
        let boundary = (start + 1).next_multiple_of(self.cluster_size());
        if end > boundary {
            self.zero_subclusters(start, boundary)?;
            return self.zero_subclusters(boundary, end);
        }
        match self.zero_subclusters_of(start, end, Over::Anything)? {
            true => Ok(()),
            false => self.write_zero_bytes(start, end),
        }
    }

    /// `false` where only bytes can say it.
    fn zero_subclusters_of(&self, start: u64, end: u64, over: Over) -> Result<bool> {
        let _inside = self.enter();
        let cluster = self.cluster_of(start);
        let (key, index) = self.shape.place(cluster);
        self.zero_subclusters_inside(cluster, key, index, start..end, over)
            .map_err(|error| self.damaged(error))
    }

    /// `false` where only bytes can say it.
    fn zero_subclusters_inside(
        &self,
        cluster: u64,
        key: Key,
        index: u64,
        range: Range<u64>,
        over: Over,
    ) -> Result<bool> {
        let Range { start, end } = range;
        let size = self.layout.subcluster_size();
        let in_cluster = |offset: u64| (offset - (cluster << self.layout.cluster_bits.get())) / size;
        let last = in_cluster(end - 1);
        let mask =
            (in_cluster(start)..=last).fold(0u32, |mask, n| mask | 1u32.checked_shl(n as u32).unwrap_or(0));
        let _held = self.slice(key)?;
        let mut meta = self.wait_unclaimed(cluster..cluster + 1);
        self.check_poison()?;
        if let Some(slice) = self.slice(key)?
            && !over.allows(self.old(&slice.read(), key, index)?, mask)
        {
            return Ok(false);
        }
        if self.raw_data {
            meta.claimed.add(cluster..cluster + 1);
            drop(meta);
            let zeroed = self.data_file.as_ref().map_or(Ok(()), |data_file| {
                self.attempt(data_file.write_zeroes(start, end - start))
            });
            self.wrote(start, end - start);
            meta = self.meta();
            meta.claimed.remove(&(cluster..cluster + 1));
            self.unclaimed.notify_all();
            zeroed?;
        }
        let slice = self.own_slice(&mut meta, key)?;
        let old = self.old(&slice.read(), key, index)?;
        let (host, allocated, zero) = match old.cluster {
            Cluster::Compressed { .. } => return Ok(false),
            Cluster::Unallocated => (None, 0, 0),
            Cluster::Zero { host } => (host, 0, u32::MAX),
            Cluster::Data { host } => (Some(host), u32::MAX, 0),
            Cluster::Subclusters {
                host,
                allocated,
                zero,
            } => (host, allocated, zero),
        };
        let new = Cluster::Subclusters {
            host,
            allocated: allocated & !mask,
            zero: zero | mask,
        };
        let (entry, bitmap) = self.layout.encode(new, old.own)?;
        let mut words = slice.write();
        if self.words_at(&words, index) != (entry, bitmap) {
            self.set_words(&mut words, index, entry, bitmap);
            drop(words);
            self.slice_changed(&mut meta, key, &slice);
        }
        Ok(true)
    }
}
