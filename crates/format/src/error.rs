//! The one error of this crate: a small kind to match on, a sentence to read, and the place in the image.

use std::borrow::Cow;
use std::fmt;

/// What sort of trouble the bytes are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The magic number is absent: these bytes are something else.
    NotThisFormat,
    /// The bytes end before the structure does.
    Truncated,
    /// The bytes break the format's specification.
    Invalid,
    /// The bytes are, or may be, valid, but use something that is not understood here.
    Unsupported,
    /// A number exceeds one of [`crate::limits`].
    TooLarge,
    /// Reading the bytes failed; the source says how.
    Read,
}

/// Why bytes could not be understood.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    offset: Option<u64>,
    source: Option<std::io::Error>,
}

/// The result of understanding bytes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a kind with a lower-case sentence that needs no punctuation.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            offset: None,
            source: None,
        }
    }

    /// The bytes break the specification.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The bytes use something that is not understood here.
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A number exceeds a limit.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::TooLarge, message)
    }

    /// The bytes end too early.
    pub fn truncated(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Truncated, message)
    }

    /// Adds the byte offset in the image at which the trouble is.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// What sort of trouble it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence alone, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The byte offset in the image, where one is known.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The error of reading, if reading is what failed.
    pub fn into_io(self) -> Option<std::io::Error> {
        self.source
    }
}

impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::Read,
            message: "cannot read the image".into(),
            offset: None,
            source: Some(source),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.offset {
            Some(offset) => write!(f, " (at offset {offset:#x})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
