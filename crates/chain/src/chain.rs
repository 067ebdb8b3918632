//! A chain as it was found: which images, in which formats and why we believe it, and how it ends.
//!
//! Everything here is a fact that detection established; what is good or bad about it is for the doctor to say.

use crate::policy::ChangedBase;
use crate::reference::{Source, without_credentials};
use catena_engine::Error;
use catena_format::{Description, Format, qcow2};
use catena_storage::{Identity, LocalFile};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A chain of images, active layer first.
#[derive(Debug)]
pub struct Chain {
    /// The layers that were found and understood.
    pub layers: Vec<Layer>,
    /// How it goes on after the last of them.
    pub end: End,
    /// What is done where stamps tell that a layer is not the one that it was.
    pub(crate) changed_base: ChangedBase,
}

/// An image at its place in a chain.
#[derive(Debug)]
pub struct Layer {
    /// Where it is.
    pub source: Source,
    /// What the overlay records about it; `None` for the active layer.
    pub link: Option<Link>,
    /// Which format it is in.
    pub format: Format,
    /// Why that is believed.
    pub origin: Origin,
    /// What its metadata says.
    pub description: Description,
    /// The qcow2 header, where it is one.
    pub header: Option<qcow2::Header>,
    /// The open file; `None` where the layer is not on this host.
    pub file: Option<LayerFile>,
    /// The external data file, where the metadata says that there is one.
    pub data_file: Option<DataFileLayer>,
}

/// What an image records about another.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Link {
    /// The string, as recorded.
    pub text: String,
    /// The format word, as recorded.
    pub format: Option<String>,
}

/// Why a layer's format is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller said so.
    Specified,
    /// The overlay records it, or its own format leaves no other.
    Recorded,
    /// Nobody said, and the image itself was asked.
    Probed(Consent),
}

/// Why a format could be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// The user named the image and gave no format.
    UserArgument,
    /// It turned out a leaf: it names no other file, so nothing can be reached through it.
    Leaf,
    /// Its overlay is a QED image that leaves its backing to be probed, as libvirt does.
    Qed,
    /// The policy trusts the image.
    Trusted,
}

/// A file of this host that is open for its header to be read, without locks.
#[derive(Clone, Debug)]
pub struct LayerFile {
    /// The open file: what was looked at is what will be read.
    pub storage: LocalFile,
    /// Which object it is.
    pub identity: Identity,
    /// Bytes it takes up on its medium, where known.
    pub allocated: Option<u64>,
}

/// A data file beside its image.
#[derive(Debug)]
pub struct DataFileLayer {
    /// The string that the image records; empty where it records none.
    pub text: String,
    /// Where that is.
    pub source: Option<Source>,
    /// The open file, or why it is not.
    pub file: Result<LayerFile, Error>,
}

/// How a chain goes on after the last layer found.
#[derive(Debug)]
pub enum End {
    /// Not at all: the last image needs no other.
    Terminated,
    /// Somehow, but not so that we could follow.
    OpenEnded(OpenEnd),
    /// It does not: something is wrong.
    Broken(Box<Break>),
}

/// Why a chain cannot be followed although nothing is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenEnd {
    /// The last layer is not on this host, so its header was not read.
    NotTraversable,
    /// The next layer's reference carries credentials, which are not kept.
    Credentials(Link),
}

/// Where and why a chain breaks.
#[derive(Debug)]
pub struct Break {
    /// What is wrong, in libvirt's words where it has some.
    pub error: Error,
    /// The reference that leads nowhere; `None` where the active image itself is at fault.
    pub link: Option<Link>,
    /// Where the reference leads, as far as it could be understood.
    pub source: Option<Source>,
    /// What was found there although it is not believed: the format that the bytes look like and what they say.
    pub probed: Option<(Format, Description)>,
}

impl Chain {
    /// A chain of no layers.
    pub(crate) fn without_layers(end: End) -> Self {
        Self {
            layers: Vec::new(),
            end,
            changed_base: ChangedBase::default(),
        }
    }

    /// The active layer.
    pub fn active(&self) -> Option<&Layer> {
        self.layers.first()
    }

    /// The error at which the chain breaks.
    pub fn broken(&self) -> Option<&Break> {
        match &self.end {
            End::Broken(broken) => Some(broken),
            _ => None,
        }
    }
}

impl Link {
    /// The string fit to be shown: without credentials. It is not for opening or recording.
    pub fn shown(&self) -> Cow<'_, str> {
        without_credentials(&self.text)
    }
}

impl DataFileLayer {
    /// The string fit to be shown, as [`Link::shown`].
    pub fn shown(&self) -> Cow<'_, str> {
        without_credentials(&self.text)
    }
}

impl Layer {
    /// Its name in this host's file system.
    pub fn path(&self) -> Option<&Path> {
        self.source.path()
    }

    /// Which object of this host its file is: device and inode.
    pub(crate) fn object(&self) -> Option<(u64, u64)> {
        self.file.as_ref().map(|file| file.identity.object())
    }

    /// The name by which messages speak of it: its path, or whatever names it best.
    pub fn name(&self) -> String {
        self.source.to_string()
    }

    /// Its name as a program takes it as an argument: no option, no protocol, and byte by byte what it is.
    pub(crate) fn word(&self) -> OsString {
        self.path()
            .map_or_else(|| self.name().into(), |path| unmistakable(path.as_os_str()))
    }

    /// Bytes the guest sees of this image alone; of a raw one, the file's length.
    pub fn virtual_size(&self) -> Option<u64> {
        let slice = self.source.slice.and_then(|slice| slice.size);
        self.description
            .virtual_size
            .or(slice)
            .or_else(|| self.file.as_ref().map(|file| file.identity.len))
    }
}

/// A file's name that is not taken for an option (`-f`) or a protocol (`nbd:`).
pub(crate) fn unmistakable(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    let first = bytes.iter().find(|byte| b":/".contains(byte));
    if bytes.starts_with(b"-") || first == Some(&b':') {
        Path::new(".").join(name).into_os_string()
    } else {
        name.to_owned()
    }
}

impl fmt::Display for Source {
    /// The name by which messages speak of it: its path, else the string an overlay would record, else its type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path(), self.to_recorded()) {
            (Some(path), _) => write!(f, "{}", path.display()),
            (None, Ok(recorded)) => f.write_str(&without_credentials(&recorded)),
            (None, Err(_)) => f.write_str(self.type_name()),
        }
    }
}
