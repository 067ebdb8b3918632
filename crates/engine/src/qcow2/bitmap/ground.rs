//! An image that is open for writing as the place of its bitmaps.

use super::edit::{Bitmaps, set_extension};
use super::recorder::Recorder;
use super::{Ground, Run};
use crate::bytes::StorageBytes;
use crate::error::Result;
use crate::qcow2::disk::{LetGo, Qcow2Disk, Was};
use crate::qcow2::places::Section;
use catena_format::Bytes;
use catena_format::qcow2::{Header, rewrite};
use catena_storage::Storage;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl Ground for Qcow2Disk {
    fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    fn header(&self) -> Header {
        Self::header(self)
    }

    fn allocate(&self, clusters: u64) -> Result<u64> {
        self.check_poison()?;
        Ok(self.reserve(&mut self.meta(), clusters)?.offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.check_place(offset, bytes.len() as u64)?;
        self.attempt(self.storage.write_all_at(bytes, offset))
    }

    fn sync(&self) -> Result<()> {
        self.unsynced.store(true, Ordering::Release);
        self.flush_all()?;
        // Of an image with a data file that made the data durable, and what is here only where mapping tables had changed.
        match self.data_file {
            Some(_) => self.attempt(self.storage.flush()),
            None => Ok(()),
        }
    }

    fn switch(&self, header: &Header) -> Result<()> {
        // No flush comes between, which changes the header too.
        let one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_poison()?;
        let old = Self::header(self);
        let size = usize::try_from(self.cluster_size()).unwrap_or_default();
        let area = StorageBytes::new(&*self.storage)?.read_exact(0, size)?;
        let mut outcome = Ok(());
        for (offset, bytes) in rewrite::plan(&area, &old, header)? {
            outcome = self
                .attempt(self.storage.write_all_at(&bytes, offset))
                .and_then(|()| self.sync_header());
            if outcome.is_err() {
                break;
            }
        }
        if self.check_poison().is_err() {
            return outcome;
        }
        // Where there was no space, the header is one of those on the way, each of which is whole.
        let now = Header::read(&StorageBytes::new(&*self.storage)?)?;
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = old.bitmaps() {
            let section = Section::BitmapDirectory;
            places.remove(gone.directory_offset, gone.directory_size, section);
        }
        if let Some(new) = now.bitmaps() {
            let section = Section::BitmapDirectory;
            places.add(new.directory_offset, new.directory_size, section);
        }
        drop(places);
        self.size.store(now.virtual_size, Ordering::Release);
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = now.clone();
        drop(one);
        // What is recorded from here on is recorded in these.
        let recorder = Recorder::read(&now, &*self.storage)?;
        *self.recorder.write().unwrap_or_else(PoisonError::into_inner) = recorder.map(Arc::new);
        outcome
    }

    fn free(&self, run: Run) -> Result<()> {
        self.meta().let_go.push(LetGo {
            cluster: self.cluster_of(run.offset),
            clusters: run.clusters,
            was: Was::Data,
        });
        Ok(())
    }
}

impl Qcow2Disk {
    pub(in crate::qcow2) fn recorder(&self) -> Option<Arc<Recorder>> {
        let recorder = self.recorder.read().unwrap_or_else(PoisonError::into_inner);
        recorder.clone()
    }

    /// Stores what the bitmaps have recorded and takes their marks away. Nobody writes meanwhile.
    pub(in crate::qcow2) fn store_bitmaps(&self) -> Result<()> {
        if let Some(recorder) = self.recorder()
            && recorder.is_marked()
        {
            recorder.close(self)?;
            self.settle()?;
        }
        Ok(())
    }

    /// Whether there are bitmaps that another size concerns. They can all be used then.
    ///
    /// # Errors
    /// Where one cannot be used: such an image is not resized, as QEMU has it.
    pub(in crate::qcow2) fn has_bitmaps_to_resize(&self) -> Result<bool> {
        self.store_bitmaps()?;
        let bitmaps = Bitmaps::read(self)?;
        bitmaps.check_usable()?;
        Ok(bitmaps.list().next().is_some())
    }

    /// Gives disk and bitmaps another size in one step.
    pub(in crate::qcow2) fn switch_size_with_bitmaps(&self, size: u64) -> Result<()> {
        self.store_bitmaps()?;
        let mut bitmaps = Bitmaps::read(self)?;
        bitmaps.resize(size, self)?;
        let written = bitmaps.write(self)?;
        let mut header = Self::header(self);
        header.virtual_size = size;
        set_extension(&mut header, written.extension);
        Ground::switch(self, &header)?;
        written.freed.into_iter().try_for_each(|run| self.free(run))?;
        self.settle()
    }
}
