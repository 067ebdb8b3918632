//! The error of the engine and of everything above it: a small kind to match on, a sentence, the place, the source.

use catena_format as format;
use catena_storage as storage;
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// What sort of trouble it is. Scripts and callers match on this; sentences may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or directory does not exist.
    NotFound,
    /// The system does not permit it.
    Denied,
    /// Another process uses the image in a way that excludes this.
    Locked,
    /// The medium is full.
    NoSpace,
    /// The system reports something else.
    Io,
    /// The bytes are not of the format they were said to be.
    InvalidFormat,
    /// The image uses, or the caller asked for, something that is not supported.
    Unsupported,
    /// The image contradicts its own format.
    Corrupt,
    /// A number exceeds a limit.
    TooLarge,
    /// The range lies outside the disk.
    OutOfBounds,
    /// The data is encrypted and there is no key.
    Encrypted,
    /// The policy does not allow it.
    Refused,
    /// The format of a backing image is not recorded and may not be probed.
    FormatUnknown,
    /// A reference cannot be understood, or leads where nothing can be opened.
    BadReference,
    /// The chain comes back to an image it has passed.
    Loop,
    /// The chain has more layers than allowed.
    TooDeep,
    /// It would change what the guest sees.
    ViewWouldChange,
    /// A backing image is not the one that its overlay was made on.
    BaseChanged,
    /// The request contradicts itself or the state of things.
    Conflict,
    /// The user stopped it.
    Cancelled,
}

/// Why something could not be done: what, where, and, as its source, the error underneath.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    path: Option<PathBuf>,
    offset: Option<u64>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of anything in the engine and above.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a kind with a lower-case sentence.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            path: None,
            offset: None,
            hint: None,
            source: None,
        }
    }

    /// Adds the image it is about, unless a more precise name is there already.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    /// Adds the byte offset in the image.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Adds what the user can do next: a sentence or a command.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// What sort of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence alone.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The image it is about.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The byte offset in the image.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// What the user can do next.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The sentence with those of its sources behind it, on one line.
    pub fn full(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(&self.message)?;
        match self.offset {
            Some(offset) => write!(f, " (at offset {offset:#x})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        let kind = match error.kind() {
            storage::ErrorKind::NotFound => ErrorKind::NotFound,
            storage::ErrorKind::Denied => ErrorKind::Denied,
            storage::ErrorKind::Locked => ErrorKind::Locked,
            storage::ErrorKind::NoSpace => ErrorKind::NoSpace,
            storage::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        // The storage error already names path, offset and detail; only the system's word stays underneath.
        let mut this = Self::new(kind, error.to_string());
        this.source = error.into_io().map(|io| Box::new(io) as _);
        this
    }
}

impl From<format::Error> for Error {
    fn from(error: format::Error) -> Self {
        let kind = match error.kind() {
            format::ErrorKind::NotThisFormat => ErrorKind::InvalidFormat,
            format::ErrorKind::Truncated | format::ErrorKind::Invalid => ErrorKind::Corrupt,
            format::ErrorKind::TooLarge => ErrorKind::TooLarge,
            format::ErrorKind::Read => ErrorKind::Io,
            _ => ErrorKind::Unsupported,
        };
        let mut this = Self::new(kind, error.message().to_owned());
        this.offset = error.offset();
        this.source = error.into_io().map(|io| Box::new(io) as _);
        this
    }
}
