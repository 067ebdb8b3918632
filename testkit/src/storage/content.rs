//! Sparse bytes whose pages are shared between copies until one of them is written.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use anyhow::Result;
use catena_storage::{Alignment, Identity, Span, SpanKind, Storage};

const PAGE: u64 = 4096;
const PAGE_BYTES: usize = PAGE as usize;
/// The device that all of these are said to be on; no kernel gives it out.
const DEVICE: u64 = u64::MAX - 1;

static NEXT: AtomicU64 = AtomicU64::new(1);

type Page = Arc<[u8; PAGE_BYTES]>;

/// Bytes. A copy costs what was written since [`Content::settle`].
#[derive(Clone, Debug, Default)]
pub struct Content {
    len: u64,
    /// By page number; what is not here is zeros, and so is what lies past `len` in a page.
    base: Arc<BTreeMap<u64, Page>>,
    /// What was written over it; `None` is a page of zeros.
    over: BTreeMap<u64, Option<Page>>,
}

/// The pieces of a range that lie in one page each: page number, start in it, length.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let start = at % PAGE;
        let n = (PAGE - start).min(end - at);
        let piece = (at / PAGE, start as usize, n as usize);
        at += n;
        (n > 0).then_some(piece)
    })
}

impl Content {
    /// So many zeros.
    #[must_use]
    pub fn zeros(len: u64) -> Self {
        Self {
            len,
            ..Self::default()
        }
    }

    /// All that a store holds.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_from(storage: &dyn Storage) -> Result<Self> {
        let mut content = Self::zeros(storage.len()?);
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while let Some(span) = storage.span_at(at)? {
            at = span.offset + span.len;
            if span.kind == SpanKind::Hole {
                continue;
            }
            let mut from = span.offset;
            while from < at {
                let n = usize::try_from(at - from).map_or(buffer.len(), |n| n.min(buffer.len()));
                let n = storage.read_at(&mut buffer[..n], from)?;
                anyhow::ensure!(n > 0, "the store ends before its length");
                content.write(&buffer[..n], from);
                from += n as u64;
            }
        }
        content.settle();
        Ok(content)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn page(&self, number: u64) -> Option<&Page> {
        match self.over.get(&number) {
            Some(page) => page.as_ref(),
            None => self.base.get(&number),
        }
    }

    /// Fills `buf` until it is full or the bytes end, and tells how many there were.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = self.len.saturating_sub(offset).min(buf.len() as u64);
        let mut done = 0;
        for (number, start, len) in pieces(offset, n) {
            let to = &mut buf[done..done + len];
            match self.page(number) {
                Some(page) => to.copy_from_slice(&page[start..start + len]),
                None => to.fill(0),
            }
            done += len;
        }
        done
    }

    /// Writes bytes, growing where they reach past the end.
    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        for (number, start, len) in pieces(offset, bytes.len() as u64) {
            let from = &bytes[done..done + len];
            done += len;
            self.page_mut(number)[start..start + len].copy_from_slice(from);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    fn page_mut(&mut self, number: u64) -> &mut [u8; PAGE_BYTES] {
        let page = match self.over.entry(number) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.base.get(&number).cloned()),
        };
        Arc::make_mut(page.get_or_insert_with(|| Arc::new([0; PAGE_BYTES])))
    }

    /// Makes a range zeros. The length stays.
    pub fn clear(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        if offset >= end {
            return;
        }
        // What lies past the end of the last page is zeros anyway.
        let end = if end == self.len {
            end.next_multiple_of(PAGE)
        } else {
            end
        };
        let (first, last) = (offset / PAGE, (end - 1) / PAGE);
        let mut touched: Vec<u64> = self.base.range(first..=last).map(|(number, _)| *number).collect();
        touched.extend(self.over.range(first..=last).map(|(number, _)| *number));
        for number in touched {
            let start = offset.saturating_sub(number * PAGE).min(PAGE) as usize;
            let stop = (end - number * PAGE).min(PAGE) as usize;
            if (start, stop) == (0, PAGE_BYTES) {
                self.over.insert(number, None);
            } else if self.page(number).is_some() {
                self.page_mut(number)[start..stop].fill(0);
            }
        }
    }

    /// Cuts, or extends with zeros.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.clear(len, self.len - len);
        }
        self.len = len;
    }

    /// Makes copies cheap from here on.
    pub fn settle(&mut self) {
        if self.over.is_empty() {
            return;
        }
        let base = Arc::make_mut(&mut self.base);
        for (number, page) in std::mem::take(&mut self.over) {
            match page {
                Some(page) => base.insert(number, page),
                None => base.remove(&number),
            };
        }
    }

    /// Writes a sparse file of these bytes, in place of what is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = std::fs::File::create(path)?;
        file.set_len(self.len)?;
        let numbers: std::collections::BTreeSet<_> = self.base.keys().chain(self.over.keys()).collect();
        for number in numbers {
            if let Some(page) = self.page(*number) {
                let at = number * PAGE;
                let n = self.len.saturating_sub(at).min(PAGE) as usize;
                file.write_all_at(&page[..n], at)?;
            }
        }
        Ok(())
    }

    fn span(&self, offset: u64) -> Option<Span> {
        if offset >= self.len {
            return None;
        }
        let mut next = offset / PAGE;
        let data = self.page(next).is_some();
        while next.saturating_mul(PAGE) < self.len && self.page(next).is_some() == data {
            next = if data { next + 1 } else { self.next_known(next + 1) };
        }
        Some(Span {
            kind: if data { SpanKind::Data } else { SpanKind::Hole },
            offset,
            len: next.saturating_mul(PAGE).min(self.len) - offset,
        })
    }

    /// The first page from there on that is listed at all.
    fn next_known(&self, from: u64) -> u64 {
        let base = self.base.range(from..).next().map(|(number, _)| *number);
        let over = self.over.range(from..).next().map(|(number, _)| *number);
        base.into_iter().chain(over).min().unwrap_or(u64::MAX)
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(bytes, 0);
        content.settle();
        content
    }
}

/// A [`Content`] as a store.
#[derive(Debug)]
pub struct Shared {
    number: u64,
    name: Option<PathBuf>,
    content: RwLock<Content>,
}

impl From<Content> for Shared {
    fn from(content: Content) -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name: None,
            content: RwLock::new(content),
        }
    }
}

impl Shared {
    /// Gives it a name, for messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<PathBuf>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What is in it now.
    ///
    /// # Panics
    /// If a thread died while it wrote.
    #[must_use]
    pub fn content(&self) -> Content {
        let mut content = self.content.write().unwrap();
        content.settle();
        content.clone()
    }

    /// Changes what is in it, and tells nobody.
    ///
    /// # Panics
    /// If a thread died while it wrote.
    pub fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.content.write().unwrap())
    }

    fn seen<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(&self.content.read().unwrap())
    }
}

impl Storage for Shared {
    fn len(&self) -> catena_storage::Result<u64> {
        Ok(self.seen(Content::len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> catena_storage::Result<usize> {
        Ok(self.seen(|content| content.read(buf, offset)))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> catena_storage::Result<usize> {
        Ok(self.seen(|content| {
            let mut done = 0;
            for buf in bufs {
                done += content.read(buf, offset + done as u64);
            }
            done
        }))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> catena_storage::Result<()> {
        self.change(|content| content.write(buf, offset));
        Ok(())
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> catena_storage::Result<()> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_all_at(&all, offset)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> catena_storage::Result<()> {
        self.change(|content| content.clear(offset, len));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> catena_storage::Result<()> {
        self.change(|content| {
            let end = offset + len;
            if len > 0 && end > content.len() {
                content.set_len(end);
            }
            content.clear(offset, len);
        });
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> catena_storage::Result<()> {
        self.change(|content| {
            let end = offset + len;
            if len > 0 && end > content.len() {
                content.set_len(end);
            }
        });
        Ok(())
    }

    fn flush(&self) -> catena_storage::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> catena_storage::Result<()> {
        self.change(|content| content.set_len(len));
        Ok(())
    }

    fn span_at(&self, offset: u64) -> catena_storage::Result<Option<Span>> {
        Ok(self.seen(|content| content.span(offset)))
    }

    fn allocated(&self) -> catena_storage::Result<Option<u64>> {
        Ok(None)
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity {
            device: DEVICE,
            inode: self.number,
            len: self.seen(Content::len),
            modified: None,
        })
    }

    fn path(&self) -> Option<&Path> {
        self.name.as_deref()
    }
}
