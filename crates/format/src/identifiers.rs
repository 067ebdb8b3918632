//! What a disk and its file systems are called by their own structures: numbers that whoever made them drew at random.
//!
//! For telling whether two views are of one disk, and for nothing else: nothing else of these structures is looked at. Sources: the
//! UEFI specification (GPT), what every system writes of MBRs, and the on-disk formats of the file systems.

use crate::limits::IDENTIFIED_PARTITIONS;
use crate::partitions::{self, Scheme};
use crate::{Bytes, Result};

/// A number that is meant to be nobody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identifier {
    /// Of what it is: `gpt`, `mbr`, or a file system.
    pub of: &'static str,
    /// Where it is on the disk.
    pub at: u64,
    /// The number, as it is there.
    pub bytes: Vec<u8>,
}

/// A structure with a number in it, offsets from where the partition begins.
struct Known {
    of: &'static str,
    magic_at: u64,
    magic: &'static [u8],
    at: u64,
    len: usize,
}

/// Those of what stands in partitions, or on the whole disk.
const KNOWN: &[Known] = &[
    known("ext", 1024 + 56, &[0x53, 0xef], 1024 + 104, 16),
    known("xfs", 0, b"XFSB", 32, 16),
    known("btrfs", 0x1_0040, b"_BHRfS_M", 0x1_0020, 16),
    known("ntfs", 3, b"NTFS    ", 72, 8),
    known("luks", 0, b"LUKS\xba\xbe", 168, 36),
    known("lvm", 512, b"LABELONE", 512 + 32, 32),
];

const fn known(of: &'static str, magic_at: u64, magic: &'static [u8], at: u64, len: usize) -> Known {
    Known {
        of,
        magic_at,
        magic,
        at,
        len,
    }
}

/// Those of a disk, in the order of their places.
pub fn read(disk: &dyn Bytes) -> Result<Vec<Identifier>> {
    let mut found = Vec::new();
    let table = partitions::read(disk)?;
    let mut add = |of, at: u64, len: usize| -> Result<()> {
        let bytes = disk.read_some(at, len)?;
        // Who draws no number writes zeros.
        if bytes.len() == len && bytes.iter().any(|byte| *byte != 0) {
            found.push(Identifier { of, at, bytes });
        }
        Ok(())
    };
    match table.as_ref().map(|table| table.scheme) {
        Some(Scheme::Mbr) => add("mbr", 440, 4)?,
        Some(Scheme::Gpt) => {
            for sector in [512, 4096] {
                if disk.read_some(sector, 8)? == b"EFI PART" {
                    add("gpt", sector + 56, 16)?;
                }
            }
        }
        None => {}
    }
    let partitions = table.map(|table| table.partitions).unwrap_or_default();
    let starts = partitions.iter().map(|partition| partition.start);
    let mut starts: Vec<u64> = std::iter::once(0).chain(starts).collect();
    starts.sort_unstable();
    starts.dedup();
    for start in starts.into_iter().take(IDENTIFIED_PARTITIONS) {
        for known in KNOWN {
            let (Some(magic_at), Some(at)) = (start.checked_add(known.magic_at), start.checked_add(known.at))
            else {
                continue;
            };
            if disk.read_some(magic_at, known.magic.len())? == known.magic {
                add(known.of, at, known.len)?;
            }
        }
    }
    found.sort_by_key(|identifier| identifier.at);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        // One partition from 1 MiB on.
        disk[446 + 4] = 0x83;
        disk[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 16, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[440..444].copy_from_slice(&[1, 2, 3, 4]);
        let start = 1 << 20;
        disk[start + 1080..start + 1082].copy_from_slice(&[0x53, 0xef]);
        disk[start + 1128..start + 1144].fill(7);
        disk
    }

    #[test]
    fn disks_and_the_file_systems_in_their_partitions_have_numbers() {
        let found = read(&disk()).unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.of, one.at, one.bytes.len()))
            .collect();
        assert_eq!(told, [("mbr", 440, 4), ("ext", (1 << 20) + 1128, 16)]);
        assert_eq!(found[1].bytes, [7; 16]);
    }

    #[test]
    fn a_file_system_may_have_the_whole_disk_and_a_number_that_was_not_drawn_is_none() {
        let mut whole = vec![0; 1 << 20];
        whole[..4].copy_from_slice(b"XFSB");
        assert!(read(&whole).unwrap().is_empty());
        whole[32] = 1;
        let found = read(&whole).unwrap();
        assert_eq!((found.len(), found[0].of), (1, "xfs"));
        let mut unsigned = disk();
        unsigned[440..444].fill(0);
        assert_eq!(read(&unsigned).unwrap().len(), 1);
    }

    #[test]
    fn what_ends_within_a_structure_has_none() {
        let disk = disk();
        for len in [0, 1, 511, 512, 1 << 20, (1 << 20) + 1081, (1 << 20) + 1130] {
            let cut = disk[..len].to_vec();
            assert!(read(&cut).unwrap().iter().all(|one| one.of == "mbr"), "{len}");
        }
    }
}
