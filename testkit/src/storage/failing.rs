//! A store whose Nth change fails.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use catena_storage::{Alignment, Error, Identity, Result, Span, Storage};

use super::SECTOR;

/// What sort of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, or zeros with or without space.
    Write,
    /// Space for later.
    Allocate,
    /// A flush.
    Flush,
    /// Another length.
    SetLen,
    /// A hole.
    Punch,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// `EIO`, from any change.
    Broken,
    /// `ENOSPC`, from changes that may need space: writes, allocations, growing.
    Full,
}

/// How long it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// Once.
    Once,
    /// From then on, until [`Faults::mend`].
    On,
}

/// Which change fails, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How many changes that could fail so are done first.
    pub after: usize,
    /// What goes wrong.
    pub trouble: Trouble,
    /// How long.
    pub lasting: Lasting,
}

/// The switch of one or several failing stores: they count together. Copies are the same switch.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    /// Changes since the fault was set that could fail as it does; all of them while there is none.
    count: usize,
    failed: usize,
}

impl Faults {
    /// No fault yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the fault, and starts to count.
    pub fn set(&self, fault: Fault) {
        *self.state() = State {
            fault: Some(fault),
            ..State::default()
        };
    }

    /// Nothing fails from here on: space is back, or the disk is another.
    pub fn mend(&self) {
        self.state().fault = None;
    }

    /// How many changes failed since the fault was set.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.state().failed
    }

    /// How many changes there were since the fault was set that could fail as it does.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state().count
    }

    /// A store over another that fails by this switch.
    pub fn over(&self, storage: Arc<dyn Storage>) -> Failing {
        Failing {
            faults: self.clone(),
            storage,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Counts a change, and tells the error with which it fails.
    fn strike(&self, kind: Kind) -> Option<io::Error> {
        let mut state = self.state();
        let trouble = state.fault.map(|fault| fault.trouble);
        if trouble == Some(Trouble::Full) && matches!(kind, Kind::Flush | Kind::Punch) {
            return None;
        }
        let number = state.count;
        state.count += 1;
        let fault = state.fault?;
        let strikes = match fault.lasting {
            Lasting::Once => number == fault.after,
            Lasting::On => number >= fault.after,
        };
        if !strikes {
            return None;
        }
        state.failed += 1;
        let code = match fault.trouble {
            Trouble::Broken => rustix::io::Errno::IO,
            Trouble::Full => rustix::io::Errno::NOSPC,
        };
        Some(code.into())
    }
}

/// A store over another. A write that fails is done up to its middle, as a disk may leave it.
#[derive(Debug)]
pub struct Failing {
    faults: Faults,
    storage: Arc<dyn Storage>,
}

impl Failing {
    fn strike(&self, kind: Kind, operation: &'static str, offset: u64) -> Result<()> {
        match self.faults.strike(kind) {
            Some(error) => Err(Error::from_io(error, operation).at(offset)),
            None => Ok(()),
        }
    }
}

impl Storage for Failing {
    fn len(&self) -> Result<u64> {
        self.storage.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.storage.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        self.storage.read_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let struck = self.strike(Kind::Write, "write to", offset);
        if struck.is_err() {
            // Whole sectors only: the first half of them.
            let end = offset + buf.len() as u64;
            let middle = (offset + buf.len() as u64 / 2) / SECTOR * SECTOR;
            if middle > offset && middle < end {
                self.storage
                    .write_all_at(&buf[..(middle - offset) as usize], offset)?;
            }
            return struck;
        }
        self.storage.write_all_at(buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_all_at(&all, offset)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.strike(Kind::Punch, "punch a hole into", offset)?;
        self.storage.punch_hole(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.strike(Kind::Write, "write zeros to", offset)?;
        self.storage.write_zeroes(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.strike(Kind::Allocate, "allocate space in", offset)?;
        self.storage.allocate(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.strike(Kind::Flush, "flush", 0)?;
        self.storage.flush()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.strike(Kind::SetLen, "resize", len)?;
        self.storage.set_len(len)
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        self.storage.span_at(offset)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.storage.allocated()
    }

    fn alignment(&self) -> Alignment {
        self.storage.alignment()
    }

    fn identity(&self) -> Option<Identity> {
        self.storage.identity()
    }

    fn path(&self) -> Option<&Path> {
        self.storage.path()
    }
}
