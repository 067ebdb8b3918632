//! What makes small writes cheap and changes nothing: space that is found before it is needed, and buffers that are used again.

use crate::error::Result;
use catena_storage::{Alignment, Storage};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Space is asked for by so many bytes at most.
const MOST_AHEAD: u64 = 1 << 20;
/// The same of a store that is made longer with it, for which all who write there have to wait.
const MOST_AHEAD_LONGER: u64 = 16 << 20;
/// Buffers that are kept, in bytes: one for each of many threads, if they are not large.
const BUFFER_BYTES: usize = 16 << 20;

/// Space past the end of a store that was asked for in larger pieces than are written: clusters that are written in small parts lie in one
/// piece all the same, and finding space costs little. An image that is written little keeps little.
///
/// Around the page cache a write that makes a file longer has the file to itself, and those who wait for it spin. So there the file is made
/// longer ahead, too: what is written then lies within it, and is written side by side.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Up to where space was asked for; `u64::MAX` where it is not to be had.
    to: AtomicU64,
    /// How much was asked for last.
    step: AtomicU64,
    /// Up to where the store was made longer.
    longer_to: AtomicU64,
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
        let longer = storage.alignment() != Alignment::NONE;
        let most = if longer { MOST_AHEAD_LONGER } else { MOST_AHEAD };
        let step = self.step.load(Ordering::Relaxed).saturating_mul(2);
        let to = from.saturating_add(step.min(most)).max(end);
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
        } else if longer && storage.allocate(from, to - from).is_ok() {
            self.longer_to.fetch_max(to, Ordering::Relaxed);
        }
    }

    /// Gives back what lies past the end, or past `used`, behind which nothing was ever written, where the store was made longer. Nobody may
    /// be writing.
    pub(super) fn give_back(&self, storage: &dyn Storage, used: u64) -> Result<()> {
        let to = match self.to.swap(u64::MAX, Ordering::AcqRel) {
            u64::MAX => 0,
            to => to,
        };
        let longer_to = self.longer_to.swap(0, Ordering::AcqRel);
        if to.max(longer_to) == 0 {
            return Ok(());
        }
        let len = storage.len()?;
        // What was written behind where it was made longer to is in use.
        let left = if len == longer_to { len.min(used) } else { len };
        if left < len.max(to) {
            // A file that is cut to the length it has loses what it keeps beyond.
            storage.set_len(left)?;
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
        ahead.give_back(&file, 64 << 16).unwrap();
        assert_eq!(file.len().unwrap(), len);
        // At most what the file is long, in whole blocks of whatever size.
        assert!(file.allocated().unwrap().unwrap() <= 64 << 16);
    }

    #[test]
    fn a_file_that_was_made_longer_gets_the_length_that_is_in_use() {
        let dir = Folder::new();
        let options = OpenOptions::new().direct(true);
        let Ok(file) = LocalFile::create(dir.file("image"), &options) else {
            // Not every file system can do without the page cache.
            return;
        };
        for past_the_end in [false, true] {
            let ahead = Ahead::default();
            let mut used = file.len().unwrap();
            for _ in 0..5 {
                ahead.keep(&file, used, 1 << 16);
                file.write_all_at(&[7; 4096], used).unwrap();
                used += 1 << 16;
            }
            if past_the_end {
                file.write_all_at(&[7; 4096], used + (16 << 20)).unwrap();
                used += (16 << 20) + 4096;
            }
            ahead.give_back(&file, used).unwrap();
            assert!((used - (60 << 10)..=used).contains(&file.len().unwrap()));
            // What is not there is less than what was found ahead; a file system has its own blocks, too.
            assert!(file.allocated().unwrap().unwrap() <= used + (32 << 10));
        }
    }
}
