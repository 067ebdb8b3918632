//! Whether QEMU takes a qcow2 image for one whose clusters were allocated ahead, and then asks the file system which of them are
//! holes.
//!
//! Its rule: so many clusters have a refcount that a tenth more, or two more, than the file's blocks could hold are in use.

use catena::Layer;
use catena_engine::StorageBytes;
use catena_format::Bytes;
use catena_format::qcow2::refcount::{RefcountWidth, block_offset};
use catena_storage::Storage;
use std::os::unix::fs::MetadataExt;

/// Whether the image looks preallocated.
pub fn seems_so(layer: &Layer) -> bool {
    examine(layer).unwrap_or_default()
}

fn examine(layer: &Layer) -> Option<bool> {
    let header = layer.header.as_ref()?;
    let file = &layer.file.as_ref()?.storage;
    let bytes = StorageBytes::new(file).ok()?;
    let cluster = header.cluster_bits.size();
    let clusters = file.len().ok()? / cluster;
    let blocks = file.path()?.metadata().ok()?.blocks();
    let real = blocks * 512 / cluster;
    let threshold = (real * 10 / 9).max(real + 2);
    if clusters < threshold {
        return Some(false);
    }
    let width = RefcountWidth::of(header);
    let per_block = width.entries_per_block(header.cluster_bits);
    let (mut counted, mut index) = (0_u64, 0_u64);
    while index < clusters && counted < threshold {
        let number = index / per_block;
        let end = clusters.min((number + 1).saturating_mul(per_block));
        let entry_at = header.refcount_table_offset.saturating_add(number * 8);
        let in_table = number < u64::from(header.refcount_table_clusters) * cluster / 8;
        let entry = in_table.then(|| bytes.read_exact(entry_at, 8).ok()).flatten();
        let entry = entry
            .and_then(|raw| raw.try_into().ok())
            .map_or(0, u64::from_be_bytes);
        if let Ok(Some(offset)) = block_offset(entry, header.cluster_bits) {
            let block = bytes.read_some(offset, usize::try_from(cluster).ok()?).ok()?;
            while index < end && counted < threshold {
                let refcount = width.get(&block, index % per_block).unwrap_or_default();
                counted += u64::from(refcount > 0);
                index += 1;
            }
        } else {
            index = end;
        }
    }
    Some(counted >= threshold)
}
