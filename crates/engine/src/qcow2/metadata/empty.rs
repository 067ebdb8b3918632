//! Emptying: the image holds nothing any more, and what it stands on shows.

use super::beside::Beside;
use super::snapshot;
use crate::error::Result;
use crate::qcow2::check::CheckOptions;
use crate::qcow2::check::table::Shape;
use catena_storage::Storage;

/// Makes every guest cluster of the active disk unallocated. Snapshots and bitmaps stay; where there are none, the file is left with
/// nothing but the tables of an empty image.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] where the image is to be repaired first, and where the store fails.
pub fn empty(storage: &dyn Storage, options: &CheckOptions<'_>) -> Result<()> {
    let compact = clear(storage, options)?;
    if compact {
        // The tables were put behind what they replaced, of which nothing is left: now there is room in front.
        clear(storage, options)?;
    }
    Ok(())
}

/// Tells whether nothing else is in the file.
fn clear(storage: &dyn Storage, options: &CheckOptions<'_>) -> Result<bool> {
    let mut beside = Beside::begin(storage, options)?;
    let mut roots = beside.old.clone();
    let shape = Shape::of(&roots.header);
    let entries = usize::try_from(roots.header.l1_entries).unwrap_or_default();
    let alone = roots.snapshots.is_empty() && roots.bitmaps.is_empty();
    let (roots, counts) = snapshot::activate(&mut beside, &mut roots, shape, vec![0; entries], None)?;
    beside.commit(roots, &counts)?;
    Ok(alone)
}
