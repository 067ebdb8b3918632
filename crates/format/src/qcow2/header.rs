//! The header: the first cluster of an image, validated, and written back without losing what is not understood.

use super::extension::{BitmapsExtension, Extension, FeatureType};
use super::feature::{Autoclear, Compatible, Incompatible};
use super::raw;
use crate::bytes::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use zerocopy::{FromBytes, IntoBytes};

/// The first four bytes of every qcow2 (and qcow) image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of a version 2 header.
const V2_LENGTH: usize = 72;
/// Shortest version 3 header: without the compression type.
const V3_MIN_LENGTH: usize = 104;
/// Offset of the compression type byte.
const COMPRESSION_TYPE: usize = 104;
/// Length of the header written here: all known fields, padded to 8 bytes.
const V3_LENGTH: usize = 112;

/// The format version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// QEMU 0.10.
    V2,
    /// QEMU 1.1: feature bits, refcount widths, zero clusters.
    V3,
}

impl Version {
    /// QEMU's name of the version, as in `-o compat=`.
    pub fn compat(self) -> &'static str {
        match self {
            Self::V2 => "0.10",
            Self::V3 => "1.1",
        }
    }
}

/// Cluster size as a power of two, checked to be one the format allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterBits(u32);

impl ClusterBits {
    /// Checks the number against [`limits::QCOW2_CLUSTER_BITS`].
    pub fn new(bits: u32) -> Result<Self> {
        if limits::QCOW2_CLUSTER_BITS.contains(&bits) {
            Ok(Self(bits))
        } else {
            Err(Error::unsupported(format!("unsupported cluster size: 2^{bits}")))
        }
    }

    /// The power of two.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Cluster size in bytes.
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// The part of an offset within its cluster.
    pub fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & (self.size() - 1)
    }

    /// How many clusters that many bytes occupy.
    pub fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.size())
    }
}

/// How the guest's data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not at all.
    None,
    /// AES-CBC with a password as key.
    Aes,
    /// LUKS, its header placed by the crypto extension.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// A raw deflate stream with a 4 KiB window.
    Deflate,
    /// A zstd frame.
    Zstd,
}

/// The backing file name and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// Offset in the image.
    pub offset: u64,
    /// The name's bytes; at most [`limits::BACKING_NAME_BYTES`].
    pub name: Vec<u8>,
}

impl BackingName {
    /// Offset just past the name.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.name.len() as u64)
    }
}

/// A validated header.
///
/// Tables lie within the limits and are cluster-aligned, numbers agree with each other. Feature bits that are not
/// understood do not stop a header being read, they stop its data being read: see [`Header::check_readable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: Version,
    /// Cluster size.
    pub cluster_bits: ClusterBits,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Encryption.
    pub crypt: CryptMethod,
    /// Offset of the active L1 table.
    pub l1_offset: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Refcounts are `1 << refcount_order` bits wide.
    pub refcount_order: u32,
    /// Offset of the snapshot table.
    pub snapshots_offset: u64,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Incompatible feature bits.
    pub incompatible: Incompatible,
    /// Compatible feature bits.
    pub compatible: Compatible,
    /// Autoclear feature bits.
    pub autoclear: Autoclear,
    /// Type of compressed clusters.
    pub compression: Compression,
    /// Length of the header on disk, before the extensions.
    pub header_length: u32,
    /// The backing file name.
    pub backing: Option<BackingName>,
    /// The extensions in their order.
    pub extensions: Vec<Extension>,
    /// Header bytes after the last known field (offset 105 on), kept as they are.
    pub unknown_fields: Vec<u8>,
}

impl Header {
    /// Reads and validates the header of an image, and the backing name wherever it lies.
    pub fn read(bytes: &dyn Bytes) -> Result<Self> {
        // One small read covers header and extensions of nearly every image; a crowded first cluster needs another.
        const FIRST: usize = 4096;
        let area = bytes.read_some(0, FIRST)?;
        let fixed = Fixed::parse(&area)?;
        match fixed.extensions(&area) {
            Ok((extensions, true)) => fixed.into_header(&area, extensions, bytes),
            first => {
                let end = usize::try_from(fixed.extensions_end()).unwrap_or(FIRST);
                let (area, (extensions, _)) = if end > area.len() {
                    let area = bytes.read_some(0, end)?;
                    let extensions = fixed.extensions(&area)?;
                    (area, extensions)
                } else {
                    (area, first?)
                };
                fixed.into_header(&area, extensions, bytes)
            }
        }
    }

    /// The backing format word, as recorded.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::BackingFormat(word) => Some(word.as_slice()),
            _ => None,
        })
    }

    /// The recorded name of the data file, which counts only where [`Header::has_data_file`].
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::DataFile(name) => Some(name.as_slice()),
            _ => None,
        })
    }

    /// Where the LUKS header lies: offset and length.
    pub fn crypto_header(&self) -> Option<(u64, u64)> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::CryptoHeader { offset, length } => Some((*offset, *length)),
            _ => None,
        })
    }

    /// Where the persistent bitmaps are, whether or not they can be believed.
    pub fn bitmaps(&self) -> Option<&BitmapsExtension> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::Bitmaps(bitmaps) => Some(bitmaps),
            _ => None,
        })
    }

    /// Whether the guest's data is in another file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// Whether L2 entries carry subcluster bitmaps.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible.contains(Incompatible::EXTENDED_L2)
    }

    /// Incompatible bits nobody here knows, each with the name the image gives it.
    pub fn unknown_incompatible(&self) -> Vec<(u8, String)> {
        let unknown = self.incompatible.unknown().bits();
        (0..64u8)
            .filter(|bit| unknown & (1 << bit) != 0)
            .map(|bit| {
                let named = self.extensions.iter().find_map(|extension| match extension {
                    Extension::FeatureNames(names) => names
                        .iter()
                        .find(|name| name.kind == FeatureType::Incompatible && name.bit == bit),
                    _ => None,
                });
                let name = named.map_or_else(
                    || format!("bit {bit}, which the image does not name"),
                    |named| String::from_utf8_lossy(&named.name).into_owned(),
                );
                (bit, name)
            })
            .collect()
    }

    /// Whether everything needed to read the guest's data is understood.
    pub fn check_readable(&self) -> Result<()> {
        let unknown: Vec<_> = self
            .unknown_incompatible()
            .into_iter()
            .map(|(_, name)| name)
            .collect();
        if unknown.is_empty() {
            Ok(())
        } else {
            Err(Error::unsupported(format!(
                "unsupported qcow2 feature(s): {}",
                unknown.join(", ")
            )))
        }
    }

    /// Bytes of the first cluster that the header, its extensions and the name in it occupy.
    pub fn encoded_len(&self) -> u64 {
        self.encode().map_or(0, |bytes| bytes.len() as u64)
    }

    /// The bytes from offset 0 to the end of the backing name or of the extensions, whichever is later.
    ///
    /// A backing name is written at its recorded offset where that lies behind the extensions, and right behind
    /// them otherwise. Everything must fit in the first cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = self.encode_fixed();
        for extension in &self.extensions {
            extension.encode_to(&mut out);
        }
        // The end mark. Version 2 readers need it too: zeros follow anyway, but a name may not.
        out.extend_from_slice(&[0; 8]);
        if let Some(backing) = &self.backing {
            let offset = usize::try_from(backing.offset)
                .unwrap_or(usize::MAX)
                .max(out.len());
            let end = offset
                .checked_add(backing.name.len())
                .filter(|end| *end as u64 <= self.cluster_bits.size());
            if end.is_none() || backing.name.len() > limits::BACKING_NAME_BYTES as usize {
                return Err(Error::too_large(
                    "the backing file name does not fit in the first cluster",
                ));
            }
            out.resize(offset, 0);
            out.extend_from_slice(&backing.name);
            let place = [
                (offset as u64).to_be_bytes().as_slice(),
                &length_u32(&backing.name)?.to_be_bytes(),
            ]
            .concat();
            for (to, from) in out.iter_mut().skip(8).zip(place) {
                *to = from;
            }
        }
        if out.len() as u64 > self.cluster_bits.size() {
            return Err(Error::too_large("the header does not fit in the first cluster"));
        }
        Ok(out)
    }

    fn encode_fixed(&self) -> Vec<u8> {
        let v2 = raw::HeaderV2 {
            magic: MAGIC,
            version: match self.version {
                Version::V2 => 2.into(),
                Version::V3 => 3.into(),
            },
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: self.cluster_bits.get().into(),
            size: self.virtual_size.into(),
            crypt_method: match self.crypt {
                CryptMethod::None => 0.into(),
                CryptMethod::Aes => 1.into(),
                CryptMethod::Luks => 2.into(),
            },
            l1_size: self.l1_entries.into(),
            l1_table_offset: self.l1_offset.into(),
            refcount_table_offset: self.refcount_table_offset.into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            nb_snapshots: self.snapshot_count.into(),
            snapshots_offset: self.snapshots_offset.into(),
        };
        let mut out = v2.as_bytes().to_vec();
        if self.version == Version::V3 {
            let length = V3_LENGTH
                .max(COMPRESSION_TYPE + 1 + self.unknown_fields.len())
                .next_multiple_of(8);
            let v3 = raw::HeaderV3Tail {
                incompatible_features: self.incompatible.bits().into(),
                compatible_features: self.compatible.bits().into(),
                autoclear_features: self.autoclear.bits().into(),
                refcount_order: self.refcount_order.into(),
                header_length: u32::try_from(length).unwrap_or(u32::MAX).into(),
            };
            out.extend_from_slice(v3.as_bytes());
            out.push(match self.compression {
                Compression::Deflate => 0,
                Compression::Zstd => 1,
            });
            out.extend_from_slice(&self.unknown_fields);
            out.resize(length, 0);
        }
        out
    }
}

fn length_u32(bytes: &[u8]) -> Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| Error::too_large("a length does not fit in 32 bits"))
}

/// The fixed part of the header, checked field by field; extensions and the name are still to be read.
struct Fixed {
    v2: raw::HeaderV2,
    version: Version,
    cluster_bits: ClusterBits,
    crypt: CryptMethod,
    incompatible: Incompatible,
    compatible: Compatible,
    autoclear: Autoclear,
    refcount_order: u32,
    header_length: usize,
}

impl Fixed {
    fn parse(area: &[u8]) -> Result<Self> {
        let (v2, rest) = match raw::HeaderV2::read_from_prefix(area) {
            Ok(read) => read,
            Err(_) if area.starts_with(&MAGIC) => {
                return Err(Error::truncated("the qcow2 header is cut off").at(0));
            }
            Err(_) => return Err(not_qcow2()),
        };
        if v2.magic != MAGIC {
            return Err(not_qcow2());
        }
        let version = match v2.version.get() {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(Error::unsupported(format!("unsupported qcow2 version {other}")).at(4)),
        };
        let cluster_bits = ClusterBits::new(v2.cluster_bits.get()).map_err(|error| error.at(20))?;
        let crypt = match v2.crypt_method.get() {
            0 => CryptMethod::None,
            1 => CryptMethod::Aes,
            2 => CryptMethod::Luks,
            other => return Err(Error::unsupported(format!("unsupported encryption method {other}")).at(32)),
        };
        let mut fixed = Self {
            v2,
            version,
            cluster_bits,
            crypt,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: 4,
            header_length: V2_LENGTH,
        };
        if version == Version::V3 {
            let (v3, _) = raw::HeaderV3Tail::read_from_prefix(rest).map_err(|_| {
                Error::truncated("the qcow2 version 3 header is cut off").at(V2_LENGTH as u64)
            })?;
            fixed.incompatible = Incompatible::from_bits_retain(v3.incompatible_features.get());
            fixed.compatible = Compatible::from_bits_retain(v3.compatible_features.get());
            fixed.autoclear = Autoclear::from_bits_retain(v3.autoclear_features.get());
            fixed.refcount_order = v3.refcount_order.get();
            fixed.header_length = v3.header_length.get() as usize;
        }
        fixed.check()?;
        Ok(fixed)
    }

    fn check(&self) -> Result<()> {
        let cluster_size = self.cluster_bits.size();
        if self.header_length < V3_MIN_LENGTH && self.version == Version::V3 {
            return Err(Error::invalid("qcow2 header too short").at(100));
        }
        if self.header_length as u64 > cluster_size {
            return Err(Error::invalid("qcow2 header exceeds cluster size").at(100));
        }
        if self.refcount_order > limits::QCOW2_REFCOUNT_ORDER {
            return Err(
                Error::too_large("reference count entry width too large; may not exceed 64 bits").at(96),
            );
        }
        if self.v2.size.get() > limits::VIRTUAL_SIZE {
            return Err(Error::too_large(format!("virtual size {} is too large", self.v2.size)).at(24));
        }
        if self.incompatible.contains(Incompatible::EXTENDED_L2)
            && self.cluster_bits.get() < limits::QCOW2_EXTENDED_L2_MIN_CLUSTER_BITS
        {
            return Err(Error::invalid(
                "extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            )
            .at(72));
        }
        self.check_table(
            "L1 table",
            self.v2.l1_table_offset.get(),
            self.l1_bytes(),
            limits::QCOW2_L1_BYTES,
            40,
        )?;
        let refcount_bytes = u64::from(self.v2.refcount_table_clusters.get()) * cluster_size;
        self.check_table(
            "refcount table",
            self.v2.refcount_table_offset.get(),
            refcount_bytes,
            limits::QCOW2_REFCOUNT_TABLE_BYTES,
            48,
        )?;
        let snapshots = self.v2.nb_snapshots.get();
        if snapshots > limits::QCOW2_SNAPSHOTS {
            return Err(Error::too_large(format!("snapshot table too large: {snapshots} snapshots")).at(60));
        }
        if snapshots > 0 {
            self.check_table("snapshot table", self.v2.snapshots_offset.get(), 1, u64::MAX, 64)?;
        }
        self.check_l1_covers_the_disk()
    }

    fn l1_bytes(&self) -> u64 {
        u64::from(self.v2.l1_size.get()) * 8
    }

    fn check_table(&self, what: &str, offset: u64, len: u64, limit: u64, field: u64) -> Result<()> {
        if len > limit {
            return Err(Error::too_large(format!(
                "{what} too large: {len} bytes, at most {limit} are allowed"
            ))
            .at(field));
        }
        if self.cluster_bits.offset_in_cluster(offset) != 0 {
            return Err(
                Error::invalid(format!("{what} offset {offset:#x} is not cluster-aligned")).at(field),
            );
        }
        if offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Error::invalid(format!("{what} offset {offset:#x} is out of range")).at(field));
        }
        Ok(())
    }

    /// The active L1 table must have an entry for every byte of the disk.
    fn check_l1_covers_the_disk(&self) -> Result<()> {
        let entry_bits = if self.incompatible.contains(Incompatible::EXTENDED_L2) {
            4
        } else {
            3
        };
        let l2_coverage_bits = 2 * self.cluster_bits.get() - entry_bits;
        let needed = self.v2.size.get().div_ceil(1 << l2_coverage_bits);
        if u64::from(self.v2.l1_size.get()) < needed {
            return Err(Error::invalid(format!(
                "L1 table is too small: {} entries, {needed} are needed for {} bytes",
                self.v2.l1_size, self.v2.size
            ))
            .at(36));
        }
        Ok(())
    }

    /// Offset at which the extensions must have ended: at the name if it is behind the header, else at the cluster's
    /// end.
    fn extensions_end(&self) -> u64 {
        let cluster_size = self.cluster_bits.size();
        match self.v2.backing_file_offset.get() {
            0 => cluster_size,
            offset => offset.min(cluster_size),
        }
    }

    /// The extensions as far as `area` reaches, and whether it reaches to their end mark.
    fn extensions(&self, area: &[u8]) -> Result<(Vec<Extension>, bool)> {
        let end = usize::try_from(self.extensions_end())
            .unwrap_or(usize::MAX)
            .min(area.len());
        let extensions = area.get(self.header_length..end).unwrap_or_default();
        Extension::parse_all(extensions, self.header_length as u64)
    }

    fn into_header(self, area: &[u8], extensions: Vec<Extension>, bytes: &dyn Bytes) -> Result<Header> {
        let backing = self.read_backing_name(bytes)?;
        let known = match self.version {
            Version::V2 => &[],
            Version::V3 => area.get(COMPRESSION_TYPE..self.header_length).ok_or_else(|| {
                Error::truncated("the qcow2 version 3 header is cut off").at(COMPRESSION_TYPE as u64)
            })?,
        };
        let (compression, unknown_fields) = match known.split_first() {
            None | Some((0, _)) => (Compression::Deflate, known.get(1..).unwrap_or_default()),
            Some((1, rest)) => (Compression::Zstd, rest),
            Some((other, _)) => {
                return Err(Error::unsupported(format!("unknown compression type {other}"))
                    .at(COMPRESSION_TYPE as u64));
            }
        };
        if (compression != Compression::Deflate) != self.incompatible.contains(Incompatible::COMPRESSION) {
            return Err(
                Error::invalid("the compression type and its feature bit contradict each other").at(72),
            );
        }
        let significant =
            unknown_fields.len() - unknown_fields.iter().rev().take_while(|byte| **byte == 0).count();
        let header = Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            virtual_size: self.v2.size.get(),
            crypt: self.crypt,
            l1_offset: self.v2.l1_table_offset.get(),
            l1_entries: self.v2.l1_size.get(),
            refcount_table_offset: self.v2.refcount_table_offset.get(),
            refcount_table_clusters: self.v2.refcount_table_clusters.get(),
            refcount_order: self.refcount_order,
            snapshots_offset: self.v2.snapshots_offset.get(),
            snapshot_count: self.v2.nb_snapshots.get(),
            incompatible: self.incompatible,
            compatible: self.compatible,
            autoclear: self.autoclear,
            compression,
            header_length: length_u32(area.get(..self.header_length).unwrap_or_default())?,
            backing,
            extensions,
            unknown_fields: unknown_fields.get(..significant).unwrap_or_default().to_vec(),
        };
        header.check_extensions()?;
        Ok(header)
    }

    fn read_backing_name(&self, bytes: &dyn Bytes) -> Result<Option<BackingName>> {
        let offset = self.v2.backing_file_offset.get();
        let size = self.v2.backing_file_size.get();
        if offset == 0 || size == 0 {
            return Ok(None);
        }
        if size > limits::BACKING_NAME_BYTES {
            return Err(Error::too_large(format!("backing file name too long: {size} bytes")).at(16));
        }
        if offset < self.header_length as u64 {
            return Err(Error::invalid(format!(
                "backing file name at offset {offset:#x} lies in the header"
            ))
            .at(8));
        }
        match bytes.read_exact(offset, size as usize) {
            Ok(name) => Ok(Some(BackingName { offset, name })),
            Err(error) if error.kind() == ErrorKind::Truncated => Err(Error::invalid(format!(
                "backing file name at offset {offset:#x} lies past the end of the file"
            ))
            .at(8)),
            Err(error) => Err(error),
        }
    }
}

impl Header {
    /// What the extensions must agree on among themselves and with the fixed fields.
    pub(super) fn check_extensions(&self) -> Result<()> {
        // QEMU knows nothing of ours, so it opens an image that has two of one.
        let known = |extension: &&Extension| {
            !matches!(
                extension,
                Extension::Unknown { .. } | Extension::Stamp(_) | Extension::Lineage(_)
            )
        };
        for (i, extension) in self
            .extensions
            .iter()
            .enumerate()
            .filter(|(_, extension)| known(extension))
        {
            if self
                .extensions
                .iter()
                .skip(i + 1)
                .any(|other| other.kind() == extension.kind())
            {
                return Err(Error::invalid(format!(
                    "header extension {:#010x} appears twice",
                    extension.kind()
                )));
            }
        }
        if self.has_data_file()
            && self.backing.is_some()
            && self.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA)
        {
            return Err(Error::invalid(
                "an image with a raw data file cannot have a backing file",
            ));
        }
        Ok(())
    }
}

fn not_qcow2() -> Error {
    Error::new(ErrorKind::NotThisFormat, "image is not in qcow2 format").at(0)
}

#[cfg(test)]
mod tests {
    use super::super::create::{CreateOptions, NewImage};
    use super::*;

    /// An image as bytes: small disk, small clusters, whatever options ask for.
    fn image(change: impl FnOnce(&mut CreateOptions)) -> Vec<u8> {
        let mut options = CreateOptions::new(1 << 20).unwrap();
        options.cluster_bits = ClusterBits::new(13).unwrap();
        change(&mut options);
        let new = NewImage::lay_out(&options).unwrap();
        let mut bytes = vec![0; usize::try_from(new.len).unwrap()];
        for (offset, data) in new.writes {
            let offset = usize::try_from(offset).unwrap();
            bytes[offset..offset + data.len()].copy_from_slice(&data);
        }
        bytes
    }

    fn with(mut bytes: Vec<u8>, offset: usize, patch: &[u8]) -> Vec<u8> {
        bytes[offset..offset + patch.len()].copy_from_slice(patch);
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        Header::read(&bytes.to_vec()).unwrap_err().to_string()
    }

    #[test]
    fn a_new_image_reads_back_as_it_was_asked_for() {
        let bytes = image(|options| {
            options.backing = Some((b"base.img".to_vec(), b"raw".to_vec()));
            options.refcount_order = 6;
            options.lazy_refcounts = true;
            options.compression = Compression::Zstd;
        });
        let header = Header::read(&bytes).unwrap();
        assert_eq!(header.backing.as_ref().unwrap().name, b"base.img");
        assert_eq!(header.backing_format(), Some(b"raw".as_slice()));
        assert_eq!(header.refcount_order, 6);
        assert!(header.compatible.contains(Compatible::LAZY_REFCOUNTS));
        assert_eq!(header.compression, Compression::Zstd);
        assert_eq!(header.encode().unwrap(), bytes[..header.encode().unwrap().len()]);
    }

    #[test]
    fn unknown_extensions_fields_and_bits_survive_a_rewrite() {
        let mut header = Header::read(&image(|_| ())).unwrap();
        header.extensions.push(Extension::Unknown {
            kind: 0x1234_5678,
            data: vec![1, 2, 3],
        });
        header.unknown_fields = vec![0, 0, 0, 0, 0, 0, 0, 9];
        header.incompatible |= Incompatible::from_bits_retain(1 << 40);
        header.header_length = 120;
        let mut bytes = header.encode().unwrap();
        bytes.resize(1 << 16, 0);
        assert_eq!(Header::read(&bytes).unwrap(), header);
        assert_eq!(
            header.check_readable().unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn refuses_what_the_specification_or_a_limit_forbids() {
        let bytes = image(|_| ());
        for (offset, patch, expected) in [
            (0, b"QFI!".as_slice(), "not in qcow2 format"),
            (4, &4u32.to_be_bytes(), "unsupported qcow2 version 4"),
            (20, &8u32.to_be_bytes(), "unsupported cluster size: 2^8"),
            (20, &64u32.to_be_bytes(), "unsupported cluster size: 2^64"),
            (24, &u64::MAX.to_be_bytes(), "virtual size"),
            (24, &(1u64 << 40).to_be_bytes(), "L1 table is too small"),
            (32, &3u32.to_be_bytes(), "unsupported encryption method 3"),
            (36, &u32::MAX.to_be_bytes(), "L1 table too large"),
            (40, &0x6001u64.to_be_bytes(), "not cluster-aligned"),
            (40, &(u64::MAX << 13).to_be_bytes(), "out of range"),
            (48, &1u64.to_be_bytes(), "not cluster-aligned"),
            (56, &u32::MAX.to_be_bytes(), "refcount table too large"),
            (60, &65_537u32.to_be_bytes(), "snapshot table too large"),
            (96, &7u32.to_be_bytes(), "may not exceed 64 bits"),
            (100, &96u32.to_be_bytes(), "header too short"),
            (100, &8200u32.to_be_bytes(), "exceeds cluster size"),
            (104, &[2], "unknown compression type 2"),
            (104, &[1], "contradict"),
            (116, &u32::MAX.to_be_bytes(), "longer than its area"),
        ] {
            let error = error(&with(bytes.clone(), offset, patch));
            assert!(error.contains(expected), "{offset}: {error}");
        }
        assert!(error(&bytes[..60]).contains("cut off"));
        assert!(error(&bytes[..90]).contains("cut off"));
    }

    #[test]
    fn a_backing_name_is_read_wherever_it_lies_and_refused_where_it_cannot() {
        let name_at = |offset: u64, len: u32| [offset.to_be_bytes().as_slice(), &len.to_be_bytes()].concat();
        let bytes = with(image(|_| ()), 0x2100, b"outside");
        let header = Header::read(&with(bytes.clone(), 8, &name_at(0x2100, 7))).unwrap();
        assert_eq!(
            header.backing.unwrap(),
            BackingName {
                offset: 0x2100,
                name: b"outside".to_vec()
            }
        );
        for (offset, len, expected) in [
            (1, 7, "in the header"),
            (0x2100, 1024, "too long"),
            (0x2100, u32::MAX, "too long"),
            (u64::MAX, 7, "past the end"),
            (bytes.len() as u64 - 6, 7, "past the end"),
        ] {
            let error = error(&with(bytes.clone(), 8, &name_at(offset, len)));
            assert!(error.contains(expected), "{offset}: {error}");
        }
    }

    #[test]
    fn a_version_2_image_has_extensions_too() {
        let bytes = image(|options| {
            options.version = Version::V2;
            options.backing = Some((b"base".to_vec(), b"qcow2".to_vec()));
        });
        let header = Header::read(&bytes).unwrap();
        assert_eq!(header.backing_format(), Some(b"qcow2".as_slice()));
        assert_eq!(header.refcount_order, 4);
    }
}
