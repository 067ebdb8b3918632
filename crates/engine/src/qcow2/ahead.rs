//! What makes small writes cheap and changes nothing: space that is found before it is needed, and buffers that are used again.

use crate::error::Result;
use catena_storage::Storage;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Space is asked for by so many bytes at most.
const MOST_AHEAD: u64 = 1 << 20;
/// Buffers that are kept, in bytes: one for each of many threads, if they are not large.
const BUFFER_BYTES: usize = 16 << 20;

/// Space past the end of a store that was asked for in larger pieces than are written: clusters that are written in small parts lie in one
/// piece all the same, and finding space costs little. An image that is written little keeps little.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Up to where space was asked for; `u64::MAX` where it is not to be had.
    to: AtomicU64,
    /// How much was asked for last.
    step: AtomicU64,
}

impl Ahead {
    /// Has space found for a range, and for as much again as the last time.
    pub(super) fn keep(&self, storage: &dyn Storage, from: u64, len: u64) {
        let known = self.to.load(Ordering::Acquire);
        let end = from.saturating_add(len);
        if end <= known {
            return;
        }
        let from = from.max(known);
        let step = self.step.load(Ordering::Relaxed).saturating_mul(2);
        let to = from.saturating_add(step.min(MOST_AHEAD)).max(end);
        let mine = self
            .to
            .compare_exchange(known, to, Ordering::AcqRel, Ordering::Acquire);
        if mine.is_err() {
            // Whoever else asks does so for what comes next.
            return;
        }
        self.step.store(to - from, Ordering::Relaxed);
        if !storage.keep_ahead(from, to - from) {
            self.to.store(u64::MAX, Ordering::Release);
        }
    }

    /// Gives back what lies past the end. Nobody may be writing.
    pub(super) fn give_back(&self, storage: &dyn Storage) -> Result<()> {
        let to = self.to.swap(u64::MAX, Ordering::AcqRel);
        if to == 0 || to == u64::MAX {
            return Ok(());
        }
        let len = storage.len()?;
        if len < to {
            // A file that is cut to the length it has loses what it keeps beyond.
            storage.set_len(len)?;
        }
        Ok(())
    }
}

/// Buffers that are used again: what is new to a process is zeroed first, by the kernel or by us.
#[derive(Debug, Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<u8>>>);

impl Scratch {
    /// A buffer of that length, with anything in it.
    pub(super) fn take(&self, len: u64) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buf = kept.unwrap_or_default();
        buf.resize(usize::try_from(len).unwrap_or_default(), 0);
        buf
    }

    /// Keeps a buffer for the next.
    pub(super) fn give_back(&self, buf: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len().saturating_mul(buf.capacity()) < BUFFER_BYTES {
            kept.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ahead;
    use catena_storage::{LocalFile, OpenOptions, Storage};
    use catena_testkit::Folder;

    #[test]
    fn space_that_was_kept_ahead_is_given_back() {
        let dir = Folder::new();
        let file = LocalFile::create(dir.file("image"), &OpenOptions::new()).unwrap();
        let ahead = Ahead::default();
        for cluster in 0..64 {
            ahead.keep(&file, cluster << 16, 1 << 16);
            file.write_all_at(&[7; 4096], cluster << 16).unwrap();
        }
        let len = file.len().unwrap();
        assert_eq!(len, (63 << 16) + 4096);
        ahead.give_back(&file).unwrap();
        assert_eq!(file.len().unwrap(), len);
        // At most what the file is long, in whole blocks of whatever size.
        assert!(file.allocated().unwrap().unwrap() <= 64 << 16);
    }
}
