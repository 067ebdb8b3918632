//! Measure: how large a new image would become, by `qemu-img measure`'s rules.
//!
//! For qcow2 the file size is that of all metadata of a fully allocated image and of the clusters that would be written: more
//! than is needed, never less. What lies in a hole of a file is zeros here; to QEMU it is not, behind the clusters of a qcow2 image.

use super::create::Preallocation;
use crate::extents::Extents;
use catena_engine::{Disk, Error, ErrorKind, ExtentKind, Result};
use catena_format::limits;
use catena_format::qcow2::{Bitmap, ClusterBits};

const SECTOR: u64 = 512;
/// Bytes of an entry of an L1 table, a refcount table, or a bitmap table.
const ENTRY: u64 = 8;
/// Bytes of a bitmap's directory entry without its name.
const BITMAP_ENTRY: u64 = 24;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Request {
    /// Bytes the guest would see, where there is no disk to be converted.
    pub size: u64,
    /// The new image's format and what of it matters.
    pub kind: Kind,
}

/// Which format.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Raw.
    Raw,
    /// qcow2.
    Qcow2 {
        /// Cluster size.
        cluster_bits: ClusterBits,
        /// Refcounts are `1 << refcount_order` bits wide.
        refcount_order: u32,
        /// Whether L2 entries carry subcluster bitmaps.
        extended_l2: bool,
        /// Whether it would have a backing image. How much of the disk is shared with it is not known, so nothing is.
        backing: bool,
        /// What is allocated from the start.
        preallocation: Preallocation,
    },
}

/// Sizes of files in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// What it would take now.
    pub required: u64,
    /// What it would take once the guest has written everywhere.
    pub fully_allocated: u64,
    /// What the persistent bitmaps of the disk's active image would take on top; `None` where the new image could have none.
    pub bitmaps: Option<u64>,
}

/// Measures. `disk` is what would be converted, and `bitmaps` are those of its active image, `None` where its format has
/// none.
pub fn measure(request: &Request, disk: Option<&dyn Disk>, bitmaps: Option<&[Bitmap]>) -> Result<Sizes> {
    match request.kind {
        Kind::Raw => {
            let size = match disk {
                Some(disk) => disk.size(),
                None => whole(request.size, SECTOR)?,
            };
            Ok(Sizes {
                required: size,
                fully_allocated: size,
                bitmaps: None,
            })
        }
        Kind::Qcow2 {
            cluster_bits,
            refcount_order,
            extended_l2,
            backing,
            preallocation,
        } => {
            let cluster = cluster_bits.size();
            let l2_entry = if extended_l2 { 16 } else { 8 };
            let guest = disk.map_or(request.size, Disk::size);
            let size = whole(guest, cluster)?;
            let tables = (size / cluster).div_ceil(cluster / l2_entry);
            if tables.saturating_mul(ENTRY) > limits::QCOW2_L1_BYTES {
                return Err(too_large());
            }
            let all = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
            let data = match disk {
                _ if all => size,
                Some(_) if backing => size,
                Some(disk) => allocated(disk, cluster)?,
                None => 0,
            };
            let fully_allocated = size + metadata(size, cluster, refcount_order, l2_entry)?;
            let bitmap_sizes = bitmaps.map(|bitmaps| bitmap_bytes(bitmaps, guest, cluster));
            Ok(Sizes {
                required: fully_allocated - size + data,
                fully_allocated,
                bitmaps: bitmap_sizes,
            })
        }
    }
}

fn too_large() -> Error {
    Error::new(
        ErrorKind::TooLarge,
        "The image size is too large (try using a larger cluster size)",
    )
}

fn whole(bytes: u64, unit: u64) -> Result<u64> {
    bytes.checked_next_multiple_of(unit).ok_or_else(too_large)
}

/// Bytes of the clusters that hold data.
fn allocated(disk: &dyn Disk, cluster: u64) -> Result<u64> {
    let mut bytes = 0;
    let mut counted_to = 0;
    for extent in Extents::of(disk) {
        let extent = extent?;
        if matches!(extent.kind, ExtentKind::Zero { .. } | ExtentKind::Unallocated) {
            continue;
        }
        let start = (extent.start.0 - extent.start.0 % cluster).max(counted_to);
        let end = whole(extent.end().0, cluster)?;
        if start < end {
            bytes += end - start;
            counted_to = end;
        }
    }
    Ok(bytes)
}

/// Bytes of the metadata of an image that is allocated in full: header, L2 tables, L1 table, refcounts.
fn metadata(size: u64, cluster: u64, refcount_order: u32, l2_entry: u64) -> Result<u64> {
    let l2_entries = whole(size / cluster, cluster / l2_entry)?;
    let l2 = l2_entries.saturating_mul(l2_entry);
    let l1 = whole(l2 / cluster, cluster / ENTRY)? * ENTRY;
    let meta = cluster + l2 + l1;
    let clusters = (meta + size) / cluster;
    let per_block = (cluster * 8) >> refcount_order.min(limits::QCOW2_REFCOUNT_ORDER);
    let (mut blocks, mut tables) = (0_u64, 0_u64);
    // Refcounts count themselves too: both only grow, and each turn counts clusters of a share of the last.
    loop {
        let more_blocks = (clusters + tables + blocks).div_ceil(per_block.max(1));
        let more_tables = more_blocks.div_ceil(cluster / ENTRY);
        if (more_blocks, more_tables) == (blocks, tables) {
            return Ok(meta + (blocks + tables) * cluster);
        }
        (blocks, tables) = (more_blocks, more_tables);
    }
}

/// What bitmaps take: all of their bits, a table for each, and the directory.
fn bitmap_bytes(bitmaps: &[Bitmap], size: u64, cluster: u64) -> u64 {
    let mut bytes = 0_u64;
    let mut directory = 0_u64;
    for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
        let bits = size.div_ceil(bitmap.granularity.max(1));
        let clusters = bits.div_ceil(8).div_ceil(cluster);
        bytes = bytes
            .saturating_add(clusters.saturating_mul(cluster))
            .saturating_add(clusters.saturating_mul(ENTRY).next_multiple_of(cluster));
        directory += (BITMAP_ENTRY + bitmap.name.len() as u64).next_multiple_of(8);
    }
    bytes.saturating_add(directory.next_multiple_of(cluster))
}
