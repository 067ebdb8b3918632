//! Where the metadata of an image lies, so that nothing else is written there.
//!
//! A damaged image may say that a guest's cluster, or a free one, is where a table is. Every write asks here first, as QEMU's overlap
//! checks do. One entry of eight bytes is kept for each cluster of metadata: as much as the L1 table takes up for its L2 tables.

use crate::bytes::StorageBytes;
use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::{Bitmap, ClusterBits, Header, L1Entry, Layout, Snapshot};
use catena_storage::Storage;
use std::collections::BTreeMap;
use std::ops::Range;

/// What of an image's metadata a cluster holds, in the order in which it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Section {
    Header = 1,
    ActiveL1 = 1 << 1,
    ActiveL2 = 1 << 2,
    RefcountTable = 1 << 3,
    RefcountBlock = 1 << 4,
    SnapshotTable = 1 << 5,
    InactiveL1 = 1 << 6,
    InactiveL2 = 1 << 7,
    BitmapDirectory = 1 << 8,
}

impl Section {
    const ALL: [Self; 9] = [
        Self::Header,
        Self::ActiveL1,
        Self::ActiveL2,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::SnapshotTable,
        Self::InactiveL1,
        Self::InactiveL2,
        Self::BitmapDirectory,
    ];

    /// QEMU's name for it, as its errors have it.
    fn name(self) -> &'static str {
        match self {
            Self::Header => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::InactiveL1 => "inactive L1 table",
            Self::InactiveL2 => "inactive L2 table",
            Self::BitmapDirectory => "bitmap directory",
        }
    }
}

/// How much is known of where metadata lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverlapChecks {
    /// What writing has in memory anyway: everything but the L2 tables of snapshots. QEMU's default.
    #[default]
    Cached,
    /// Also the L2 tables of snapshots, whose L1 tables are read when the image is opened.
    All,
}

/// Bits of an entry that are sections; the others are the cluster.
const SECTION_BITS: u32 = 9;
/// Clusters of the smallest size that the 56 bits of an offset can tell of.
const CLUSTERS: u64 = 1 << 47;
const SECTIONS: u64 = (1 << SECTION_BITS) - 1;
/// Changes that are kept apart before they become part of the others, where there are few of these.
const LEAST_CHANGES: usize = 256;

/// The cluster of an entry, and its sections.
fn parts(entry: u64) -> (u64, u16) {
    (entry >> SECTION_BITS, (entry & SECTIONS) as u16)
}

/// The sections by host cluster.
#[derive(Debug)]
pub(crate) struct Places {
    cluster_bits: ClusterBits,
    /// Sorted, a cluster and its sections in each.
    settled: Vec<u64>,
    /// What has changed of that: clusters with their sections, none where there is nothing any more.
    changes: BTreeMap<u64, u16>,
}

impl Places {
    pub(crate) fn new(cluster_bits: ClusterBits) -> Self {
        let mut this = Self {
            cluster_bits,
            settled: Vec::new(),
            changes: BTreeMap::new(),
        };
        this.add(0, 1, Section::Header);
        this
    }

    /// Everything that header, snapshots and bitmaps of an image lay claim to, and the L2 tables of `l1`. Tables that refcounts are in
    /// are added by whoever reads them.
    pub(crate) fn of(
        header: &Header,
        layout: Layout,
        l1: &[u64],
        storage: &dyn Storage,
        checks: OverlapChecks,
    ) -> Result<Self> {
        let mut this = Self::new(header.cluster_bits);
        let bytes = StorageBytes::new(storage)?;
        this.add(
            header.l1_offset,
            u64::from(header.l1_entries) * 8,
            Section::ActiveL1,
        );
        this.add_tables(layout, l1.iter().copied(), Section::ActiveL2);
        if header.snapshot_count > 0 {
            let snapshots = Snapshot::read_all(header, &bytes)?;
            let len = snapshot_table_len(header, storage)?;
            this.add(header.snapshots_offset, len, Section::SnapshotTable);
            for snapshot in snapshots {
                let len = u64::from(snapshot.l1_entries) * 8;
                this.add(snapshot.l1_offset, len, Section::InactiveL1);
                if checks == OverlapChecks::All {
                    let mut table = vec![0; usize::try_from(len).unwrap_or_default()];
                    storage.read_at(&mut table, snapshot.l1_offset)?;
                    this.add_tables(layout, be64s(&table), Section::InactiveL2);
                }
            }
        }
        if let Some(bitmaps) = header.bitmaps() {
            // Only a directory that can be read is one; otherwise the extension says nothing that could be trusted.
            if Bitmap::read_all(header, &bytes).is_ok() {
                this.add(
                    bitmaps.directory_offset,
                    bitmaps.directory_size,
                    Section::BitmapDirectory,
                );
            }
        }
        Ok(this)
    }

    fn add_tables(&mut self, layout: Layout, l1: impl Iterator<Item = u64>, section: Section) {
        // All at once: there may be millions.
        self.settle();
        let bits = layout.cluster_bits;
        for table in l1.filter_map(|entry| L1Entry(entry).offset()) {
            let clusters = self.clusters(table, bits.size());
            let entries = clusters.map(|cluster| cluster << SECTION_BITS | u64::from(section as u16));
            self.settled.extend(entries);
        }
        self.settled.sort_unstable();
        self.settled.dedup_by(|later, kept| {
            let alike = parts(*later).0 == parts(*kept).0;
            if alike {
                *kept |= *later;
            }
            alike
        });
    }

    fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let Some(rest) = len.checked_sub(1) else {
            return 0..0;
        };
        let bits = self.cluster_bits.get();
        let (first, last) = (offset >> bits, offset.saturating_add(rest) >> bits);
        // What a damaged image says lies farther on than tables can tell is nowhere.
        first.min(CLUSTERS)..last.saturating_add(1).min(CLUSTERS)
    }

    /// Metadata is there now.
    pub(crate) fn add(&mut self, offset: u64, len: u64, section: Section) {
        for cluster in self.clusters(offset, len) {
            self.change(cluster, |sections| sections | section as u16);
        }
    }

    /// It is there no longer.
    pub(crate) fn remove(&mut self, offset: u64, len: u64, section: Section) {
        for cluster in self.clusters(offset, len) {
            self.change(cluster, |sections| sections & !(section as u16));
        }
    }

    fn change(&mut self, cluster: u64, change: impl Fn(u16) -> u16) {
        let before = match self.changes.get(&cluster) {
            Some(sections) => *sections,
            None => self
                .settled_in(cluster..cluster + 1)
                .next()
                .map_or(0, |(_, found)| found),
        };
        let now = change(before);
        if now == before {
            return;
        }
        self.changes.insert(cluster, now);
        if self.changes.len() > LEAST_CHANGES.max(self.settled.len() / 8) {
            self.settle();
        }
    }

    /// Makes the changes part of the others.
    fn settle(&mut self) {
        let mut changes = std::mem::take(&mut self.changes).into_iter().peekable();
        let mut merged = Vec::with_capacity(self.settled.len() + changes.len());
        let mut put = |(cluster, sections): (u64, u16)| {
            if sections != 0 {
                merged.push(cluster << SECTION_BITS | u64::from(sections));
            }
        };
        for (cluster, sections) in self.settled.drain(..).map(parts) {
            while let Some(change) = changes.next_if(|(changed, _)| *changed < cluster) {
                put(change);
            }
            let changed = changes.next_if(|(changed, _)| *changed == cluster);
            put(changed.unwrap_or((cluster, sections)));
        }
        changes.for_each(put);
        self.settled = merged;
    }

    /// The entries of a range of clusters, but for what has changed of them.
    fn settled_in(&self, clusters: Range<u64>) -> impl Iterator<Item = (u64, u16)> + '_ {
        let start = self
            .settled
            .partition_point(|entry| entry >> SECTION_BITS < clusters.start);
        let from = self.settled.get(start..).unwrap_or_default();
        from.iter()
            .copied()
            .map(parts)
            .take_while(move |(cluster, _)| *cluster < clusters.end)
    }

    /// Whether a range may be written as the section `own`, or as guest data: an error in QEMU's words where something else is there.
    pub(crate) fn check(&self, offset: u64, len: u64, own: Option<Section>) -> Result<()> {
        let own = own.map_or(0, |section| section as u16);
        let clusters = self.clusters(offset, len);
        let settled = self
            .settled_in(clusters.clone())
            .filter(|(cluster, _)| !self.changes.contains_key(cluster))
            .map(|(_, found)| found);
        let changed = self.changes.range(clusters).map(|(_, found)| *found);
        if let Some(found) = settled
            .chain(changed)
            .map(|found| found & !own)
            .find(|found| *found != 0)
        {
            let section = Section::ALL
                .into_iter()
                .find(|section| found & *section as u16 != 0);
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "Preventing invalid write on metadata (overlaps with {})",
                    section.map_or("metadata", Section::name)
                ),
            )
            .at(offset));
        }
        Ok(())
    }
}

/// Bytes of the snapshot table, which nothing but its entries tells.
fn snapshot_table_len(header: &Header, storage: &dyn Storage) -> Result<u64> {
    const FIXED: u64 = 40;
    let mut len = 0u64;
    for _ in 0..header.snapshot_count {
        let mut fixed = [0; FIXED as usize];
        storage.read_at(&mut fixed, header.snapshots_offset.saturating_add(len))?;
        let number = |field: std::ops::Range<usize>| {
            let bytes = fixed.get(field).unwrap_or_default();
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        // Lengths of id and name; at the end that of the extra data.
        let names = number(12..14) + number(14..16);
        let extra = number(36..40);
        len = (len + FIXED + names + extra).next_multiple_of(8);
    }
    Ok(len)
}

/// Big-endian numbers, as all tables hold them.
pub(crate) fn be64s(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .map(|raw| raw.try_into().map_or(0, u64::from_be_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_may_be_written_as_itself_only() {
        let mut places = Places::new(ClusterBits::new(16).unwrap());
        places.add(0x2_0000, 0x1_0001, Section::ActiveL2);
        assert!(places.check(0x1_ffff, 1, None).is_ok());
        let error = places.check(0x1_ffff, 2, None).unwrap_err();
        assert_eq!(
            error.message(),
            "Preventing invalid write on metadata (overlaps with active L2 table)"
        );
        assert!(places.check(0x3_0000, 1, Some(Section::ActiveL2)).is_ok());
        assert!(places.check(0x3_0000, 1, Some(Section::RefcountBlock)).is_err());
        places.remove(0x2_0000, 0x1_0001, Section::ActiveL2);
        assert!(places.check(0x2_0000, 0x2_0000, None).is_ok());
        assert!(places.check(0, 1, None).is_err());
    }

    #[test]
    fn many_places_take_eight_bytes_each_whatever_the_order_they_come_in() {
        let mut places = Places::new(ClusterBits::new(9).unwrap());
        let count = 100_000u64;
        let offset = |n: u64| (n * 7919 % count * 2 + 1) << 9;
        for n in 0..count {
            places.add(offset(n), 512, Section::ActiveL2);
        }
        assert!(places.settled.len() as u64 + places.changes.len() as u64 > count);
        assert!(places.changes.len() <= places.settled.len() / 8);
        assert!(places.settled.is_sorted());
        for n in (0..count).step_by(3) {
            places.remove(offset(n), 512, Section::ActiveL2);
        }
        for n in 0..count {
            assert_eq!(places.check(offset(n), 512, None).is_ok(), n % 3 == 0);
            assert!(places.check(offset(n) + 512, 512, None).is_ok());
        }
        assert!(places.check(1 << 9, count << 10, None).is_err());
        places.add(u64::MAX - 5, 100, Section::ActiveL1);
        places.add(1 << 60, 100, Section::ActiveL1);
        assert!(places.check(1 << 60, 100, None).is_ok());
        assert!(places.check(1 << 30, 0, None).is_ok());
    }
}
