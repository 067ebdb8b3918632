//! What QEMU says and mends when it opens a qcow2 image, before anything is asked of it.

use super::check::print_lines;
use super::directory;
use catena_engine::StorageBytes;
use catena_engine::qcow2::check::CheckOptions;
use catena_engine::qcow2::metadata::{Repair, repair};
use catena_format::qcow2::{Autoclear, Header, Incompatible, Version};
use catena_storage::{LocalFile, Storage};
use std::io::Write;

/// Where a header has its autoclear bits.
const AUTOCLEAR_AT: u64 = 88;

/// Finds fault with bitmaps, and tells of those that do not count; and where the image is to be written, takes back the promises of features that nobody here
/// keeps, and mends an image that was not closed properly unless a check is to do that. An error is QEMU's sentence.
pub fn settle(file: &LocalFile, write: bool, check: bool) -> Result<(), String> {
    // What is wrong with a header is said by others.
    let Ok(bytes) = StorageBytes::new(file) else {
        return Ok(());
    };
    let Ok(header) = Header::read(&bytes) else {
        return Ok(());
    };
    if header.bitmaps().is_some() && !header.autoclear.contains(Autoclear::BITMAPS) {
        warn_of_bitmaps(header.version);
    } else if let Some(text) = directory::fault(&header, &bytes) {
        return Err(text);
    }
    if write && header.version == Version::V3 {
        let kept = header.autoclear.intersection(Autoclear::KNOWN);
        if kept != header.autoclear {
            file.write_all_at(&kept.bits().to_be_bytes(), AUTOCLEAR_AT)
                .and_then(|()| file.flush())
                .map_err(|why| {
                    format!(
                        "Could not update qcow2 header: {}",
                        super::errno::word(&why.into())
                    )
                })?;
        }
    }
    if write && !check && header.incompatible.contains(Incompatible::DIRTY) {
        let could_not = |why: &str| format!("Could not repair dirty image: {why}");
        let repaired = repair(file, Repair::All, &CheckOptions::default())
            .map_err(|why| could_not(&super::errno::word(&why)))?;
        print_lines(&repaired.report, true);
        if repaired.failed {
            return Err(could_not("Input/output error"));
        }
    }
    Ok(())
}

fn warn_of_bitmaps(version: Version) {
    let why = match version {
        Version::V2 => {
            "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent"
        }
        Version::V3 => {
            "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"
        }
    };
    // Without a line's end, as QEMU has it. When standard error is gone there is nobody to tell.
    let _ = write!(
        std::io::stderr(),
        "qemu-img: warning: {why}\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
    );
}
