//! A store whose flushes do nothing: for images that can be made again, as `qemu-img convert` makes them unless told otherwise.

use catena_storage::{Alignment, Identity, Result, Span, Storage};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

/// Another store, of which nothing is made durable: after a power cut anything may be left of what was written.
#[derive(Clone, Debug)]
pub struct Unsynced(pub Arc<dyn Storage>);

impl Storage for Unsynced {
    fn len(&self) -> Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        self.0.read_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.0.write_all_vectored_at(bufs, offset)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.0.punch_hole(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.0.write_zeroes(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.0.allocate(offset, len)
    }

    fn keep_ahead(&self, offset: u64, len: u64) -> bool {
        self.0.keep_ahead(offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        self.0.span_at(offset)
    }

    fn is_hole(&self, offset: u64, len: u64) -> Result<bool> {
        self.0.is_hole(offset, len)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.0.allocated()
    }

    fn alignment(&self) -> Alignment {
        self.0.alignment()
    }

    fn identity(&self) -> Option<Identity> {
        self.0.identity()
    }

    fn path(&self) -> Option<&Path> {
        self.0.path()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor()
    }
}
