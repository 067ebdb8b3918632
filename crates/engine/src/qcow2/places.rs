//! Where the metadata of an image lies, so that nothing else is written there.
//!
//! A damaged image may say that a guest's cluster, or a free one, is where a table is. Every write asks here first, as QEMU's overlap
//! checks do. One entry is kept for each cluster of metadata.

use crate::bytes::StorageBytes;
use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::{Bitmap, ClusterBits, Header, L1Entry, Layout, Snapshot};
use catena_storage::Storage;
use std::collections::BTreeMap;

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

/// The sections by host cluster.
#[derive(Debug)]
pub(crate) struct Places {
    cluster_bits: ClusterBits,
    sections: BTreeMap<u64, u16>,
}

impl Places {
    pub(crate) fn new(cluster_bits: ClusterBits) -> Self {
        let mut this = Self {
            cluster_bits,
            sections: BTreeMap::new(),
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
        for entry in l1 {
            if let Some(table) = L1Entry(entry).offset() {
                self.add(table, layout.cluster_bits.size(), section);
            }
        }
    }

    fn clusters(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let bits = self.cluster_bits.get();
        match len.checked_sub(1) {
            Some(rest) => offset >> bits..(offset.saturating_add(rest) >> bits).saturating_add(1),
            None => 0..0,
        }
    }

    /// Metadata is there now.
    pub(crate) fn add(&mut self, offset: u64, len: u64, section: Section) {
        for cluster in self.clusters(offset, len) {
            *self.sections.entry(cluster).or_default() |= section as u16;
        }
    }

    /// It is there no longer.
    pub(crate) fn remove(&mut self, offset: u64, len: u64, section: Section) {
        for cluster in self.clusters(offset, len) {
            if let Some(sections) = self.sections.get_mut(&cluster) {
                *sections &= !(section as u16);
                if *sections == 0 {
                    self.sections.remove(&cluster);
                }
            }
        }
    }

    /// Whether a range may be written as the section `own`, or as guest data: an error in QEMU's words where something else is there.
    pub(crate) fn check(&self, offset: u64, len: u64, own: Option<Section>) -> Result<()> {
        let own = own.map_or(0, |section| section as u16);
        for found in self
            .sections
            .range(self.clusters(offset, len))
            .map(|(_, found)| found & !own)
        {
            if found == 0 {
                continue;
            }
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
}
