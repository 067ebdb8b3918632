//! A medium of a certain size: space runs out where a file system's would.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use catena_storage::{Alignment, Error, Identity, Result, Span, SpanKind, Storage};

/// What space is given out in, in bytes.
pub const BLOCK: u64 = 4096;

/// The free blocks that one or several stores share. Copies are the same medium.
#[derive(Clone, Debug)]
pub struct Medium(Arc<Mutex<u64>>);

impl Medium {
    /// A medium with so many free blocks.
    #[must_use]
    pub fn with_free(blocks: u64) -> Self {
        Self(Arc::new(Mutex::new(blocks)))
    }

    /// How many blocks are free.
    #[must_use]
    pub fn free(&self) -> u64 {
        *self.state()
    }

    /// So many more blocks are free.
    pub fn add(&self, blocks: u64) {
        *self.state() += blocks;
    }

    /// A store that lies on it. What it holds already has its space.
    pub fn over(&self, storage: Arc<dyn Storage>) -> Result<Limited> {
        let mut blocks = BTreeSet::new();
        let mut at = 0;
        while let Some(span) = storage.span_at(at)? {
            at = span.offset + span.len;
            if span.kind == SpanKind::Data {
                blocks.extend(blocks_of(span.offset, span.len));
            }
        }
        Ok(Limited {
            medium: self.clone(),
            storage,
            blocks: Mutex::new(blocks),
        })
    }

    fn state(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap()
    }
}

/// The blocks that a range touches.
fn blocks_of(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK..(offset + len).div_ceil(BLOCK)
}

/// A store whose bytes need space: a block for each that was written or is kept.
#[derive(Debug)]
pub struct Limited {
    medium: Medium,
    storage: Arc<dyn Storage>,
    blocks: Mutex<BTreeSet<u64>>,
}

impl Limited {
    /// Takes space for a range: as much as there is, from its start on. Tells where that ends.
    fn take(&self, offset: u64, len: u64) -> u64 {
        let mut blocks = self.blocks.lock().unwrap();
        let mut free = self.medium.state();
        for block in blocks_of(offset, len) {
            if blocks.contains(&block) {
                continue;
            }
            if *free == 0 {
                return (block * BLOCK).max(offset);
            }
            *free -= 1;
            blocks.insert(block);
        }
        offset + len
    }

    /// Gives back the blocks from one on that lie in a range as a whole.
    fn give_back(&self, blocks: Range<u64>) {
        let mut ours = self.blocks.lock().unwrap();
        let before = ours.len();
        ours.retain(|block| !blocks.contains(block));
        self.medium.add((before - ours.len()) as u64);
    }

    fn full(&self, operation: &'static str, offset: u64) -> Error {
        let error = Error::from_io(rustix::io::Errno::NOSPC.into(), operation).at(offset);
        match self.path() {
            Some(path) => error.with_path(path),
            None => error,
        }
    }
}

impl Storage for Limited {
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
        let end = self.take(offset, buf.len() as u64);
        let fits = (end - offset) as usize;
        if fits > 0 {
            self.storage.write_all_at(&buf[..fits], offset)?;
        }
        match fits == buf.len() {
            true => Ok(()),
            false => Err(self.full("write to", end)),
        }
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_all_at(&all, offset)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.storage.punch_hole(offset, len)?;
        self.give_back(offset.div_ceil(BLOCK)..(offset + len) / BLOCK);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        match self.take(offset, len) == offset + len {
            true => self.storage.write_zeroes(offset, len),
            false => Err(self.full("write zeros to", offset)),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        match self.take(offset, len) == offset + len {
            true => self.storage.allocate(offset, len),
            false => Err(self.full("allocate space in", offset)),
        }
    }

    fn flush(&self) -> Result<()> {
        self.storage.flush()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.storage.set_len(len)?;
        self.give_back(len.div_ceil(BLOCK)..u64::MAX);
        Ok(())
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        self.storage.span_at(offset)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(self.blocks.lock().unwrap().len() as u64 * BLOCK))
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
