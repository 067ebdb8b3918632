//! Who watches a walk over an image's metadata, and may stop it.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;

/// Is told how far a walk is, and says whether it goes on.
///
/// Both numbers are bytes of guests' disks whose tables have been, and are to be, walked: the active disk's and those of all
/// snapshots. A change walks several times, and begins anew each time. It is called from several threads, often.
#[derive(Clone, Copy, Default)]
pub struct Watch<'a>(Option<&'a (dyn Fn(u64, u64) -> bool + Sync)>);

impl<'a> Watch<'a> {
    /// Tells this.
    pub fn new(tell: &'a (dyn Fn(u64, u64) -> bool + Sync)) -> Self {
        Self(Some(tell))
    }

    /// Tells how far the walk is.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] where it is to stop.
    pub(in crate::qcow2) fn tell(self, done: u64, total: u64) -> Result<()> {
        if self.0.is_none_or(|tell| tell(done, total)) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Cancelled, "stopped"))
    }
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Watch" } else { "Nobody" })
    }
}
