//! LUKS headers, versions 1 and 2: recognised and described, not opened.
//!
//! Source: the LUKS1 On-Disk Format Specification 1.2.3 and the LUKS2 On-Disk Format Specification 1.1. All fields are
//! big-endian; version 2 keeps most of its metadata in JSON. The checksum of a version 2 header is not verified, and
//! its second copy is not read.

use crate::error::{Error, Result};
use crate::field::{before_nul, has_magic, not_this, structure, text};
use crate::limits::{LUKS2_HEADER_BYTES, LUKS2_OBJECTS};
use crate::{Bytes, Description, Encryption, Format};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

pub(crate) const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// A key slot of version 1 in use.
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
/// Where the JSON of version 2 begins, from the start of the header.
const JSON: u64 = 4096;

/// What a LUKS header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// 1 or 2.
    pub version: u16,
    /// The cipher in the header's words, such as `aes-xts-plain64`.
    pub cipher: Option<String>,
    /// The hash in the header's words.
    pub hash: Option<String>,
    /// The container's UUID as printed text.
    pub uuid: Option<String>,
    /// Byte offset of the encrypted payload from the start of the header.
    pub payload_offset: Option<u64>,
    /// How many key slots are in use.
    pub active_key_slots: Option<u32>,
}

mod raw {
    use zerocopy::byteorder::big_endian::{U16, U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct V1 {
        pub magic: [u8; 6],
        pub version: U16,
        pub cipher_name: [u8; 32],
        pub cipher_mode: [u8; 32],
        pub hash_spec: [u8; 32],
        /// In sectors of 512 bytes.
        pub payload_offset: U32,
        pub key_bytes: U32,
        pub digest: [u8; 20],
        pub digest_salt: [u8; 32],
        pub digest_iterations: U32,
        pub uuid: [u8; 40],
        pub slots: [Slot; 8],
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Slot {
        pub active: U32,
        pub iterations: U32,
        pub salt: [u8; 32],
        pub key_material: U32,
        pub stripes: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct V2 {
        pub magic: [u8; 6],
        pub version: U16,
        /// Of the binary header and the JSON together, in bytes.
        pub header_size: U64,
        pub sequence: U64,
        pub label: [u8; 48],
        pub checksum_algorithm: [u8; 32],
        pub salt: [u8; 64],
        pub uuid: [u8; 40],
        pub subsystem: [u8; 48],
        pub header_offset: U64,
    }
}

impl LuksHeader {
    /// Reads the header at `offset`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotThisFormat`] without the magic number, `Unsupported` for a version other than 1 and 2,
    /// `Truncated`, and `Invalid` where the JSON of version 2 cannot be read.
    pub fn parse(bytes: &dyn Bytes, offset: u64) -> Result<Self> {
        if !has_magic(bytes, offset, MAGIC)? {
            return Err(not_this(Format::Luks).at(offset));
        }
        let version = bytes.read_exact(offset.saturating_add(MAGIC.len() as u64), 2)?;
        match version.as_slice() {
            [0, 1] => Self::version_1(bytes, offset),
            [0, 2] => Self::version_2(bytes, offset),
            _ => Err(Error::unsupported("the LUKS version is not 1 or 2").at(offset)),
        }
    }

    fn version_1(bytes: &dyn Bytes, offset: u64) -> Result<Self> {
        let header: raw::V1 = structure(bytes, offset)?;
        let cipher = [text(&header.cipher_name), text(&header.cipher_mode)];
        let active = header
            .slots
            .iter()
            .filter(|slot| slot.active.get() == SLOT_ACTIVE);
        Ok(Self {
            version: 1,
            cipher: match cipher {
                [Some(name), Some(mode)] => Some(format!("{name}-{mode}")),
                [name, _] => name,
            },
            hash: text(&header.hash_spec),
            uuid: text(&header.uuid),
            payload_offset: Some(u64::from(header.payload_offset.get()) * 512),
            active_key_slots: u32::try_from(active.count()).ok(),
        })
    }

    fn version_2(bytes: &dyn Bytes, offset: u64) -> Result<Self> {
        let header: raw::V2 = structure(bytes, offset)?;
        let size = header.header_size.get();
        if !LUKS2_HEADER_BYTES.contains(&size) {
            return Err(Error::too_large(format!(
                "the LUKS 2 header of {size} bytes is not 16 KiB to 4 MiB long"
            ))
            .at(offset));
        }
        let json_offset = offset.saturating_add(JSON);
        let area = bytes.read_exact(json_offset, usize::try_from(size - JSON).unwrap_or(0))?;
        let metadata: Metadata = serde_json::from_slice(before_nul(&area)).map_err(|error| {
            Error::invalid(format!("the LUKS 2 metadata cannot be read: {error}")).at(json_offset)
        })?;
        let segment = metadata
            .segments
            .first
            .into_iter()
            .find(|(_, segment)| segment.kind.as_deref() == Some("crypt"))
            .map(|(_, segment)| segment)
            .unwrap_or_default();
        let hash = metadata
            .digests
            .first
            .into_iter()
            .find_map(|(_, digest)| digest.hash);
        Ok(Self {
            version: 2,
            cipher: segment.encryption,
            hash,
            uuid: text(&header.uuid),
            payload_offset: segment.offset.and_then(|offset| offset.parse().ok()),
            active_key_slots: u32::try_from(metadata.keyslots.count).ok(),
        })
    }
}

/// The part of a version 2 header's JSON that is described.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    keyslots: Objects<IgnoredAny>,
    #[serde(default)]
    segments: Objects<Segment>,
    #[serde(default)]
    digests: Objects<Digest>,
}

#[derive(Default, Deserialize)]
struct Segment {
    #[serde(rename = "type")]
    kind: Option<String>,
    /// 64-bit numbers are strings there.
    offset: Option<String>,
    encryption: Option<String>,
}

#[derive(Deserialize)]
struct Digest {
    hash: Option<String>,
}

/// A JSON object of numbered objects: the first few are kept, all are counted, so that memory does not follow the
/// number of members.
struct Objects<T> {
    first: Vec<(String, T)>,
    count: usize,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self {
            first: Vec::new(),
            count: 0,
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Objects<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut objects = Objects::default();
                while let Some(key) = map.next_key::<String>()? {
                    objects.count += 1;
                    if objects.first.len() < LUKS2_OBJECTS {
                        objects.first.push((key, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(objects)
            }
        }

        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// Whether the magic number and the version are those of a LUKS header.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let read = bytes.read_some(0, 8)?;
    Ok(read.starts_with(MAGIC) && matches!(read.get(6..8), Some([0, 1 | 2])))
}

/// Describes a LUKS container.
///
/// The virtual size is what follows the payload offset; a detached header's is not known.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    let header = LuksHeader::parse(bytes, 0)?;
    let mut description = Description::new(Format::Luks);
    description.variant = Some(header.version.to_string());
    match header.payload_offset {
        None | Some(0) => description
            .oddities
            .push("the header is detached: its data lies in another file".into()),
        Some(offset) if offset > bytes.len() => description
            .oddities
            .push("the encrypted data begins behind the end of the image".into()),
        Some(offset) => description.virtual_size = Some(bytes.len() - offset),
    }
    if header.active_key_slots == Some(0) {
        description
            .oddities
            .push("no key slot is in use: the data cannot be decrypted".into());
    }
    description.encryption = Some(Encryption::Luks(header));
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn version_1() -> Vec<u8> {
        let mut bytes = vec![0u8; 8192];
        bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        bytes[8..11].copy_from_slice(b"aes");
        bytes[40..51].copy_from_slice(b"xts-plain64");
        bytes[72..78].copy_from_slice(b"sha256");
        bytes[104..108].copy_from_slice(&8u32.to_be_bytes());
        bytes[168..172].copy_from_slice(b"1234");
        bytes[208..212].copy_from_slice(&SLOT_ACTIVE.to_be_bytes());
        bytes
    }

    pub(crate) fn version_2(json: &str) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 << 10];
        bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
        bytes[8..16].copy_from_slice(&(16u64 << 10).to_be_bytes());
        bytes[168..172].copy_from_slice(b"1234");
        bytes[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        bytes
    }

    pub(crate) const JSON_AREA: &str = r#"{"keyslots":{"0":{"type":"luks2"},"1":{"type":"luks2"}},"tokens":{},
        "segments":{"0":{"type":"crypt","offset":"32768","size":"dynamic","encryption":"aes-xts-plain64",
        "sector_size":512}},"digests":{"0":{"type":"pbkdf2","hash":"sha256"}},"config":{}}"#;

    #[test]
    fn version_1_tells_cipher_hash_slots_and_payload() {
        let bytes = version_1();
        let header = LuksHeader::parse(&bytes, 0).unwrap();
        assert_eq!(header.cipher.as_deref(), Some("aes-xts-plain64"));
        assert_eq!(header.hash.as_deref(), Some("sha256"));
        assert_eq!(header.uuid.as_deref(), Some("1234"));
        assert_eq!(header.active_key_slots, Some(1));
        assert_eq!(describe(&bytes).unwrap().virtual_size, Some(4096));
    }

    #[test]
    fn version_2_is_read_from_its_json() {
        let bytes = version_2(JSON_AREA);
        let header = LuksHeader::parse(&bytes, 0).unwrap();
        assert_eq!(header.cipher.as_deref(), Some("aes-xts-plain64"));
        assert_eq!(header.hash.as_deref(), Some("sha256"));
        assert_eq!(header.active_key_slots, Some(2));
        assert_eq!(describe(&bytes).unwrap().virtual_size, Some(32 << 10));
    }

    #[test]
    fn a_header_inside_another_image_is_read_at_its_offset() {
        let mut bytes = vec![0u8; 4096];
        bytes.extend(version_1());
        let header = LuksHeader::parse(&bytes, 4096).unwrap();
        assert_eq!(header.payload_offset, Some(4096));
        assert_eq!(
            LuksHeader::parse(&bytes, 0).unwrap_err().kind(),
            ErrorKind::NotThisFormat
        );
        assert_eq!(
            LuksHeader::parse(&bytes, u64::MAX - 2).unwrap_err().kind(),
            ErrorKind::NotThisFormat
        );
    }

    #[test]
    fn refuses_a_json_area_of_absurd_length_or_content() {
        let mut bytes = version_2(JSON_AREA);
        bytes[8] = 1;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(
            describe(&version_2("{\"segments\":[")).unwrap_err().kind(),
            ErrorKind::Invalid
        );
        let deep = "[".repeat(10_000);
        assert_eq!(
            describe(&version_2(&format!("{{\"x\":{deep}")))
                .unwrap_err()
                .kind(),
            ErrorKind::Invalid
        );
    }

    #[test]
    fn many_members_are_counted_but_not_kept() {
        let members: Vec<String> = (0..500).map(|i| format!("\"{i}\":{{}}")).collect();
        let json = format!("{{\"keyslots\":{{{}}}}}", members.join(","));
        let header = LuksHeader::parse(&version_2(&json), 0).unwrap();
        assert_eq!(header.active_key_slots, Some(500));
    }
}
