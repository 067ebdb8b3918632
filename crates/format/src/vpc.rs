//! Virtual PC disks (VHD): fixed, dynamic and differencing.
//!
//! Source: Microsoft's Virtual Hard Disk Image Format Specification (2006), and QEMU's vpc driver for which of the two
//! recorded sizes counts. All fields are big-endian. A fixed disk is the guest's bytes and a footer behind them, so its
//! guest may write a footer of its own to the start; where both are there and disagree, the description says so.

use crate::error::{Error, Result};
use crate::field::{Order, before_nul, is_nil, not_this, structure, utf16, virtual_size};
use crate::limits::{VHD_LOCATOR_BYTES, VHD_SECTORS};
use crate::{Bytes, Description, Format, ParentId, RecordedReference};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) const MAGIC: &[u8; 8] = b"conectix";
const DYNAMIC_MAGIC: &[u8; 8] = b"cxsparse";
const FOOTER: u64 = size_of::<raw::Footer>() as u64;
/// The geometry that means that the disk is too large for a geometry.
const LARGEST_GEOMETRY: u64 = 65535 * 16 * 255;
/// Offset of the parent's name in the dynamic header.
const PARENT_NAME: u64 = 64;

/// What kind of disk the footer says this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// The guest's bytes as they are, before the footer.
    Fixed,
    /// Grows as it is written.
    Dynamic,
    /// Holds what differs from a parent.
    Differencing,
}

impl DiskType {
    fn from_raw(number: u32) -> Option<Self> {
        Some(match number {
            2 => Self::Fixed,
            3 => Self::Dynamic,
            4 => Self::Differencing,
            _ => return None,
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

mod raw {
    use zerocopy::byteorder::big_endian::{U16, U32, U64};
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

    #[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Footer {
        pub cookie: [u8; 8],
        pub features: U32,
        pub version: U32,
        /// Byte offset of the dynamic header; all ones in a fixed disk.
        pub data_offset: U64,
        pub timestamp: U32,
        pub creator: [u8; 4],
        pub creator_version: U32,
        pub creator_os: [u8; 4],
        pub original_size: U64,
        pub current_size: U64,
        pub cylinders: U16,
        pub heads: u8,
        pub sectors: u8,
        pub kind: U32,
        /// Ones' complement of the sum of all other bytes.
        pub checksum: U32,
        pub uuid: [u8; 16],
        pub saved_state: u8,
        pub reserved: [u8; 427],
    }

    #[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Dynamic {
        pub cookie: [u8; 8],
        pub data_offset: U64,
        pub table_offset: U64,
        pub version: U32,
        pub table_entries: U32,
        pub block_size: U32,
        pub checksum: U32,
        pub parent_uuid: [u8; 16],
        pub parent_timestamp: U32,
        pub reserved_1: U32,
        /// UTF-16, big-endian.
        pub parent_name: [u8; 512],
        pub locators: [Locator; 8],
        pub reserved_2: [u8; 256],
    }

    #[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Locator {
        /// Which platform's way of naming files this is; 0 for none.
        pub platform: [u8; 4],
        pub data_space: U32,
        pub data_length: U32,
        pub reserved: U32,
        pub data_offset: U64,
    }
}

/// The checksum that a structure with its checksum field zeroed should have.
fn checksum<T: IntoBytes + Immutable>(zeroed: &T) -> u32 {
    !zeroed
        .as_bytes()
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

fn footer_at(bytes: &dyn Bytes, offset: u64) -> Result<Option<raw::Footer>> {
    let read = bytes.read_some(offset, FOOTER as usize)?;
    Ok(raw::Footer::read_from_bytes(&read)
        .ok()
        .filter(|footer| footer.cookie == *MAGIC))
}

/// The footer to believe, whether it is the one at the end, and what is odd about the two.
fn locate(bytes: &dyn Bytes) -> Result<Option<(raw::Footer, u64, Vec<String>)>> {
    let end_offset = bytes.len().checked_sub(FOOTER).filter(|offset| *offset > 0);
    let start = footer_at(bytes, 0)?;
    let end = match end_offset {
        Some(offset) => footer_at(bytes, offset)?.map(|footer| (footer, offset)),
        None => None,
    };
    let is_fixed = |footer: &raw::Footer| DiskType::from_raw(footer.kind.get()) == Some(DiskType::Fixed);
    let mut oddities = Vec::new();
    Ok(match (start, end) {
        (None, None) => None,
        (Some(start), None) => {
            oddities.push("there is no footer at the end of the image".into());
            Some((start, 0, oddities))
        }
        (None, Some((end, offset))) => {
            if !is_fixed(&end) {
                oddities.push("there is no copy of the footer at the start of the image".into());
            }
            Some((end, offset, oddities))
        }
        (Some(start), Some((end, offset))) => {
            if is_fixed(&end) {
                oddities.push(
                    "a fixed disk's footer is at the end, but another is at the start, where the guest may \
                     have written it"
                        .into(),
                );
            } else if start.as_bytes() != end.as_bytes() {
                oddities.push("the footers at the start and at the end differ".into());
            }
            // Software reads the start first: what it would believe is what must be described.
            match is_fixed(&start) {
                true => Some((end, offset, oddities)),
                false => Some((start, 0, oddities)),
            }
        }
    })
}

/// Whether there is a footer, at the start or the end, of version 1 and of a known type.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    Ok(locate(bytes)?.is_some_and(|(footer, ..)| {
        footer.version.get() >> 16 == 1 && DiskType::from_raw(footer.kind.get()).is_some()
    }))
}

/// Describes a VHD.
///
/// The virtual size is QEMU's: the product of the geometry for disks made by Virtual PC and by QEMU's older way,
/// the recorded size for all others and for disks too large for a geometry. A differencing disk's reference has the
/// relative locator as its name, else the absolute one, else the parent's name; the others are alternatives.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    let (footer, offset, oddities) = locate(bytes)?.ok_or_else(|| not_this(Format::Vpc))?;
    if footer.version.get() >> 16 != 1 {
        return Err(
            Error::unsupported(format!("VHD version {:#x} is not 1.0", footer.version)).at(offset + 12),
        );
    }
    let kind = footer.kind.get();
    let kind = DiskType::from_raw(kind)
        .ok_or_else(|| Error::invalid(format!("disk type {kind} is not 2, 3 or 4")).at(offset + 60))?;

    let mut description = Description::new(Format::Vpc);
    description.variant = Some(kind.as_str().into());
    description.oddities = oddities;
    let mut zeroed = footer.clone();
    zeroed.checksum = 0.into();
    if checksum(&zeroed) != footer.checksum.get() {
        description
            .oddities
            .push("the checksum of the footer is wrong".into());
    }
    let size = size(&footer, &mut description)?;
    if !is_nil(&footer.uuid) {
        description.id = Some(ParentId::Uuid(footer.uuid));
    }
    if footer.saved_state != 0 {
        description.features.push("saved state".into());
    }
    if kind == DiskType::Fixed {
        if bytes.len().saturating_sub(FOOTER) < size {
            description
                .oddities
                .push("the image is shorter than the disk it holds".into());
        }
        return Ok(description);
    }
    let at = footer.data_offset.get();
    let header: raw::Dynamic = structure(bytes, at)?;
    dynamic(&header, at, size, &mut description)?;
    if kind == DiskType::Differencing {
        description.backing = Some(parent(bytes, &header, at, &mut description.oddities)?);
    }
    Ok(description)
}

fn size(footer: &raw::Footer, description: &mut Description) -> Result<u64> {
    let geometry = u64::from(footer.cylinders.get()) * u64::from(footer.heads) * u64::from(footer.sectors);
    let recorded = footer.current_size.get();
    let by_geometry = matches!(&footer.creator, b"vpc " | b"qemu") && geometry != LARGEST_GEOMETRY;
    let sectors = if by_geometry { geometry } else { recorded / 512 };
    if sectors > VHD_SECTORS {
        return Err(Error::too_large("the virtual size exceeds 2040 GiB"));
    }
    let size = virtual_size(sectors, 512)?;
    if size != recorded {
        description.oddities.push(format!(
            "the recorded size is {recorded} bytes, but the size that counts is {size}"
        ));
    }
    description.virtual_size = Some(size);
    Ok(size)
}

fn dynamic(header: &raw::Dynamic, at: u64, size: u64, description: &mut Description) -> Result<()> {
    if header.cookie != *DYNAMIC_MAGIC {
        return Err(Error::invalid("the dynamic header is not where the footer says").at(at));
    }
    let block = header.block_size.get();
    if !block.is_power_of_two() || block < 512 {
        return Err(
            Error::invalid(format!("block size {block} is not a power of two of 512 or more")).at(at),
        );
    }
    description.cluster_size = Some(block.into());
    if u64::from(header.table_entries.get()) * u64::from(block) < size {
        return Err(Error::invalid("the block table is too small for the virtual size").at(at));
    }
    let mut zeroed = header.clone();
    zeroed.checksum = 0.into();
    if checksum(&zeroed) != header.checksum.get() {
        description
            .oddities
            .push("the checksum of the dynamic header is wrong".into());
    }
    Ok(())
}

/// One name of the parent: how far it is trusted (less is more), the text, whether decoding lost something, where.
type Name = (u8, String, bool, u64);

fn parent(
    bytes: &dyn Bytes,
    header: &raw::Dynamic,
    at: u64,
    oddities: &mut Vec<String>,
) -> Result<RecordedReference> {
    let mut names: Vec<Name> = Vec::new();
    for locator in &header.locators {
        if locator.platform == [0; 4] {
            continue;
        }
        let rank = match &locator.platform {
            b"W2ru" => 0,
            b"W2ku" => 1,
            b"MacX" => 2,
            b"Wi2r" | b"Wi2k" => 3,
            other => {
                oddities.push(format!(
                    "the parent locator of platform {:?} is not understood",
                    String::from_utf8_lossy(other)
                ));
                continue;
            }
        };
        let (offset, len) = (locator.data_offset.get(), locator.data_length.get());
        let field = match len <= VHD_LOCATOR_BYTES {
            true => bytes.read_some(offset, len as usize)?,
            false => Vec::new(),
        };
        if field.len() != len as usize {
            oddities.push("a parent locator is too long or outside the image".into());
            continue;
        }
        let (text, lossy) = match rank {
            0 | 1 => utf16(&field, Order::Little),
            _ => {
                let name = RecordedReference::new(before_nul(&field));
                (name.name, name.lossy)
            }
        };
        names.push((rank, text, lossy, offset));
    }
    let (text, lossy) = utf16(&header.parent_name, Order::Big);
    names.push((4, text, lossy, at.saturating_add(PARENT_NAME)));

    names.retain(|(_, text, ..)| !text.is_empty());
    names.sort_by_key(|(rank, ..)| *rank);
    let mut backing = RecordedReference::new(b"");
    for (_, text, lossy, offset) in names {
        if backing.name.is_empty() {
            (backing.name, backing.lossy, backing.offset) = (text, lossy, Some(offset));
        } else if text != backing.name && !backing.alternatives.contains(&text) {
            backing.alternatives.push(text);
        }
    }
    if backing.name.is_empty() {
        oddities.push("the differencing disk does not name its parent".into());
    }
    backing.parent_id = (!is_nil(&header.parent_uuid)).then_some(ParentId::Uuid(header.parent_uuid));
    Ok(backing)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    fn footer(kind: u32, creator: &[u8; 4]) -> raw::Footer {
        let mut footer = raw::Footer::read_from_bytes(&[0; 512]).unwrap();
        footer.cookie = *MAGIC;
        footer.version = 0x10000.into();
        footer.data_offset = if kind == 2 { u64::MAX } else { 512 }.into();
        footer.creator = *creator;
        footer.current_size = (10u64 << 20).into();
        footer.cylinders = 300.into();
        footer.heads = 4;
        footer.sectors = 17;
        footer.kind = kind.into();
        footer.uuid = [7; 16];
        footer.checksum = checksum(&footer).into();
        footer
    }

    pub(crate) fn fixed(creator: &[u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0u8; 10 << 20];
        bytes.extend(footer(2, creator).as_bytes());
        bytes
    }

    fn utf16_le(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    /// A dynamic disk, or a differencing one with three names of its parent.
    pub(crate) fn sparse(kind: u32) -> Vec<u8> {
        let mut header = raw::Dynamic::read_from_bytes(&[0; 1024]).unwrap();
        header.cookie = *DYNAMIC_MAGIC;
        header.version = 0x10000.into();
        header.table_entries = 5.into();
        header.block_size = (2u32 << 20).into();
        let (relative, absolute) = (utf16_le(".\\base.vhd"), utf16_le("C:\\base.vhd"));
        if kind == 4 {
            header.parent_uuid = [9; 16];
            for (i, unit) in "base.vhd".encode_utf16().enumerate() {
                header.parent_name[2 * i..2 * i + 2].copy_from_slice(&unit.to_be_bytes());
            }
            for (i, (platform, text, offset)) in [(b"W2ku", &absolute, 2048u64), (b"W2ru", &relative, 2560)]
                .into_iter()
                .enumerate()
            {
                header.locators[i].platform = *platform;
                header.locators[i].data_length = u32::try_from(text.len()).unwrap().into();
                header.locators[i].data_offset = offset.into();
            }
        }
        header.checksum = checksum(&header).into();
        let mut bytes = footer(kind, b"win ").as_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(3072, 0);
        if kind == 4 {
            bytes[2048..2048 + absolute.len()].copy_from_slice(&absolute);
            bytes[2560..2560 + relative.len()].copy_from_slice(&relative);
        }
        bytes.extend(footer(kind, b"win ").as_bytes());
        bytes
    }

    #[test]
    fn a_differencing_disk_names_its_parent_relative_first() {
        let d = describe(&sparse(4)).unwrap();
        assert_eq!(d.oddities, Vec::<String>::new());
        let backing = d.backing.unwrap();
        assert_eq!(backing.name, ".\\base.vhd");
        assert_eq!(backing.alternatives, ["C:\\base.vhd", "base.vhd"]);
        assert_eq!(backing.parent_id, Some(ParentId::Uuid([9; 16])));
        assert_eq!(backing.offset, Some(2560));
        assert_eq!(d.id, Some(ParentId::Uuid([7; 16])));
    }

    #[test]
    fn the_size_is_the_geometry_only_for_virtual_pc_and_old_qemu() {
        for (creator, size) in [
            (b"vpc ", 300 * 4 * 17 * 512),
            (b"qemu", 300 * 4 * 17 * 512),
            (b"win ", 10 << 20),
            (b"tap\0", 10 << 20),
        ] {
            assert_eq!(describe(&fixed(creator)).unwrap().virtual_size, Some(size));
        }
    }

    #[test]
    fn a_wrong_checksum_is_told() {
        let mut bytes = fixed(b"win ");
        let at = bytes.len() - 100;
        bytes[at] = 1;
        assert_eq!(describe(&bytes).unwrap().oddities.len(), 1);
        let mut bytes = sparse(3);
        bytes[512 + 900] = 1;
        assert_eq!(describe(&bytes).unwrap().oddities.len(), 1);
    }

    #[test]
    fn a_footer_that_the_guest_wrote_to_a_fixed_disk_is_told() {
        let mut bytes = fixed(b"win ");
        let dynamic = sparse(4);
        bytes[..dynamic.len()].copy_from_slice(&dynamic);
        let d = describe(&bytes).unwrap();
        assert_eq!(d.variant.as_deref(), Some("differencing"));
        assert!(d.oddities.iter().any(|oddity| oddity.contains("the guest may")));
    }

    #[test]
    fn locators_outside_the_image_are_passed_over_but_the_disk_stays_no_leaf() {
        let mut bytes = sparse(4);
        for locator in 0..2 {
            bytes[512 + 576 + 24 * locator + 16] = 0xff;
        }
        assert_eq!(describe(&bytes).unwrap().backing.unwrap().name, "base.vhd");
        bytes[512 + 64..512 + 128].fill(0);
        let d = describe(&bytes).unwrap();
        assert_eq!(d.backing.unwrap().name, "");
    }

    #[test]
    fn refuses_a_dynamic_header_that_is_not_there_and_too_small_a_table() {
        let mut bytes = sparse(3);
        bytes[16] = 1;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Truncated);
        let mut bytes = sparse(3);
        bytes[512 + 31] = 4;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
