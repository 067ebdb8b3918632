//! The bitmaps of an image as they are on disk. Reads only.

use super::Run;
use super::bits::Bits;
use crate::bytes::StorageBytes;
use crate::error::{Error, ErrorKind, Result};
use catena_format::limits;
use catena_format::qcow2::bitmap::{self, Bitmap, BitmapCluster};
use catena_format::qcow2::{Autoclear, ClusterBits, Header};
use catena_storage::Storage;

/// Table entries that are read at once.
const PIECE: u64 = 1 << 13;

/// The bitmaps that count: none where a writer that knows nothing of bitmaps has changed the image, as QEMU has it.
///
/// # Errors
/// Where the directory cannot be read, or contradicts the image.
pub fn list(header: &Header, storage: &dyn Storage) -> Result<Vec<Bitmap>> {
    if !header.autoclear.contains(Autoclear::BITMAPS) {
        return Ok(Vec::new());
    }
    let bitmaps = Bitmap::read_all(header, &StorageBytes::new(storage)?)?;
    for bitmap in &bitmaps {
        check(bitmap, header)?;
    }
    Ok(bitmaps)
}

/// Whether a bitmap can be one of this image. One that is in use may be of another size.
fn check(bitmap: &Bitmap, header: &Header) -> Result<()> {
    let bits = header.cluster_bits;
    let entries = u64::from(bitmap.table_entries);
    let sound = bits.offset_in_cluster(bitmap.table_offset) == 0
        && (entries == 0 || bitmap.table_offset != 0)
        && bitmap.table_entries <= limits::QCOW2_BITMAP_TABLE_ENTRIES
        && entries.saturating_mul(bits.size()) <= limits::QCOW2_BITMAP_BYTES.max(bits.size());
    let fits =
        bitmap.in_use || entries == bitmap::table_entries(header.virtual_size, bitmap.granularity, bits);
    match sound && fits {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Corrupt,
            format!("bitmap '{}' has a table that cannot be its own", bitmap.name),
        )
        .at(bitmap.table_offset)),
    }
}

/// Calls `each` with the index and the meaning of each entry of a bitmap's table, in order.
///
/// # Errors
/// Where the table cannot be read or makes no sense, and those of `each`.
pub fn for_each_cluster(
    bitmap: &Bitmap,
    cluster_bits: ClusterBits,
    storage: &dyn Storage,
    mut each: impl FnMut(u64, BitmapCluster) -> Result<()>,
) -> Result<()> {
    let mut index = 0;
    let entries = u64::from(bitmap.table_entries);
    while index < entries {
        let count = PIECE.min(entries - index);
        let offset = bitmap.table_offset.saturating_add(index * 8);
        let mut piece = vec![0; usize::try_from(count * 8).unwrap_or_default()];
        if storage.read_at(&mut piece, offset)? < piece.len() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the table of bitmap '{}' ends before its length", bitmap.name),
            )
            .at(offset));
        }
        for raw in piece.chunks_exact(8) {
            let entry = raw.try_into().map_or(0, u64::from_be_bytes);
            let cluster = BitmapCluster::decode(entry, cluster_bits)
                .map_err(|error| error.at(bitmap.table_offset.saturating_add(index * 8)))?;
            each(index, cluster)?;
            index += 1;
        }
    }
    Ok(())
}

/// The bits of a bitmap. One that is in use has none to be believed: the caller does not ask.
///
/// # Errors
/// Where they cannot be read.
pub fn load(bitmap: &Bitmap, header: &Header, storage: &dyn Storage) -> Result<Bits> {
    let size = header.cluster_bits.size();
    let mut bits = Bits::new(header.virtual_size, bitmap.granularity);
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    for_each_cluster(bitmap, header.cluster_bits, storage, |index, cluster| {
        match cluster {
            BitmapCluster::Zeros => {}
            BitmapCluster::Ones => bits.set_cluster(index, size),
            BitmapCluster::At(offset) => {
                if storage.read_at(&mut bytes, offset)? < bytes.len() {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("bitmap '{}' ends before its length", bitmap.name),
                    )
                    .at(offset));
                }
                bits.load_cluster(index, &bytes);
            }
        }
        Ok(())
    })?;
    Ok(bits)
}

/// The clusters that a bitmap takes up: its table first.
///
/// # Errors
/// Where its table cannot be read.
pub fn clusters(bitmap: &Bitmap, cluster_bits: ClusterBits, storage: &dyn Storage) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let table = cluster_bits.clusters(u64::from(bitmap.table_entries) * 8);
    if table > 0 {
        runs.push(Run {
            offset: bitmap.table_offset,
            clusters: table,
        });
    }
    for_each_cluster(bitmap, cluster_bits, storage, |_, cluster| {
        if let BitmapCluster::At(offset) = cluster {
            let end = |run: &Run| run.offset.checked_add(run.clusters * cluster_bits.size());
            match runs.last_mut() {
                Some(run) if end(run) == Some(offset) => run.clusters += 1,
                _ => runs.push(Run { offset, clusters: 1 }),
            }
        }
        Ok(())
    })?;
    Ok(runs)
}
