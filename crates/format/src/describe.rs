//! What an image of a known format says about itself.
//!
//! A description repeats the image's own words: it believes none of them and follows no name.

use crate::error::{Error, Result};
use crate::{Bytes, Format};
use std::fmt;

/// What an image's metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// The format the metadata was read as.
    pub format: Format,
    /// Format version or variant in the format's own words: `3`, `monolithicSparse`, `differencing`.
    pub variant: Option<String>,
    /// Bytes the guest sees. `None` where the format does not record it (raw: the file's length).
    pub virtual_size: Option<u64>,
    /// Allocation unit in bytes.
    pub cluster_size: Option<u64>,
    /// The image below this one.
    pub backing: Option<RecordedReference>,
    /// The file that holds the data, where it is not this one.
    pub data_file: Option<DataFile>,
    /// How the data is encrypted.
    pub encryption: Option<Encryption>,
    /// This image's own identity, by which a child would name it.
    pub id: Option<ParentId>,
    /// Features in use, in the format's own words: `lazy refcounts`, `extended l2`, `zstd`.
    pub features: Vec<String>,
    /// What is odd but does not stop the image being described, one sentence each.
    pub oddities: Vec<String>,
}

impl Description {
    /// A description with nothing known but the format.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            variant: None,
            virtual_size: None,
            cluster_size: None,
            backing: None,
            data_file: None,
            encryption: None,
            id: None,
            features: Vec::new(),
            oddities: Vec::new(),
        }
    }

    /// Whether the image needs no other file: what libvirt calls a leaf, and a data file counts as one.
    pub fn is_leaf(&self) -> bool {
        self.backing.is_none() && self.data_file.is_none()
    }
}

/// Describes an image as one of a format, which the caller knows or has chosen to believe.
///
/// Raw data, and what is used as such without a header, describes itself as nothing.
///
/// # Errors
/// [`crate::ErrorKind::NotThisFormat`] where the image is in another format, and those of the format's module.
pub fn describe(format: Format, bytes: &dyn Bytes) -> Result<Description> {
    match format {
        Format::Raw => Ok(Description::new(Format::Raw)),
        Format::Qcow2 => crate::qcow2::describe(bytes),
        Format::Qcow => crate::qcow::describe(bytes),
        Format::Qed => crate::qed::describe(bytes),
        Format::Vmdk => crate::vmdk::describe(bytes),
        Format::Vpc => crate::vpc::describe(bytes),
        Format::Vhdx => crate::vhdx::describe(bytes),
        Format::Vdi => crate::vdi::describe(bytes),
        Format::Parallels => crate::parallels::describe(bytes),
        Format::Luks => crate::luks::describe(bytes),
        Format::Iso => crate::iso::describe(bytes),
        Format::Dmg => crate::dmg::describe(bytes),
        Format::Bochs => crate::bochs::describe(bytes),
        Format::Cloop => crate::cloop::describe(bytes),
        Format::Cow => crate::cow::describe(bytes),
        Format::Fat | Format::Dir => Err(Error::unsupported("a folder has no bytes to describe")),
    }
}

/// What an image records about its backing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedReference {
    /// The string as recorded, lossily decoded where it is not UTF-8.
    pub name: String,
    /// Whether `name` lost something in decoding.
    pub lossy: bool,
    /// The format word as recorded.
    pub format: Option<String>,
    /// Where the string lies in the image, where it lies in one piece.
    pub offset: Option<u64>,
    /// The identity the parent must have (VMDK CID, VHD, VHDX and VDI UUID).
    pub parent_id: Option<ParentId>,
    /// Other strings by which the same parent is named, most trusted first (VHD and VHDX locators).
    pub alternatives: Vec<String>,
}

impl RecordedReference {
    /// A reference by bytes, with nothing else known of it.
    pub fn new(name: &[u8]) -> Self {
        let text = String::from_utf8_lossy(name);
        Self {
            lossy: matches!(text, std::borrow::Cow::Owned(_)),
            name: text.into_owned(),
            format: None,
            offset: None,
            parent_id: None,
            alternatives: Vec::new(),
        }
    }
}

/// The identity by which a child knows its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentId {
    /// VMDK content id.
    Cid(u32),
    /// A UUID, its bytes in the order in which it is printed.
    Uuid([u8; 16]),
}

impl fmt::Display for ParentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cid(cid) => write!(f, "{cid:08x}"),
            Self::Uuid(bytes) => {
                for (i, byte) in bytes.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

/// An external file that holds an image's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The name as recorded, lossily decoded; `None` where the image says there is a data file but names none.
    pub name: Option<String>,
    /// Whether the data file's bytes are the guest's bytes in order (qcow2 `data_file_raw`).
    pub raw: bool,
}

/// How an image's data is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The weak AES-CBC of the first qcow formats.
    Aes,
    /// LUKS, whose header was found and described.
    Luks(crate::luks::LuksHeader),
    /// The image says LUKS, but the header is not where it should be or is not one.
    LuksUnreadable(String),
}
