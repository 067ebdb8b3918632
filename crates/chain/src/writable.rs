//! A layer of a chain, opened to be written over what is below it.

use crate::chain::{Chain, Layer, LayerFile};
use crate::open::{Sharing, in_use};
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Disk, Error, ErrorKind, Raw, RawDisk, Result, Stack, StorageBytes, WritableDisk};
use catena_format::Format;
use catena_format::qcow2::{Header, Layout};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an operation writes through: it is given each file that is written, and puts something in front of it, such as a log of what is
/// written.
pub type Through<'a> = &'a dyn Fn(LocalFile) -> Arc<dyn Storage>;

/// Nothing in front.
pub(crate) fn plainly(file: LocalFile) -> Arc<dyn Storage> {
    Arc::new(file)
}

/// A layer that is open for writing, locked against every other user.
///
/// The locks are given up when the last clone of [`Writable::disk`] and this are gone.
#[derive(Clone)]
pub struct Writable {
    disk: Arc<dyn WritableDisk>,
    qcow2: Option<Arc<Qcow2Disk>>,
    file: Arc<dyn Storage>,
    path: PathBuf,
    format: Format,
}

/// A layer's files, open to be written and locked against every other user, for as long as a clone of this is there.
#[derive(Clone)]
pub(crate) struct Reserved {
    pub file: LocalFile,
    data_file: Option<LocalFile>,
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reserved").field(&self.file).finish()
    }
}

impl Chain {
    /// Opens a layer for writing. What is below it is read, and shared as told; nothing above it is touched.
    ///
    /// The layer itself is locked as QEMU locks what it writes, so no view of it that holds a lock may be open.
    pub fn open_writable(&self, layer: usize, sharing: Sharing) -> Result<Writable> {
        self.check_end()?;
        self.check_bases(layer)?;
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
    pub(crate) fn open_writable(&self, below: &[Layer], sharing: Sharing) -> Result<Writable> {
        let reserved = self.reserve()?;
        self.open_reserved(&reserved, below, sharing, &plainly)
    }

    /// Opens the layer's files to be written and locks them against every other user. Nothing is written.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where somebody uses it, and [`ErrorKind::Conflict`] where it is not any more what detection found.
    pub(crate) fn reserve(&self) -> Result<Reserved> {
        let file = self.reopen_for_writing()?;
        if let Some(header) = &self.header
            && Header::read(&StorageBytes::new(&file)?)? != *header
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the image was changed just now, by somebody else",
            )
            .with_path(self.name())
            .with_hint("run the command again"));
        }
        Ok(Reserved {
            file,
            data_file: self.reopen_data_file()?,
        })
    }

    /// Opens the layer, whose files are locked, for writing over these, which are below it.
    pub(crate) fn open_reserved(
        &self,
        reserved: &Reserved,
        below: &[Layer],
        sharing: Sharing,
        through: Through<'_>,
    ) -> Result<Writable> {
        self.open_prepared(reserved, below, sharing, through, &|_| Ok(()))
    }

    /// The same, with something done to the image's file before it is opened as an image.
    pub(crate) fn open_prepared(
        &self,
        reserved: &Reserved,
        below: &[Layer],
        sharing: Sharing,
        through: Through<'_>,
        prepare: &dyn Fn(&dyn Storage) -> Result<()>,
    ) -> Result<Writable> {
        let path = self.path().unwrap_or(Path::new("")).to_owned();
        let file = through(reserved.file.clone());
        let storage = Arc::clone(&file);
        let named = |error: Error| error.with_path(&path);
        prepare(&*file).map_err(named)?;
        let (disk, qcow2): (Arc<dyn WritableDisk>, _) = match self.format {
            Format::Raw | Format::Iso => {
                let image = match self.source.slice {
                    None => Raw::open(storage),
                    Some(slice) => Raw::open_slice(storage, slice.offset, slice.size),
                };
                (Arc::new(RawDisk::new(image.map_err(named)?)), None)
            }
            Format::Qcow2 => {
                let data_file = reserved.data_file.clone().map(through);
                let backing = self.below(below, sharing)?;
                let disk = Arc::new(Qcow2Disk::open(storage, data_file, backing).map_err(named)?);
                (Arc::clone(&disk) as Arc<dyn WritableDisk>, Some(disk))
            }
            other => {
                return Err(named(Error::new(
                    ErrorKind::Unsupported,
                    format!("writing the data of {other} images is not supported"),
                )));
            }
        };
        Ok(Writable {
            disk,
            qcow2,
            file,
            path,
            format: self.format,
        })
    }

    /// What lies below the layer, as one disk.
    fn below(&self, below: &[Layer], sharing: Sharing) -> Result<Option<Arc<dyn Disk>>> {
        if below.is_empty() {
            return Ok(None);
        }
        let images = below.iter().map(|layer| layer.stacked(sharing));
        Ok(Some(Arc::new(Stack::new(images.collect::<Result<Vec<_>>>()?))))
    }

    fn reopen_data_file(&self) -> Result<Option<LocalFile>> {
        let Some(data_file) = &self.data_file else {
            return Ok(None);
        };
        let file = match &data_file.file {
            Ok(file) => file,
            Err(error) => {
                return Err(Error::new(
                    error.kind(),
                    format!(
                        "the data file '{}' is not open: {}",
                        data_file.shown(),
                        error.full()
                    ),
                ));
            }
        };
        let path = data_file.source.as_ref().and_then(|source| source.path());
        Ok(Some(reopen(file, path.unwrap_or(Path::new("")))?))
    }

    /// The layer's file, opened for writing and locked: the very file that detection looked at, whatever its name
    /// means by now.
    pub(crate) fn reopen_for_writing(&self) -> Result<LocalFile> {
        let file = self.file.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "the image is not on this host").with_path(self.name())
        })?;
        reopen(file, self.path().unwrap_or(Path::new("")))
    }
}

fn reopen(file: &LayerFile, path: &Path) -> Result<LocalFile> {
    let options = OpenOptions::new().write(true).lock(LockMode::Write);
    file.storage
        .opened()
        .and_then(|opened| LocalFile::open_handle(opened, path, &options))
        .map_err(|error| in_use(error.into(), "stop it first: an image in use is not written"))
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

    /// The disk once more, where it is a qcow2 image.
    pub fn qcow2(&self) -> Option<&Arc<Qcow2Disk>> {
        self.qcow2.as_ref()
    }

    /// What is allocated at once, in bytes: a cluster, or a sector.
    pub fn unit(&self) -> u64 {
        const SECTOR: u64 = 512;
        self.qcow2
            .as_ref()
            .map_or(SECTOR, |disk| disk.header().cluster_bits.size())
    }

    /// What an image can answer for by itself, in bytes: a subcluster, a cluster where there are none, or a sector.
    pub fn part(&self) -> u64 {
        let disk = self.qcow2.as_ref();
        disk.map_or(self.unit(), |disk| Layout::of(&disk.header()).subcluster_size())
    }

    /// The open image file, which holds the locks.
    pub fn file(&self) -> &dyn Storage {
        &*self.file
    }

    /// Makes the disk larger; what is new reads as zeros.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        if size <= self.disk.size() {
            return Ok(());
        }
        match (&self.qcow2, self.format) {
            (Some(disk), _) => disk.grow(size),
            (None, Format::Raw) => {
                self.file.set_len(size)?;
                self.disk = Arc::new(RawDisk::new(Raw::open(Arc::clone(&self.file))?));
                Ok(())
            }
            (None, other) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("{other} images cannot be resized"),
            )),
        }
        .map_err(|error: Error| error.with_path(&self.path))
    }

    /// Makes everything written durable and the image clean. Its locks stay for as long as the file is open.
    pub fn finish(self) -> Result<Arc<dyn Storage>> {
        let Self {
            disk,
            qcow2,
            file,
            path,
            ..
        } = self;
        let named = |error: Error| error.with_path(&path);
        disk.flush().map_err(named)?;
        drop(disk);
        // Somebody else who holds the disk still closes it when he lets it go.
        if let Some(disk) = qcow2.and_then(Arc::into_inner) {
            disk.close().map_err(named)?;
        }
        Ok(file)
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
