//! A layer of a chain, opened to be written over what is below it.

use crate::chain::{Chain, Layer};
use crate::open::{Sharing, in_use};
use catena_engine::{Error, ErrorKind, Raw, RawDisk, Result, WritableDisk};
use catena_format::Format;
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A layer that is open for writing, locked against every other user.
///
/// The locks are given up when the last clone of [`Writable::disk`] and this are gone.
#[derive(Clone)]
pub struct Writable {
    disk: Arc<dyn WritableDisk>,
    file: LocalFile,
    path: PathBuf,
    format: Format,
}

impl Chain {
    /// Opens a layer for writing. What is below it is read, and shared as told; nothing above it is touched.
    ///
    /// The layer itself is locked as QEMU locks what it writes, so no view of it that holds a lock may be open.
    pub fn open_writable(&self, layer: usize, sharing: Sharing) -> Result<Writable> {
        self.check_complete()?;
        let (active, below) = self
            .layers
            .get(layer..)
            .and_then(<[Layer]>::split_first)
            .ok_or_else(|| Error::new(ErrorKind::OutOfBounds, format!("there is no layer {layer}")))?;
        active.open_writable(below, sharing)
    }
}

impl Layer {
    /// Opens the layer for writing over these, which are below it.
    pub(crate) fn open_writable(&self, _below: &[Layer], _sharing: Sharing) -> Result<Writable> {
        let path = self.path().unwrap_or(Path::new("")).to_owned();
        let file = self.reopen_for_writing()?;
        let disk: Arc<dyn WritableDisk> = match self.format {
            Format::Raw | Format::Iso => {
                let storage: Arc<dyn Storage> = Arc::new(file.clone());
                let image = match self.source.slice {
                    None => Raw::open(storage),
                    Some(slice) => Raw::open_slice(storage, slice.offset, slice.size),
                };
                Arc::new(RawDisk::new(image.map_err(|error| error.with_path(&path))?))
            }
            other => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("writing the data of {other} images is not supported"),
                )
                .with_path(&path));
            }
        };
        Ok(Writable {
            disk,
            file,
            path,
            format: self.format,
        })
    }

    /// The layer's file, opened for writing and locked: the very file that detection looked at, whatever its name
    /// means by now.
    pub(crate) fn reopen_for_writing(&self) -> Result<LocalFile> {
        let file = self.file.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "the image is not on this host").with_path(self.name())
        })?;
        let path = self.path().unwrap_or(Path::new(""));
        let options = OpenOptions::new().write(true).lock(LockMode::Write);
        LocalFile::open_handle(&file.storage, path, &options)
            .map_err(|error| in_use(error.into(), "stop it first: an image in use is not written"))
    }
}

impl Writable {
    /// The disk.
    pub fn disk(&self) -> &Arc<dyn WritableDisk> {
        &self.disk
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which format it is in.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What is allocated at once, in bytes: parts of it that were never written take up space with the rest.
    pub fn unit(&self) -> u64 {
        1
    }

    /// The open image file, which holds the locks.
    pub fn file(&self) -> &LocalFile {
        &self.file
    }

    /// Makes the disk larger; what is new reads as zeros.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        if size <= self.disk.size() {
            return Ok(());
        }
        match self.format {
            Format::Raw => {
                self.file.set_len(size)?;
                self.disk = Arc::new(RawDisk::new(Raw::open(Arc::new(self.file.clone()))?));
                Ok(())
            }
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{other} images cannot be resized"),
            )),
        }
        .map_err(|error: Error| error.with_path(&self.path))
    }

    /// Makes everything written durable and the image clean. Its locks stay for as long as the file is open.
    pub fn finish(self) -> Result<LocalFile> {
        self.disk.flush().map_err(|error| error.with_path(&self.path))?;
        Ok(self.file)
    }
}

impl std::fmt::Debug for Writable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writable")
            .field("path", &self.path)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}
