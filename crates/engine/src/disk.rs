//! The guest's view of a disk.

use crate::addr::GuestOffset;
use crate::error::Result;
use crate::extent::Extent;

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

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;
}

/// What becomes of the space behind zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It may be given back.
    Allow,
    /// It is kept, so that writing there again needs none.
    Keep,
}
