//! What a guest writes, for the bitmaps that record it.
//!
//! Before the guest's first change each of them is marked as in use on disk: a writer that dies leaves bitmaps that nobody
//! believes. What becomes dirty is kept in memory, and stored beside the old bits when the image is closed. The disk keeps its
//! size meanwhile.

use super::bits::Bits;
use super::edit::Bitmaps;
use super::{Ground, stored};
use crate::error::Result;
use catena_format::qcow2::{Bitmap, Header};
use catena_storage::Storage;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The bitmaps of an image that record what its guest writes.
#[derive(Debug)]
pub struct Recorder {
    /// Whether the marks are on disk.
    marked: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    recorded: Vec<Recorded>,
}

#[derive(Debug)]
struct Recorded {
    /// As it was found.
    bitmap: Bitmap,
    /// Where its flags are.
    flags_offset: u64,
    /// What has become dirty since.
    dirty: Bits,
}

impl Recorder {
    /// The bitmaps of an image that record by themselves and can be believed; `None` where there is none.
    ///
    /// # Errors
    /// Where the bitmaps cannot be read.
    pub fn read(header: &Header, storage: &dyn Storage) -> Result<Option<Self>> {
        let mut recorded = Vec::new();
        let mut offset = header.bitmaps().map_or(0, |extension| extension.directory_offset);
        for bitmap in stored::list(header, storage)? {
            let flags_offset = offset.saturating_add(Bitmap::FLAGS_OFFSET);
            offset = offset.saturating_add(bitmap.encoded_len());
            if bitmap.auto && !bitmap.in_use && bitmap.is_understood() {
                recorded.push(Recorded {
                    dirty: Bits::new(header.virtual_size, bitmap.granularity),
                    flags_offset,
                    bitmap,
                });
            }
        }
        let state = State { recorded };
        Ok((!state.recorded.is_empty()).then(|| Self {
            marked: AtomicBool::new(false),
            state: Mutex::new(state),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No bit is left half set by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the guest is about to change a range. To be called before anything of the change can be on disk.
    ///
    /// # Errors
    /// Where the bitmaps cannot be marked as in use. Nothing may be changed then.
    pub fn touch(&self, range: Range<u64>, storage: &dyn Storage) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        self.mark(&state, storage)?;
        for recorded in &mut state.recorded {
            recorded.dirty.set(range.clone());
        }
        Ok(())
    }

    /// Whether the bitmaps are marked as in use.
    pub fn is_marked(&self) -> bool {
        self.marked.load(Ordering::Relaxed)
    }

    fn mark(&self, state: &State, storage: &dyn Storage) -> Result<()> {
        if self.is_marked() {
            return Ok(());
        }
        for recorded in &state.recorded {
            let marked = Bitmap {
                in_use: true,
                ..recorded.bitmap.clone()
            };
            storage.write_all_at(&marked.flags().to_be_bytes(), recorded.flags_offset)?;
        }
        storage.flush()?;
        self.marked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Stores what has become dirty and takes the marks away. The guest writes no more.
    ///
    /// # Errors
    /// Where they cannot be stored: the bitmaps stay marked, and nobody believes them.
    pub fn close(&self, ground: &dyn Ground) -> Result<()> {
        if !self.is_marked() {
            return Ok(());
        }
        let state = self.state();
        let mut bitmaps = Bitmaps::read(ground)?;
        let header = ground.header();
        for recorded in &state.recorded {
            let mut bits = stored::load(&recorded.bitmap, &header, ground.storage())?;
            bits.merge(&recorded.dirty);
            bitmaps.replace(&recorded.bitmap, bits);
        }
        bitmaps.store(ground)?;
        self.marked.store(false, Ordering::Relaxed);
        Ok(())
    }
}
