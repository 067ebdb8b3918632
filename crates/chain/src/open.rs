//! A detected chain, opened for reading as one disk.

use crate::chain::{Chain, DataFileLayer, End, Layer, LayerFile, OpenEnd};
use crate::detect::quoted;
use catena_engine::{Error, ErrorKind, Image, Qcow2, Raw, Result, Stack, StorageBytes};
use catena_format::qcow2::{Bitmap, Snapshot, Version};
use catena_format::{Encryption, Format};
use catena_storage::{LockMode, Storage};
use std::path::PathBuf;
use std::sync::Arc;

/// Snapshots that a hint lists, and characters that it gives of a name.
const SNAPSHOTS: usize = 8;
const NAME_CHARACTERS: usize = 40;

/// Whether images that somebody writes are read all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// No: every file is locked against writers for as long as the disk is open.
    #[default]
    Locked,
    /// Yes (`--force-share`): what is read may be half written.
    Force,
}

impl Chain {
    /// Opens the guest's view of the whole chain.
    pub fn open(&self, sharing: Sharing) -> Result<Stack> {
        self.open_from(0, sharing)
    }

    /// Opens the view of the chain from a layer down: what the guest would see if that layer were the active one.
    pub fn open_from(&self, layer: usize, sharing: Sharing) -> Result<Stack> {
        self.check_end()?;
        self.check_bases(layer)?;
        let layers = self
            .layers
            .get(layer..)
            .filter(|layers| !layers.is_empty())
            .ok_or_else(|| {
                Error::new(ErrorKind::OutOfBounds, format!("there is no layer {layer}"))
                    .with_hint(layers_there_are(self.layers.len()))
            })?;
        let images = layers.iter().map(|layer| layer.stacked(sharing));
        Ok(Stack::new(images.collect::<Result<Vec<_>>>()?))
    }

    /// Opens the guest's view as it was when an internal snapshot of the active image was taken.
    ///
    /// The snapshot is named by its id or, where none has that id, by its name, as with qemu-img.
    pub fn open_snapshot(&self, snapshot: &str, sharing: Sharing) -> Result<Stack> {
        self.check_complete()?;
        let none = || Error::new(ErrorKind::NotFound, format!("there is no snapshot '{snapshot}'"));
        let (active, below) = self.layers.split_first().ok_or_else(none)?;
        let named = |error: Error| error.with_path(active.name());
        if active.format != Format::Qcow2 {
            return Err(named(none().with_hint("only qcow2 images have snapshots")));
        }
        let image = active.open_qcow2(sharing).map_err(named)?;
        let snapshots = image.snapshots().map_err(named)?;
        let by_id = snapshots.iter().find(|candidate| candidate.id == snapshot);
        let found = by_id.or_else(|| snapshots.iter().find(|candidate| candidate.name == snapshot));
        let found = found.ok_or_else(|| named(none().with_hint(snapshots_there_are(&snapshots))))?;
        let top: Arc<dyn Image> = Arc::new(image.at_snapshot(found));
        let mut images = vec![(top, path_of(active))];
        for layer in below {
            images.push(layer.stacked(sharing)?);
        }
        Ok(Stack::new(images))
    }

    /// Whether the layers from one down are free of encryption. Nothing is read: the answer does not depend on how much
    /// has been written to an encrypted layer.
    pub fn check_not_encrypted(&self, from_layer: usize) -> Result<()> {
        let mut layers = self.layers.iter().skip(from_layer);
        match layers.find_map(|layer| Some((layer, layer.encryption()?))) {
            None => Ok(()),
            Some((layer, encryption)) => Err(layer.encrypted(encryption)),
        }
    }

    /// Whether the chain's content is known: its end is, and every layer is the one that the overlay above it was made on, as far
    /// as stamps tell.
    pub fn check_complete(&self) -> Result<()> {
        self.check_end()?;
        self.check_bases(0)
    }

    /// Whether the chain's end is known.
    pub(crate) fn check_end(&self) -> Result<()> {
        let last = self.layers.last().map(Layer::name).unwrap_or_default();
        match &self.end {
            End::Terminated => Ok(()),
            End::OpenEnded(OpenEnd::NotTraversable) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("'{last}' is not on this host, so it cannot be read"),
            )),
            End::OpenEnded(OpenEnd::Credentials(link)) => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the backing image '{}' of '{last}' is not on this host, so it cannot be read",
                    link.shown()
                ),
            )),
            End::Broken(broken) => {
                let mut error = Error::new(broken.error.kind(), broken.error.full());
                if let Some(hint) = broken.error.hint() {
                    error = error.with_hint(hint);
                }
                Err(error)
            }
        }
    }
}

impl Layer {
    /// Opens the layer alone, with the path by which a stack's errors name it.
    pub(crate) fn stacked(&self, sharing: Sharing) -> Result<(Arc<dyn Image>, PathBuf)> {
        let image = self
            .image(sharing)
            .map_err(|error| error.with_path(self.name()))?;
        Ok((image, path_of(self)))
    }

    /// Opens the layer alone.
    pub fn image(&self, sharing: Sharing) -> Result<Arc<dyn Image>> {
        let file = self
            .file
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the image is not on this host"))?;
        let storage = file.lock(sharing)?;
        match self.format {
            Format::Qcow2 => Ok(Arc::new(self.qcow2(storage, sharing)?)),
            Format::Raw | Format::Iso => {
                let image = match self.source.slice {
                    None => Raw::open(storage),
                    Some(slice) => Raw::open_slice(storage, slice.offset, slice.size),
                };
                Ok(Arc::new(image?))
            }
            Format::Luks => Err(Error::new(
                ErrorKind::Encrypted,
                "the data is encrypted, and reading encrypted images is not supported",
            )),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("reading the data of {other} images is not supported"),
            )
            .with_hint(format!(
                "convert it first: qemu-img convert -f {other} -O qcow2 {} NEW.qcow2",
                quoted(self.word())
            ))),
        }
    }

    /// Opens the layer, which is a qcow2 image, with all that only such an image has.
    pub fn open_qcow2(&self, sharing: Sharing) -> Result<Qcow2> {
        let file = self
            .file
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the image is not on this host"))?;
        self.qcow2(file.lock(sharing)?, sharing)
    }

    /// The persistent bitmaps of the layer; `None` where its format has none.
    pub fn bitmaps(&self) -> Result<Option<Vec<Bitmap>>> {
        let (Some(header), Some(file)) = (&self.header, &self.file) else {
            return Ok(None);
        };
        if header.version < Version::V3 {
            return Ok(None);
        }
        let bitmaps = Bitmap::read_all(header, &StorageBytes::new(&file.storage)?);
        Ok(Some(
            bitmaps.map_err(|error| Error::from(error).with_path(self.name()))?,
        ))
    }

    fn qcow2(&self, storage: Arc<dyn Storage>, sharing: Sharing) -> Result<Qcow2> {
        let data_file = self
            .data_file
            .as_ref()
            .map(|data_file| data_file.lock(sharing))
            .transpose()?;
        Qcow2::open(storage, data_file)
    }

    /// The error that its data cannot be read for being encrypted.
    fn encrypted(&self, encryption: &Encryption) -> Error {
        let error = Error::new(
            ErrorKind::Encrypted,
            "the data is encrypted, and reading encrypted images is not supported",
        )
        .with_path(self.name());
        let kind = match encryption {
            Encryption::Aes => "aes",
            Encryption::Luks(_) => "luks",
            Encryption::LuksUnreadable(_) => {
                return error.with_hint("'catena doctor' says what is wrong with it");
            }
        };
        let key = match self.format {
            Format::Luks => "key-secret=key".to_owned(),
            _ => format!("encrypt.format={kind},encrypt.key-secret=key"),
        };
        // A comma in a value is written twice.
        let name = self.name().replace(',', ",,");
        let image = format!("driver={},{key},file.filename={name}", self.format);
        error.with_hint(format!(
            "a decrypted copy can be read: qemu-img convert --object secret,id=key,file=PASSPHRASE --image-opts {} \
             -O qcow2 NEW.qcow2",
            quoted(&image)
        ))
    }

    /// Whether the layer's data is encrypted.
    pub fn encryption(&self) -> Option<&Encryption> {
        self.description.encryption.as_ref()
    }
}

impl DataFileLayer {
    fn lock(&self, sharing: Sharing) -> Result<Arc<dyn Storage>> {
        match &self.file {
            Ok(file) => file.lock(sharing),
            Err(error) => Err(Error::new(
                error.kind(),
                format!("the data file '{}' is not open: {}", self.shown(), error.full()),
            )),
        }
    }
}

impl LayerFile {
    /// The open file, locked against writers unless the caller shares.
    pub(crate) fn lock(&self, sharing: Sharing) -> Result<Arc<dyn Storage>> {
        if sharing == Sharing::Locked {
            self.storage.set_lock(LockMode::Read).map_err(|error| {
                let hint =
                    "stop it first, or read all the same with --force-share (-U): what is read may be half written";
                in_use(error.into(), hint)
            })?;
        }
        Ok(Arc::new(self.storage.clone()))
    }
}

/// Adds what to do to an error that says that somebody uses an image.
pub(crate) fn in_use(error: Error, hint: &str) -> Error {
    match error.kind() {
        ErrorKind::Locked => error.with_hint(hint),
        _ => error,
    }
}

/// The layers that can be asked for, as a hint.
fn layers_there_are(layers: usize) -> String {
    match layers.checked_sub(1) {
        None => "the chain has no layers".to_owned(),
        Some(0) => "the chain has one layer, which is 0".to_owned(),
        Some(last) => format!("the layers are 0 to {last}, 0 being the active one"),
    }
}

/// The snapshots that can be asked for, as a hint: not too many, and on one line whatever their names.
fn snapshots_there_are(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return "the image has no snapshots".to_owned();
    }
    let short = |text: &str| -> String {
        let cut = if text.chars().nth(NAME_CHARACTERS).is_some() {
            "…"
        } else {
            ""
        };
        let kept = text.chars().take(NAME_CHARACTERS);
        let printable = |c: char| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        };
        kept.map(printable).chain(cut.chars()).collect()
    };
    let shown: Vec<_> = snapshots
        .iter()
        .take(SNAPSHOTS)
        .map(|snapshot| format!("'{}' (id {})", short(&snapshot.name), short(&snapshot.id)))
        .collect();
    let more = match snapshots.len().saturating_sub(SNAPSHOTS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the snapshots are {}{more}", shown.join(", "))
}

fn path_of(layer: &Layer) -> PathBuf {
    layer.path().map(PathBuf::from).unwrap_or_default()
}
