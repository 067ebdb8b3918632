//! Who watches a long operation, and may stop it.

use catena_engine::{Error, ErrorKind, GuestOffset, Result};

/// Watches a long operation. Called from several threads, often; it must be quick.
pub trait Observer: Sync {
    /// So much is done, of so much. Both in bytes of the guest's disk.
    fn progress(&self, done: u64, total: u64);

    /// Whether to stop. What was done so far stays consistent.
    fn cancelled(&self) -> bool {
        false
    }

    /// Both at once: so much is done, of so much. Whether to go on.
    fn step(&self, done: u64, total: u64) -> bool {
        self.progress(done, total);
        !self.cancelled()
    }

    /// A sector could not be read, and becomes zeros because the caller wants what can be had.
    fn unreadable(&self, _at: GuestOffset, _why: &Error) {}

    /// An error where it is to stop.
    fn check(&self) -> Result<()> {
        if self.cancelled() {
            Err(Error::new(ErrorKind::Cancelled, "stopped"))
        } else {
            Ok(())
        }
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn progress(&self, _done: u64, _total: u64) {}
}
