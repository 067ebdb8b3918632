//! Partition tables: which stretch of a disk is whose.
//!
//! For telling people where on a disk something lies, and for nothing else: checksums are not held against what is read, and
//! what no partition can be is left out. Sources: the UEFI specification (GPT), and what every system writes of MBRs.

use crate::field::{Order, guid, has_magic, structure, utf16};
use crate::limits::{GPT_ENTRIES, MBR_LOGICAL_PARTITIONS};
use crate::{Bytes, ParentId, Result};

/// What partitions are in, and they themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The kind of table.
    pub scheme: Scheme,
    /// In the order of their numbers. What a table says of them can overlap.
    pub partitions: Vec<Partition>,
}

/// A kind of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The one in the first sector, and those chained to it.
    Mbr,
    /// That of UEFI.
    Gpt,
}

impl Scheme {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
        }
    }
}

/// A stretch of a disk with a purpose. An extended partition, which only holds others, is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts them.
    pub number: u32,
    /// What it is for, as the table says it: `0x83`, or a GUID in lower case.
    pub id: String,
    /// The same in words, where they are known.
    pub purpose: Option<&'static str>,
    /// Its name; only GPT has them.
    pub name: Option<String>,
    /// Its first byte.
    pub start: u64,
    /// Its bytes, as far as they are on the disk.
    pub len: u64,
}

/// The partition table of a disk; `None` where there is none.
pub fn read(disk: &dyn Bytes) -> Result<Option<Table>> {
    let Ok(first) = structure::<raw::Mbr>(disk, 0) else {
        return Ok(None);
    };
    let is_mbr =
        first.signature == raw::SIGNATURE && first.entries.iter().all(|entry| entry.boot & 0x7f == 0);
    let protective = is_mbr && first.entries.iter().any(|entry| entry.kind == raw::PROTECTIVE);
    if protective {
        for sector in [512, 4096] {
            if let Some(table) = gpt(disk, sector)? {
                return Ok(Some(table));
            }
        }
    }
    let table = if is_mbr { mbr(disk, &first)? } else { Vec::new() };
    Ok((!table.is_empty()).then_some(Table {
        scheme: Scheme::Mbr,
        partitions: table,
    }))
}

fn mbr(disk: &dyn Bytes, first: &raw::Mbr) -> Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut logical = 5;
    for (number, entry) in (1_u32..).zip(&first.entries) {
        let start = u64::from(entry.start.get()) * SECTOR;
        if entry.is_extended() {
            logical_partitions(disk, start, &mut logical, &mut partitions)?;
        } else {
            partitions.extend(entry.partition(number, 0, disk.len()));
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    Ok(partitions)
}

/// Those of an extended partition: each is in a sector of its own, which names the next.
fn logical_partitions(
    disk: &dyn Bytes,
    extended: u64,
    number: &mut u32,
    out: &mut Vec<Partition>,
) -> Result<()> {
    let mut at = extended;
    // A chain that leads back to itself ends here, too.
    for _ in 0..MBR_LOGICAL_PARTITIONS {
        if at == 0 || disk.len().saturating_sub(at) < SECTOR {
            return Ok(());
        }
        let sector: raw::Mbr = structure(disk, at)?;
        if sector.signature != raw::SIGNATURE {
            return Ok(());
        }
        let [own, next, ..] = &sector.entries;
        if let Some(partition) = own.partition(*number, at, disk.len()) {
            out.push(partition);
            *number += 1;
        }
        if !next.is_extended() {
            return Ok(());
        }
        at = extended.saturating_add(u64::from(next.start.get()) * SECTOR);
    }
    Ok(())
}

/// The table whose header is in the second sector, or whose copy of it is in the last.
fn gpt(disk: &dyn Bytes, sector: u64) -> Result<Option<Table>> {
    for at in [sector, disk.len().saturating_sub(sector) / sector * sector] {
        if disk.len().saturating_sub(at) < sector || !has_magic(disk, at, raw::GPT_MAGIC)? {
            continue;
        }
        let header: raw::GptHeader = structure(disk, at)?;
        let size = header.entry_size.get();
        if !(128..=4096).contains(&size) || !size.is_multiple_of(8) {
            continue;
        }
        let Some(entries) = header.entries_at.get().checked_mul(sector) else {
            continue;
        };
        let mut partitions = Vec::new();
        for number in 0..header.entries.get().min(GPT_ENTRIES) {
            let Some(at) = entries.checked_add(u64::from(number) * u64::from(size)) else {
                break;
            };
            if disk.len().saturating_sub(at) < size_of::<raw::GptEntry>() as u64 {
                break;
            }
            let entry: raw::GptEntry = structure(disk, at)?;
            partitions.extend(entry.partition(number + 1, sector, disk.len()));
        }
        return Ok(Some(Table {
            scheme: Scheme::Gpt,
            partitions,
        }));
    }
    Ok(None)
}

/// What MBRs count in.
const SECTOR: u64 = 512;

/// What of a stretch lies on the disk.
fn on_disk(start: u64, len: u64, disk: u64) -> Option<(u64, u64)> {
    let len = len.min(disk.checked_sub(start)?);
    (len > 0).then_some((start, len))
}

impl raw::MbrEntry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(&self, number: u32, base: u64, disk: u64) -> Option<Partition> {
        let start = base.checked_add(u64::from(self.start.get()) * SECTOR)?;
        let (start, len) = on_disk(start, u64::from(self.sectors.get()) * SECTOR, disk)?;
        (self.kind != 0).then(|| Partition {
            number,
            id: format!("{:#04x}", self.kind),
            purpose: MBR_PURPOSES
                .iter()
                .find(|(kind, _)| *kind == self.kind)
                .map(|(_, purpose)| *purpose),
            name: None,
            start,
            len,
        })
    }
}

impl raw::GptEntry {
    fn partition(&self, number: u32, sector: u64, disk: u64) -> Option<Partition> {
        let first = self.first.get();
        let sectors = self.last.get().checked_sub(first)?.checked_add(1)?;
        let (start, len) = on_disk(first.checked_mul(sector)?, sectors.saturating_mul(sector), disk)?;
        if self.kind == [0; 16] {
            return None;
        }
        let id = ParentId::Uuid(guid(self.kind)).to_string();
        let (name, _) = utf16(&self.name, Order::Little);
        Some(Partition {
            number,
            purpose: GPT_PURPOSES
                .iter()
                .find(|(kind, _)| *kind == id)
                .map(|(_, purpose)| *purpose),
            id,
            name: (!name.is_empty()).then_some(name),
            start,
            len,
        })
    }
}

const MBR_PURPOSES: &[(u8, &str)] = &[
    (0x01, "FAT12"),
    (0x06, "FAT16"),
    (0x07, "NTFS or exFAT"),
    (0x0b, "FAT32"),
    (0x0c, "FAT32"),
    (0x0e, "FAT16"),
    (0x27, "Windows recovery"),
    (0x82, "Linux swap"),
    (0x83, "Linux"),
    (0x8e, "Linux LVM"),
    (0xa5, "FreeBSD"),
    (0xa6, "OpenBSD"),
    (0xee, "GPT"),
    (0xef, "EFI system"),
    (0xfd, "Linux RAID"),
];

const GPT_PURPOSES: &[(&str, &str)] = &[
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root"),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root"),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Windows data"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Windows reserved"),
    ("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"),
];

mod raw {
    use zerocopy::byteorder::little_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    pub(super) const SIGNATURE: [u8; 2] = [0x55, 0xaa];
    pub(super) const PROTECTIVE: u8 = 0xee;
    pub(super) const GPT_MAGIC: &[u8; 8] = b"EFI PART";

    /// The first sector of a disk, or of a logical partition.
    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Mbr {
        pub code: [u8; 446],
        pub entries: [MbrEntry; 4],
        pub signature: [u8; 2],
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct MbrEntry {
        pub boot: u8,
        pub first_chs: [u8; 3],
        pub kind: u8,
        pub last_chs: [u8; 3],
        pub start: U32,
        pub sectors: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct GptHeader {
        pub magic: [u8; 8],
        pub revision: U32,
        pub header_size: U32,
        pub header_crc: U32,
        pub reserved: U32,
        pub own_at: U64,
        pub copy_at: U64,
        pub first_usable: U64,
        pub last_usable: U64,
        pub disk: [u8; 16],
        /// The sector in which the entries begin.
        pub entries_at: U64,
        pub entries: U32,
        pub entry_size: U32,
        pub entries_crc: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct GptEntry {
        pub kind: [u8; 16],
        pub own: [u8; 16],
        pub first: U64,
        /// The last sector, which belongs to it.
        pub last: U64,
        pub attributes: U64,
        pub name: [u8; 72],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: usize = 4 << 20;

    fn entry(disk: &mut [u8], sector: usize, index: usize, kind: u8, start: u32, sectors: u32) {
        let at = sector * 512 + 446 + index * 16;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        disk[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn places(disk: &[u8]) -> Vec<(u32, u64, u64)> {
        let table = read(&disk.to_vec()).unwrap();
        let partitions = table.map(|table| table.partitions).unwrap_or_default();
        partitions
            .iter()
            .map(|partition| (partition.number, partition.start / 512, partition.len / 512))
            .collect()
    }

    #[test]
    fn primary_and_logical_partitions_are_numbered_as_linux_does() {
        let mut disk = vec![0; DISK];
        assert_eq!(read(&disk).unwrap(), None);
        entry(&mut disk, 0, 0, 0x83, 64, 100);
        entry(&mut disk, 0, 1, 0x05, 1000, 3000);
        entry(&mut disk, 0, 2, 0x07, 200, 1_000_000);
        entry(&mut disk, 1000, 0, 0x82, 8, 50);
        entry(&mut disk, 1000, 1, 0x05, 500, 100);
        entry(&mut disk, 1500, 0, 0x8e, 8, 60);
        assert_eq!(
            places(&disk),
            [
                (1, 64, 100),
                (3, 200, DISK as u64 / 512 - 200),
                (5, 1008, 50),
                (6, 1508, 60)
            ]
        );
        let table = read(&disk).unwrap().unwrap();
        assert_eq!(table.scheme, Scheme::Mbr);
        assert_eq!(table.partitions[0].id, "0x83");
        assert_eq!(table.partitions[0].purpose, Some("Linux"));
    }

    #[test]
    fn a_chain_of_logical_partitions_that_leads_back_to_itself_ends() {
        let mut disk = vec![0; DISK];
        entry(&mut disk, 0, 0, 0x0f, 1000, 3000);
        entry(&mut disk, 1000, 0, 0x83, 1, 1);
        entry(&mut disk, 1000, 1, 0x05, 0, 100);
        assert_eq!(places(&disk).len(), MBR_LOGICAL_PARTITIONS as usize);
    }

    #[test]
    fn a_boot_sector_of_a_file_system_is_no_table() {
        let mut disk = vec![0; DISK];
        entry(&mut disk, 0, 0, 0x83, 64, 100);
        disk[446] = b'o';
        assert_eq!(read(&disk).unwrap(), None);
    }

    fn gpt_disk(sector: usize, header_at: usize) -> Vec<u8> {
        let mut disk = vec![0; DISK];
        entry(&mut disk, 0, 0, 0xee, 1, u32::MAX);
        let header = &mut disk[header_at..];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&u32::MAX.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let second = &mut disk[2 * sector + 128..][..128];
        let kind = [
            0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
        ];
        second[..16].copy_from_slice(&kind);
        second[32..40].copy_from_slice(&40_u64.to_le_bytes());
        second[40..48].copy_from_slice(&49_u64.to_le_bytes());
        for (place, byte) in second[56..].chunks_mut(2).zip(b"root") {
            place[0] = *byte;
        }
        // One that ends before it begins, and one behind the disk.
        let third = &mut disk[2 * sector + 256..][..256];
        third.fill(9);
        third[32..40].copy_from_slice(&50_u64.to_le_bytes());
        third[40..48].copy_from_slice(&49_u64.to_le_bytes());
        third[128 + 32..128 + 40].copy_from_slice(&(u64::MAX / 4).to_le_bytes());
        third[128 + 40..128 + 48].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        disk
    }

    #[test]
    fn a_gpt_is_found_in_either_place_and_sector_size() {
        for (sector, header_at) in [(512, 512), (4096, 4096), (512, DISK - 512)] {
            let table = read(&gpt_disk(sector, header_at)).unwrap().unwrap();
            assert_eq!(table.scheme, Scheme::Gpt);
            let [root] = table.partitions.as_slice() else {
                panic!("{table:?}");
            };
            assert_eq!((root.number, root.name.as_deref()), (2, Some("root")));
            assert_eq!(root.purpose, Some("Linux"));
            assert_eq!((root.start, root.len), (40 * sector as u64, 10 * sector as u64));
        }
    }

    #[test]
    fn a_short_disk_has_no_table() {
        assert_eq!(read(&vec![0x55; 100]).unwrap(), None);
        let mut disk = gpt_disk(512, 512);
        disk.truncate(600);
        let table = read(&disk).unwrap().unwrap();
        assert!(table.partitions.len() <= 1, "{table:?}");
    }
}
