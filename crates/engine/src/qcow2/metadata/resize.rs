//! Shrinking: what lies past the new end is discarded.

use super::beside::Beside;
use super::{bitmaps, snapshot, tables};
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::check::CheckOptions;
use crate::qcow2::check::table::Shape;
use catena_format::qcow2::Version;
use catena_storage::Storage;

/// Makes the disk smaller. What it holds past its new end is gone, but for what internal snapshots have of it.
///
/// # Errors
/// [`ErrorKind::Conflict`] where the new size is larger; [`ErrorKind::Unsupported`] for a version 2 image with
/// snapshots, [`ErrorKind::Conflict`] with a bitmap that cannot be used; [`ErrorKind::Corrupt`] where the image is to be repaired first.
pub fn shrink(storage: &dyn Storage, virtual_size: u64, options: &CheckOptions<'_>) -> Result<()> {
    let mut beside = Beside::begin(storage, options)?;
    let mut roots = beside.old.clone();
    let header = &roots.header;
    if virtual_size > header.virtual_size {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the new size is larger than the old one",
        ));
    }
    if header.version == Version::V2 && header.snapshot_count > 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "Can't resize a v2 image which has snapshots",
        ));
    }
    bitmaps::resize(&mut beside, &mut roots, virtual_size)?;
    let header = &roots.header;
    let shape = Shape::of(header);
    let mut l1 = tables::read_l1(storage, header.l1_offset, header.l1_entries)?;
    let entries = usize::try_from(shape.layout.l1_entries(virtual_size)).unwrap_or(usize::MAX);
    l1.truncate(entries);
    // The last table that stays may hold entries past the new end.
    let clusters = shape.layout.cluster_bits.clusters(virtual_size);
    let last = (entries.saturating_sub(1), clusters % shape.layout.l2_entries());
    if last.1 > 0 {
        let kept = usize::try_from(last.1 * shape.layout.l2_entry_size()).unwrap_or(usize::MAX);
        tables::rewrite(&mut beside, &mut l1, |index, table| {
            let gone = table
                .get_mut(kept..)
                .filter(|_| index == last.0)
                .unwrap_or_default();
            let changes = gone.iter().any(|byte| *byte != 0);
            gone.fill(0);
            Ok(changes)
        })?;
    }
    roots.header.virtual_size = virtual_size;
    let (roots, counts) = snapshot::activate(&mut beside, &mut roots, shape, l1, None)?;
    beside.commit(roots, &counts)
}
