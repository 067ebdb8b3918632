//! Bytes in memory: sparse, so that a huge store costs what was written to it.
//!
//! Behaves as a [`LocalFile`](crate::LocalFile) does, holes included. Nothing is durable.

#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Alignment, Identity, Span, SpanKind, Storage};
use crate::transfer::{self, OFFSET_LIMIT, wide};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What is kept or not kept as a whole, in bytes.
const PAGE: u64 = 1 << 16;

/// The device number all stores in memory are said to be on; no kernel gives it out.
const DEVICE: u64 = u64::MAX;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A store in memory.
pub struct MemoryStorage {
    number: u64,
    name: Option<PathBuf>,
    bytes: RwLock<Bytes>,
}

#[derive(Default)]
struct Bytes {
    len: u64,
    /// By page number. What is not here is zero, and so is what lies past `len` in a page.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl MemoryStorage {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_bytes(Bytes::default())
    }

    /// A store of `len` zeros, which take up nothing.
    pub fn with_len(len: u64) -> Self {
        Self::with_bytes(Bytes {
            len: len.min(OFFSET_LIMIT),
            pages: BTreeMap::new(),
        })
    }

    /// Gives it a name, for messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<PathBuf>) -> Self {
        self.name = Some(name.into());
        self
    }

    fn with_bytes(bytes: Bytes) -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name: None,
            bytes: RwLock::new(bytes),
        }
    }

    // A panic elsewhere leaves no page half made that matters more than half a write on a disk.
    fn shared(&self) -> RwLockReadGuard<'_, Bytes> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Bytes> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn too_large(&self, operation: &'static str, offset: u64) -> Error {
        let error = Error::new(ErrorKind::NoSpace, operation)
            .at(offset)
            .with_detail("no store is that long");
        match &self.name {
            Some(name) => error.with_path(name),
            None => error,
        }
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl From<&[u8]> for MemoryStorage {
    fn from(slice: &[u8]) -> Self {
        let mut bytes = Bytes::default();
        bytes.write(slice, 0);
        Self::with_bytes(bytes)
    }
}

impl From<Vec<u8>> for MemoryStorage {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.shared();
        f.debug_struct("MemoryStorage")
            .field("number", &self.number)
            .field("name", &self.name)
            .field("len", &bytes.len)
            .field("pages", &bytes.pages.len())
            .finish()
    }
}

/// The pieces of a range, none reaching over the end of a page: page number, start within the page, length.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        let start = at % PAGE;
        let n = (PAGE - start).min(end.saturating_sub(at));
        let piece = (at / PAGE, usize::try_from(start).ok()?, usize::try_from(n).ok()?);
        at = at.saturating_add(n);
        (n > 0).then_some(piece)
    })
}

fn blank() -> Vec<u8> {
    vec![0; usize::try_from(PAGE).unwrap_or_default()]
}

impl Bytes {
    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = wide(buf.len()).min(self.len.saturating_sub(offset));
        let mut done = 0_usize;
        for (page, start, len) in pieces(offset, n) {
            let end = done.saturating_add(len);
            let Some(to) = buf.get_mut(done..end) else { break };
            match self
                .pages
                .get(&page)
                .and_then(|page| page.get(start..))
                .and_then(|tail| tail.get(..len))
            {
                Some(from) => to.copy_from_slice(from),
                None => to.fill(0),
            }
            done = end;
        }
        done
    }

    fn write(&mut self, buf: &[u8], offset: u64) {
        let mut left = buf;
        for (page, start, len) in pieces(offset, wide(buf.len())) {
            let Some((from, rest)) = left.split_at_checked(len) else {
                break;
            };
            left = rest;
            let page = self.pages.entry(page).or_insert_with(blank);
            if let Some(to) = page.get_mut(start..).and_then(|tail| tail.get_mut(..len)) {
                to.copy_from_slice(from);
            }
        }
        if !buf.is_empty() {
            self.len = self.len.max(offset.saturating_add(wide(buf.len())));
        }
    }

    /// Clears a range in time that depends on the pages there are, not on how long it is.
    fn clear(&mut self, offset: u64, end: u64) {
        let touched: Vec<u64> = match end.checked_sub(1) {
            Some(last) if offset < end => self
                .pages
                .range(offset / PAGE..=last / PAGE)
                .map(|(page, _)| *page)
                .collect(),
            _ => return,
        };
        for number in touched {
            let first = number.saturating_mul(PAGE);
            let from = offset.saturating_sub(first).min(PAGE);
            let to = end.saturating_sub(first).min(PAGE);
            if from == 0 && to == PAGE {
                self.pages.remove(&number);
            } else if let (Some(page), Ok(from), Ok(to)) = (
                self.pages.get_mut(&number),
                usize::try_from(from),
                usize::try_from(to),
            ) {
                page.get_mut(from..to).unwrap_or_default().fill(0);
            }
        }
    }

    fn span(&self, offset: u64) -> Option<Span> {
        if offset >= self.len {
            return None;
        }
        let first = offset / PAGE;
        let (kind, end) = if self.pages.contains_key(&first) {
            let mut next = first;
            for page in self.pages.range(first..).map(|(page, _)| *page) {
                if page != next {
                    break;
                }
                next = next.saturating_add(1);
            }
            (SpanKind::Data, next.saturating_mul(PAGE))
        } else {
            let next = self.pages.range(first..).next();
            (
                SpanKind::Hole,
                next.map_or(self.len, |(page, _)| page.saturating_mul(PAGE)),
            )
        };
        Some(Span {
            kind,
            offset,
            len: end.min(self.len).saturating_sub(offset),
        })
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> Result<u64> {
        Ok(self.shared().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        Ok(self.shared().read(buf, offset))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        let bytes = self.shared();
        let mut done = 0_usize;
        for buf in bufs {
            done = done.saturating_add(bytes.read(buf, offset.saturating_add(wide(done))));
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        transfer::check_reach(buf.len(), offset).map_err(|_| self.too_large("write to", offset))?;
        self.alone().write(buf, offset);
        Ok(())
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let total = transfer::total(bufs.iter().map(|buf| buf.len()));
        transfer::check_reach(total, offset).map_err(|_| self.too_large("write to", offset))?;
        let mut bytes = self.alone();
        let mut at = offset;
        for buf in bufs {
            bytes.write(buf, at);
            at = at.saturating_add(wide(buf.len()));
        }
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        let mut bytes = self.alone();
        let end = offset.saturating_add(len);
        // To the end means the last page as well.
        let end = if end >= bytes.len { OFFSET_LIMIT } else { end };
        if len > 0 {
            bytes.clear(offset, end);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        if end > self.len()? && len > 0 {
            self.set_len(end)?;
        }
        self.punch_hole(offset, len)
    }

    /// Memory promises no space.
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        if end > self.len()? && len > 0 {
            self.set_len(end)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len > OFFSET_LIMIT {
            return Err(self.too_large("resize", len));
        }
        let mut bytes = self.alone();
        if len < bytes.len {
            bytes.clear(len, OFFSET_LIMIT);
        }
        bytes.len = len;
        Ok(())
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        Ok(self.shared().span(offset))
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(Some(wide(self.shared().pages.len()).saturating_mul(PAGE)))
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity {
            device: DEVICE,
            inode: self.number,
            len: self.shared().len,
            modified: None,
        })
    }

    fn path(&self) -> Option<&Path> {
        self.name.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_store_costs_what_was_written() {
        let store = MemoryStorage::with_len(1 << 50);
        store.write_all_at(b"here", 1 << 49).unwrap();
        assert_eq!(store.len().unwrap(), 1 << 50);
        assert_eq!(store.allocated().unwrap(), Some(PAGE));
        let first = store.span_at(0).unwrap().unwrap();
        assert_eq!((first.kind, first.len), (SpanKind::Hole, 1 << 49));
        let second = store.span_at(first.len).unwrap().unwrap();
        assert_eq!((second.kind, second.len), (SpanKind::Data, PAGE));
        store.punch_hole(0, u64::MAX).unwrap();
        assert_eq!(store.allocated().unwrap(), Some(0));
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let store = MemoryStorage::from(vec![7; 100]);
        store.set_len(10).unwrap();
        store.set_len(100).unwrap();
        let mut buf = [1; 100];
        assert_eq!(store.read_at(&mut buf, 0).unwrap(), 100);
        assert_eq!(buf[..10], [7; 10]);
        assert_eq!(buf[10..], [0; 90]);
    }

    #[test]
    fn two_stores_are_two_objects() {
        let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
        assert!(!one.identity().unwrap().same_object(&two.identity().unwrap()));
    }

    #[test]
    fn writing_past_the_last_offset_is_refused() {
        let store = MemoryStorage::new().named("m");
        let error = store.write_all_at(b"x", i64::MAX as u64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(
            error.to_string(),
            "cannot write to 'm' at offset 0x7fffffffffffffff: no store is that long"
        );
        assert_eq!(store.read_at(&mut [0; 4], u64::MAX).unwrap(), 0);
    }
}
