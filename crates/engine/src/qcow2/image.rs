//! qcow2 images, read through their mapping tables.
//!
//! Nothing of an image is held but its header and, where it is small, its L1 table: a stack of thousands costs
//! kilobytes each. L2 tables are read as they are mapped, and their content is kept by whoever merges it.

use crate::addr::{GuestOffset, HostOffset};
use crate::bytes::StorageBytes;
use crate::decompress;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind, FileRole};
use crate::image::Image;
use catena_format::qcow2::layout::SUBCLUSTERS;
use catena_format::qcow2::{Cluster, Compression, CryptMethod, Header, L1Entry, Layout, Snapshot};
use catena_storage::Storage;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// L1 tables of up to this many entries (512 bytes: a 32 GiB disk with default clusters) are kept in memory: there may be ten thousand.
const SMALL_L1: u32 = 64;
/// Larger L1 tables are read in pieces of this many entries.
const L1_PIECE: u64 = 512;
/// L2 tables are read in pieces of this many bytes.
const L2_PIECE: u64 = 64 << 10;

thread_local! {
    /// Where a piece of an L2 table is read to. What is new would have to be zeroed first, which takes as long as reading it.
    static PIECE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A qcow2 image open for reading.
#[derive(Debug)]
pub struct Qcow2 {
    storage: Arc<dyn Storage>,
    data_file: Option<Arc<dyn Storage>>,
    header: Header,
    layout: Layout,
    view: View,
}

/// Which disk of the image is read: the active one, or an internal snapshot.
#[derive(Debug)]
struct View {
    l1_offset: u64,
    l1_entries: u32,
    virtual_size: u64,
    small_l1: OnceLock<Vec<u8>>,
}

impl Qcow2 {
    /// Opens an image. `data_file` is the open data file where the header says that there is one.
    ///
    /// Refuses features that are not understood, and changes nothing.
    pub fn open(storage: Arc<dyn Storage>, data_file: Option<Arc<dyn Storage>>) -> Result<Self> {
        let header = Header::read(&StorageBytes::new(&*storage)?)?;
        header.check_readable()?;
        if header.has_data_file() && data_file.is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the image's data is in a data file that is not open",
            ));
        }
        let view = View {
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries,
            virtual_size: header.virtual_size,
            small_l1: OnceLock::new(),
        };
        let layout = Layout::of(&header);
        Ok(Self {
            storage,
            data_file: data_file.filter(|_| header.has_data_file()),
            header,
            layout,
            view,
        })
    }

    /// The same image as it was when a snapshot was taken.
    pub fn at_snapshot(&self, snapshot: &Snapshot) -> Self {
        Self {
            storage: Arc::clone(&self.storage),
            data_file: self.data_file.clone(),
            header: self.header.clone(),
            layout: self.layout,
            view: View {
                l1_offset: snapshot.l1_offset,
                l1_entries: snapshot.l1_entries,
                virtual_size: snapshot
                    .virtual_size
                    .min(u64::from(snapshot.l1_entries) * self.layout.l2_coverage()),
                small_l1: OnceLock::new(),
            },
        }
    }

    /// The image's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        Ok(Snapshot::read_all(
            &self.header,
            &StorageBytes::new(&*self.storage)?,
        )?)
    }

    /// Reads `len` bytes of metadata; what lies past the end of the file is zeros, as QEMU has it.
    fn read_metadata(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.storage.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// The L1 entries of a range of indices, all below the table's length; at most [`L1_PIECE`] of them.
    fn l1(&self, indices: Range<u64>) -> Result<Vec<L1Entry>> {
        let entries = |bytes: &[u8]| bytes.chunks_exact(8).map(|raw| L1Entry(be64(raw))).collect();
        let place = |index: u64| index.saturating_mul(8);
        if self.view.l1_entries > SMALL_L1 {
            let offset = self.view.l1_offset.saturating_add(place(indices.start));
            return Ok(entries(
                &self.read_metadata(offset, place(indices.end - indices.start))?,
            ));
        }
        let table = match self.view.small_l1.get() {
            Some(table) => table,
            None => {
                let table = self.read_metadata(self.view.l1_offset, place(self.view.l1_entries.into()))?;
                self.view.small_l1.get_or_init(|| table)
            }
        };
        let range = usize::try_from(place(indices.start))
            .ok()
            .zip(usize::try_from(place(indices.end)).ok());
        Ok(range
            .and_then(|(from, to)| table.get(from..to))
            .map(entries)
            .unwrap_or_default())
    }

    /// The L1 indices of a guest range, or of as much of its start as is read at once; none past the table's end.
    fn l1_indices(&self, start: u64, end: u64) -> Range<u64> {
        let first = start / self.layout.l2_coverage();
        let last = end.div_ceil(self.layout.l2_coverage());
        first..last.min(first + L1_PIECE).min(self.view.l1_entries.into())
    }

    /// Maps what one L2 table says about `start..end`, which lies within the table's coverage.
    fn map_table(&self, table: u64, start: u64, end: u64, extents: &mut Vec<Extent>) -> Result<()> {
        let entry_size = self.layout.l2_entry_size();
        let piece = (L2_PIECE / entry_size).saturating_mul(self.cluster_size());
        let mut at = start;
        while at < end {
            let to = (at - at % piece).saturating_add(piece).min(end);
            let first = (at % self.layout.l2_coverage()) / self.cluster_size();
            let last = ((to - 1) % self.layout.l2_coverage()) / self.cluster_size();
            let offset = table.saturating_add(first * entry_size);
            let len = usize::try_from((last + 1 - first) * entry_size).unwrap_or_default();
            PIECE.with_borrow_mut(|buf| {
                buf.resize(buf.len().max(len), 0);
                let entries = buf.get_mut(..len).unwrap_or_default();
                let read = self.storage.read_at(entries, offset)?;
                // What lies past the end of the file is zeros.
                entries.get_mut(read..).unwrap_or_default().fill(0);
                self.map_entries(entries, offset, at, to, extents);
                Ok::<_, Error>(())
            })?;
            at = to;
        }
        Ok(())
    }

    /// Maps what the entries of `start..end`, which lie at `offset`, say.
    fn map_entries(&self, entries: &[u8], offset: u64, start: u64, end: u64, extents: &mut Vec<Extent>) {
        let cluster_bits = self.layout.cluster_bits;
        let entry_bytes = usize::try_from(self.layout.l2_entry_size()).unwrap_or(8);
        let first_address = start - cluster_bits.offset_in_cluster(start);
        let address_of = |index: usize| first_address.saturating_add((index as u64) << cluster_bits.get());
        let mut index = 0;
        while let Some(rest) = entries.get(index * entry_bytes..).filter(|rest| !rest.is_empty()) {
            let from = address_of(index).max(start);
            // Tables are mostly empty, and emptiness is found much faster than it is decoded.
            let empty = leading_zeros(rest) / entry_bytes;
            if empty > 0 {
                index += empty;
                extent(from, address_of(index).min(end), ExtentKind::Unallocated).push_to(extents);
                continue;
            }
            let address = address_of(index);
            let to = address_of(index + 1).min(end);
            let (entry, bitmap) = rest
                .get(..entry_bytes)
                .and_then(|raw| raw.split_at_checked(8))
                .unwrap_or_default();
            match self.layout.cluster(be64(entry), be64(bitmap)) {
                Ok(Cluster::Subclusters {
                    host,
                    allocated,
                    zero,
                }) => {
                    self.map_subclusters(address, host, allocated, zero, from..to, extents);
                }
                Ok(cluster) => {
                    let kind = self.kind(cluster, from - address);
                    extent(from, to, kind).push_to(extents);
                }
                Err(_) => {
                    let entry = HostOffset(offset.saturating_add((index * entry_bytes) as u64));
                    extent(from, to, ExtentKind::Corrupt { entry }).push_to(extents);
                }
            }
            index += 1;
        }
    }

    fn map_subclusters(
        &self,
        address: u64,
        host: Option<u64>,
        allocated: u32,
        zero: u32,
        within: Range<u64>,
        extents: &mut Vec<Extent>,
    ) {
        let size = self.layout.subcluster_size();
        for n in 0..SUBCLUSTERS {
            let start = address + u64::from(n) * size;
            let from = start.max(within.start);
            let to = (start + size).min(within.end);
            if from >= to {
                continue;
            }
            let cluster = match host {
                Some(host) if allocated >> n & 1 == 1 => Cluster::Data { host },
                host if zero >> n & 1 == 1 => Cluster::Zero { host },
                _ => Cluster::Unallocated,
            };
            extent(from, to, self.kind(cluster, from - address)).push_to(extents);
        }
    }

    /// The kind of what lies `skip` bytes into a cluster.
    fn kind(&self, cluster: Cluster, skip: u64) -> ExtentKind {
        let offset = |host: u64| HostOffset(host).plus(skip);
        match cluster {
            Cluster::Unallocated | Cluster::Subclusters { .. } => ExtentKind::Unallocated,
            Cluster::Zero { host } => ExtentKind::Zero {
                offset: host.map(offset),
            },
            Cluster::Data { host } if self.header.crypt != CryptMethod::None => {
                ExtentKind::Encrypted { offset: offset(host) }
            }
            Cluster::Data { host } => {
                let file = if self.data_file.is_some() {
                    FileRole::Data
                } else {
                    FileRole::Image
                };
                ExtentKind::Data {
                    file,
                    offset: offset(host),
                }
            }
            Cluster::Compressed { host, .. } if self.header.crypt != CryptMethod::None => {
                ExtentKind::Encrypted {
                    offset: HostOffset(host),
                }
            }
            Cluster::Compressed { host, len } => ExtentKind::Compressed {
                offset: HostOffset(host),
                len,
            },
        }
    }
}

impl Image for Qcow2 {
    fn virtual_size(&self) -> u64 {
        self.view.virtual_size
    }

    fn map(&self, start: GuestOffset, end: GuestOffset, extents: &mut Vec<Extent>) -> Result<()> {
        let coverage = self.layout.l2_coverage();
        let (mut at, end) = (start.0, end.0.min(self.view.virtual_size));
        while at < end {
            let indices = self.l1_indices(at, end);
            if indices.is_empty() {
                // A snapshot's table may be shorter than its disk; QEMU reads what it lacks as unallocated.
                extent(at, end, ExtentKind::Unallocated).push_to(extents);
                break;
            }
            for (index, entry) in indices.clone().zip(self.l1(indices)?) {
                let to = ((index + 1).saturating_mul(coverage)).min(end);
                match self.layout.l2_offset(entry) {
                    Ok(Some(table)) => self.map_table(table, at, to, extents)?,
                    Ok(None) => extent(at, to, ExtentKind::Unallocated).push_to(extents),
                    Err(_) => {
                        let entry = HostOffset(self.view.l1_offset.saturating_add(index * 8));
                        extent(at, to, ExtentKind::Corrupt { entry }).push_to(extents);
                    }
                }
                at = to;
            }
        }
        Ok(())
    }

    /// By the L1 table alone: where it has no L2 table, there is nothing.
    fn silent_until(&self, start: GuestOffset, end: GuestOffset) -> Result<GuestOffset> {
        let coverage = self.layout.l2_coverage();
        let (mut at, end) = (start.0, end.0.min(self.view.virtual_size));
        while at < end {
            let indices = self.l1_indices(at, end);
            if indices.is_empty() {
                return Ok(GuestOffset(end));
            }
            for (index, entry) in indices.clone().zip(self.l1(indices)?) {
                if !matches!(self.layout.l2_offset(entry), Ok(None)) {
                    return Ok(GuestOffset(at));
                }
                at = ((index + 1).saturating_mul(coverage)).min(end);
            }
        }
        Ok(GuestOffset(at))
    }

    fn map_tables(&self, most: u64) -> Result<u64> {
        let entries = u64::from(self.view.l1_entries);
        let (mut at, mut bytes) = (0, entries * 8);
        while at < entries && bytes <= most {
            let indices = at..entries.min(at + L1_PIECE);
            at = indices.end;
            let tables = self.l1(indices)?;
            let tables = tables
                .iter()
                .filter(|entry| matches!(self.layout.l2_offset(**entry), Ok(Some(_))));
            bytes = bytes.saturating_add(self.cluster_size().saturating_mul(tables.count() as u64));
        }
        Ok(bytes)
    }

    fn storage(&self, file: FileRole) -> Result<&Arc<dyn Storage>> {
        match (file, &self.data_file) {
            (FileRole::Data, Some(data_file)) => Ok(data_file),
            (FileRole::Data, None) => Err(Error::new(ErrorKind::NotFound, "the image has no data file")),
            (FileRole::Image, _) => Ok(&self.storage),
        }
    }

    fn cluster_size(&self) -> u64 {
        self.layout.cluster_bits.size()
    }

    fn compression(&self) -> Option<Compression> {
        Some(self.header.compression)
    }

    fn decompress(&self, offset: HostOffset, len: u32, out: &mut [u8]) -> Result<()> {
        // The last sector counted may lie past the end of the file.
        let compressed = self.read_metadata(offset.0, len.into())?;
        decompress::cluster(self.header.compression, &compressed, out).map_err(|error| error.at(offset.0))
    }
}

fn extent(from: u64, to: u64, kind: ExtentKind) -> Extent {
    Extent {
        start: GuestOffset(from),
        len: to.saturating_sub(from),
        kind,
        layer: 0,
    }
}

/// A big-endian number; 0 for fewer than 8 bytes.
fn be64(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// How many zeros the bytes start with.
fn leading_zeros(bytes: &[u8]) -> usize {
    const BLOCK: usize = 64;
    if bytes
        .first_chunk()
        .is_some_and(|entry| u64::from_ne_bytes(*entry) != 0)
    {
        return 0;
    }
    // Bits that are joined without a branch are joined many at a time.
    let is_zero = |block: &[u8]| block.iter().fold(0, |bits, byte| bits | byte) == 0;
    let blocks = bytes
        .chunks_exact(BLOCK)
        .take_while(|block| is_zero(block))
        .count()
        * BLOCK;
    let rest = bytes.get(blocks..).unwrap_or_default();
    blocks + rest.iter().take_while(|byte| **byte == 0).count()
}
