//! A larger disk, and space that is kept before it is needed.

use super::disk::{LetGo, Qcow2Disk, Was};
use super::guest_write::ZEROS;
use super::lookup::Found;
use super::places::Section;
use super::room;
use crate::addr::GuestOffset;
use crate::disk::{Disk, Unmap};
use crate::error::{Error, ErrorKind, Result};
use catena_format::limits;
use catena_storage::{SpanKind, Storage};
use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// A disk is a whole number of these.
const SECTOR: u64 = 512;

/// How much of a disk's space is kept ahead of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// Clusters are allocated, and the file is as long as they need.
    Metadata,
    /// The file system keeps space for them too.
    Falloc,
    /// They are written with zeros.
    Full,
}

impl Qcow2Disk {
    /// Makes the disk larger; what is new reads as zeros, whatever the backing holds there. Durable when it returns.
    ///
    /// [`ErrorKind::Unsupported`] for a smaller size or one that is no whole number of sectors, [`ErrorKind::TooLarge`] beyond
    /// what the L1 table can map.
    pub fn grow(&self, new_size: u64) -> Result<()> {
        let _one = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let old_size = self.size();
        if new_size < old_size || !new_size.is_multiple_of(SECTOR) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a disk grows to a larger size, which is a multiple of 512",
            ));
        }
        let entries = self.layout.l1_entries(new_size);
        if entries * 8 > limits::QCOW2_L1_BYTES || new_size > limits::VIRTUAL_SIZE {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the disk would be too large for this cluster size",
            ));
        }
        self.prepare(0..0)?;
        let bitmaps = self.has_bitmaps_to_resize()?;
        if entries > u64::from(self.header().l1_entries) {
            self.grow_l1(entries)?;
        }
        if let Some(data_file) = &self.data_file
            && data_file.len()? < new_size
        {
            self.attempt(data_file.set_len(new_size))?;
        }
        // The guest asks for nothing beyond the old size until this returns, and the disk itself says so until the end.
        self.size.store(new_size, Ordering::Release);
        let grown = self
            .clear_tail(old_size, new_size)
            .and_then(|()| self.hide_backing(old_size, new_size))
            .and_then(|()| match self.raw_data {
                // What others write to the raw data file shows here only where it is mapped.
                true => self.preallocate(old_size..new_size, Preallocation::Metadata),
                false => Ok(()),
            })
            .and_then(|()| self.flush_all())
            .and_then(|()| match bitmaps {
                true => self.switch_size_with_bitmaps(new_size),
                false => self.write_header_fields(&[(24, &new_size.to_be_bytes())]),
            });
        match grown {
            Ok(()) => {
                let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
                header.virtual_size = new_size;
                Ok(())
            }
            Err(error) => {
                self.size.store(old_size, Ordering::Release);
                Err(error)
            }
        }
    }

    /// What the last cluster holds past the old end is nothing the guest ever wrote there, or what it held before it was cut off.
    /// What is encrypted is left as it is.
    fn clear_tail(&self, old_size: u64, new_size: u64) -> Result<()> {
        if self.encrypted {
            return Ok(());
        }
        let end = old_size.next_multiple_of(self.cluster_size()).min(new_size);
        let mut at = old_size;
        while at < end {
            let (found, len) = {
                let _inside = self.enter();
                self.look_up(at, end).map_err(|error| self.damaged(error))?
            };
            let to = (at + len).min(end);
            if matches!(found, Found::Data { .. } | Found::Compressed { .. }) {
                let mut bytes = vec![0; usize::try_from(to - at).unwrap_or_default()];
                let inside = self.enter();
                self.read_guest(&mut bytes, at)?;
                drop(inside);
                if bytes.iter().any(|byte| *byte != 0) {
                    self.zero_guest(at, to, Unmap::Keep)?;
                }
            }
            at = to.max(at + 1);
        }
        Ok(())
    }

    /// A backing that is longer than the disk was would show in what is new.
    fn hide_backing(&self, old_size: u64, new_size: u64) -> Result<()> {
        let hides = self
            .backing
            .as_ref()
            .is_some_and(|backing| backing.size() > old_size);
        if hides && old_size < new_size {
            self.zero_guest(old_size, new_size, Unmap::Keep)?;
        }
        Ok(())
    }

    /// A longer L1 table beside the old one, which one sector of the header then names.
    fn grow_l1(&self, entries: u64) -> Result<()> {
        let clusters = self.layout.cluster_bits.clusters(entries * 8);
        let reserved = self.reserve(&mut self.meta(), clusters)?;
        let len = clusters * self.cluster_size();
        if let Err(error) = room::keep(&*self.storage, reserved.offset, len) {
            self.give_back(&mut self.meta(), reserved);
            return Err(error.into());
        }
        self.places.write().unwrap_or_else(PoisonError::into_inner).add(
            reserved.offset,
            len,
            Section::ActiveL1,
        );
        let switched = self
            .flush_all()
            .and_then(|()| self.switch_l1(entries, reserved.offset));
        let (offset, go) = match &switched {
            Ok(old) => *old,
            Err(_) => (reserved.offset, clusters),
        };
        self.meta().let_go.push(LetGo {
            cluster: self.cluster_of(offset),
            clusters: go,
            was: Was::L1Table,
        });
        switched.map(|_| ())
    }

    /// Gives back the place of the old table and its clusters.
    fn switch_l1(&self, entries: u64, offset: u64) -> Result<(u64, u64)> {
        // No flush comes between: the new table says what the disk says, not what memory knows beyond that.
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        let header = self.header();
        let mut table = vec![0; usize::try_from(u64::from(header.l1_entries) * 8).unwrap_or_default()];
        self.storage.read_at(&mut table, header.l1_offset)?;
        table.resize(usize::try_from(entries * 8).unwrap_or_default(), 0);
        self.write_section(&table, offset, Section::ActiveL1)?;
        self.attempt(self.storage.flush())?;
        let count = u32::try_from(entries).unwrap_or(u32::MAX);
        self.write_header_fields(&[(36, &count.to_be_bytes()), (40, &offset.to_be_bytes())])?;
        let mut l1 = self.l1.write().unwrap_or_else(PoisonError::into_inner);
        l1.entries.resize(usize::try_from(entries).unwrap_or_default(), 0);
        drop(l1);
        let mut now = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        now.l1_offset = offset;
        now.l1_entries = count;
        let old = u64::from(header.l1_entries) * 8;
        Ok((header.l1_offset, self.layout.cluster_bits.clusters(old)))
    }

    /// Keeps clusters for a range of the disk, which must be of whole clusters or reach to the end. What the guest sees stays. Where
    /// the backing has something to say the range is left as it is, unless the image has subclusters.
    pub fn preallocate(&self, range: Range<u64>, how: Preallocation) -> Result<()> {
        self.check_range(GuestOffset(range.start), range.end.saturating_sub(range.start))?;
        self.prepare(range.clone())?;
        let mut at = range.start;
        while at < range.end {
            let to = {
                let _inside = self.enter();
                self.preallocate_some(at, range.end, how)
                    .map_err(|error| self.damaged(error))?
            };
            at = to;
            self.write_back_if_much()?;
        }
        Ok(())
    }

    /// Keeps clusters for a run from `at` on, and tells how far it went.
    fn preallocate_some(&self, at: u64, end: u64, how: Preallocation) -> Result<u64> {
        let start = at - self.layout.cluster_bits.offset_in_cluster(at);
        let (found, len) = self.look_up(at, end)?;
        let next = |len: u64| (at + len).next_multiple_of(self.cluster_size()).min(end);
        if let Found::Data { host, own: true } = found {
            self.keep_place(host, len, how)?;
            return Ok(at + len);
        }
        let keeps = match found {
            Found::Nothing => {
                // With subclusters a place says nothing yet, and the backing goes on to show.
                self.layout.l2_entry_size() == 16 || self.reads_zero(start, next(len))?
            }
            Found::Zero(None) => true,
            _ => false,
        };
        if !keeps {
            return Ok(next(len));
        }
        let Some(group) = self.claim(start, at + len - start)? else {
            return Ok(next(1));
        };
        if !group.is_empty() {
            self.abandon(&group);
            return Ok(next(1));
        }
        let host = group.host();
        let bytes = group.clusters() * self.cluster_size();
        let kept = self.keep_space(host, bytes, how, group.is_untouched());
        self.finish_preallocated(&group, kept)?;
        Ok((start + bytes).min(end).max(at + 1))
    }

    /// Keeps space where there is data already, or a place for it: what is there stays.
    fn keep_place(&self, host: u64, len: u64, how: Preallocation) -> Result<()> {
        if how == Preallocation::Metadata {
            return Ok(());
        }
        match self.data_storage().allocate(host, len) {
            Ok(()) => Ok(()),
            // A file system that cannot promise space has it where bytes are written, which they are not here.
            Err(error)
                if how == Preallocation::Full && error.kind() == catena_storage::ErrorKind::Unsupported =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn keep_space(&self, host: u64, len: u64, how: Preallocation, untouched: bool) -> Result<()> {
        self.check_data_place(host, len)?;
        let store = self.data_storage();
        match how {
            Preallocation::Metadata if untouched => Ok(()),
            Preallocation::Metadata => self.attempt(clear(store, host, len)),
            Preallocation::Falloc => {
                if !untouched {
                    self.attempt(store.write_zeroes(host, len))?;
                }
                store.allocate(host, len).map_err(Error::from)
            }
            Preallocation::Full => {
                let mut done = 0;
                while done < len {
                    let n = (len - done).min(ZEROS.len() as u64);
                    let piece = ZEROS
                        .get(..usize::try_from(n).unwrap_or_default())
                        .unwrap_or(&ZEROS);
                    self.attempt(store.write_all_at(piece, host + done))?;
                    done += n;
                }
                Ok(())
            }
        }
        .inspect(|()| self.wrote(host, if how == Preallocation::Metadata { 0 } else { len }))
    }
}

/// Makes a range zeros where it is not a hole.
fn clear(store: &dyn Storage, offset: u64, len: u64) -> catena_storage::Result<()> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let Some(span) = store.span_at(at)? else {
            return store.write_zeroes(at, end - at);
        };
        let to = span.offset.saturating_add(span.len).clamp(at + 1, end);
        if span.kind == SpanKind::Data {
            store.write_zeroes(at, to - at)?;
        }
        at = to;
    }
    Ok(())
}
