//! Why a document is refused: libvirt's sentence, and where in the text.

use std::fmt;

/// What sort of trouble a document is in. libvirt begins its sentence with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum XmlErrorKind {
    /// It is not XML, or is larger than what is read.
    NotXml,
    /// An element or attribute is absent, or has a value it cannot have.
    Malformed,
    /// A number or unit cannot be read.
    InvalidArgument,
    /// What it asks for cannot be had.
    Unsupported,
    /// It asks for two things that exclude each other.
    Excluded,
    /// The disk lacks something that every disk has.
    Missing,
}

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XmlError {
    /// What sort of trouble it is.
    pub kind: XmlErrorKind,
    /// The sentence; libvirt 11.3's, word for word, where libvirt refuses the document too.
    pub message: String,
    /// Line of the element at fault, from 1.
    pub line: u32,
    /// Column of it in characters, from 1.
    pub column: u32,
}

impl fmt::Display for XmlError {
    /// As libvirt says it, with what sort of trouble it is before the sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sort = match self.kind {
            XmlErrorKind::Malformed => "XML error: ",
            XmlErrorKind::InvalidArgument => "invalid argument: ",
            XmlErrorKind::Unsupported => "unsupported configuration: ",
            XmlErrorKind::Excluded => "Operation not supported: ",
            XmlErrorKind::NotXml | XmlErrorKind::Missing => "",
        };
        write!(f, "{sort}{}", self.message)
    }
}

impl std::error::Error for XmlError {}
