//! Persistent bitmaps of a disk that gets another size.

use super::beside::Beside;
use crate::error::Result;
use crate::qcow2::bitmap::edit::{check_usable, set_extension};
use crate::qcow2::bitmap::stored;
use crate::qcow2::check::roots::Roots;
use catena_format::qcow2::BitmapsExtension;
use catena_format::qcow2::bitmap::{Bitmap, BitmapCluster, table_entries};

/// Writes the bitmaps as those of a disk of another size, and makes the roots refer to them. What is cut off is forgotten.
///
/// # Errors
/// Where a bitmap cannot be used: such a disk is not resized, as QEMU has it.
pub(super) fn resize(beside: &mut Beside<'_>, roots: &mut Roots, size: u64) -> Result<()> {
    roots.bitmaps.iter().try_for_each(check_usable)?;
    if roots.bitmaps.is_empty() {
        return Ok(());
    }
    let cluster_bits = beside.old.header.cluster_bits;
    let mut resized = roots.bitmaps.clone();
    for bitmap in &mut resized {
        let mut bits = stored::load(bitmap, &beside.old.header, beside.storage)?;
        bits.resize(size);
        let entries = table_entries(size, bitmap.granularity, cluster_bits);
        let mut table = vec![0; usize::try_from(entries * 8).unwrap_or_default()];
        for cluster in bits.clusters(cluster_bits.size()) {
            let offset = beside.put(&bits.cluster(cluster, cluster_bits.size()))?;
            let place = usize::try_from(cluster).unwrap_or(usize::MAX);
            if let Some(entry) = table.chunks_exact_mut(8).nth(place) {
                entry.copy_from_slice(&BitmapCluster::At(offset).encode().to_be_bytes());
            }
        }
        bitmap.table_offset = beside.put(&table)?;
        bitmap.table_entries = u32::try_from(entries).unwrap_or(u32::MAX);
    }
    let directory = Bitmap::encode_all(&resized)?;
    let extension = BitmapsExtension {
        count: u32::try_from(resized.len()).unwrap_or(u32::MAX),
        directory_size: directory.len() as u64,
        directory_offset: beside.put(&directory)?,
    };
    set_extension(&mut roots.header, Some(extension));
    roots.bitmaps = resized;
    Ok(())
}
