//! Guest writes: in place where the cluster is the image's own, and by copy-on-write where it is not.

use super::disk::{LetGo, Meta, Qcow2Disk, Was};
use super::flush::L1_SECTOR;
use super::lookup::Found;
use super::refcounts::Reserved;
use super::room;
use super::slices::{Key, Slice};
use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::layout::SUBCLUSTERS;
use catena_format::qcow2::{Cluster, L1Entry};
use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

/// What zeros are written from.
pub(super) static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
/// Zeros up to this many bytes go along with the data; for more the store has better means.
const FEW_ZEROS: u64 = 4 * ZEROS.len() as u64;

/// Guest clusters in a row that get host clusters in a row.
#[derive(Debug)]
pub(super) struct Group {
    key: Key,
    slice: Arc<Slice>,
    /// The first guest cluster, and its index in the slice.
    cluster: u64,
    index: u64,
    olds: Vec<Old>,
    host: u64,
    /// What was reserved for it, to be given back where writing fails; nothing where it has a place already.
    reserved: Option<Reserved>,
    /// The host clusters read as zeros.
    untouched: bool,
}

/// An entry before it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) cluster: Cluster,
    pub(super) own: bool,
}

/// Where the data of a guest cluster goes that is not written in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// To a cluster that is still to be found.
    New,
    /// To a place that is kept for it.
    Kept(u64),
}

impl Group {
    pub(super) fn host(&self) -> u64 {
        self.host
    }

    pub(super) fn clusters(&self) -> u64 {
        self.olds.len() as u64
    }

    /// Whether none of its clusters holds anything or has a place.
    pub(super) fn is_empty(&self) -> bool {
        self.olds.iter().all(|old| {
            matches!(
                old.cluster,
                Cluster::Unallocated | Cluster::Zero { host: None } | Cluster::Subclusters { host: None, .. }
            )
        })
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.untouched
    }
}

impl Old {
    fn target(self) -> Target {
        match self.cluster {
            Cluster::Zero { host: Some(host) } | Cluster::Subclusters { host: Some(host), .. }
                if self.own =>
            {
                Target::Kept(host)
            }
            _ => Target::New,
        }
    }

    /// Which subclusters hold data, and which are zeros. Without extended entries a cluster is one subcluster.
    pub(super) fn masks(self) -> (u32, u32) {
        match self.cluster {
            Cluster::Data { .. } | Cluster::Compressed { .. } => (u32::MAX, 0),
            Cluster::Zero { .. } => (0, u32::MAX),
            Cluster::Subclusters { allocated, zero, .. } => (allocated, zero),
            Cluster::Unallocated => (0, 0),
        }
    }
}

/// Bytes around a guest's write that go with it.
enum Fill {
    Bytes(Vec<u8>),
    Zeros,
}

impl Qcow2Disk {
    pub(super) fn write_guest(&self, buf: &[u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.prepare(offset..offset.saturating_add(buf.len() as u64))?;
        let _inside = self.enter();
        self.write_inside(buf, offset)
    }

    /// Writes while the gate is held.
    fn write_inside(&self, buf: &[u8], offset: u64) -> Result<()> {
        if self.encrypted {
            return Err(Error::new(
                ErrorKind::Encrypted,
                "the image is encrypted, and writing encrypted images is not supported",
            ));
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let end = at.saturating_add(rest.len() as u64);
            let (found, len) = self.look_up(at, end).map_err(|error| self.damaged(error))?;
            let written = match found {
                Found::Data { host, own: true } => {
                    let len = usize::try_from(len).unwrap_or(usize::MAX);
                    let part = rest.get(..len).unwrap_or(rest);
                    self.check_data_place(host, part.len() as u64)?;
                    self.attempt(self.data_storage().write_all_at(part, host))?;
                    self.wrote(host, part.len() as u64);
                    part.len() as u64
                }
                _ => self.write_elsewhere(rest, at)?,
            };
            rest = rest
                .get(usize::try_from(written).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
            at = at.saturating_add(written);
        }
        Ok(())
    }

    /// Data has arrived in the store.
    pub(super) fn wrote(&self, host: u64, len: u64) {
        self.unsynced.store(true, Ordering::Release);
        if self.data_file.is_some() {
            self.data_len
                .fetch_max(host.saturating_add(len), Ordering::AcqRel);
        }
    }

    /// Writes the start of `buf` where there is no place for it yet, and tells how much; nothing where there is one by now.
    fn write_elsewhere(&self, buf: &[u8], at: u64) -> Result<u64> {
        let Some(group) = self.claim(at, buf.len() as u64)? else {
            return Ok(0);
        };
        let start = group.cluster << self.layout.cluster_bits.get();
        let span = group.olds.len() as u64 * self.cluster_size();
        let len = (start + span - at).min(buf.len() as u64);
        let part = buf
            .get(..usize::try_from(len).unwrap_or(usize::MAX))
            .unwrap_or(buf);
        let put = self.put(&group, part, at);
        self.finish(&group, at..at + len, put).map(|()| len)
    }

    /// Makes the entries of a group say where its data is, now that it is there, or gives everything back.
    pub(super) fn finish(&self, group: &Group, written: Range<u64>, put: Result<()>) -> Result<()> {
        let mut meta = self.meta();
        let linked = match put {
            Ok(()) => self.link(&mut meta, group, written),
            Err(error) => Err(error),
        };
        if linked.is_err()
            && let Some(reserved) = group.reserved
        {
            self.give_back(&mut meta, reserved);
        }
        meta.claimed
            .remove(&(group.cluster..group.cluster + group.clusters()));
        let waiting = meta.waiting > 0;
        drop(meta);
        // Waking nobody is a system call all the same.
        if waiting {
            self.unclaimed.notify_all();
        }
        linked
    }

    /// The same for clusters that have a place now, and nothing else. With subclusters they say what they said before.
    pub(super) fn finish_preallocated(&self, group: &Group, kept: Result<()>) -> Result<()> {
        let start = group.cluster << self.layout.cluster_bits.get();
        let len = match self.layout.l2_entry_size() {
            8 => group.clusters() * self.cluster_size(),
            _ => 0,
        };
        let done = self.finish(group, start..start + len, kept);
        if done.is_ok() && self.data_file.is_none() {
            let mut meta = self.meta();
            let end = group.host + group.clusters() * self.cluster_size();
            meta.len = meta.len.max(end);
        }
        done
    }

    /// Gives up a claim, and what was reserved with it.
    pub(super) fn abandon(&self, group: &Group) {
        let given_up = Error::new(ErrorKind::Conflict, "given up");
        let _ = self.finish(group, 0..0, Err(given_up));
    }

    /// Room for a compressed cluster.
    pub(super) fn reserve_bytes(&self, meta: &mut Meta, len: u64) -> Result<Reserved> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let reserved = meta.refcounts.reserve_bytes(len, &mut places);
        drop(places);
        reserved.map_err(|error| self.damaged(error))
    }

    /// What was reserved and is referred to by nothing is free again.
    pub(super) fn give_back(&self, meta: &mut Meta, reserved: Reserved) {
        let first = reserved.offset >> self.layout.cluster_bits.get();
        // Where that fails the clusters are leaked, which is all that can be said of them.
        let _ = meta.refcounts.drop_reference(first, reserved.clusters);
    }

    /// Waits until nobody else is about to change any of those guest clusters.
    pub(super) fn wait_unclaimed(&self, clusters: Range<u64>) -> MutexGuard<'_, Meta> {
        let mut meta = self.meta();
        while meta.claimed.first_in(&clusters).is_some() {
            meta.waiting += 1;
            meta = self.unclaimed.wait(meta).unwrap_or_else(PoisonError::into_inner);
            meta.waiting -= 1;
        }
        meta
    }

    /// The entry of a cluster in its slice.
    pub(super) fn old(&self, words: &[u64], key: Key, index: u64) -> Result<Old> {
        let (entry, bitmap) = self.words_at(words, index);
        let cluster = self.layout.cluster(entry, bitmap).map_err(|error| {
            let table = L1Entry(self.l1().entry(key.0)).offset().unwrap_or(0);
            let index = key.1 * self.shape.entries + index;
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} (L2 offset: {table:#x}, L2 index: {index:#x})",
                    error.message()
                ),
            )
        })?;
        Ok(Old {
            cluster,
            own: self.layout.copied(entry),
        })
    }

    /// Claims the guest clusters from `at` on that can be written together, and finds host clusters for them. `None` where the first has
    /// become writable in place.
    pub(super) fn claim(&self, at: u64, len: u64) -> Result<Option<Group>> {
        let cluster = self.cluster_of(at);
        let last = self.cluster_of(at.saturating_add(len).saturating_sub(1));
        let (key, index) = self.shape.place(cluster);
        // Brings the slice into memory before the lock is taken.
        let _held = self.slice(key).map_err(|error| self.damaged(error))?;
        let mut meta = self.wait_unclaimed(cluster..cluster + 1);
        self.check_poison()?;
        let slice = self
            .own_slice(&mut meta, key)
            .map_err(|error| self.damaged(error))?;
        let words = slice.read();
        let first = self
            .old(&words, key, index)
            .map_err(|error| self.damaged(error))?;
        if self.is_in_place(first, at) {
            return Ok(None);
        }
        let mut olds = vec![first];
        let target = first.target();
        let next_claimed = meta.claimed.first_in(&(cluster..last.saturating_add(1)));
        let most = next_claimed
            .unwrap_or(last.saturating_add(1))
            .saturating_sub(cluster)
            .min(self.shape.entries - index);
        while (olds.len() as u64) < most {
            let n = olds.len() as u64;
            // A damaged one is found again when it comes first.
            let Ok(old) = self.old(&words, key, index + n) else {
                break;
            };
            let goes_on = match (target, old.target()) {
                (Target::New, Target::New) => !matches!(old.cluster, Cluster::Data { .. } if old.own),
                (Target::Kept(first), Target::Kept(next)) => first + n * self.cluster_size() == next,
                _ => false,
            };
            if !goes_on {
                break;
            }
            olds.push(old);
        }
        drop(words);
        let count = olds.len() as u64;
        let (host, reserved, untouched) = match target {
            Target::Kept(host) => (host, None, false),
            Target::New if self.data_file.is_some() => {
                // Data lies in a data file where the guest has it.
                let host = cluster << self.layout.cluster_bits.get();
                let end = host + count * self.cluster_size();
                let known = self.data_len.fetch_max(end, Ordering::AcqRel);
                (host, None, host >= known)
            }
            Target::New => {
                let reserved = self.reserve(&mut meta, count)?;
                (reserved.offset, Some(reserved), reserved.untouched)
            }
        };
        meta.claimed.add(cluster..cluster + count);
        drop(meta);
        Ok(Some(Group {
            key,
            slice,
            cluster,
            index,
            olds,
            host,
            reserved,
            untouched,
        }))
    }

    fn is_in_place(&self, old: Old, at: u64) -> bool {
        let skip = self.layout.cluster_bits.offset_in_cluster(at);
        match old.cluster {
            Cluster::Data { .. } => old.own,
            Cluster::Subclusters {
                host: Some(_),
                allocated,
                ..
            } => old.own && allocated >> (skip / self.layout.subcluster_size()) & 1 == 1,
            _ => false,
        }
    }

    /// Host clusters in a row, the image's own.
    pub(super) fn reserve(&self, meta: &mut Meta, clusters: u64) -> Result<Reserved> {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let reserved = meta.refcounts.reserve(clusters, &mut places);
        drop(places);
        reserved.map_err(|error| self.damaged(error))
    }

    /// The slice, in a table that is the image's own: a new one where there was none or another was shared. It can be written though the
    /// medium is full.
    pub(super) fn own_slice(&self, meta: &mut Meta, key: Key) -> Result<Arc<Slice>> {
        let old = match self.table_of(key.0)? {
            Some((table, true)) => {
                let slice = self.load_slice(key)?;
                // A table that is not on the disk yet has space as a whole.
                if !slice.is_kept() && !self.l1().fresh.contains_key(&key.0) {
                    let len = self.shape.bytes();
                    room::keep(&*self.storage, table.saturating_add(key.1 * len), len)?;
                    slice.set_kept();
                }
                return Ok(slice);
            }
            Some((offset, false)) => Some(offset),
            None => None,
        };
        // What is shared is read before anything changes.
        let held = match old {
            Some(_) => Some(self.load_slice(key)?),
            None => None,
        };
        let reserved = self.reserve(meta, 1)?;
        if let Err(error) = self.keep_table_room(meta, key.0, reserved.offset) {
            self.give_back(meta, reserved);
            return Err(error);
        }
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = usize::try_from(key.0)
            .ok()
            .and_then(|index| l1.entries.get_mut(index))
        else {
            drop(l1);
            self.give_back(meta, reserved);
            return Err(Error::new(
                ErrorKind::OutOfBounds,
                "the L1 table has no entry for that guest offset",
            ));
        };
        *entry = L1Entry::to_table(reserved.offset, true).0;
        l1.fresh.insert(key.0, old);
        drop(l1);
        meta.dirty_l1.insert(key.0 / L1_SECTOR);
        self.places.write().unwrap_or_else(PoisonError::into_inner).add(
            reserved.offset,
            self.cluster_size(),
            super::places::Section::ActiveL2,
        );
        if let Some(old) = old {
            meta.let_go.push(LetGo {
                cluster: old >> self.layout.cluster_bits.get(),
                clusters: 1,
                was: Was::L2Table,
            });
        }
        match held {
            Some(slice) => Ok(slice),
            None => self.load_slice(key),
        }
    }

    /// Keeps space for a new L2 table, and for the L1 entry that will name it.
    fn keep_table_room(&self, meta: &Meta, index: u64, table: u64) -> Result<()> {
        room::keep(&*self.storage, table, self.cluster_size())?;
        let sector = index / L1_SECTOR;
        if meta.dirty_l1.contains(&sector) {
            return Ok(());
        }
        let l1 = self
            .header
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .l1_offset;
        let bytes = L1_SECTOR * 8;
        Ok(room::keep(
            &*self.storage,
            l1.saturating_add(sector * bytes),
            bytes,
        )?)
    }

    /// Writes `part` and what has to go around it to a group's host clusters.
    fn put(&self, group: &Group, part: &[u8], at: u64) -> Result<()> {
        let bits = self.layout.cluster_bits;
        let start = group.cluster << bits.get();
        let end = at + part.len() as u64;
        let host_of = |guest: u64| group.host + (guest - start);
        let len = group.clusters() * bits.size();
        self.check_data_place(group.host, len)?;
        if group.untouched {
            // New space is better found in one piece, and writing where it has been found takes less of a processor.
            match self.data_file {
                // Data lies in a data file where the guest has it: what comes behind may stay a hole.
                Some(_) => {
                    self.data_storage().keep_ahead(group.host, len);
                }
                None => self.ahead.keep(self.data_storage(), group.host, len),
            }
        }
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (n, old) in group.olds.iter().enumerate() {
            let from = start + n as u64 * bits.size();
            let to = from + bits.size();
            if at <= from && to <= end {
                continue;
            }
            let ranges = self.around(*old, from, at.max(from)..end.min(to));
            if let [head, tail] = ranges.as_slice()
                && head.end == at
                && tail.start == end
                && !self.reads_zero(head.start, head.end)?
                && !self.reads_zero(tail.start, tail.end)?
            {
                return self.put_whole(part, at, head.start..tail.end, host_of(head.start));
            }
            for range in ranges {
                let fill = self.fill(&range)?;
                if matches!(fill, Fill::Zeros) && group.untouched {
                    // The zeros are there already.
                    continue;
                }
                if range.start < at {
                    before.push((range, fill));
                } else {
                    after.push((range, fill));
                }
            }
        }
        // What touches the guest's bytes goes with them in one write; the rest is elsewhere in the cluster.
        let mut bufs = Vec::with_capacity(3);
        let mut first = at;
        while let Some((range, fill)) = before.pop_if(|(range, fill)| {
            range.end == first && (matches!(fill, Fill::Bytes(_)) || range.end - range.start <= FEW_ZEROS)
        }) {
            first = range.start;
            bufs.insert(0, (range, fill));
        }
        let mut last = end;
        after.reverse();
        let mut tail = Vec::new();
        while let Some((range, fill)) = after.pop_if(|(range, fill)| {
            range.start == last && (matches!(fill, Fill::Bytes(_)) || range.end - range.start <= FEW_ZEROS)
        }) {
            last = range.end;
            tail.push((range, fill));
        }
        for (range, fill) in before.iter().chain(&after) {
            let host = host_of(range.start);
            let written = match fill {
                Fill::Bytes(bytes) => self.data_storage().write_all_at(bytes, host),
                Fill::Zeros => self.data_storage().write_zeroes(host, range.end - range.start),
            };
            self.attempt(written)?;
        }
        let mut slices = Vec::with_capacity(3);
        for (range, fill) in &bufs {
            push_slices(range, fill, &mut slices);
        }
        slices.push(IoSlice::new(part));
        for (range, fill) in &tail {
            push_slices(range, fill, &mut slices);
        }
        let host = host_of(first);
        let written = match slices.as_slice() {
            [only] => self.data_storage().write_all_at(only, host),
            several => self.data_storage().write_all_vectored_at(several, host),
        };
        self.attempt(written)?;
        self.wrote(host, last - first);
        Ok(())
    }

    /// Writes `part` in the midst of what the guest sees around it, which is read in one piece and written in one.
    fn put_whole(&self, part: &[u8], at: u64, range: Range<u64>, host: u64) -> Result<()> {
        let len = range.end - range.start;
        let mut buf = self.scratch.take(len);
        let read = self.read_guest(&mut buf, range.start);
        if read.is_ok() {
            let skip = usize::try_from(at - range.start).unwrap_or(usize::MAX);
            let to = buf.get_mut(skip..).and_then(|rest| rest.get_mut(..part.len()));
            if let Some(to) = to {
                to.copy_from_slice(part);
            }
        }
        let written = read.and_then(|()| self.attempt(self.data_storage().write_all_at(&buf, host)));
        self.scratch.give_back(buf);
        written?;
        self.wrote(host, len);
        Ok(())
    }

    /// The guest ranges that must be copied beside `written` so that the cluster at `from` is whole in its new place: the rest of the
    /// subclusters that are touched, and, in a new place, those that hold data.
    fn around(&self, old: Old, from: u64, written: Range<u64>) -> Vec<Range<u64>> {
        let size = self.layout.subcluster_size();
        let count = self.cluster_size() / size;
        let (has, _) = old.masks();
        let moves = old.target() == Target::New;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for n in 0..count {
            let sub = from + n * size..from + (n + 1) * size;
            let touched = written.start < sub.end && sub.start < written.end;
            let has = has >> n & 1 == 1;
            let copied = if moves { touched || has } else { touched && !has };
            if !copied {
                continue;
            }
            let pieces = [
                sub.start..written.start.clamp(sub.start, sub.end),
                written.end.clamp(sub.start, sub.end)..sub.end,
            ];
            for piece in pieces {
                // A subcluster beside the written range is one of the two, not both.
                let piece = match touched {
                    true => piece,
                    false if piece == sub => piece,
                    false => continue,
                };
                if piece.is_empty() {
                    continue;
                }
                match ranges.last_mut() {
                    Some(last) if last.end == piece.start => last.end = piece.end,
                    _ => ranges.push(piece),
                }
            }
        }
        ranges
    }

    fn fill(&self, range: &Range<u64>) -> Result<Fill> {
        if self.reads_zero(range.start, range.end)? {
            return Ok(Fill::Zeros);
        }
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
        self.read_guest(&mut bytes, range.start)?;
        Ok(Fill::Bytes(bytes))
    }

    /// Makes the entries of a group say where the data is now.
    fn link(&self, meta: &mut Meta, group: &Group, written: Range<u64>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        let mut words = group.slice.write();
        for (n, old) in group.olds.iter().enumerate() {
            let n = n as u64;
            let from = (group.cluster + n) << bits.get();
            let host = group.host + n * bits.size();
            let cluster = self.after(*old, from, &written, host);
            let (entry, bitmap) = self.layout.encode(cluster, true)?;
            self.set_words(&mut words, group.index + n, entry, bitmap);
            if old.target() == Target::New {
                self.let_go(meta, *old, Was::Data);
            }
        }
        drop(words);
        self.slice_changed(meta, group.key, &group.slice);
        if self.data_file.is_none() {
            // Up to the last subcluster that is in use, as the file is with QEMU.
            let start = group.cluster << bits.get();
            let end = written.end.next_multiple_of(self.layout.subcluster_size());
            meta.len = meta.len.max(group.host + end.saturating_sub(start));
        }
        Ok(())
    }

    /// What an entry says when a part of its cluster has been written to `host`.
    fn after(&self, old: Old, from: u64, written: &Range<u64>, host: u64) -> Cluster {
        if self.layout.l2_entry_size() == 8 {
            return Cluster::Data { host };
        }
        let size = self.layout.subcluster_size();
        let (has, zero) = old.masks();
        let touched = (0..SUBCLUSTERS)
            .filter(|n| {
                let start = from + u64::from(*n) * size;
                written.start < start + size && start < written.end
            })
            .fold(0, |mask, n| mask | 1 << n);
        let allocated = has | touched;
        Cluster::Subclusters {
            host: Some(host),
            allocated,
            zero: zero & !allocated,
        }
    }

    pub(super) fn set_words(&self, words: &mut [u64], index: u64, entry: u64, bitmap: u64) {
        let extended = self.layout.l2_entry_size() == 16;
        let first = usize::try_from(if extended { index * 2 } else { index }).unwrap_or(usize::MAX);
        if let Some(word) = words.get_mut(first) {
            *word = entry;
        }
        if extended && let Some(word) = words.get_mut(first.saturating_add(1)) {
            *word = bitmap;
        }
    }

    /// The host clusters of an entry that has been replaced lose a reference with the next flush. A data file has no refcounts.
    pub(super) fn let_go(&self, meta: &mut Meta, old: Old, was: Was) {
        if self.data_file.is_some() {
            return;
        }
        let bits = self.layout.cluster_bits.get();
        let go = match old.cluster {
            Cluster::Compressed { host, len } => {
                let last = host.saturating_add(u64::from(len)).saturating_sub(1) >> bits;
                LetGo {
                    cluster: host >> bits,
                    clusters: last.saturating_sub(host >> bits).saturating_add(1),
                    was: Was::Compressed(host),
                }
            }
            Cluster::Data { host }
            | Cluster::Zero { host: Some(host) }
            | Cluster::Subclusters { host: Some(host), .. } => LetGo {
                cluster: host >> bits,
                clusters: 1,
                was,
            },
            _ => return,
        };
        match meta.let_go.last_mut() {
            Some(last)
                if last.was == go.was
                    && !matches!(go.was, Was::Compressed(_))
                    && last.cluster.saturating_add(last.clusters) == go.cluster =>
            {
                last.clusters += go.clusters;
            }
            _ => meta.let_go.push(go),
        }
    }
}

fn push_slices<'a>(range: &Range<u64>, fill: &'a Fill, slices: &mut Vec<IoSlice<'a>>) {
    match fill {
        Fill::Bytes(bytes) => slices.push(IoSlice::new(bytes)),
        Fill::Zeros => {
            let mut left = usize::try_from(range.end - range.start).unwrap_or_default();
            while left > 0 {
                let piece = ZEROS.get(..left.min(ZEROS.len())).unwrap_or(&ZEROS);
                slices.push(IoSlice::new(piece));
                left -= piece.len();
            }
        }
    }
}
