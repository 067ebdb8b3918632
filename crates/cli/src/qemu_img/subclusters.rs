//! Where clusters lie of which only a part is allocated: QEMU's map tells that also for the parts that are not.

use catena::Layer;
use catena_engine::StorageBytes;
use catena_format::Bytes;
use catena_format::qcow2::{Cluster, L1Entry, Layout};
use catena_storage::LocalFile;

/// The tables of an image with extended L2 entries.
pub struct Subclusters {
    file: LocalFile,
    layout: Layout,
    l1_offset: u64,
    l1_entries: u64,
}

impl Subclusters {
    /// Those of a layer, if it has any.
    pub fn of(layer: &Layer) -> Option<Self> {
        let header = layer.header.as_ref().filter(|header| header.has_extended_l2())?;
        Some(Self {
            file: layer.file.as_ref()?.storage.clone(),
            layout: Layout::of(header),
            l1_offset: header.l1_offset,
            l1_entries: header.l1_entries.into(),
        })
    }

    /// How far the answer for an unallocated address holds, at most to `end`, and where in the file its place would be.
    pub fn place(&self, at: u64, end: u64) -> (u64, Option<u64>) {
        let coverage = self.layout.l2_coverage();
        let index = at / coverage;
        let table = (index < self.l1_entries)
            .then(|| self.number(self.l1_offset.saturating_add(index * 8)))
            .and_then(|entry| self.layout.l2_offset(L1Entry(entry)).ok().flatten());
        let Some(table) = table else {
            return ((index + 1).saturating_mul(coverage).min(end), None);
        };
        let bits = self.layout.cluster_bits;
        let cluster_end = (at - bits.offset_in_cluster(at))
            .saturating_add(bits.size())
            .min(end);
        let entry_at = table.saturating_add(((at % coverage) >> bits.get()) * self.layout.l2_entry_size());
        let cluster = self
            .layout
            .cluster(self.number(entry_at), self.number(entry_at + 8));
        let host = match cluster {
            Ok(Cluster::Subclusters { host, .. }) => host,
            _ => None,
        };
        (cluster_end, host.map(|host| host + bits.offset_in_cluster(at)))
    }

    fn number(&self, offset: u64) -> u64 {
        let bytes = StorageBytes::new(&self.file).ok();
        let raw = bytes.and_then(|bytes| bytes.read_exact(offset, 8).ok());
        raw.and_then(|raw| raw.try_into().ok())
            .map_or(0, u64::from_be_bytes)
    }
}
