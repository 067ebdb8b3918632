//! How much memory the check of the largest disks takes.
#![cfg(test)]

use catena_engine::qcow2::{CheckOptions, check};
use catena_storage::{Alignment, Identity, Result, Span, Storage};
use catena_testkit::Folder;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;

const CLUSTER: u64 = 1 << 16;
/// A part of the file whose counts take up memory as soon as one of them does.
const PART: u64 = 1 << 16;
/// Parts of the file, of 4 GiB each, with a table and a cluster of data in each but the first.
const PARTS: u64 = 1 + (64 << 40) / (PART * CLUSTER);
const L1: u64 = 1;
const REFCOUNT_TABLE: u64 = 17;
const BLOCKS: u64 = 32;
/// Refcounts of a block, and L2 entries of a table.
const PER_BLOCK: u64 = CLUSTER / 2;
const COPIED: u64 = 1 << 63;

/// An image of a disk of 64 TiB that exists only where it is read: all of it would be gigabytes of tables.
#[derive(Debug)]
struct Vast {
    header: Vec<u8>,
}

/// Part of each that has refcounts has them in its first block; the first part has them in all it needs.
fn block_of(index: u64) -> Option<u64> {
    index
        .is_multiple_of(PART / PER_BLOCK)
        .then_some(BLOCKS + index / (PART / PER_BLOCK))
}

impl Vast {
    /// The bytes of a cluster, in words.
    fn word(&self, cluster: u64, word: u64) -> u64 {
        let table_index = |first: u64| (cluster - first) * (CLUSTER / 8) + word;
        match cluster {
            0 => {
                let at = usize::try_from(word * 8).unwrap();
                let bytes = self.header.get(at..at + 8).unwrap_or(&[0; 8]);
                u64::from_be_bytes(bytes.try_into().unwrap())
            }
            L1..REFCOUNT_TABLE => {
                let part = table_index(L1) / 8 + 1;
                let is_first = table_index(L1).is_multiple_of(8) && part < PARTS;
                if is_first {
                    (part * PART * CLUSTER) | COPIED
                } else {
                    0
                }
            }
            REFCOUNT_TABLE..BLOCKS => {
                let index = table_index(REFCOUNT_TABLE);
                let block = block_of(index).filter(|_| index < PARTS * PART / PER_BLOCK);
                block.map_or(0, |block| block * CLUSTER)
            }
            _ if (BLOCKS..BLOCKS + PARTS).contains(&cluster) => {
                let first = (cluster - BLOCKS) * PART + word * 4;
                (0..4).fold(0, |all, n| all << 16 | u64::from(self.is_used(first + n)))
            }
            _ if cluster.is_multiple_of(PART) && word == 0 => ((cluster + 1) * CLUSTER) | COPIED,
            _ => 0,
        }
    }

    fn is_used(&self, cluster: u64) -> bool {
        match cluster / PART {
            0 => cluster < REFCOUNT_TABLE + 5 || (BLOCKS..BLOCKS + PARTS).contains(&cluster),
            _ => cluster % PART < 2,
        }
    }

    /// Whether all bytes of a cluster but the first few are zeros.
    fn is_sparse(&self, cluster: u64) -> bool {
        cluster >= PART || (BLOCKS + 1..BLOCKS + PARTS).contains(&cluster)
    }
}

impl Storage for Vast {
    fn len(&self) -> Result<u64> {
        Ok(PARTS * PART * CLUSTER)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for cluster in offset / CLUSTER..end.div_ceil(CLUSTER) {
            let words = if self.is_sparse(cluster) { 1 } else { CLUSTER / 8 };
            for word in 0..words {
                let at = cluster * CLUSTER + word * 8;
                let bytes = self.word(cluster, word).to_be_bytes();
                for (at, byte) in (at..).zip(bytes).filter(|(at, _)| (offset..end).contains(at)) {
                    buf[usize::try_from(at - offset).unwrap()] = byte;
                }
            }
        }
        Ok(buf.len())
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        bufs.first_mut().map_or(Ok(0), |buf| self.read_at(buf, offset))
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
        panic!("a check does not write")
    }

    fn write_all_vectored_at(&self, _: &[IoSlice<'_>], _: u64) -> Result<()> {
        panic!("a check does not write")
    }

    fn punch_hole(&self, _: u64, _: u64) -> Result<()> {
        panic!("a check does not write")
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
        panic!("a check does not write")
    }

    fn allocate(&self, _: u64, _: u64) -> Result<()> {
        panic!("a check does not write")
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> Result<()> {
        panic!("a check does not write")
    }

    fn span_at(&self, _: u64) -> Result<Option<Span>> {
        Ok(None)
    }

    fn allocated(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn alignment(&self) -> Alignment {
        Alignment::NONE
    }

    fn identity(&self) -> Option<Identity> {
        None
    }

    fn path(&self) -> Option<&Path> {
        None
    }
}

/// The most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_disk_of_64_tib_is_checked_within_256_mib() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 image.qcow2 64T");
    let mut header = std::fs::read(folder.file("image.qcow2")).unwrap();
    header.truncate(512);
    header[40..48].copy_from_slice(&(L1 * CLUSTER).to_be_bytes());
    header[48..56].copy_from_slice(&(REFCOUNT_TABLE * CLUSTER).to_be_bytes());
    header[56..60].copy_from_slice(&5u32.to_be_bytes());
    let report = check(&Vast { header }, &CheckOptions::default()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings.first());
    assert_eq!(report.mapped.allocated, PARTS - 1);
    assert!(peak() < 256 << 20, "{} MiB", peak() >> 20);
}
