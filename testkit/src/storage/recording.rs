//! Stores that keep a log of what is done to them.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use catena_storage::{Alignment, Identity, Result, Span, Storage};

use super::SECTOR;
use super::content::{Content, Shared};
use super::cuts::Cuts;

/// What happened to a set of stores, in order. Copies are the same log.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Record>>);

/// What a log holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// What each store held when its recording began.
    pub start: Vec<Content>,
    pub entries: Vec<Entry>,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// A store was changed.
    Change { file: usize, change: Arc<Change> },
    /// All that was done to a store is durable.
    Flush { file: usize },
    /// The history that is recorded has come so far.
    Reached(u64),
}

/// What was done to a store, in whole sectors: each with all it holds after the change, since that is what a disk is given.
#[derive(Debug)]
pub(super) struct Change {
    pub pieces: Vec<Piece>,
    /// How long the store was afterwards.
    pub len_after: u64,
}

/// What cannot be half done, or can be half done in one way only.
#[derive(Debug)]
pub(super) enum Piece {
    /// Sectors with these bytes. A store that is shorter becomes longer by it.
    Bytes { sector: u64, bytes: Arc<[u8]> },
    /// Sectors that became zeros, and whether a store that is shorter becomes longer by it.
    Zeros { sector: u64, count: u64, extends: bool },
    /// Another length.
    Len(u64),
}

impl Piece {
    /// How many parts it may be torn into.
    pub fn parts(&self) -> u64 {
        match self {
            Self::Bytes { bytes, .. } => bytes.len() as u64 / SECTOR,
            Self::Zeros { count, .. } => *count,
            Self::Len(_) => 1,
        }
    }

    /// Does some parts of it to what is on the disk.
    pub fn apply(&self, content: &mut Content, len_after: u64, parts: std::ops::Range<u64>) {
        match self {
            Self::Bytes { sector, bytes } => {
                let start = (sector + parts.start) * SECTOR;
                let end = ((sector + parts.end) * SECTOR).min(len_after);
                if start < end {
                    let from = (parts.start * SECTOR) as usize;
                    content.write(&bytes[from..from + (end - start) as usize], start);
                }
            }
            Self::Zeros { sector, extends, .. } => {
                let start = (sector + parts.start) * SECTOR;
                let end = ((sector + parts.end) * SECTOR).min(len_after);
                if *extends && end > content.len() {
                    content.set_len(end);
                }
                content.clear(start, end.saturating_sub(start));
            }
            Self::Len(len) => content.set_len(*len),
        }
    }
}

impl Log {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that holds `content`, which is durable, and keeps this log.
    pub fn recording(&self, mut content: Content) -> Recording {
        content.settle();
        let mut record = self.record();
        record.start.push(content.clone());
        Recording {
            file: record.start.len() - 1,
            log: self.clone(),
            live: Shared::from(content),
            real: None,
        }
    }

    /// A store that keeps this log of what it passes on to another, whose content is durable.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn recording_over(&self, real: Arc<dyn Storage>) -> anyhow::Result<Recording> {
        let mut recording = self.recording(Content::read_from(&*real)?);
        recording.real = Some(real);
        Ok(recording)
    }

    /// Notes that the history that is recorded has come so far: each [`Cut`](super::Cut) tells the last note before it. Gives the
    /// note's place: a cut whose [`position`](super::Way::position) is greater came after it.
    pub fn reached(&self, step: u64) -> usize {
        let mut record = self.record();
        record.entries.push(Entry::Reached(step));
        record.entries.len() - 1
    }

    /// How many changes and flushes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let record = self.record();
        let events = record.entries.iter();
        events.filter(|entry| !matches!(entry, Entry::Reached(_))).count()
    }

    /// Whether nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many flushes there were.
    #[must_use]
    pub fn flushes(&self) -> usize {
        let record = self.record();
        let events = record.entries.iter();
        events
            .filter(|entry| matches!(entry, Entry::Flush { .. }))
            .count()
    }

    /// What could be on the disks after a cut: at most `how_many` states, none twice for the same note, spread over the
    /// whole log. The same for the same seed.
    #[must_use]
    pub fn cuts(&self, seed: u64, how_many: usize) -> Cuts {
        Cuts::new(self.record().clone(), seed, how_many)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }
}

/// A store in memory that keeps a log.
#[derive(Debug)]
pub struct Recording {
    file: usize,
    log: Log,
    live: Shared,
    /// Where everything is passed on to.
    real: Option<Arc<dyn Storage>>,
}

impl Recording {
    /// Gives it a name, for messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<std::path::PathBuf>) -> Self {
        self.live = self.live.named(name);
        self
    }

    /// What is in it now.
    #[must_use]
    pub fn content(&self) -> Content {
        self.live.content()
    }

    /// Which of the log's stores it is: its place in [`Cut::files`](super::Cut::files).
    #[must_use]
    pub fn number(&self) -> usize {
        self.file
    }

    fn pass_on(&self, change: impl FnOnce(&dyn Storage) -> Result<()>) -> Result<()> {
        self.real.as_deref().map_or(Ok(()), change)
    }

    /// Does something to the bytes and logs what it came to for `start..end`, all as one.
    fn change(&self, change: impl FnOnce(&mut Content) -> Vec<Piece>) {
        let mut record = self.log.record();
        let (pieces, len_after) = self.live.change(|content| {
            let pieces = change(content);
            (pieces, content.len())
        });
        if pieces.is_empty() {
            return;
        }
        record.entries.push(Entry::Change {
            file: self.file,
            change: Arc::new(Change { pieces, len_after }),
        });
    }

    fn zeros(&self, offset: u64, len: u64, extends: bool) {
        self.change(|content| {
            let mut end = offset.saturating_add(len);
            if extends && len > 0 && end > content.len() {
                content.set_len(end);
            }
            end = end.min(content.len());
            if offset >= end {
                return Vec::new();
            }
            content.clear(offset, end - offset);
            let first = offset.div_ceil(SECTOR);
            // A last sector that the end of the store cuts is cleared whole.
            let last = if end == content.len() {
                end.div_ceil(SECTOR)
            } else {
                end / SECTOR
            };
            if first >= last {
                return vec![sectors(content, offset, end)];
            }
            let mut pieces = Vec::new();
            if offset < first * SECTOR {
                pieces.push(sectors(content, offset, first * SECTOR));
            }
            pieces.push(Piece::Zeros {
                sector: first,
                count: last - first,
                extends,
            });
            if last * SECTOR < end {
                pieces.push(sectors(content, last * SECTOR, end));
            }
            pieces
        });
    }
}

/// The sectors that a range touches, as they are now.
fn sectors(content: &Content, start: u64, end: u64) -> Piece {
    let sector = start / SECTOR;
    let mut bytes = vec![0; ((end.div_ceil(SECTOR) - sector) * SECTOR) as usize];
    content.read(&mut bytes, sector * SECTOR);
    Piece::Bytes {
        sector,
        bytes: bytes.into(),
    }
}

impl Storage for Recording {
    fn len(&self) -> Result<u64> {
        self.live.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.live.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        self.live.read_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if !buf.is_empty() {
            self.change(|content| {
                content.write(buf, offset);
                vec![sectors(content, offset, offset + buf.len() as u64)]
            });
        }
        self.pass_on(|real| real.write_all_at(buf, offset))
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_all_at(&all, offset)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.zeros(offset, len, false);
        self.pass_on(|real| real.punch_hole(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.zeros(offset, len, true);
        self.pass_on(|real| real.write_zeroes(offset, len))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset + len;
        if len > 0 && end > self.live.len()? {
            self.set_len(end)?;
        }
        self.pass_on(|real| real.allocate(offset, len))
    }

    fn flush(&self) -> Result<()> {
        // What is written from here on is not covered.
        self.log.record().entries.push(Entry::Flush { file: self.file });
        self.pass_on(|real| real.flush())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(|content| {
            if content.len() == len {
                return Vec::new();
            }
            content.set_len(len);
            vec![Piece::Len(len)]
        });
        self.pass_on(|real| real.set_len(len))
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        self.live.span_at(offset)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        self.live.allocated()
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn identity(&self) -> Option<Identity> {
        match &self.real {
            Some(real) => real.identity(),
            None => self.live.identity(),
        }
    }

    fn path(&self) -> Option<&Path> {
        match &self.real {
            Some(real) => real.path(),
            None => self.live.path(),
        }
    }
}
