//! Persistent dirty bitmaps: what they hold, how they are changed, and how they are kept while a guest writes.
//!
//! * [`Bits`]: a bitmap in memory.
//! * [`stored`]: the bitmaps of an image, as they are on disk.
//! * [`Bitmaps`]: changes to them, stored in one step ([`edit`]).
//! * [`Recorder`]: what a guest writes, and where it goes when the image is closed.
//! * [`Ground`]: what is needed of the image they lie in.
//!
//! A [`Qcow2Disk`](crate::Qcow2Disk) is such a ground: bitmaps are edited on an image that is open for writing, whose guest does
//! not write meanwhile.
//!
//! Nothing is changed in place but the mark of a bitmap that is in use: new tables and a new directory are written to
//! free clusters, made durable, and the header then refers to them.

pub mod bits;
pub mod edit;
pub mod error;
mod ground;
pub mod recorder;
pub mod stored;

pub use bits::Bits;
pub use edit::{Bitmaps, NewBitmap, Written};
pub use error::BitmapError;
pub use recorder::Recorder;

use crate::error::Result;
use catena_format::qcow2::Header;
use catena_storage::Storage;

/// Clusters of the image in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Offset of the first.
    pub offset: u64,
    /// How many there are.
    pub clusters: u64,
}

/// What is needed of an image that is held alone, or whose guest writes through whoever implements this.
pub trait Ground {
    /// Where the image lies, to read from.
    fn storage(&self) -> &dyn Storage;

    /// The header as it is now.
    fn header(&self) -> Header;

    /// Takes so many clusters in one run and tells where it starts. They are counted on disk after [`Ground::sync`].
    fn allocate(&self, clusters: u64) -> Result<u64>;

    /// Writes to clusters that were allocated here.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Makes all that was written, and the refcounts of what was allocated, durable.
    fn sync(&self) -> Result<()>;

    /// Makes this the header, durably: before, it is the old one at every instant, and after, the new one. Only
    /// extensions and autoclear bits differ.
    fn switch(&self, header: &Header) -> Result<()>;

    /// Gives back clusters that nothing on disk refers to any more.
    fn free(&self, run: Run) -> Result<()>;
}
