//! Create: a new image, alone or over a backing image.

use super::allocated;
use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::policy::{ChangedBase, Policy};
use crate::reference::{Reading, Reference, Source, without_credentials};
use crate::stamp;
use catena_engine::qcow2::{self, Qcow2Disk};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::qcow2::{Autoclear, ClusterBits, Compression, CreateOptions, NewImage, Version};
use catena_format::{Format, limits};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images with smaller clusters are stamped only when somebody says so.
const STAMPED_FROM: u64 = 4096;
/// Guests see whole sectors.
const SECTOR: u64 = 512;

/// What to create.
#[derive(Clone, Debug)]
pub struct Request {
    /// The new file.
    pub path: PathBuf,
    /// What is done about a file of that name.
    pub existing: Existing,
    /// Bytes the guest sees; those of the backing image where `None`.
    pub size: Option<u64>,
    /// The new image's format and what goes with it.
    pub kind: Kind,
    /// What is allocated from the start.
    pub preallocation: Preallocation,
}

/// What is done about a file that exists where a new one is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is created.
    #[default]
    Refuse,
    /// It is emptied, unless somebody uses it. What the new image names as its data file is, too.
    Overwrite,
}

/// What of a new image is allocated from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The metadata: the guest's clusters have their places, which are holes.
    Metadata,
    /// Metadata and the space for data.
    Falloc,
    /// Metadata and data, written as zeros.
    Full,
}

/// Which format is created.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A raw image: a sparse file.
    Raw,
    /// A qcow2 image.
    Qcow2(Box<Qcow2Options>),
}

/// The options of a new qcow2 image. Defaults are those of qemu-img.
#[derive(Clone, Debug)]
pub struct Qcow2Options {
    /// The backing image, by the name that is recorded, and its format.
    pub backing: Option<(String, Format)>,
    /// Whether the image keeps what its backing image is, so that it is noticed when that changes. Left out where the backing image
    /// is not looked at or is in use, and where the first cluster is so small that other programs may need its room.
    pub stamp: bool,
    /// Whether the backing image is left unlooked at, as with `qemu-img create -u`. The size must be given then.
    pub unchecked_backing: bool,
    /// Format version.
    pub version: Version,
    /// Cluster size in bytes, a power of two.
    pub cluster_size: u64,
    /// Refcount width in bits, a power of two.
    pub refcount_bits: u32,
    /// Whether refcount updates may be postponed.
    pub lazy_refcounts: bool,
    /// Whether L2 entries carry subcluster bitmaps.
    pub extended_l2: bool,
    /// Type of compressed clusters.
    pub compression: Compression,
    /// External data file, created with the image: the name that is recorded, and whether it stays a raw image.
    pub data_file: Option<(String, bool)>,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            backing: None,
            stamp: true,
            unchecked_backing: false,
            version: Version::V3,
            cluster_size: 65_536,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Deflate,
            data_file: None,
        }
    }
}

/// A new image, decided.
#[derive(Debug)]
pub struct Plan {
    path: PathBuf,
    size: u64,
    image: Option<NewImage>,
    data_file: Option<PathBuf>,
    existing: Existing,
    preallocation: Preallocation,
}

/// Decides what to write.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let path = request.path.clone();
    let existing = request.existing;
    let preallocation = request.preallocation;
    refuse_existing(&path, existing)?;
    match &request.kind {
        Kind::Raw => {
            let size = request.size.ok_or_else(no_size)?.checked_next_multiple_of(SECTOR);
            let size = size
                .filter(|size| *size <= limits::VIRTUAL_SIZE)
                .ok_or_else(too_large)?;
            if preallocation == Preallocation::Metadata {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "Unsupported preallocation mode 'metadata'",
                ));
            }
            Ok(Plan {
                path,
                size,
                image: None,
                data_file: None,
                existing,
                preallocation,
            })
        }
        Kind::Qcow2(options) => {
            let image = lay_out(request, policy)?;
            if preallocation != Preallocation::Off && options.backing.is_some() && !options.extended_l2 {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "Backing file and preallocation can only be used at the same time if extended_l2 is enabled",
                ));
            }
            let data_file = match &options.data_file {
                Some((name, _)) => Some(data_file_path(name, &Source::file(&path), existing)?),
                None => None,
            };
            Ok(Plan {
                path,
                size: image.header.virtual_size,
                image: Some(image),
                data_file,
                existing,
                preallocation,
            })
        }
    }
}

/// The bytes of a new qcow2 image.
pub(super) fn lay_out(request: &Request, policy: &Policy) -> Result<NewImage> {
    let Kind::Qcow2(options) = &request.kind else {
        return Err(Error::new(ErrorKind::Unsupported, "a raw image has no metadata"));
    };
    let backing = match &options.backing {
        Some((name, format)) if !options.unchecked_backing => {
            Some(find_backing(name, *format, &Source::file(&request.path), policy)?)
        }
        _ => None,
    };
    let backing_size = backing.as_ref().and_then(|chain| chain.active()?.virtual_size());
    let size = request.size.or(backing_size).ok_or_else(no_size)?;
    let plain = qcow2_options(options, size)?;
    let may_stamp = options.stamp && policy.changed_base() != ChangedBase::Ignore;
    let base = backing.as_ref().and_then(Chain::active);
    let stamp = base
        .zip(plain.backing.as_ref())
        .filter(|_| may_stamp && options.cluster_size >= STAMPED_FROM)
        .and_then(|(base, (name, word))| stamp::take(base, name, Some(word)).ok());
    let stamped = CreateOptions {
        stamp,
        ..plain.clone()
    };
    // What its user asked for has the room.
    Ok(NewImage::lay_out(&stamped).or_else(|_| NewImage::lay_out(&plain))?)
}

impl Plan {
    /// Bytes the guest will see.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the new image will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the files. What fails half-way leaves nothing behind.
    pub fn execute(&self) -> Result<()> {
        self.create(&self.path, self.existing, Durable::Yes)
    }

    /// The same, and leaves it to the caller to make the image and its name durable, if they are to be: what is filled next is flushed when it is
    /// full.
    pub fn execute_unsynced(&self) -> Result<()> {
        self.create(&self.path, self.existing, Durable::ByTheCaller)
    }

    /// The same under another name of the same folder.
    pub(super) fn execute_unsynced_at(&self, path: &Path, existing: Existing) -> Result<()> {
        self.create(path, existing, Durable::ByTheCaller)
    }

    fn create(&self, path: &Path, existing: Existing, durable: Durable) -> Result<()> {
        let mut created = Created(Vec::new());
        let data_file = match &self.data_file {
            Some(path) => {
                let file = create_file(path, self.size, &[], self.existing, &mut created, Durable::Yes)?;
                allocated::first_block(&file, self.size)?;
                Some(file)
            }
            None => None,
        };
        match &self.image {
            Some(image) => {
                let file = create_file(path, image.len, &image.writes, existing, &mut created, durable)?;
                self.preallocate(file, data_file, image)?;
            }
            None => {
                let file = create_file(path, self.size, &[], existing, &mut created, durable)?;
                fill(&file, self.size, self.preallocation)?;
                durable.flush(&file)?;
            }
        }
        created.0.clear();
        Ok(())
    }
}

impl Plan {
    /// Gives the guest's clusters their places.
    fn preallocate(&self, file: LocalFile, data_file: Option<LocalFile>, image: &NewImage) -> Result<()> {
        let in_image = data_file.is_none();
        let how = match self.preallocation {
            Preallocation::Falloc | Preallocation::Full if in_image => {
                return allocated::write(&file, image, self.preallocation);
            }
            // A data file that is to be a raw image of the disk has its clusters where they are there.
            Preallocation::Off if image.header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA) => {
                qcow2::Preallocation::Metadata
            }
            Preallocation::Off => return Ok(()),
            Preallocation::Metadata => qcow2::Preallocation::Metadata,
            Preallocation::Falloc => qcow2::Preallocation::Falloc,
            Preallocation::Full => qcow2::Preallocation::Full,
        };
        let storage: Arc<dyn Storage> = Arc::new(file);
        let data_file = data_file.map(|file| Arc::new(file) as Arc<dyn Storage>);
        // What lies below shows through what is only kept.
        let disk = Qcow2Disk::open(storage, data_file, None)?;
        disk.preallocate(0..self.size, how)?;
        disk.close()
    }
}

/// Allocates a raw file.
fn fill(file: &LocalFile, size: u64, preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => allocated::first_block(file, size)?,
        Preallocation::Falloc => file.allocate(0, size)?,
        Preallocation::Full => allocated::write_zeros(file, 0, size)?,
    }
    Ok(())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = if self.image.is_some() {
            Format::Qcow2
        } else {
            Format::Raw
        };
        write!(
            f,
            "{}: a new {format} image of {} bytes",
            self.path.display(),
            self.size
        )?;
        let header = self.image.as_ref().map(|image| &image.header);
        if let Some(backing) = header.and_then(|header| header.backing.as_ref()) {
            let name = String::from_utf8_lossy(&backing.name);
            write!(f, " over '{}'", without_credentials(&name))?;
        }
        match &self.data_file {
            Some(data_file) => write!(f, " with the data file '{}'", data_file.display()),
            None => Ok(()),
        }
    }
}

/// Who sees to it that a new image is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    Yes,
    ByTheCaller,
}

impl Durable {
    fn flush(self, file: &LocalFile) -> Result<()> {
        match self {
            Self::Yes => Ok(file.flush()?),
            Self::ByTheCaller => Ok(()),
        }
    }
}

/// Files made so far, removed again unless all goes well.
struct Created(Vec<PathBuf>);

impl Drop for Created {
    fn drop(&mut self) {
        for path in &self.0 {
            // The first error is the one that is reported.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn create_file(
    path: &Path,
    len: u64,
    writes: &[(u64, Vec<u8>)],
    existing: Existing,
    created: &mut Created,
    durable: Durable,
) -> Result<LocalFile> {
    let overwrite = existing == Existing::Overwrite;
    let was_there = path.symlink_metadata().is_ok();
    let options = OpenOptions::new().lock(LockMode::Write).overwrite(overwrite);
    let file = LocalFile::create(path, &options)?;
    if !was_there {
        created.0.push(path.to_owned());
    }
    if file.is_block_device() {
        if file.len()? < len {
            return Err(Error::new(ErrorKind::NoSpace, "the device is too small").with_path(path));
        }
        if !writes.is_empty() {
            file.write_zeroes(0, len)?;
        }
    } else {
        file.set_len(len)?;
    }
    // The header comes last, and only once the rest is durable.
    for (offset, bytes) in writes {
        if *offset == 0 {
            durable.flush(&file)?;
        }
        file.write_all_at(bytes, *offset)?;
    }
    if durable == Durable::Yes {
        file.flush()?;
        sync_directory_of(path)?;
    }
    Ok(file)
}

pub(super) fn refuse_existing(path: &Path, existing: Existing) -> Result<()> {
    if existing == Existing::Overwrite || path.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(
        Error::new(ErrorKind::Conflict, "it exists, and is not overwritten")
            .with_path(path)
            .with_hint("choose another name, or remove it first if you are sure that nothing depends on it"),
    )
}

/// The chain that the new image will stand on. It may be open-ended or broken further down, but its first image must
/// be what it is said to be.
fn find_backing(name: &str, format: Format, own: &Source, policy: &Policy) -> Result<Chain> {
    let reference = Reference::parse(name, Reading::Catena)
        .map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()))?;
    let chain = detect(
        &Start {
            source: reference.resolve(own),
            format: Some(format),
        },
        policy,
    );
    if chain.layers.is_empty() {
        chain.check_complete()?;
    }
    Ok(chain)
}

fn qcow2_options(options: &Qcow2Options, size: u64) -> Result<CreateOptions> {
    let power = |value: u64, what: &str| {
        let bits = value.is_power_of_two().then(|| value.trailing_zeros());
        bits.ok_or_else(|| Error::new(ErrorKind::Conflict, format!("{what} must be a power of two")))
    };
    let backing = options.backing.as_ref().map(|(name, format)| {
        (
            name.clone().into_bytes(),
            format.qemu().unwrap_or("raw").as_bytes().to_vec(),
        )
    });
    Ok(CreateOptions {
        virtual_size: size,
        version: options.version,
        cluster_bits: ClusterBits::new(power(options.cluster_size, "the cluster size")?)?,
        refcount_order: power(options.refcount_bits.into(), "the refcount width")?,
        lazy_refcounts: options.lazy_refcounts,
        extended_l2: options.extended_l2,
        compression: options.compression,
        backing,
        stamp: None,
        data_file: options
            .data_file
            .as_ref()
            .map(|(name, raw)| (name.clone().into_bytes(), *raw)),
    })
}

fn data_file_path(name: &str, own: &Source, existing: Existing) -> Result<PathBuf> {
    let reference = Reference::parse(name, Reading::Catena)
        .map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()))?;
    let source = reference.resolve(own);
    let path = source.path().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the data file '{name}' is not on this host"),
        )
    })?;
    refuse_existing(path, existing)?;
    Ok(path.to_owned())
}

fn no_size() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "an image without a backing image needs a size",
    )
    .with_hint("give it with --size")
}

fn too_large() -> Error {
    Error::new(ErrorKind::TooLarge, "the disk is too large")
}
