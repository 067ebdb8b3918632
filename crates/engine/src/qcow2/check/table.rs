//! One L2 table after the other, entry by entry; whole runs at once where the entries are of a kind.

use super::finding::FindingKind;
use super::refcounts::{Refcount, be64};
use super::roots::Endless;
use super::walk::{COPIED, OFFSET_MASK, Walk, Walked};
use crate::error::Result;
use catena_format::qcow2::{Layout, Version};

/// Bits of a standard L2 entry that must not be set.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// A compressed cluster.
pub(in crate::qcow2) const COMPRESSED: u64 = 1 << 62;
/// Reads as zeros.
pub(in crate::qcow2) const ZERO: u64 = 1;
/// The bits of a subcluster bitmap that say which hold data.
const ALLOCATED: u64 = 0xffff_ffff;

/// What an L2 entry is, as QEMU sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Kind {
    /// Nothing.
    Unallocated,
    /// Zeros without a host cluster.
    ZeroPlain,
    /// A host cluster, or one kept behind zeros.
    Allocated,
    /// A compressed cluster.
    Compressed,
}

/// What decides how L2 entries are read.
#[derive(Clone, Copy, Debug)]
pub(in crate::qcow2) struct Shape {
    /// The geometry.
    pub layout: Layout,
    /// Whether entries have subcluster bitmaps.
    pub extended: bool,
    /// Whether data is in a data file.
    pub data_file: bool,
    /// Whether zero clusters are allowed.
    pub zero_flag: bool,
}

impl Shape {
    /// The shape a header decides.
    pub fn of(header: &catena_format::qcow2::Header) -> Self {
        Self {
            layout: Layout::of(header),
            extended: header.has_extended_l2(),
            data_file: header.has_data_file(),
            zero_flag: header.version == Version::V3,
        }
    }

    /// What an entry is.
    pub fn kind(self, entry: u64) -> Kind {
        let host = entry & OFFSET_MASK;
        if entry & COMPRESSED != 0 {
            Kind::Compressed
        } else if host != 0 || (self.data_file && entry & COPIED != 0 && (self.extended || entry & ZERO == 0))
        {
            Kind::Allocated
        } else if entry & ZERO != 0 && !self.extended {
            Kind::ZeroPlain
        } else {
            Kind::Unallocated
        }
    }

    /// Where the compressed bytes of an entry are: offset and length.
    pub fn compressed(self, entry: u64) -> (u64, u64) {
        let shift = 62 - (self.layout.cluster_bits.get() - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = ((entry & !(COPIED | COMPRESSED)) >> shift) + 1;
        (offset, sectors * 512 - offset % 512)
    }

    /// Bits of a compressed entry that are an offset.
    fn compressed_offset(self, entry: u64) -> u64 {
        self.compressed(entry).0
    }
}

/// Counts what a thread comes by.
pub(in crate::qcow2) struct Tally<'w, 'a> {
    walk: &'w Walk<'a>,
    shape: Shape,
    buf: Vec<u8>,
    run: Run,
    check_copied: bool,
    /// Runs are of clusters below this offset.
    limit: u64,
    /// What was found since it was last taken.
    pub walked: Walked,
}

/// Consecutive entries that point at consecutive clusters.
#[derive(Clone, Copy, Debug)]
struct Run {
    entry: u64,
    clusters: u64,
    expected: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            entry: 0,
            clusters: 0,
            // No entry without reserved bits is that.
            expected: u64::MAX,
        }
    }
}

impl<'w, 'a> Tally<'w, 'a> {
    /// One with nothing counted.
    pub fn new(walk: &'w Walk<'a>) -> Self {
        let header = &walk.roots.header;
        Self {
            walk,
            shape: Shape::of(header),
            buf: vec![0; usize::try_from(header.cluster_bits.size()).unwrap_or_default()],
            run: Run::default(),
            check_copied: false,
            limit: if header.has_data_file() {
                1 << 55
            } else {
                walk.file_len
            },
            walked: Walked::default(),
        }
    }

    /// Takes note of a fault, after those of the run before it.
    pub fn push(&mut self, kind: FindingKind) {
        self.end_run();
        self.walked.found.push(self.walk.room, kind);
    }

    /// Checks the flag of an L1 entry that names a table.
    pub fn l1_copied(&mut self, index: u64, entry: u64) -> Result<()> {
        let cluster = (entry & OFFSET_MASK) >> self.shape.layout.cluster_bits.get();
        if let Some(refcount) = self.refcount(cluster)?
            && (refcount == 1) != (entry & COPIED != 0)
        {
            let kind = FindingKind::CopiedL2 {
                index,
                entry,
                refcount,
            };
            self.walked.copied.push(self.walk.room, kind);
        }
        Ok(())
    }

    /// The refcount on disk of a cluster, where it is to be compared with flags in this walk.
    fn refcount(&self, cluster: u64) -> Result<Option<u64>> {
        let Some(refcounts) = self.walk.refcounts else {
            return Ok(None);
        };
        Ok(match refcounts.get(self.walk.storage, cluster)? {
            Some(Refcount::Is(refcount)) => Some(refcount),
            Some(Refcount::Unreadable) | None => None,
        })
    }

    /// Counts what an L2 table refers to. `active`: it belongs to the active disk, whose clusters are counted by kind.
    pub fn table(&mut self, offset: u64, active: bool, check_copied: bool) -> Result<()> {
        self.check_copied = check_copied;
        let mut buf = std::mem::take(&mut self.buf);
        let read = Endless(self.walk.storage).fill(&mut buf, offset);
        if read.is_err() {
            self.push(FindingKind::TableUnreadable { l1: false });
        } else if self.shape.extended {
            let entries = buf.chunks_exact(16).map(|raw| {
                let (entry, bitmap) = raw.split_at_checked(8).unwrap_or_default();
                (be64(entry), be64(bitmap))
            });
            self.entries(entries, active);
        } else {
            self.entries(buf.chunks_exact(8).map(|raw| (be64(raw), 0)), active);
        }
        self.end_run();
        self.buf = buf;
        Ok(())
    }

    fn entries(&mut self, entries: impl Iterator<Item = (u64, u64)>, active: bool) {
        let size = self.shape.layout.cluster_bits.size();
        let mut next_contiguous = 0;
        for (index, (entry, bitmap)) in (0..).zip(entries) {
            if entry | bitmap == 0 {
                continue;
            }
            let is_sound = bitmap >> 32 & bitmap == 0 && entry & (L2_RESERVED | COMPRESSED) == 0;
            let host = entry & OFFSET_MASK;
            if is_sound && entry == self.run.expected && host < self.limit {
                self.run.clusters += 1;
                self.run.expected = entry + size;
                if active {
                    self.walked.mapped.allocated += 1;
                    // The clusters of a run are contiguous, but something else may have come between.
                    self.walked.mapped.fragmented +=
                        u64::from(next_contiguous != 0 && host != next_contiguous);
                    next_contiguous = host + size;
                }
                continue;
            }
            self.entry(index, entry, bitmap, active, &mut next_contiguous);
        }
    }

    fn entry(&mut self, index: u64, mut entry: u64, bitmap: u64, active: bool, next_contiguous: &mut u64) {
        let kind = self.shape.kind(entry);
        if kind != Kind::Compressed && entry & L2_RESERVED != 0 {
            self.push(FindingKind::L2Reserved { entry });
        }
        if kind != Kind::Compressed && entry & ZERO != 0 && !self.shape.zero_flag {
            self.push(FindingKind::ZeroInVersion2 { entry });
        }
        match kind {
            Kind::Compressed => {
                if entry & COPIED != 0 {
                    let offset = self.shape.compressed_offset(entry);
                    self.push(FindingKind::CompressedCopied { offset });
                    entry &= !COPIED;
                }
                if self.shape.data_file {
                    self.push(FindingKind::CompressedWithDataFile { index, entry });
                } else if bitmap != 0 {
                    self.push(FindingKind::CompressedWithBitmap { index, entry });
                } else {
                    self.end_run();
                    let (offset, len) = self.shape.compressed(entry);
                    self.walk.count(offset, len, &mut self.walked.found);
                    if active {
                        self.walked.mapped.allocated += 1;
                        self.walked.mapped.compressed += 1;
                        self.walked.mapped.fragmented += 1;
                    }
                }
            }
            Kind::Allocated => self.allocated(entry, bitmap, active, next_contiguous),
            Kind::Unallocated if bitmap & ALLOCATED != 0 => self.push(FindingKind::UnallocatedBitmap),
            Kind::ZeroPlain | Kind::Unallocated => {}
        }
    }

    fn allocated(&mut self, entry: u64, bitmap: u64, active: bool, next_contiguous: &mut u64) {
        let bits = self.shape.layout.cluster_bits;
        let offset = entry & OFFSET_MASK;
        if bitmap >> 32 & bitmap & ALLOCATED != 0 {
            self.push(FindingKind::SubclusterBitmap { offset });
        }
        if bits.offset_in_cluster(offset) != 0 {
            let holds_data = if self.shape.extended {
                bitmap & ALLOCATED != 0
            } else {
                entry & ZERO == 0
            };
            self.push(if holds_data {
                FindingKind::DataUnaligned { offset }
            } else {
                FindingKind::PreallocatedUnaligned { offset }
            });
        }
        if active {
            self.walked.mapped.allocated += 1;
            self.walked.mapped.fragmented += u64::from(*next_contiguous != 0 && offset != *next_contiguous);
            *next_contiguous = offset + bits.size();
        }
        self.end_run();
        if bits.offset_in_cluster(offset) == 0 && offset < self.limit && entry & L2_RESERVED == 0 {
            self.run = Run {
                entry,
                clusters: 1,
                expected: entry + bits.size(),
            };
            return;
        }
        if !self.shape.data_file {
            self.walk.count(offset, bits.size(), &mut self.walked.found);
        }
        if self.check_copied {
            self.copied(entry, 1);
        }
    }

    /// Counts the run and forgets it.
    fn end_run(&mut self) {
        let run = std::mem::take(&mut self.run);
        if run.clusters == 0 {
            return;
        }
        let first = (run.entry & OFFSET_MASK) >> self.shape.layout.cluster_bits.get();
        if !self.shape.data_file {
            self.walk
                .count_clusters(first, run.clusters, &mut self.walked.found);
        }
        if !self.check_copied {
            return;
        }
        let is_copied = run.entry & COPIED != 0;
        let held = self.walk.refcounts.map(|refcounts| &refcounts.counts);
        let sound = if self.shape.data_file {
            is_copied
        } else if is_copied {
            held.is_some_and(|counts| counts.all_one(first, run.clusters))
        } else {
            held.is_some_and(|counts| counts.none_one(first, run.clusters))
        };
        if !sound {
            self.copied(run.entry, run.clusters);
        }
    }

    /// Checks the flags of entries that begin with this one.
    fn copied(&mut self, entry: u64, clusters: u64) {
        let bits = self.shape.layout.cluster_bits;
        for n in 0..clusters {
            let entry = entry + n * bits.size();
            let refcount = if self.shape.data_file {
                Some(1)
            } else {
                self.refcount((entry & OFFSET_MASK) >> bits.get()).ok().flatten()
            };
            if let Some(refcount) = refcount
                && (refcount == 1) != (entry & COPIED != 0)
            {
                let kind = FindingKind::CopiedData { entry, refcount };
                self.walked.copied.push(self.walk.room, kind);
            }
        }
    }
}
