//! A new qcow2 image whose guest clusters all have their places in the image file, in the order in which QEMU lays out such an
//! image: the data in one run, a refcount table for all of it before, the L2 tables where the first refcount table was and behind
//! the data.

use super::create::Preallocation;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::limits;
use catena_format::qcow2::{Cluster, Header, Layout, NewImage, RefcountWidth};
use catena_storage::Storage;

/// Bytes of an entry of an L1 or refcount table.
const ENTRY: u64 = 8;
/// Bytes that are written at once.
const PIECE: u64 = 1 << 20;

/// Where everything goes, in clusters.
struct Places {
    size: u64,
    layout: Layout,
    width: RefcountWidth,
    /// The first refcount table, which is free in the end, and its clusters.
    old_table: (u64, u64),
    /// Refcount blocks: those there are, and where new ones begin.
    blocks: (u64, u64),
    all_blocks: u64,
    new_blocks: u64,
    /// The refcount table, and its clusters.
    table: (u64, u64),
    /// The data, and its clusters.
    data: (u64, u64),
    tables: u64,
}

impl Places {
    fn of(image: &NewImage) -> Result<Self> {
        let header = &image.header;
        let bits = header.cluster_bits;
        let size = bits.size();
        let layout = Layout::of(header);
        let width = RefcountWidth::of(header);
        let per_block = width.entries_per_block(bits);
        let used = bits.clusters(image.len);
        let data = bits.clusters(header.virtual_size);
        let tables = data.div_ceil(layout.l2_entries());
        let first_block = header.refcount_table_offset / size + u64::from(header.refcount_table_clusters);
        let l1 = bits.clusters(u64::from(header.l1_entries) * ENTRY);
        let old_blocks = used.saturating_sub(first_block + l1);
        // Refcounts count themselves too.
        let (mut all_blocks, mut table) = (0_u64, 0_u64);
        loop {
            let blocks = (used + data + tables + all_blocks + table).div_ceil(per_block);
            let clusters = bits.clusters(blocks * ENTRY);
            if (blocks, clusters) == (all_blocks, table) {
                break;
            }
            (all_blocks, table) = (blocks, clusters);
        }
        if table * size > limits::QCOW2_REFCOUNT_TABLE_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "the disk is too large for this cluster size",
            ));
        }
        let new_blocks = all_blocks.saturating_sub(old_blocks);
        let table = (used + new_blocks, table);
        Ok(Self {
            size,
            layout,
            width,
            old_table: (
                header.refcount_table_offset / size,
                header.refcount_table_clusters.into(),
            ),
            blocks: (first_block, used),
            all_blocks,
            new_blocks,
            table,
            data: (table.0 + table.1, data),
            tables,
        })
    }

    /// Where a refcount block is.
    fn block(&self, index: u64) -> u64 {
        let old = self.all_blocks - self.new_blocks;
        match index.checked_sub(old) {
            None => self.blocks.0 + index,
            Some(index) => self.blocks.1 + index,
        }
    }

    /// Where an L2 table is.
    fn l2_table(&self, index: u64) -> u64 {
        match index.checked_sub(self.old_table.1) {
            None => self.old_table.0 + index,
            Some(index) => self.data.0 + self.data.1 + index,
        }
    }

    /// The cluster behind the last one.
    fn end(&self) -> u64 {
        self.data.0 + self.data.1 + self.tables.saturating_sub(self.old_table.1)
    }

    fn is_used(&self, cluster: u64) -> bool {
        let left = self.old_table.0 + self.tables..self.old_table.0 + self.old_table.1;
        cluster < self.end() && !left.contains(&cluster)
    }
}

/// Writes an image that is allocated in full over an empty one, which has no data file. Everything but the header is durable before the header
/// is written.
pub(super) fn write(storage: &dyn Storage, image: &NewImage, how: Preallocation) -> Result<()> {
    let places = Places::of(image)?;
    let size = places.size;
    // Data first: if there is no room for it, nothing else matters.
    let (from, to) = (image.len, (places.data.0 + places.data.1) * size);
    match how {
        Preallocation::Full => write_zeros(storage, from, to)?,
        _ => storage.allocate(from, to.saturating_sub(from))?,
    }
    let mut table = Vec::new();
    for index in 0..places.all_blocks {
        let block = places.block(index);
        table.extend((block * size).to_be_bytes());
        storage.write_all_at(&refcount_block(&places, index), block * size)?;
    }
    table.resize(usize::try_from(places.table.1 * size).unwrap_or_default(), 0);
    storage.write_all_at(&table, places.table.0 * size)?;
    let mut l1 = Vec::new();
    for index in 0..places.tables {
        let place = places.l2_table(index) * size;
        l1.extend((place | COPIED).to_be_bytes());
        storage.write_all_at(&l2_table(&places, index)?, place)?;
    }
    if !l1.is_empty() {
        storage.write_all_at(&l1, image.header.l1_offset)?;
    }
    if storage.len()? < places.end() * size {
        storage.set_len(places.end() * size)?;
    }
    storage.flush()?;
    let header = Header {
        refcount_table_offset: places.table.0 * size,
        refcount_table_clusters: u32::try_from(places.table.1).unwrap_or(u32::MAX),
        ..image.header.clone()
    };
    storage.write_all_at(&header.encode()?, 0)?;
    Ok(storage.flush()?)
}

/// The flag of an entry whose cluster nobody shares.
const COPIED: u64 = 1 << 63;

fn refcount_block(places: &Places, index: u64) -> Vec<u8> {
    let per_block = (places.size * 8) >> places.width.order();
    let mut block = vec![0; usize::try_from(places.size).unwrap_or_default()];
    let first = index * per_block;
    for entry in 0..per_block.min(places.end().saturating_sub(first)) {
        if places.is_used(first + entry) {
            // A width of one bit counts to one, too.
            let _ = places.width.set(&mut block, entry, 1);
        }
    }
    block
}

fn l2_table(places: &Places, index: u64) -> Result<Vec<u8>> {
    let entries = places.layout.l2_entries();
    let extended = places.layout.l2_entry_size() == 16;
    let mut table = Vec::with_capacity(usize::try_from(places.size).unwrap_or_default());
    for entry in 0..entries {
        let cluster = index * entries + entry;
        if cluster >= places.data.1 {
            break;
        }
        let host = (places.data.0 + cluster) * places.size;
        let data = if extended {
            // It has a place, and none of its subclusters has been written.
            Cluster::Subclusters {
                host: Some(host),
                allocated: 0,
                zero: 0,
            }
        } else {
            Cluster::Data { host }
        };
        let (word, bitmap) = places.layout.encode(data, true)?;
        table.extend(word.to_be_bytes());
        if extended {
            table.extend(bitmap.to_be_bytes());
        }
    }
    table.resize(usize::try_from(places.size).unwrap_or_default(), 0);
    Ok(table)
}

/// Writes zeros to the first block of a new file that is else a hole, as QEMU does: programs that open it past the host's cache find
/// out by it which alignment they need.
pub(super) fn first_block(storage: &dyn Storage, size: u64) -> Result<()> {
    const BLOCK: u64 = 4096;
    const SECTOR: u64 = 512;
    match size {
        0 => Ok(()),
        BLOCK.. => write_zeros(storage, 0, BLOCK),
        _ => write_zeros(storage, 0, SECTOR.min(size)),
    }
}

/// Writes zeros as bytes.
pub(super) fn write_zeros(storage: &dyn Storage, from: u64, to: u64) -> Result<()> {
    let zeros = vec![0; usize::try_from(PIECE).unwrap_or_default()];
    let mut at = from;
    while at < to {
        let len = usize::try_from((to - at).min(PIECE)).unwrap_or_default();
        storage.write_all_at(zeros.get(..len).unwrap_or_default(), at)?;
        at += len as u64;
    }
    Ok(())
}
