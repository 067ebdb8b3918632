//! `--bitmaps`: the source's persistent bitmaps in the target.

use crate::qemu_img::open::Opened;
use crate::qemu_img::program::{Program, Result, error};
use crate::qemu_img::target::Target;
use catena_engine::qcow2::bitmap::{BitmapError, Bitmaps, NewBitmap, stored};
use catena_format::qcow2::{Bitmap, Header, Version};
use catena_storage::LocalFile;

/// The header of an image that can have bitmaps, and its file.
fn home(opened: &Opened) -> Option<(&Header, &LocalFile)> {
    let layer = opened.chain.active()?;
    let header = layer
        .header
        .as_ref()
        .filter(|header| header.version > Version::V2)?;
    Some((header, &layer.file.as_ref()?.storage))
}

/// The bitmaps of the source.
fn list(header: &Header, file: &LocalFile) -> Result<Vec<Bitmap>> {
    stored::list(header, file).map_err(|failed| error(failed.full()))
}

/// Whether the source's bitmaps can be read.
pub fn check(sources: &[Opened], skip_broken: bool) -> Result<()> {
    let [source] = sources else {
        return Err(error("Copying bitmaps only possible with single source"));
    };
    let Some((header, file)) = home(source) else {
        return Err(error("Source lacks bitmap support"));
    };
    // QEMU asks the last one first.
    let broken = list(header, file)?.into_iter().rfind(|bitmap| bitmap.in_use);
    match broken {
        Some(bitmap) if !skip_broken => Err(error(format!(
            "Cannot copy inconsistent bitmap '{}'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
            bitmap.name
        ))),
        _ => Ok(()),
    }
}

/// Whether the target can have bitmaps.
pub fn are_possible(target: &Opened) -> bool {
    home(target).is_some()
}

/// Copies them.
pub fn copy(program: &Program, sources: &[Opened], target: &Target) -> Result<()> {
    let (Some((header, file)), Some(disk)) = (sources.first().and_then(home), &target.qcow2) else {
        return Ok(());
    };
    let failed = |failed: catena::Error| error(failed.full());
    let mut bitmaps = Bitmaps::read(&**disk).map_err(failed)?;
    let (broken, whole): (Vec<_>, Vec<_>) = list(header, file)?.into_iter().partition(|bitmap| bitmap.in_use);
    for bitmap in broken.iter().rev() {
        program.say(format!("warning: Skipping inconsistent bitmap '{}'", bitmap.name));
    }
    for bitmap in whole {
        let name = bitmap.name.clone();
        let new = NewBitmap {
            name: name.clone(),
            granularity: Some(bitmap.granularity),
            enabled: bitmap.auto,
        };
        let refused = |doing: &str, why: &BitmapError| {
            let why = match why {
                BitmapError::Exists(name) => format!("Bitmap already exists: {name}"),
                BitmapError::DifferentSizes { target, from } => format!(
                    "Bitmaps are of different sizes (destination size is {target}, source size is {from}) and can't be merged"
                ),
                other => other.to_string(),
            };
            error(format!("Failed to {doing} bitmap {name}: {why}"))
        };
        bitmaps.add(&new).map_err(|why| refused("create", &why))?;
        let bits = stored::load(&bitmap, header, file).map_err(failed)?;
        bitmaps
            .merge(&name, &bits, &**disk)
            .map_err(|why| refused("populate", &why))?;
    }
    bitmaps.store(&**disk).map_err(failed)
}
