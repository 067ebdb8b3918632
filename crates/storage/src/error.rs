//! The one error of this crate: a small kind to match on, what was being done, where, and the system's word for it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What sort of trouble a store is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such file or directory.
    NotFound,
    /// The system does not permit it.
    Denied,
    /// Another process holds a lock that excludes this.
    Locked,
    /// The medium is full, or a quota is.
    NoSpace,
    /// The store cannot do this at all: a directory, a socket, a read-only medium.
    Unsupported,
    /// Anything else the system reports.
    Io,
}

/// Why a store could not do what it was asked.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    path: Option<PathBuf>,
    offset: Option<u64>,
    detail: Option<String>,
    source: Option<io::Error>,
}

/// The result of asking a store for something.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a kind; `operation` completes "cannot …".
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self {
            kind,
            operation,
            path: None,
            offset: None,
            detail: None,
            source: None,
        }
    }

    /// An error the system reported, its kind taken from the system's code.
    pub fn from_io(source: io::Error, operation: &'static str) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            io::ErrorKind::IsADirectory | io::ErrorKind::Unsupported | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Io,
        };
        Self {
            source: Some(source),
            ..Self::new(kind, operation)
        }
    }

    /// Adds the name of the store.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_owned());
        self
    }

    /// Adds the byte offset.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Adds what is known beyond the system's word, such as who holds a lock.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What sort of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The store's name, where it has one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The byte offset, where one is meant.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// What is known beyond the system's word.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The system's own error by value, where it reported one.
    pub fn into_io(self) -> Option<io::Error> {
        self.source
    }

    /// The system's own error, where it reported one.
    pub fn io(&self) -> Option<&io::Error> {
        self.source.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if let Some(path) = &self.path {
            write!(f, " '{}'", path.display())?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset:#x}")?;
        }
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
