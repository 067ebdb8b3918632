//! Disks that remember where moving bytes failed: QEMU tells whether it was reading or writing, and at which byte.

use crate::qemu_img::errno;
use catena_engine::{Carriage, Disk, Error, Extent, FileRole, GuestOffset, Result, Unmap, WritableDisk};
use catena_format::qcow2::Compression;
use catena_storage::{Carry, Storage};
use std::sync::{Arc, Mutex, PoisonError};

/// The first failure.
#[derive(Debug, Default)]
pub struct Failures(Mutex<Option<String>>);

impl Failures {
    fn note<T>(&self, doing: &str, at: GuestOffset, outcome: Result<T>) -> Result<T> {
        if let Err(failed) = &outcome {
            let text = format!("error while {doing} at byte {}: {}", at.0, errno::word(failed));
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(text);
        }
        outcome
    }

    /// Whether there was one.
    pub fn any(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What is told of an operation that failed.
    pub fn text(&self, failed: &Error) -> String {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| {
            let at = failed.offset().unwrap_or_default();
            format!("error while writing at byte {at}: {}", errno::word(failed))
        })
    }
}

/// A disk that is read.
pub struct Source {
    pub disk: Arc<dyn Disk>,
    pub failures: Arc<Failures>,
    /// Whether failures are made up for, and are nobody's business here.
    pub salvage: bool,
}

impl Disk for Source {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        let read = self.disk.read_at(buf, offset);
        if self.salvage {
            return read;
        }
        self.failures.note("reading", offset, read)
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        self.disk.extents(offset, end)
    }

    fn store(&self, layer: u32, file: FileRole) -> Option<&dyn Storage> {
        self.disk.store(layer, file)
    }

    fn compression(&self, layer: u32) -> Option<(Compression, u64)> {
        self.disk.compression(layer)
    }
}

/// A disk that is written.
pub struct Target {
    pub disk: Arc<dyn WritableDisk>,
    pub failures: Arc<Failures>,
}

impl Disk for Target {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        self.disk.read_at(buf, offset)
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        self.disk.extents(offset, end)
    }
}

impl WritableDisk for Target {
    fn write_at(&self, buf: &[u8], offset: GuestOffset) -> Result<()> {
        self.failures
            .note("writing", offset, self.disk.write_at(buf, offset))
    }

    fn write_zeroes(&self, offset: GuestOffset, len: u64, unmap: Unmap) -> Result<()> {
        self.failures
            .note("writing", offset, self.disk.write_zeroes(offset, len, unmap))
    }

    fn discard(&self, offset: GuestOffset, len: u64) -> Result<()> {
        self.disk.discard(offset, len)
    }

    fn begin_flush(&self) {
        self.disk.begin_flush();
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn carriage(&self, how: Carry) -> Option<Carriage> {
        self.disk.carriage(how)
    }

    fn write_from(
        &self,
        how: Carry,
        from: &dyn Storage,
        from_offset: u64,
        offset: GuestOffset,
        len: u64,
    ) -> Result<u64> {
        let written = self.disk.write_from(how, from, from_offset, offset, len);
        self.failures.note("writing", offset, written)
    }
}
