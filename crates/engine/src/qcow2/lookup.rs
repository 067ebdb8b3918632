//! What the guest sees now: where its bytes are, and reading them.
//!
//! Whoever asks holds the gate for as long as it uses the answer.

use super::disk::Qcow2Disk;
use super::slices::{Key, Slice};
use crate::addr::{GuestOffset, HostOffset};
use crate::decompress;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind, FileRole};
use catena_format::qcow2::layout::SUBCLUSTERS;
use catena_format::qcow2::{Cluster, L1Entry};
use catena_storage::SpanKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Extents that one question is answered with, about.
const MOST_EXTENTS: usize = 4096;
/// Guest clusters that one question looks at, at most, where there are tables.
const MOST_CLUSTERS: u64 = 1 << 20;

/// What is at a guest offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The image says nothing.
    Nothing,
    /// Zeros, perhaps with a place kept for them.
    Zero(Option<u64>),
    /// Bytes at that host offset; `own` where nobody shares their cluster.
    Data { host: u64, own: bool },
    /// In one compressed cluster.
    Compressed { host: u64, len: u32 },
    /// The entry that says it is damaged.
    Damaged { entry: u64 },
}

impl Found {
    /// Whether `next`, `len` bytes on, is more of the same.
    fn goes_on(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Nothing, Self::Nothing) | (Self::Zero(None), Self::Zero(None)) => true,
            (Self::Zero(Some(host)), Self::Zero(Some(next))) => host.checked_add(len) == Some(next),
            (
                Self::Data { host, own },
                Self::Data {
                    host: next,
                    own: next_own,
                },
            ) => own == next_own && host.checked_add(len) == Some(next),
            _ => false,
        }
    }
}

impl Qcow2Disk {
    /// The L2 table of an L1 index on disk, and whether it is the image's own.
    pub(super) fn table_of(&self, index: u64) -> Result<Option<(u64, bool)>> {
        let entry = L1Entry(self.l1().entry(index));
        let offset = self.layout.l2_offset(entry).map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "L2 table offset {:#x} unaligned (L1 index: {index:#x})",
                    entry.offset().unwrap_or_default()
                ),
            )
            .with_source(error)
        })?;
        Ok(offset.map(|offset| (offset, entry.copied())))
    }

    /// The slice; `None` where there is no table.
    pub(super) fn slice(&self, key: Key) -> Result<Option<Arc<Slice>>> {
        if let Some(slice) = self.slices.get(key) {
            return Ok(Some(slice));
        }
        if self.table_of(key.0)?.is_none() {
            return Ok(None);
        }
        self.load_slice(key).map(Some)
    }

    /// The slice of a table that there is.
    pub(super) fn load_slice(&self, key: Key) -> Result<Arc<Slice>> {
        self.slices.load(key, &*self.storage, || {
            let on_disk = self.table_of(key.0)?.map(|(offset, _)| offset);
            let l1 = self.l1();
            Ok(match l1.fresh.get(&key.0) {
                Some(copied_from) => *copied_from,
                None => on_disk,
            })
        })
    }

    /// The words of an entry: the entry itself, and its bitmap.
    pub(super) fn words_at(&self, words: &[u64], index: u64) -> (u64, u64) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let word = |index: usize| words.get(index).copied().unwrap_or(0);
        if self.layout.l2_entry_size() == 16 {
            let first = index.saturating_mul(2);
            (word(first), word(first.saturating_add(1)))
        } else {
            (word(index), 0)
        }
    }

    /// What is at `at`, and for how many bytes, at most to `end`, all in one slice.
    pub(super) fn look_up(&self, at: u64, end: u64) -> Result<(Found, u64)> {
        let bits = self.layout.cluster_bits;
        let (key, mut index) = self.shape.place(at >> bits.get());
        let Some(slice) = self.slice(key)? else {
            let coverage = self.layout.l2_coverage();
            let to = (key.0 + 1).saturating_mul(coverage).min(end);
            return Ok((Found::Nothing, to - at));
        };
        let words = slice.read();
        let mut at_now = at;
        let mut answer: Option<(Found, u64)> = None;
        while at_now < end && index < self.shape.entries {
            let cluster_start = at_now - bits.offset_in_cluster(at_now);
            let cluster_end = cluster_start.saturating_add(bits.size()).min(end);
            let (found, len) =
                self.in_entry(&words, key, index, at_now - cluster_start, cluster_end - at_now);
            match &mut answer {
                None => answer = Some((found, len)),
                Some((first, so_far)) if first.goes_on(*so_far, found) => *so_far += len,
                Some(_) => break,
            }
            at_now += len;
            if at_now >= cluster_end {
                index += 1;
            }
        }
        Ok(answer.unwrap_or((Found::Nothing, end.saturating_sub(at))))
    }

    /// What an entry says of the bytes from `skip` into its cluster, at most `want` of them.
    fn in_entry(&self, words: &[u64], key: Key, index: u64, skip: u64, want: u64) -> (Found, u64) {
        let (entry, bitmap) = self.words_at(words, index);
        let own = self.layout.copied(entry);
        match self.layout.cluster(entry, bitmap) {
            Ok(Cluster::Unallocated) => (Found::Nothing, want),
            Ok(Cluster::Zero { host }) => (Found::Zero(host.map(|host| host.saturating_add(skip))), want),
            Ok(Cluster::Data { host }) => (
                Found::Data {
                    host: host.saturating_add(skip),
                    own,
                },
                want,
            ),
            Ok(Cluster::Compressed { host, len }) => (Found::Compressed { host, len }, want),
            Ok(Cluster::Subclusters {
                host,
                allocated,
                zero,
            }) => {
                let size = self.layout.subcluster_size();
                let kind = |n: u64| (allocated >> n & 1, zero >> n & 1);
                let first = skip / size;
                let mut next = first + 1;
                while next < u64::from(SUBCLUSTERS) && kind(next) == kind(first) {
                    next += 1;
                }
                let len = (next * size - skip).min(want);
                let found = match (host, kind(first)) {
                    (Some(host), (1, _)) => Found::Data {
                        host: host.saturating_add(skip),
                        own,
                    },
                    (host, (_, 1)) => Found::Zero(host.map(|host| host.saturating_add(skip))),
                    _ => Found::Nothing,
                };
                (found, len)
            }
            Err(_) => {
                let table = L1Entry(self.l1().entry(key.0)).offset().unwrap_or(0);
                let place = key.1 * self.shape.bytes() + index * self.layout.l2_entry_size();
                (
                    Found::Damaged {
                        entry: table.saturating_add(place),
                    },
                    want,
                )
            }
        }
    }

    /// Fills `buf` with what the guest sees; zeros past the disk's end.
    pub(super) fn read_guest(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.size.load(Ordering::Acquire);
        let end = offset.saturating_add(buf.len() as u64);
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            if at >= size {
                rest.fill(0);
                break;
            }
            let (found, len) = self.look_up(at, end.min(size))?;
            let (now, later) = rest.split_at_mut(usize::try_from(len).unwrap_or(usize::MAX).min(rest.len()));
            self.read_found(found, at, now)?;
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    fn read_found(&self, found: Found, at: u64, buf: &mut [u8]) -> Result<()> {
        match found {
            Found::Zero(_) => {
                buf.fill(0);
                Ok(())
            }
            Found::Nothing => self.read_backing(buf, at),
            Found::Data { .. } | Found::Compressed { .. } if self.encrypted => Err(Error::new(
                ErrorKind::Encrypted,
                "the data is encrypted, and reading encrypted images is not supported",
            )),
            Found::Data { host, .. } => {
                let read = self.data_storage().read_at(buf, host)?;
                // Past the end of the file there are zeros.
                if let Some(rest) = buf.get_mut(read..) {
                    rest.fill(0);
                }
                Ok(())
            }
            Found::Compressed { host, len } => self.read_compressed(host, len, at, buf),
            Found::Damaged { entry } => Err(Error::new(
                ErrorKind::Corrupt,
                format!("the mapping of guest offset {at:#x} is damaged"),
            )
            .at(entry)),
        }
    }

    fn read_backing(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let (inside, beyond) = match &self.backing {
            Some(backing) => {
                let there = backing.size().saturating_sub(at);
                buf.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX).min(buf.len()))
            }
            None => buf.split_at_mut(0),
        };
        beyond.fill(0);
        match &self.backing {
            Some(backing) if !inside.is_empty() => backing.read_at(inside, GuestOffset(at)),
            _ => Ok(()),
        }
    }

    fn read_compressed(&self, host: u64, len: u32, at: u64, buf: &mut [u8]) -> Result<()> {
        let skip = usize::try_from(self.layout.cluster_bits.offset_in_cluster(at)).unwrap_or_default();
        let size = usize::try_from(self.cluster_size()).unwrap_or_default();
        let mut rest = buf;
        let mut skip = skip;
        // Runs never join compressed clusters, so this is one turn.
        while !rest.is_empty() {
            let cluster = match self.decompressed.get(&host) {
                Some(cluster) => cluster,
                None => {
                    let mut compressed = vec![0; len as usize];
                    self.storage.read_at(&mut compressed, host)?;
                    // A cluster read whole is not asked for again soon.
                    if skip == 0 && rest.len() == size {
                        return decompress::cluster(self.compression, &compressed, rest)
                            .map_err(|error| error.at(host));
                    }
                    let mut cluster = vec![0; size];
                    decompress::cluster(self.compression, &compressed, &mut cluster)
                        .map_err(|error| error.at(host))?;
                    let cluster: Arc<[u8]> = cluster.into();
                    self.decompressed.insert(host, Arc::clone(&cluster));
                    cluster
                }
            };
            let part = cluster.get(skip..).unwrap_or_default();
            let n = part.len().min(rest.len());
            if n == 0 {
                return Err(Error::new(ErrorKind::Corrupt, "compressed cluster too short"));
            }
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(part.get(..n).unwrap_or_default());
            rest = later;
            skip = 0;
        }
        Ok(())
    }

    /// Whether a range certainly reads as zeros, as far as maps tell.
    pub(super) fn reads_zero(&self, start: u64, end: u64) -> Result<bool> {
        let end = end.min(self.size.load(Ordering::Acquire));
        let mut at = start;
        while at < end {
            let (found, len) = self.look_up(at, end)?;
            let zero = match found {
                Found::Zero(_) => true,
                Found::Nothing => self.backing_is_zero(at, at + len)?,
                _ => false,
            };
            if !zero {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    fn backing_is_zero(&self, start: u64, end: u64) -> Result<bool> {
        let Some(backing) = &self.backing else {
            return Ok(true);
        };
        backing.is_nothing(GuestOffset(start), GuestOffset(end.min(backing.size())))
    }

    /// What the disk is made of from `start` on.
    pub(super) fn map_guest(&self, start: u64, end: u64) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut at = start;
        let mut looked_at = 0;
        while at < end && extents.len() < MOST_EXTENTS && looked_at < MOST_CLUSTERS {
            let (key, _) = self.shape.place(self.cluster_of(at));
            let (found, len) = match self.look_up(at, end) {
                Ok(answer) => answer,
                // A table that cannot be there makes all it maps unreadable.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    let l1_offset = self.header().l1_offset;
                    let to = (key.0 + 1).saturating_mul(self.layout.l2_coverage()).min(end);
                    let entry = l1_offset.saturating_add(key.0 * 8);
                    (Found::Damaged { entry }, to - at)
                }
                Err(error) => return Err(error),
            };
            if found != Found::Nothing || self.slices.get(key).is_some() {
                looked_at += len.div_ceil(self.cluster_size());
            }
            let to = at + self.map_found(found, at, len, &mut extents)?;
            at = to;
        }
        Ok(extents)
    }

    /// Appends the extents of a run, and tells how many bytes they are; fewer than `len` where what is below answers only that far.
    fn map_found(&self, found: Found, at: u64, len: u64, out: &mut Vec<Extent>) -> Result<u64> {
        let extent = |kind| Extent {
            start: GuestOffset(at),
            len,
            kind,
            layer: 0,
        };
        let kind = match found {
            Found::Nothing => return self.map_backing(at, len, out),
            Found::Zero(host) => ExtentKind::Zero {
                offset: host.map(HostOffset),
            },
            Found::Data { host, .. } if self.encrypted => ExtentKind::Encrypted {
                offset: HostOffset(host),
            },
            Found::Compressed { host, .. } if self.encrypted => ExtentKind::Encrypted {
                offset: HostOffset(host),
            },
            Found::Data { host, .. } => return self.map_data(host, at, len, out),
            Found::Compressed { host, len } => ExtentKind::Compressed {
                offset: HostOffset(host),
                len,
            },
            Found::Damaged { entry } => ExtentKind::Corrupt {
                entry: HostOffset(entry),
            },
        };
        extent(kind).push_to(out);
        Ok(len)
    }

    /// Splits a run of bytes into what the file holds and what it knows to be holes.
    fn map_data(&self, host: u64, at: u64, len: u64, out: &mut Vec<Extent>) -> Result<u64> {
        let file = match &self.data_file {
            Some(_) => FileRole::Data,
            None => FileRole::Image,
        };
        let mut done = 0;
        while done < len {
            let left = len - done;
            let offset = HostOffset(host.saturating_add(done));
            let (kind, n) = match self.data_storage().span_at(offset.0)? {
                Some(span) => (span.kind, span.len.clamp(1, left)),
                None => (SpanKind::Hole, left),
            };
            Extent {
                start: GuestOffset(at + done),
                len: n,
                kind: match kind {
                    SpanKind::Data => ExtentKind::Data { file, offset },
                    SpanKind::Hole => ExtentKind::Zero { offset: Some(offset) },
                },
                layer: 0,
            }
            .push_to(out);
            done += n;
        }
        Ok(len)
    }

    fn map_backing(&self, at: u64, len: u64, out: &mut Vec<Extent>) -> Result<u64> {
        let there = self
            .backing
            .as_ref()
            .map_or(0, |backing| backing.size().saturating_sub(at))
            .min(len);
        let Some(backing) = self.backing.as_ref().filter(|_| there > 0) else {
            Extent {
                start: GuestOffset(at),
                len,
                kind: ExtentKind::Unallocated,
                layer: 0,
            }
            .push_to(out);
            return Ok(len);
        };
        let mut done = 0;
        for extent in backing.extents(GuestOffset(at), GuestOffset(at + there))? {
            done += extent.len;
            Extent {
                layer: extent.layer.saturating_add(1),
                ..extent
            }
            .push_to(out);
        }
        Ok(done.max(1))
    }
}
