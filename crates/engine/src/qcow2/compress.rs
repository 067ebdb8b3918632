//! Compressed writes: a guest cluster as the bytes of a stream, packed one behind the other.
//!
//! A deflate stream's distances reach over its whole cluster, up to the 32 KiB of RFC 1951, which is what the format names. QEMU itself writes
//! no more than 4 KiB, but inflates a cluster in one call, where the output is the window.
//!
//! Compressing and writing are two steps, so that many threads can do the one, and bytes that are compressed already need only the other.

use super::disk::{Qcow2Disk, Was};
use crate::addr::GuestOffset;
use crate::disk::{Disk, WritableDisk};
use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::{Cluster, Compression};
use libdeflater::{CompressionLvl, Compressor};
use std::borrow::Cow;
use std::cell::RefCell;
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
        match self.compress(data) {
            Some(compressed) => self.write_compressed_bytes(offset, &compressed),
            None => self.write_at(data, offset),
        }
    }

    /// Compresses a cluster's data in the way of the image, what is missing of it being zeros. `None` where that takes no less space.
    pub fn compress(&self, data: &[u8]) -> Option<Vec<u8>> {
        let size = usize::try_from(self.cluster_size()).ok()?;
        let whole = if data.len() < size {
            let mut whole = data.to_vec();
            whole.resize(size, 0);
            Cow::Owned(whole)
        } else {
            Cow::Borrowed(data.get(..size)?)
        };
        let most = size.checked_sub(1)?;
        COMPRESSORS.with_borrow_mut(|compressors| compressors.compress(self.compression, &whole, most))
    }

    /// Writes a cluster that is compressed already, in the way of the image. A whole cluster of bytes or more is refused.
    pub fn write_compressed_bytes(&self, offset: GuestOffset, compressed: &[u8]) -> Result<()> {
        let size = self.cluster_size();
        let end = self.disk_end_of(offset)?;
        if compressed.is_empty() || compressed.len() as u64 >= size {
            return Err(unaligned());
        }
        if self.data_file.is_some() || self.encrypted {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "an image that is encrypted or has a data file has no compressed clusters",
            ));
        }
        self.prepare(offset.0..end)?;
        let inside = self.enter();
        let cluster = self.cluster_of(offset.0);
        let (key, index) = self.shape.place(cluster);
        // Brings the slice into memory before the lock is taken.
        let _held = self.slice(key).map_err(|error| self.damaged(error))?;
        let mut meta = self.wait_unclaimed(cluster..cluster + 1);
        self.check_poison()?;
        let slice = self
            .own_slice(&mut meta, key)
            .map_err(|error| self.damaged(error))?;
        let old = self
            .old(&slice.read(), key, index)
            .map_err(|error| self.damaged(error))?;
        let len = compressed.len() as u64;
        let reserved = self.reserve_bytes(&mut meta, len)?;
        meta.claimed.add(cluster..cluster + 1);
        drop(meta);
        let host = reserved.offset;
        let written = self
            .layout
            .encode(
                Cluster::Compressed {
                    host,
                    len: u32::try_from(len).unwrap_or(u32::MAX),
                },
                false,
            )
            .map_err(Error::from)
            .and_then(|words| {
                self.check_data_place(host, len)?;
                self.attempt(self.storage.write_all_at(compressed, host))?;
                self.wrote(host, len);
                Ok(words)
            });
        let mut meta = self.meta();
        meta.claimed.remove(&(cluster..cluster + 1));
        let linked = match written {
            Ok((entry, bitmap)) => {
                self.set_words(&mut slice.write(), index, entry, bitmap);
                self.let_go(&mut meta, old, Was::Data);
                self.slice_changed(&mut meta, key, &slice);
                meta.len = meta.len.max(host.saturating_add(len).next_multiple_of(SECTOR));
                Ok(())
            }
            Err(error) => {
                self.give_back(&mut meta, reserved);
                Err(error)
            }
        };
        drop(meta);
        self.unclaimed.notify_all();
        drop(inside);
        linked?;
        self.write_back_if_much()
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
    deflate: Option<Compressor>,
    zstd: Option<CCtx<'static>>,
    out: Vec<u8>,
}

impl Compressors {
    /// The compressed bytes; nothing where they are more than `most`.
    fn compress(&mut self, how: Compression, data: &[u8], most: usize) -> Option<Vec<u8>> {
        self.out.resize(most, 0);
        let len = match how {
            Compression::Deflate => self
                .deflate
                .get_or_insert_with(|| Compressor::new(deflate_level()))
                .deflate_compress(data, &mut self.out)
                .ok()?,
            Compression::Zstd => {
                let context = match &mut self.zstd {
                    Some(context) => context,
                    none => none.insert(CCtx::try_create()?),
                };
                context.compress2(self.out.as_mut_slice(), data).ok()?
            }
        };
        self.out.get(..len).map(<[u8]>::to_vec)
    }
}

/// The level that QEMU's own deflate takes more space than, at several times the work.
fn deflate_level() -> CompressionLvl {
    CompressionLvl::new(1).unwrap_or_default()
}
