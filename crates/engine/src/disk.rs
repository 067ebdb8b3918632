//! The guest's view of a disk.

use crate::addr::GuestOffset;
use crate::error::Result;
use crate::extent::{Extent, FileRole};
use catena_format::qcow2::Compression;
use catena_storage::{Carry, Storage};

/// A disk as its guest sees it, used from many threads at once.
pub trait Disk: Send + Sync {
    /// Bytes on the disk.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`. The range must lie on the disk: [`crate::ErrorKind::OutOfBounds`] otherwise.
    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()>;

    /// What the disk is made of from `offset` on: extents in order and without gaps, the first of which starts there.
    ///
    /// They reach to `end` or to some place before it, never none unless the range is empty; ask again from where they
    /// stop. A bounded number comes back, however fragmented the disk is.
    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>>;

    /// Whether maps and holes tell that a range reads as zeros. No data is looked at.
    fn is_nothing(&self, start: GuestOffset, end: GuestOffset) -> Result<bool> {
        let mut at = start;
        while at < end {
            let extents = self.extents(at, end)?;
            match extents.last() {
                Some(last) if extents.iter().all(|extent| extent.kind.is_nothing()) && last.end() > at => {
                    at = last.end();
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The store that a layer's extents of data, or compressed ones, name places in. `None` where the disk's bytes are not
    /// at their extents' places, or are nobody else's business.
    fn store(&self, _layer: u32, _file: FileRole) -> Option<&dyn Storage> {
        None
    }

    /// How a layer compresses, and the size of its clusters, where it does.
    fn compression(&self, _layer: u32) -> Option<(Compression, u64)> {
        None
    }
}

/// A disk that is written, from many threads at once.
///
/// What was written is read at once, and is durable after [`WritableDisk::flush`]. A range must lie on the disk:
/// [`crate::ErrorKind::OutOfBounds`] otherwise, and nothing is changed. Requests that overlap in time and place may land
/// in any order.
///
/// [`crate::ErrorKind::NoSpace`] loses nothing: what failed was not written, or only in part, and writing goes on when
/// space is back. After any other failed write nothing more is written until the image is opened again.
pub trait WritableDisk: Disk {
    /// Writes all of `buf`.
    fn write_at(&self, buf: &[u8], offset: GuestOffset) -> Result<()>;

    /// Makes a range read as zeros, never as the backing's bytes.
    fn write_zeroes(&self, offset: GuestOffset, len: u64, unmap: Unmap) -> Result<()>;

    /// The guest needs the range no longer: its space is given back where that is possible. It reads as zeros or as it
    /// did before; what a backing image holds there is not uncovered.
    fn discard(&self, offset: GuestOffset, len: u64) -> Result<()>;

    /// Has what was written so far go to the medium while the caller does something else, so that [`WritableDisk::flush`] has less to
    /// wait for. Only an offer: nothing is durable by it.
    fn begin_flush(&self) {}

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;

    /// What [`WritableDisk::write_from`] takes; `None` where there is nothing it could do.
    fn carriage(&self, _how: Carry) -> Option<Carriage> {
        None
    }

    /// Has the kernel put `len` bytes of a store, from `from_offset` on, on the disk, and tells how many from the start
    /// on it did; 0 where it cannot. [`WritableDisk::carriage`] tells what it can.
    fn write_from(
        &self,
        _how: Carry,
        _from: &dyn Storage,
        _from_offset: u64,
        _offset: GuestOffset,
        _len: u64,
    ) -> Result<u64> {
        Ok(0)
    }
}

/// What the kernel can put on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carriage {
    /// Addresses on the disk, and lengths, are multiples of this.
    pub unit: u64,
    /// Offsets in the store it comes from are multiples of this.
    pub block: u64,
    /// The file system that the store is on, where it must be on one.
    pub device: Option<u64>,
}

impl Carriage {
    /// Of a store whose bytes are the disk's in units of that many.
    pub(crate) fn to(how: Carry, store: &dyn Storage, unit: u64) -> Option<Self> {
        store.descriptor()?;
        match how {
            Carry::Copy => Some(Self {
                unit,
                block: 1,
                device: None,
            }),
            Carry::Share => {
                let block = catena_storage::sharing_unit(store)?;
                Some(Self {
                    unit: unit.max(block),
                    block,
                    device: Some(store.identity()?.device),
                })
            }
        }
    }
}

/// What becomes of the space behind zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It may be given back.
    Allow,
    /// It is kept, so that writing there again needs none.
    Keep,
}
