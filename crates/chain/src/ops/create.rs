//! Create: a new image, alone or over a backing image.

use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::policy::Policy;
use crate::reference::{Reading, Reference, Source, without_credentials};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::qcow2::{ClusterBits, Compression, CreateOptions, NewImage, Version};
use catena_format::{Format, limits};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use std::fmt;
use std::path::{Path, PathBuf};

/// Guests see whole sectors.
const SECTOR: u64 = 512;

/// What to create.
#[derive(Clone, Debug)]
pub struct Request {
    /// The new file. It must not exist.
    pub path: PathBuf,
    /// Bytes the guest sees; those of the backing image where `None`.
    pub size: Option<u64>,
    /// The new image's format and what goes with it.
    pub kind: Kind,
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
}

/// Decides what to write.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let path = request.path.clone();
    refuse_existing(&path)?;
    match &request.kind {
        Kind::Raw => {
            let size = request.size.ok_or_else(no_size)?.checked_next_multiple_of(SECTOR);
            let size = size
                .filter(|size| *size <= limits::VIRTUAL_SIZE)
                .ok_or_else(too_large)?;
            Ok(Plan {
                path,
                size,
                image: None,
                data_file: None,
            })
        }
        Kind::Qcow2(options) => {
            let own = Source::file(&path);
            let backing = match &options.backing {
                Some((name, format)) if !options.unchecked_backing => {
                    Some(find_backing(name, *format, &own, policy)?)
                }
                _ => None,
            };
            let backing_size = backing.as_ref().and_then(|chain| chain.active()?.virtual_size());
            let size = request.size.or(backing_size).ok_or_else(no_size)?;
            let image = NewImage::lay_out(&qcow2_options(options, size)?)?;
            let data_file = match &options.data_file {
                Some((name, _)) => Some(data_file_path(name, &own)?),
                None => None,
            };
            Ok(Plan {
                path,
                size: image.header.virtual_size,
                image: Some(image),
                data_file,
            })
        }
    }
}

impl Plan {
    /// Bytes the guest will see.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Creates the files. What fails half-way leaves nothing behind.
    pub fn execute(&self) -> Result<()> {
        let mut created = Created(Vec::new());
        if let Some(data_file) = &self.data_file {
            create_file(data_file, self.size, &[], &mut created)?;
        }
        match &self.image {
            Some(image) => create_file(&self.path, image.len, &image.writes, &mut created)?,
            None => create_file(&self.path, self.size, &[], &mut created)?,
        }
        created.0.clear();
        Ok(())
    }
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

fn create_file(path: &Path, len: u64, writes: &[(u64, Vec<u8>)], created: &mut Created) -> Result<()> {
    let file = LocalFile::create(path, &OpenOptions::new().lock(LockMode::Write))?;
    created.0.push(path.to_owned());
    file.set_len(len)?;
    // The header comes last, and only once the rest is durable.
    for (offset, bytes) in writes {
        if *offset == 0 {
            file.flush()?;
        }
        file.write_all_at(bytes, *offset)?;
    }
    file.flush()?;
    Ok(sync_directory_of(path)?)
}

fn refuse_existing(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => Err(
            Error::new(ErrorKind::Conflict, "it exists, and is not overwritten")
                .with_path(path)
                .with_hint(
                    "choose another name, or remove it first if you are sure that nothing depends on it",
                ),
        ),
        Err(_) => Ok(()),
    }
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
        data_file: options
            .data_file
            .as_ref()
            .map(|(name, raw)| (name.clone().into_bytes(), *raw)),
    })
}

fn data_file_path(name: &str, own: &Source) -> Result<PathBuf> {
    let reference = Reference::parse(name, Reading::Catena)
        .map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()))?;
    let source = reference.resolve(own);
    let path = source.path().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the data file '{name}' is not on this host"),
        )
    })?;
    refuse_existing(path)?;
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
