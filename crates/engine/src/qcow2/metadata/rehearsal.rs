//! A store that is changed in memory alone, to see what a change would make of it.
//!
//! What is read and was not written comes from the store below, which is never written. Holes are not rehearsed: they are made of
//! what is free, and nobody reads that again. Pages that repeat eight bytes, as tables of refcounts do, take up that much.

use catena_storage::{Alignment, Identity, Result, Span, SpanKind, Storage};
use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What is kept as a whole, in bytes.
const PAGE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(in crate::qcow2) struct Rehearsal {
    below: Arc<dyn Storage>,
    changes: RwLock<Changes>,
}

#[derive(Debug)]
struct Changes {
    len: u64,
    /// Up to where the bytes below are seen.
    seen: u64,
    /// By page number.
    pages: BTreeMap<u64, Page>,
}

#[derive(Debug)]
enum Page {
    Repeats([u8; 8]),
    Bytes(Vec<u8>),
}

impl Page {
    fn of(bytes: Vec<u8>) -> Self {
        let words = bytes.as_chunks::<8>().0;
        match words.split_first() {
            Some((first, rest)) if rest.iter().all(|word| word == first) => Self::Repeats(*first),
            _ => Self::Bytes(bytes),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Repeats(word) => word.repeat(PAGE / 8),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn narrow(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl Rehearsal {
    /// One in which nothing has happened.
    pub fn over(below: Arc<dyn Storage>) -> Result<Self> {
        let len = below.len()?;
        Ok(Self {
            below,
            changes: RwLock::new(Changes {
                len,
                seen: len,
                pages: BTreeMap::new(),
            }),
        })
    }

    fn shared(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, changes: &Changes, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = buf.len().min(narrow(changes.len.saturating_sub(offset)));
        let Some(buf) = buf.get_mut(..n).filter(|buf| !buf.is_empty()) else {
            return Ok(0);
        };
        buf.fill(0);
        let seen = n.min(narrow(changes.seen.saturating_sub(offset)));
        if let Some(buf) = buf.get_mut(..seen).filter(|buf| !buf.is_empty()) {
            self.below.read_at(buf, offset)?;
        }
        let (first, last) = (offset / wide(PAGE), (offset + wide(n) - 1) / wide(PAGE));
        for (number, page) in changes.pages.range(first..=last) {
            let page = page.bytes();
            let start = number * wide(PAGE);
            let (skip, at) = (offset.saturating_sub(start), start.saturating_sub(offset));
            let from = page.get(narrow(skip)..).unwrap_or_default();
            let to = buf.get_mut(narrow(at)..).unwrap_or_default();
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
        Ok(n)
    }

    fn write(&self, changes: &mut Changes, buf: &[u8], offset: u64) -> Result<()> {
        let (mut left, mut at) = (buf, offset);
        while !left.is_empty() {
            let (number, start) = (at / wide(PAGE), narrow(at % wide(PAGE)));
            let n = left.len().min(PAGE - start);
            let (now, rest) = left.split_at_checked(n).unwrap_or_default();
            let mut page = vec![0; PAGE];
            if n < PAGE {
                self.read(changes, &mut page, number * wide(PAGE))?;
            }
            if let Some(to) = page.get_mut(start..start + n) {
                to.copy_from_slice(now);
            }
            changes.pages.insert(number, Page::of(page));
            changes.len = changes.len.max(at + wide(n));
            (left, at) = (rest, at + wide(n));
        }
        Ok(())
    }
}

impl Storage for Rehearsal {
    fn len(&self) -> Result<u64> {
        Ok(self.shared().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read(&self.shared(), buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        let (changes, mut done) = (self.shared(), 0);
        for buf in bufs {
            done += self.read(&changes, buf, offset.saturating_add(wide(done)))?;
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write(&mut self.alone(), buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let (mut changes, mut at) = (self.alone(), offset);
        for buf in bufs {
            self.write(&mut changes, buf, at)?;
            at = at.saturating_add(wide(buf.len()));
        }
        Ok(())
    }

    fn punch_hole(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let (mut changes, zeros) = (self.alone(), vec![0; PAGE]);
        let mut done = 0;
        while done < len {
            // Up to the end of a page.
            let n = (wide(PAGE) - (offset + done) % wide(PAGE)).min(len - done);
            let zeros = zeros.get(..narrow(n)).unwrap_or_default();
            self.write(&mut changes, zeros, offset + done)?;
            done += n;
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let mut changes = self.alone();
        changes.len = changes.len.max(offset.saturating_add(len));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut changes = self.alone();
        if len < changes.len {
            changes.seen = changes.seen.min(len);
            let tail = narrow(len % wide(PAGE));
            let mut cut = changes.pages.split_off(&(len / wide(PAGE)));
            if let Some(page) = cut.remove(&(len / wide(PAGE))).filter(|_| tail > 0) {
                let mut page = page.bytes();
                page.get_mut(tail..).unwrap_or_default().fill(0);
                changes.pages.insert(len / wide(PAGE), Page::of(page));
            }
        }
        changes.len = len;
        Ok(())
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        let len = self.len()?.checked_sub(offset).filter(|len| *len > 0);
        Ok(len.map(|len| Span {
            kind: SpanKind::Data,
            offset,
            len,
        }))
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn identity(&self) -> Option<Identity> {
        None
    }

    fn path(&self) -> Option<&Path> {
        self.below.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_storage::MemoryStorage;

    #[test]
    fn it_reads_as_what_was_done_to_it_and_the_store_below_stays() {
        let bytes: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
        let below: Arc<dyn Storage> = Arc::new(MemoryStorage::from(bytes.clone()));
        let rehearsal = Rehearsal::over(Arc::clone(&below)).unwrap();
        let model = MemoryStorage::from(bytes.clone());
        let dice = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        for step in 0..300 {
            let (offset, len) = (dice(step) % 50_000, dice(step + 500) % 9_000);
            for store in [&rehearsal as &dyn Storage, &model] {
                match step % 5 {
                    0 => store.set_len(offset).unwrap(),
                    1 => store.write_zeroes(offset, len).unwrap(),
                    2 => store.write_all_at(&dice(step).to_be_bytes(), offset).unwrap(),
                    _ => store
                        .write_all_at(&vec![step as u8; narrow(len)], offset)
                        .unwrap(),
                }
            }
            assert_eq!(rehearsal.len().unwrap(), model.len().unwrap());
            let [mut ours, mut theirs] = [vec![1; 60_000], vec![1; 60_000]];
            let n = rehearsal.read_at(&mut ours, 0).unwrap();
            assert_eq!(n, model.read_at(&mut theirs, 0).unwrap());
            assert_eq!(ours[..n], theirs[..n]);
        }
        let mut kept = vec![0; bytes.len()];
        below.read_at(&mut kept, 0).unwrap();
        assert_eq!(kept, bytes);
    }
}
