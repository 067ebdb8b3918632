//! Hyper-V disks (VHDX).
//!
//! Source: \[MS-VHDX\]. All fields are little-endian; GUIDs are Microsoft's. Of the two headers and the two region tables
//! the valid ones count, and of two valid headers the later: each is guarded by a CRC-32C. A log that has not been replayed
//! may change everything that is described here, so its presence is told.

mod metadata;

use crate::error::{Error, Result};
use crate::field::{guid, has_magic, is_nil, not_this};
use crate::limits::VHDX_REGIONS;
use crate::{Bytes, Description, Format, ParentId};
use zerocopy::FromBytes;

pub(crate) const MAGIC: &[u8; 8] = b"vhdxfile";
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4 << 10;
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_BYTES: usize = 64 << 10;
/// Where the checksum is in headers and region tables.
const CHECKSUM: std::ops::Range<usize> = 4..8;

const BAT_REGION: u128 = 0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08;
const METADATA_REGION: u128 = 0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e;

mod raw {
    use zerocopy::byteorder::little_endian::{U16, U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Header {
        pub signature: [u8; 4],
        pub checksum: U32,
        pub sequence: U64,
        pub file_write_guid: [u8; 16],
        /// Changes whenever the guest's bytes may: what a child names as its parent.
        pub data_write_guid: [u8; 16],
        /// Not zero while there is a log to replay.
        pub log_guid: [u8; 16],
        pub log_version: U16,
        pub version: U16,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct RegionTable {
        pub signature: [u8; 4],
        pub checksum: U32,
        pub entries: U32,
        pub reserved: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Region {
        pub guid: [u8; 16],
        pub offset: U64,
        pub length: U32,
        /// Bit 0: who does not know the region must not open the image.
        pub required: U32,
    }
}

/// A GUID's bytes in print order, as a number to compare with a constant.
fn number(stored: [u8; 16]) -> u128 {
    u128::from_be_bytes(guid(stored))
}

/// Whether the signature and one of the headers' are there.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    if !has_magic(bytes, 0, MAGIC)? {
        return Ok(false);
    }
    for offset in HEADERS {
        if has_magic(bytes, offset, b"head")? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Describes a VHDX.
///
/// A differencing disk's reference has the relative path as its name, else the absolute one, else the one by volume; the
/// others are alternatives. Its parent's identity is the data write GUID that the parent had, and an image's own is the
/// one it has. Unknown regions or metadata that are required refuse the image.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !has_magic(bytes, 0, MAGIC)? {
        return Err(not_this(Format::Vhdx));
    }
    let mut description = Description::new(Format::Vhdx);
    let header = header(bytes, &mut description.oddities)?;
    if header.version.get() != 1 {
        return Err(Error::unsupported(format!(
            "VHDX version {} is not 1",
            header.version
        )));
    }
    description.variant = Some("1".into());
    if !is_nil(&header.log_guid) {
        description
            .oddities
            .push("there is a log to replay: what the image says may be out of date".into());
    }
    if !is_nil(&header.data_write_guid) {
        description.id = Some(ParentId::Uuid(guid(header.data_write_guid)));
    }
    let (offset, length) = metadata_region(bytes, &mut description.oddities)?;
    metadata::describe(bytes, offset, length, &mut description)?;
    Ok(description)
}

/// A section with its signature, if its checksum is right.
fn checked(bytes: &dyn Bytes, offset: u64, len: usize, signature: &[u8; 4]) -> Result<Option<Vec<u8>>> {
    let mut section = bytes.read_some(offset, len)?;
    if section.len() < len || !section.starts_with(signature) {
        return Ok(None);
    }
    let Some(field) = section.get_mut(CHECKSUM) else {
        return Ok(None);
    };
    let recorded = <[u8; 4]>::try_from(&*field).map_or(0, u32::from_le_bytes);
    field.fill(0);
    Ok((crc32c::crc32c(&section) == recorded).then_some(section))
}

fn header(bytes: &dyn Bytes, oddities: &mut Vec<String>) -> Result<raw::Header> {
    let mut headers = Vec::with_capacity(HEADERS.len());
    for offset in HEADERS {
        if let Some(section) = checked(bytes, offset, HEADER_BYTES, b"head")? {
            headers.extend(raw::Header::read_from_prefix(&section).map(|(header, _)| header));
        }
    }
    if headers.len() == 1 {
        oddities.push("one of the two headers is damaged".into());
    }
    headers
        .into_iter()
        .max_by_key(|header| header.sequence.get())
        .ok_or_else(|| Error::invalid("neither header is valid"))
}

/// Offset and length of the metadata.
fn metadata_region(bytes: &dyn Bytes, oddities: &mut Vec<String>) -> Result<(u64, u32)> {
    let mut table = None;
    for offset in REGION_TABLES {
        match checked(bytes, offset, REGION_TABLE_BYTES, b"regi")? {
            Some(section) => table = table.or(Some(section)),
            None => oddities.push("one of the two region tables is damaged".into()),
        }
    }
    let table = table.ok_or_else(|| Error::invalid("neither region table is valid"))?;
    let (head, entries) = raw::RegionTable::ref_from_prefix(&table)
        .map_err(|_| Error::truncated("the region table is cut short"))?;
    let count = head.entries.get();
    if count > VHDX_REGIONS {
        return Err(Error::too_large(format!("{count} regions exceed 2047")));
    }
    let mut metadata = None;
    for entry in entries
        .chunks_exact(size_of::<raw::Region>())
        .take(count as usize)
    {
        let Ok(entry) = raw::Region::ref_from_bytes(entry) else {
            continue;
        };
        match number(entry.guid) {
            METADATA_REGION if metadata.is_some() => {
                return Err(Error::invalid("there are two metadata regions"));
            }
            METADATA_REGION => metadata = Some((entry.offset.get(), entry.length.get())),
            BAT_REGION => {}
            _ if entry.required.get() & 1 != 0 => {
                return Err(Error::unsupported(format!(
                    "the region {} is required but unknown",
                    ParentId::Uuid(guid(entry.guid))
                )));
            }
            _ => {}
        }
    }
    metadata.ok_or_else(|| Error::invalid("there is no metadata region"))
}

#[cfg(test)]
pub(crate) mod tests;
