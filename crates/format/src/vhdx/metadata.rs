//! The metadata region of a VHDX: block size, virtual size, and the parent locator.

use crate::error::{Error, Result};
use crate::field::{Order, guid, parse_uuid, structure, utf16};
use crate::limits::{VHDX_BLOCK_BYTES, VHDX_ITEMS, VHDX_LOCATOR_BYTES, VHDX_VIRTUAL_SIZE};
use crate::{Bytes, Description, ParentId, RecordedReference};
use zerocopy::FromBytes;

use super::number;

const TABLE_BYTES: usize = 64 << 10;

const FILE_PARAMETERS: u128 = 0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b;
const VIRTUAL_DISK_SIZE: u128 = 0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8;
const PAGE_83: u128 = 0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746;
const LOGICAL_SECTOR_SIZE: u128 = 0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f;
const PHYSICAL_SECTOR_SIZE: u128 = 0xcda3_48c7_445d_4471_9cc9_e988_5251_c556;
const PARENT_LOCATOR: u128 = 0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c;
/// The only type of locator there is: the parent is a VHDX.
const LOCATOR_VHDX: u128 = 0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913;

mod raw {
    use zerocopy::byteorder::little_endian::{U16, U32};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Table {
        pub signature: [u8; 8],
        pub reserved_1: U16,
        pub entries: U16,
        pub reserved_2: [u8; 20],
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Item {
        pub guid: [u8; 16],
        /// From the start of the region.
        pub offset: U32,
        pub length: U32,
        /// Bit 0: user metadata; bit 1: of the virtual disk; bit 2: required.
        pub flags: U32,
        pub reserved: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct FileParameters {
        pub block_size: U32,
        /// Bit 0: leave blocks allocated; bit 1: has a parent.
        pub flags: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Locator {
        pub kind: [u8; 16],
        pub reserved: U16,
        pub entries: U16,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Entry {
        /// From the start of the locator.
        pub key_offset: U32,
        pub value_offset: U32,
        pub key_length: U16,
        pub value_length: U16,
    }
}

/// Where an item's bytes are.
type Place = (u64, u32);

#[derive(Default)]
struct Items {
    file_parameters: Option<Place>,
    virtual_size: Option<Place>,
    logical_sector: Option<Place>,
    locator: Option<Place>,
}

/// Fills in what the metadata says.
pub(super) fn describe(
    bytes: &dyn Bytes,
    offset: u64,
    length: u32,
    description: &mut Description,
) -> Result<()> {
    let items = items(bytes, offset, length)?;
    let missing = |what| move || Error::invalid(format!("the metadata has no {what}")).at(offset);

    let (at, _) = items.file_parameters.ok_or_else(missing("file parameters"))?;
    let parameters: raw::FileParameters = structure(bytes, at)?;
    let block = parameters.block_size.get();
    if !block.is_power_of_two() || !VHDX_BLOCK_BYTES.contains(&block) {
        return Err(Error::invalid(format!(
            "block size {block} is not a power of two in 1 to 256 MiB"
        ))
        .at(at));
    }
    description.cluster_size = Some(block.into());

    let (at, _) = items.logical_sector.ok_or_else(missing("logical sector size"))?;
    let sector: zerocopy::byteorder::little_endian::U32 = structure(bytes, at)?;
    let sector = sector.get();
    if !matches!(sector, 512 | 4096) {
        return Err(Error::invalid(format!("logical sector size {sector} is not 512 or 4096")).at(at));
    }
    if sector != 512 {
        description.features.push(format!("{sector}-byte sectors"));
    }

    let (at, _) = items.virtual_size.ok_or_else(missing("virtual size"))?;
    let size: zerocopy::byteorder::little_endian::U64 = structure(bytes, at)?;
    let size = size.get();
    if size > VHDX_VIRTUAL_SIZE {
        return Err(Error::too_large("the virtual size exceeds 64 TiB").at(at));
    }
    if !size.is_multiple_of(sector.into()) {
        return Err(Error::invalid("the virtual size is not a multiple of the sector size").at(at));
    }
    description.virtual_size = Some(size);

    match (parameters.flags.get() & 2 != 0, items.locator) {
        (false, None) => {}
        (false, Some(_)) => description
            .oddities
            .push("there is a parent locator, but the image says that it has no parent".into()),
        (true, place) => {
            description.variant = Some("differencing".into());
            description.backing = Some(parent(bytes, place, &mut description.oddities)?);
        }
    }
    Ok(())
}

fn items(bytes: &dyn Bytes, offset: u64, length: u32) -> Result<Items> {
    let table = bytes.read_some(offset, TABLE_BYTES)?;
    let (head, entries) = raw::Table::ref_from_prefix(&table)
        .map_err(|_| Error::truncated("the metadata table is cut short").at(offset))?;
    if head.signature != *b"metadata" {
        return Err(Error::invalid("the metadata table is not where the region table says").at(offset));
    }
    let count = head.entries.get();
    if count > VHDX_ITEMS {
        return Err(Error::too_large(format!("{count} metadata items exceed 2047")).at(offset));
    }
    let mut items = Items::default();
    for entry in entries.chunks_exact(size_of::<raw::Item>()).take(count.into()) {
        let Ok(item) = raw::Item::ref_from_bytes(entry) else {
            continue;
        };
        let (user, required) = (item.flags.get() & 1 != 0, item.flags.get() & 4 != 0);
        let place = match number(item.guid) {
            FILE_PARAMETERS if !user => &mut items.file_parameters,
            VIRTUAL_DISK_SIZE if !user => &mut items.virtual_size,
            LOGICAL_SECTOR_SIZE if !user => &mut items.logical_sector,
            PARENT_LOCATOR if !user => &mut items.locator,
            PAGE_83 | PHYSICAL_SECTOR_SIZE if !user => continue,
            _ if required => {
                return Err(Error::unsupported(format!(
                    "the metadata item {} is required but unknown",
                    ParentId::Uuid(guid(item.guid))
                ))
                .at(offset));
            }
            _ => continue,
        };
        let (start, len) = (item.offset.get(), item.length.get());
        if start.checked_add(len).is_none_or(|end| end > length) {
            return Err(Error::invalid("a metadata item lies outside the metadata region").at(offset));
        }
        if place
            .replace((offset.saturating_add(start.into()), len))
            .is_some()
        {
            return Err(Error::invalid("a metadata item occurs twice").at(offset));
        }
    }
    Ok(items)
}

/// The keys of a locator that name a file, the most trusted first.
const PATH_KEYS: [&str; 3] = ["relative_path", "absolute_win32_path", "volume_path"];

fn parent(bytes: &dyn Bytes, place: Option<Place>, oddities: &mut Vec<String>) -> Result<RecordedReference> {
    let mut backing = RecordedReference::new(b"");
    let Some((at, len)) = place else {
        oddities.push("the image has a parent, but no locator names it".into());
        return Ok(backing);
    };
    if len > VHDX_LOCATOR_BYTES {
        return Err(Error::too_large(format!("the parent locator of {len} bytes exceeds 1 MiB")).at(at));
    }
    let locator = bytes.read_exact(at, len as usize)?;
    let (head, entries) = raw::Locator::ref_from_prefix(&locator)
        .map_err(|_| Error::truncated("the parent locator is cut short").at(at))?;
    if number(head.kind) != LOCATOR_VHDX {
        return Err(Error::unsupported("the parent locator is of an unknown type").at(at));
    }
    let field = |offset: u32, len: u16| {
        let offset = offset as usize;
        locator.get(offset..offset.checked_add(len.into())?)
    };
    let mut paths: [Option<(String, bool, u64)>; PATH_KEYS.len()] = Default::default();
    let mut linkage = [None, None];
    for entry in entries
        .chunks_exact(size_of::<raw::Entry>())
        .take(head.entries.get().into())
    {
        let Ok(entry) = raw::Entry::ref_from_bytes(entry) else {
            continue;
        };
        // Keys are short; what is longer is none of ours and is not decoded.
        let key = match entry.key_length.get() {
            len @ ..=64 => field(entry.key_offset.get(), len).map(|key| utf16(key, Order::Little).0),
            _ => continue,
        };
        let value_at = entry.value_offset.get();
        let (Some(key), Some(value)) = (key, field(value_at, entry.value_length.get())) else {
            oddities.push("an entry of the parent locator lies outside of it".into());
            break;
        };
        if let Some(i) = PATH_KEYS.iter().position(|path| *path == key)
            && let Some(slot) = paths.get_mut(i).filter(|slot| slot.is_none())
        {
            let (text, lossy) = utf16(value, Order::Little);
            *slot = Some((text, lossy, at.saturating_add(value_at.into())));
        }
        let slot = match key.as_str() {
            "parent_linkage" => linkage.first_mut(),
            "parent_linkage2" => linkage.last_mut(),
            _ => None,
        };
        if let Some(slot) = slot.filter(|slot| slot.is_none()) {
            *slot = parse_uuid(&utf16(value, Order::Little).0);
        }
    }
    for (text, lossy, offset) in paths.into_iter().flatten().filter(|(text, ..)| !text.is_empty()) {
        if backing.name.is_empty() {
            (backing.name, backing.lossy, backing.offset) = (text, lossy, Some(offset));
        } else if text != backing.name && !backing.alternatives.contains(&text) {
            backing.alternatives.push(text);
        }
    }
    if backing.name.is_empty() {
        oddities.push("the parent locator names no file".into());
    }
    let [first, second] = linkage;
    if first.is_none() {
        oddities.push("the parent locator does not tell the parent's identity".into());
    }
    if second.is_some() {
        oddities.push("the parent locator allows a second identity of the parent".into());
    }
    backing.parent_id = first.or(second).map(ParentId::Uuid);
    Ok(backing)
}
