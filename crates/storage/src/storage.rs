//! The trait every place of bytes implements, and the small values it speaks in.

use crate::error::Result;
use crate::sys::shortcut::Shortcut;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::SystemTime;

/// A random-access store of bytes, used from many threads at once.
///
/// Offsets are bytes from the start. Reads past the end are short; they are not errors.
pub trait Storage: fmt::Debug + Send + Sync {
    /// How many bytes there are now.
    fn len(&self) -> Result<u64>;

    /// Whether there are no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads into `buf` until it is full or the bytes end, and tells how many were read. What of `buf` is past those is
    /// left as it was or zero.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Like [`Storage::read_at`] into several buffers in turn.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize>;

    /// Writes all of `buf`, growing the store where it reaches past the end.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Like [`Storage::write_all_at`] from several buffers in turn.
    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()>;

    /// Makes the range read as zeros without keeping space for it where the store can. The length stays: what of the
    /// range lies past the end is ignored.
    fn punch_hole(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes the range read as zeros, growing the store where it reaches past the end. Whether it takes up space
    /// then is the store's choice.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Keeps space for the range, growing the store where it reaches past the end, so that writing there cannot run
    /// out of it; what the range holds stays, and what is new reads as zeros. [`crate::ErrorKind::Unsupported`] where the
    /// store cannot promise that.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;

    /// Finds space in one piece for a range that will be written soon, past the end too, where that costs little. What is read and how
    /// long the store is stay as they are. Only an offer: `false` where nothing came of it, and none is to be made again.
    fn keep_ahead(&self, _offset: u64, _len: u64) -> bool {
        false
    }

    /// Has what was written so far go to the medium while the caller does something else, so that [`Storage::flush`] has less to wait
    /// for. Only an offer: nothing is durable by it.
    fn begin_flush(&self) {}

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;

    /// Cuts or extends (with zeros) the store.
    fn set_len(&self, len: u64) -> Result<()>;

    /// What the store knows of the stretch that starts at `offset`, without reading it: a [`Span`] that starts there
    /// and is not empty, or `None` at and past the end. A store that knows nothing answers data to the end.
    fn span_at(&self, offset: u64) -> Result<Option<Span>>;

    /// Whether the store knows that a range reads as zeros; what lies past the end does.
    fn is_hole(&self, offset: u64, len: u64) -> Result<bool> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            match self.span_at(at)? {
                Some(span) if span.kind == SpanKind::Hole && span.len > 0 => {
                    at = at.saturating_add(span.len);
                }
                Some(_) => return Ok(false),
                None => break,
            }
        }
        Ok(true)
    }

    /// Bytes of the medium that the store takes up, where known.
    fn allocated(&self) -> Result<Option<u64>>;

    /// What requests are best aligned to. Others are served too, by way of a copy.
    fn alignment(&self) -> Alignment;

    /// Which object this is, whatever name it was opened by. `None` where the store cannot tell.
    fn identity(&self) -> Option<Identity>;

    /// The name it was opened by, for messages.
    fn path(&self) -> Option<&Path>;

    /// The descriptor behind it, where the kernel may move its bytes by itself (`copy_file_range`, `FICLONERANGE`,
    /// `splice`). Requests through it must keep to [`Storage::alignment`].
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// A shorter way to read the same bytes, where there is one.
    fn shortcut(&self) -> Option<Shortcut> {
        None
    }
}

/// What requests to a store are best aligned to. Powers of two, 1 where anything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Offsets and lengths, in bytes.
    pub request: u32,
    /// Memory addresses of buffers, in bytes.
    pub memory: u32,
}

impl Alignment {
    /// Anything goes.
    pub const NONE: Self = Self {
        request: 1,
        memory: 1,
    };
}

/// A stretch of a store that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which of the two.
    pub kind: SpanKind,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; never 0.
    pub len: u64,
}

/// Whether a stretch of a store holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// There may be bytes that are not zero.
    Data,
    /// Reads as zeros and takes up no space.
    Hole,
}

/// Which object a store is: two stores with the same device and inode are the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device number of the file system, or of the device itself for a block device.
    pub device: u64,
    /// Inode number; 0 for a block device, which its device number names alone.
    pub inode: u64,
    /// Length in bytes when it was asked.
    pub len: u64,
    /// Last modification, where the file system keeps one.
    pub modified: Option<SystemTime>,
}

impl Identity {
    /// Whether both are the same object, whatever its length and age.
    pub fn same_object(&self, other: &Self) -> bool {
        self.object() == other.object()
    }

    /// The part that names the object: device and inode. Usable as a key.
    pub fn object(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}
