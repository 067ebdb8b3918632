//! One layer: what an image says itself, without asking its backing.

use crate::addr::{GuestOffset, HostOffset};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, FileRole};
use catena_format::qcow2::Compression;
use catena_storage::Storage;
use std::fmt;
use std::sync::Arc;

/// An open image that speaks for itself alone.
pub trait Image: fmt::Debug + Send + Sync {
    /// Bytes of the image's own disk, whatever lies above or below.
    fn virtual_size(&self) -> u64;

    /// Appends what the image says about `start..end`, in order and without gaps, with layer 0.
    ///
    /// The range lies within the virtual size, and is bounded by the caller: the answer is at most one extent for
    /// each 512 bytes. A damaged entry is an extent, [`crate::ExtentKind::Corrupt`], not an error.
    fn map(&self, start: GuestOffset, end: GuestOffset, extents: &mut Vec<Extent>) -> Result<()>;

    /// How far from `start` the image certainly says nothing, at most to `end`; `start` where it may say something, or
    /// where that is as costly to know as the map. The range is as for [`Image::map`], but of any length.
    fn silent_until(&self, start: GuestOffset, _end: GuestOffset) -> Result<GuestOffset> {
        Ok(start)
    }

    /// Bytes of tables that must be read to know the whole map. The count ends where it passes `most`, so that it costs little itself.
    fn map_tables(&self, _most: u64) -> Result<u64> {
        Ok(0)
    }

    /// The store behind one of the image's files, the same for as long as the image is open.
    fn storage(&self, file: FileRole) -> Result<&Arc<dyn Storage>>;

    /// The unit in which the map tells of the disk, and the unit of compression: a compressed extent belongs to one cluster of this size,
    /// aligned to it. That of an image that is one piece is the whole disk.
    fn cluster_size(&self) -> u64;

    /// How its compressed clusters are compressed, where it has such.
    fn compression(&self) -> Option<Compression> {
        None
    }

    /// Fills `out`, exactly [`Image::cluster_size`] bytes, with the cluster whose compressed bytes lie there. What it holds after an
    /// error is not said.
    fn decompress(&self, offset: HostOffset, _len: u32, _out: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "the format has no compressed clusters").at(offset.0))
    }
}
