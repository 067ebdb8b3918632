//! An image that is open to be written by its guest's addresses, over what it stands on, with the locks that opening it took.

use super::open::Opened;
use super::program::{Result, error};
use catena::open::Sharing;
use catena::ops::Unsynced;
use catena::{Format, Layer};
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Disk, Raw, RawDisk, WritableDisk};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::path::Path;
use std::sync::Arc;

/// The disk.
pub struct Target {
    /// As any.
    pub disk: Arc<dyn WritableDisk>,
    /// Once more, where it is a qcow2 image.
    pub qcow2: Option<Arc<Qcow2Disk>>,
    /// Bytes of what it stands on, where it stands on something.
    pub backing_size: Option<u64>,
    file: LocalFile,
}

impl Target {
    /// Of an image that was opened for writing.
    pub fn open(opened: &Opened) -> Result<Self> {
        Self::open_by(opened, |file| Arc::new(file))
    }

    /// The same, of which nothing is made durable.
    pub fn open_unsynced(opened: &Opened) -> Result<Self> {
        Self::open_by(opened, |file| Arc::new(Unsynced(Arc::new(file))))
    }

    fn open_by(opened: &Opened, stored: impl Fn(LocalFile) -> Arc<dyn Storage>) -> Result<Self> {
        let layer = opened.top()?;
        let fail = |failed: catena::Error| error(failed.full());
        let file = opened.held.clone();
        let storage = stored(file.clone());
        if layer.format != Format::Qcow2 {
            let raw = match layer.source.slice {
                None => Raw::open(storage),
                Some(slice) => Raw::open_slice(storage, slice.offset, slice.size),
            };
            return Ok(Self {
                disk: Arc::new(RawDisk::new(raw.map_err(fail)?)),
                qcow2: None,
                backing_size: None,
                file,
            });
        }
        let data_file = data_file(layer)?.map(&stored);
        let mut backing: Option<Arc<dyn Disk>> = None;
        if opened.chain.layers.len() > 1 {
            backing = Some(Arc::new(opened.chain.open_from(1, Sharing::Force).map_err(fail)?));
        }
        let backing_size = backing.as_ref().map(|backing| backing.size());
        let disk = Arc::new(Qcow2Disk::open(storage, data_file, backing).map_err(fail)?);
        Ok(Self {
            disk: Arc::clone(&disk) as Arc<dyn WritableDisk>,
            qcow2: Some(disk),
            backing_size,
            file,
        })
    }

    /// The image's file.
    pub fn file(&self) -> &LocalFile {
        &self.file
    }

    /// Makes everything durable and the image clean.
    pub fn finish(self) -> Result<(), catena::Error> {
        self.disk.flush()?;
        drop(self.disk);
        match self.qcow2.and_then(Arc::into_inner) {
            Some(disk) => disk.close(),
            None => Ok(()),
        }
    }
}

/// The data file of an image, opened to be written.
pub fn data_file(layer: &Layer) -> Result<Option<LocalFile>> {
    let Some(data_file) = &layer.data_file else {
        return Ok(None);
    };
    let Ok(open) = &data_file.file else {
        return Ok(None);
    };
    let options = OpenOptions::new().write(true).lock(LockMode::Write);
    let path = data_file.source.as_ref().and_then(|source| source.path());
    let file = open.storage.opened();
    file.and_then(|file| LocalFile::open_handle(file, path.unwrap_or(Path::new("")), &options))
        .map(Some)
        .map_err(|failed| error(failed.to_string()))
}
