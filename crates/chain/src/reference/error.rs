//! Why a recorded string could not be understood, in libvirt's own words where libvirt has words for it.

use std::borrow::Cow;
use std::fmt;

/// What sort of trouble a reference is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReferenceErrorKind {
    /// The string is empty.
    Empty,
    /// The string is longer than [`super::MAX_BYTES`].
    TooLong,
    /// The string is not UTF-8 where it has to be, or holds a NUL.
    NotText,
    /// A URI, a colon form or a field breaks its grammar.
    Malformed,
    /// No such protocol or transport.
    UnknownProtocol,
    /// The text after `json:` is not JSON, or nests too deeply.
    Json,
    /// A field that the driver needs is absent or of the wrong type.
    MissingField,
    /// The string is valid, but names something that cannot be a layer here.
    Unsupported,
}

/// Why a recorded string could not be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceError {
    kind: ReferenceErrorKind,
    message: Cow<'static, str>,
}

impl ReferenceError {
    /// An error of a kind with its sentence.
    pub(super) fn new(kind: ReferenceErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub(super) fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ReferenceErrorKind::Malformed, message)
    }

    pub(super) fn missing(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ReferenceErrorKind::MissingField, message)
    }

    pub(super) fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ReferenceErrorKind::Unsupported, message)
    }

    pub(super) fn unknown(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ReferenceErrorKind::UnknownProtocol, message)
    }

    pub(super) fn json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ReferenceErrorKind::Json, message)
    }

    /// What sort of trouble it is.
    pub fn kind(&self) -> ReferenceErrorKind {
        self.kind
    }

    /// The sentence; libvirt 11.3's text, word for word, where libvirt refuses the string too.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReferenceError {}
