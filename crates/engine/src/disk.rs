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
