//! A descriptor by its number: reading through it touches nothing else of the open file.

use crate::error::Result;
use crate::local::LocalFile;
use crate::transfer;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// The shortest way to a file's bytes, for who reads from so many files that what is known of them does not stay in the processor's
/// caches.
#[derive(Clone, Debug)]
pub struct Shortcut {
    number: RawFd,
    file: LocalFile,
}

impl Shortcut {
    /// To a file that keeps its descriptor, and whose requests need no alignment.
    pub(crate) fn to(file: &LocalFile) -> Option<Self> {
        let number = file.kept_descriptor()?.as_raw_fd();
        Some(Self {
            number,
            file: file.clone(),
        })
    }

    /// As [`Storage::read_at`](crate::Storage::read_at).
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // SAFETY: `file` keeps the descriptor of that number open: it is one that stays open for as long as the file does, of which
        // this is a clone.
        let fd = unsafe { BorrowedFd::borrow_raw(self.number) };
        transfer::read(fd, buf, offset).map_err(|error| self.file.failed(error, "read").at(offset))
    }
}
