//! Header extensions: typed where they are known, kept word for word where they are not.

use super::lineage::{self, Lineage};
use super::raw;
use super::stamp::{self, Stamp};
use crate::error::{Error, Result};
use zerocopy::{FromBytes, IntoBytes};

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// One header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extension {
    /// The format word of the backing image.
    BackingFormat(Vec<u8>),
    /// Names of feature bits, for error messages.
    FeatureNames(Vec<FeatureName>),
    /// Where the persistent bitmaps are.
    Bitmaps(BitmapsExtension),
    /// Where the LUKS header is.
    CryptoHeader {
        /// Offset in the image.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The name of the external data file.
    DataFile(Vec<u8>),
    /// What the image knows of its backing image: Catena's own, not of the specification.
    Stamp(Box<Stamp>),
    /// By which the image is known again after it was rewritten: Catena's own, too.
    Lineage(Box<Lineage>),
    /// Anything else, and known types whose data is not of the form the specification gives.
    Unknown {
        /// The extension type.
        kind: u32,
        /// Its data without padding.
        data: Vec<u8>,
    },
}

/// A feature bit's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// Which of the three bit fields, kept as found.
    pub kind: FeatureType,
    /// Bit number.
    pub bit: u8,
    /// The name without its padding.
    pub name: Vec<u8>,
}

/// Which bit field a feature name is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureType {
    /// [`super::Incompatible`].
    Incompatible,
    /// [`super::Compatible`].
    Compatible,
    /// [`super::Autoclear`].
    Autoclear,
    /// A number the specification does not give.
    Other(u8),
}

/// Where the persistent bitmaps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Size of the directory in bytes.
    pub directory_size: u64,
    /// Offset of the directory.
    pub directory_offset: u64,
}

impl Extension {
    /// Reads the extensions from the bytes between the end of the header and the end of their area, and tells whether
    /// the end mark was among them.
    ///
    /// `start` is the offset of `area` in the image, for messages.
    pub(super) fn parse_all(area: &[u8], start: u64) -> Result<(Vec<Self>, bool)> {
        let mut extensions = Vec::new();
        let mut rest = area;
        // Each turn consumes at least the 8 bytes of an extension header.
        while let Ok((head, after)) = raw::ExtensionHeader::ref_from_prefix(rest) {
            let offset = start + (area.len() - rest.len()) as u64;
            if head.kind.get() == 0 {
                return Ok((extensions, true));
            }
            let length = head.length.get() as usize;
            let data = after.get(..length).ok_or_else(|| {
                Error::invalid(format!(
                    "header extension {:#010x} is longer than its area",
                    head.kind
                ))
                .at(offset)
            })?;
            extensions.push(Self::parse(head.kind.get(), data));
            rest = after.get(length.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok((extensions, false))
    }

    fn parse(kind: u32, data: &[u8]) -> Self {
        Self::parse_known(kind, data).unwrap_or_else(|| Self::Unknown {
            kind,
            data: data.to_vec(),
        })
    }

    fn parse_known(kind: u32, data: &[u8]) -> Option<Self> {
        match kind {
            BACKING_FORMAT => Some(Self::BackingFormat(data.to_vec())),
            DATA_FILE => Some(Self::DataFile(data.to_vec())),
            FEATURE_NAMES => {
                let names = <[raw::FeatureName]>::ref_from_bytes(data).ok()?;
                Some(Self::FeatureNames(
                    names.iter().map(FeatureName::from_raw).collect(),
                ))
            }
            BITMAPS => {
                let raw = raw::BitmapsExtension::ref_from_bytes(data)
                    .ok()
                    .filter(|raw| raw.reserved.get() == 0)?;
                Some(Self::Bitmaps(BitmapsExtension {
                    count: raw.nb_bitmaps.get(),
                    directory_size: raw.bitmap_directory_size.get(),
                    directory_offset: raw.bitmap_directory_offset.get(),
                }))
            }
            CRYPTO_HEADER => {
                let (offset, length) = data.split_first_chunk::<8>()?;
                let length: &[u8; 8] = length.try_into().ok()?;
                Some(Self::CryptoHeader {
                    offset: u64::from_be_bytes(*offset),
                    length: u64::from_be_bytes(*length),
                })
            }
            lineage::KIND => Lineage::parse(data).map(|lineage| Self::Lineage(Box::new(lineage))),
            stamp::KIND => Stamp::parse(data).map(|stamp| Self::Stamp(Box::new(stamp))),
            _ => None,
        }
    }

    /// The extension type.
    pub fn kind(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => BACKING_FORMAT,
            Self::FeatureNames(_) => FEATURE_NAMES,
            Self::Bitmaps(_) => BITMAPS,
            Self::CryptoHeader { .. } => CRYPTO_HEADER,
            Self::DataFile(_) => DATA_FILE,
            Self::Stamp(_) => stamp::KIND,
            Self::Lineage(_) => lineage::KIND,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::BackingFormat(data) | Self::DataFile(data) | Self::Unknown { data, .. } => data.clone(),
            Self::FeatureNames(names) => names.iter().flat_map(FeatureName::to_bytes).collect(),
            Self::Bitmaps(bitmaps) => raw::BitmapsExtension {
                nb_bitmaps: bitmaps.count.into(),
                reserved: 0.into(),
                bitmap_directory_size: bitmaps.directory_size.into(),
                bitmap_directory_offset: bitmaps.directory_offset.into(),
            }
            .as_bytes()
            .to_vec(),
            Self::CryptoHeader { offset, length } => [offset.to_be_bytes(), length.to_be_bytes()].concat(),
            Self::Stamp(stamp) => stamp.encode(),
            Self::Lineage(lineage) => lineage.encode(),
        }
    }

    /// Appends the extension with its padding.
    pub(super) fn encode_to(&self, out: &mut Vec<u8>) {
        let data = self.data();
        out.extend_from_slice(&self.kind().to_be_bytes());
        // Parsed data fits the first cluster, built data is checked by the header that holds it.
        out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&data);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

impl FeatureName {
    fn from_raw(raw: &raw::FeatureName) -> Self {
        let name = raw.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Self {
            kind: FeatureType::from_number(raw.kind),
            bit: raw.bit,
            name: name.to_vec(),
        }
    }

    fn to_bytes(&self) -> [u8; 48] {
        let mut raw = raw::FeatureName {
            kind: self.kind.number(),
            bit: self.bit,
            name: [0; 46],
        };
        for (to, from) in raw.name.iter_mut().zip(&self.name) {
            *to = *from;
        }
        zerocopy::transmute!(raw)
    }

    /// The table QEMU 10 writes into every new version 3 image.
    pub fn all() -> Vec<Self> {
        use FeatureType::{Autoclear, Compatible, Incompatible};
        [
            (Incompatible, 0, "dirty bit"),
            (Incompatible, 1, "corrupt bit"),
            (Incompatible, 2, "external data file"),
            (Incompatible, 3, "compression type"),
            (Incompatible, 4, "extended L2 entries"),
            (Compatible, 0, "lazy refcounts"),
            (Autoclear, 0, "bitmaps"),
            (Autoclear, 1, "raw external data"),
        ]
        .into_iter()
        .map(|(kind, bit, name)| Self {
            kind,
            bit,
            name: name.into(),
        })
        .collect()
    }
}

impl FeatureType {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Incompatible,
            1 => Self::Compatible,
            2 => Self::Autoclear,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
            Self::Other(number) => number,
        }
    }
}
