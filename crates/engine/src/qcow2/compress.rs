//! Compressed writes: a guest cluster as the bytes of a stream, packed one behind the other.
//!
//! A deflate stream's distances reach over its whole cluster, up to the 32 KiB of RFC 1951, which is what the format names. QEMU itself writes
//! no more than 4 KiB, but inflates a cluster in one call, where the output is the window.
//!
//! Compressing and writing are two steps, so that many threads can do the one, and bytes that are compressed already need only the other.

use super::disk::{Meta, Qcow2Disk, Was};
use super::refcounts::Reserved;
use crate::addr::GuestOffset;
use crate::disk::{Disk, WritableDisk};
use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::{Cluster, Compression};
use libdeflater::{CompressionLvl, Compressor};
use std::borrow::Cow;
use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;
use zstd::zstd_safe::CCtx;

thread_local! {
    static COMPRESSORS: RefCell<Compressors> = RefCell::default();
}

/// The file ends with a whole sector.
const SECTOR: u64 = 512;

impl Qcow2Disk {
    /// Writes one whole cluster, or the disk's last as far as it goes, compressed; as it is where that takes no less space.
    pub fn write_compressed(&self, data: &[u8], offset: GuestOffset) -> Result<()> {
        self.check_whole_cluster(offset, data.len() as u64)?;
        let mut compressed = vec![
            0;
            data.len()
                .max(usize::try_from(self.cluster_size()).unwrap_or_default())
        ];
        match self.compress(data, offset, &mut compressed) {
            Some(len) => self.write_compressed_bytes(offset, &[compressed.get(..len).unwrap_or_default()]),
            None => self.write_at(data, offset),
        }
    }

    /// Compresses the data of the cluster at a guest address in the way of the image, what is missing of it being zeros, into the first bytes
    /// of `out`. `None` where that takes as much space as a cluster, or as there is.
    pub fn compress(&self, data: &[u8], offset: GuestOffset, out: &mut [u8]) -> Option<usize> {
        let size = usize::try_from(self.cluster_size()).ok()?;
        let whole = if data.len() < size {
            let mut whole = data.to_vec();
            whole.resize(size, 0);
            Cow::Owned(whole)
        } else {
            Cow::Borrowed(data.get(..size)?)
        };
        let most = size.checked_sub(1)?.min(out.len());
        let out = out.get_mut(..most)?;
        let is_odd = !self.cluster_of(offset.0).is_multiple_of(2);
        COMPRESSORS.with_borrow_mut(|compressors| compressors.compress(self.compression, &whole, is_odd, out))
    }

    /// Writes clusters in a row that are compressed already, in the way of the image. A whole cluster of bytes or more is refused.
    pub fn write_compressed_bytes(&self, offset: GuestOffset, streams: &[&[u8]]) -> Result<()> {
        let size = self.cluster_size();
        let fits = |stream: &&[u8]| !stream.is_empty() && (stream.len() as u64) < size;
        if !streams.iter().all(fits) {
            return Err(unaligned());
        }
        if self.data_file.is_some() || self.encrypted {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "an image that is encrypted or has a data file has no compressed clusters",
            ));
        }
        let mut at = offset;
        let mut rest = streams;
        while let Some(last) = (rest.len() as u64).checked_sub(1) {
            self.disk_end_of(at.plus(last.saturating_mul(size)))?;
            // Those whose entries are in one slice go together.
            let (_, index) = self.shape.place(self.cluster_of(at.0));
            let together = usize::try_from(self.shape.entries - index).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_checked(together).unwrap_or((rest, &[]));
            self.write_streams(at, now)?;
            self.write_back_if_much()?;
            at = at.plus((now.len() as u64).saturating_mul(size));
            rest = later;
        }
        Ok(())
    }

    /// The same for clusters whose entries are in one slice.
    fn write_streams(&self, offset: GuestOffset, streams: &[&[u8]]) -> Result<()> {
        let count = streams.len() as u64;
        let end = offset.0.saturating_add(count.saturating_mul(self.cluster_size()));
        self.prepare(offset.0..end.min(self.size()))?;
        let _inside = self.enter();
        let first = self.cluster_of(offset.0);
        let clusters = first..first.saturating_add(count);
        let (key, index) = self.shape.place(first);
        // Brings the slice into memory before the lock is taken.
        let _held = self.slice(key).map_err(|error| self.damaged(error))?;
        let mut meta = self.wait_unclaimed(clusters.clone());
        self.check_poison()?;
        let slice = self
            .own_slice(&mut meta, key)
            .map_err(|error| self.damaged(error))?;
        let words = slice.read();
        let olds = (index..index + count)
            .map(|index| self.old(&words, key, index).map_err(|error| self.damaged(error)))
            .collect::<Result<Vec<_>>>()?;
        drop(words);
        let places = self.reserve_streams(&mut meta, streams)?;
        meta.claimed.add(clusters.clone());
        drop(meta);
        let written = self.put_streams(streams, &places);
        let mut meta = self.meta();
        meta.claimed.remove(&clusters);
        let linked = match written {
            Ok(entries) => {
                let mut words = slice.write();
                for (index, (entry, bitmap)) in (index..).zip(entries) {
                    self.set_words(&mut words, index, entry, bitmap);
                }
                drop(words);
                for old in olds {
                    self.let_go(&mut meta, old, Was::Data);
                }
                self.slice_changed(&mut meta, key, &slice);
                for (place, stream) in places.iter().zip(streams) {
                    let end = place.offset.saturating_add(stream.len() as u64);
                    meta.len = meta.len.max(end.next_multiple_of(SECTOR));
                }
                Ok(())
            }
            Err(error) => {
                for place in places {
                    self.give_back(&mut meta, place);
                }
                Err(error)
            }
        };
        let waiting = meta.waiting > 0;
        drop(meta);
        // Waking nobody is a system call all the same.
        if waiting {
            self.unclaimed.notify_all();
        }
        linked
    }

    /// Places for all of them, or none.
    fn reserve_streams(&self, meta: &mut Meta, streams: &[&[u8]]) -> Result<Vec<Reserved>> {
        let mut places = Vec::with_capacity(streams.len());
        for stream in streams {
            match self.reserve_bytes(meta, stream.len() as u64) {
                Ok(place) => places.push(place),
                Err(error) => {
                    for place in places {
                        self.give_back(meta, place);
                    }
                    return Err(error);
                }
            }
        }
        Ok(places)
    }

    /// Writes them to their places, those that lie one behind the other in one go; tells what their entries say then.
    fn put_streams(&self, streams: &[&[u8]], places: &[Reserved]) -> Result<Vec<(u64, u64)>> {
        let mut entries = Vec::with_capacity(streams.len());
        let mut together: Vec<IoSlice<'_>> = Vec::with_capacity(streams.len());
        let (mut start, mut end) = (0, 0);
        for (stream, place) in streams.iter().zip(places) {
            let cluster = Cluster::Compressed {
                host: place.offset,
                len: u32::try_from(stream.len()).unwrap_or(u32::MAX),
            };
            entries.push(self.layout.encode(cluster, false)?);
            if place.offset != end {
                self.put_together(&together, start..end)?;
                together.clear();
                (start, end) = (place.offset, place.offset);
            }
            together.push(IoSlice::new(stream));
            end += stream.len() as u64;
        }
        self.put_together(&together, start..end)?;
        Ok(entries)
    }

    fn put_together(&self, streams: &[IoSlice<'_>], place: Range<u64>) -> Result<()> {
        let len = place.end - place.start;
        if len == 0 {
            return Ok(());
        }
        self.check_data_place(place.start, len)?;
        self.ahead.keep(&*self.storage, place.start, len);
        self.attempt(self.storage.write_all_vectored_at(streams, place.start))?;
        self.wrote(place.start, len);
        Ok(())
    }

    /// Where the cluster that starts at `offset` ends on the disk.
    fn disk_end_of(&self, offset: GuestOffset) -> Result<u64> {
        let size = self.cluster_size();
        if !offset.0.is_multiple_of(size) {
            return Err(unaligned());
        }
        let len = size.min(self.size().saturating_sub(offset.0)).max(1);
        self.check_range(offset, len)
    }

    fn check_whole_cluster(&self, offset: GuestOffset, len: u64) -> Result<()> {
        if self.disk_end_of(offset)? - offset.0 == len {
            Ok(())
        } else {
            Err(unaligned())
        }
    }
}

fn unaligned() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "a compressed write is one whole cluster, or the disk's last",
    )
}

/// What compressing takes, made once for each thread: it is large, and clusters are many.
#[derive(Default)]
struct Compressors {
    fast: Option<Compressor>,
    thorough: Option<Compressor>,
    zstd: Option<CCtx<'static>>,
}

impl Compressors {
    /// How many bytes they are compressed; nothing where they do not fit.
    ///
    /// QEMU's deflate takes space between that of the two fastest levels, at several times the work of either. So every other cluster is
    /// compressed at each: less space than QEMU takes, and, for a cluster, always the same bytes.
    fn compress(&mut self, how: Compression, data: &[u8], thorough: bool, out: &mut [u8]) -> Option<usize> {
        match how {
            Compression::Deflate => {
                let (kept, level) = match thorough {
                    true => (&mut self.thorough, 2),
                    false => (&mut self.fast, 1),
                };
                let compressor = kept
                    .get_or_insert_with(|| Compressor::new(CompressionLvl::new(level).unwrap_or_default()));
                compressor.deflate_compress(data, out).ok()
            }
            Compression::Zstd => {
                let context = match &mut self.zstd {
                    Some(context) => context,
                    none => none.insert(CCtx::try_create()?),
                };
                context.compress2(out, data).ok()
            }
        }
    }
}
