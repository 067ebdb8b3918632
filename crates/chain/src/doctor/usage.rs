//! Who has the images open.

use super::{Code, Cure, Examination, Severity};
use crate::chain::Layer;
use catena_storage::{Hold, Holder, Permission, holders_of};
use std::path::Path;

pub(super) fn check(examination: &mut Examination<'_>) {
    if !examination.is_full() {
        return;
    }
    let layers = examination.chain.layers.iter().enumerate();
    let files: Vec<_> = layers
        .flat_map(|(number, layer)| files(layer).map(move |path| (number, path)))
        .collect();
    let paths: Vec<_> = files.iter().map(|(_, path)| *path).collect();
    // Who cannot be asked about is nobody.
    let all = holders_of(&paths).unwrap_or_default();
    for ((number, path), users) in files.into_iter().zip(all) {
        let (writers, readers): (Vec<_>, Vec<_>) = users.into_iter().partition(writes);
        found(examination, number, path, &writers, &readers);
    }
}

/// The files of a layer that are open.
fn files(layer: &Layer) -> impl Iterator<Item = &Path> {
    let data_file = layer.data_file.as_ref().filter(|file| file.file.is_ok());
    let data_file = data_file.and_then(|file| file.source.as_ref()?.path());
    let image = layer.file.as_ref().and_then(|_| layer.path());
    image.into_iter().chain(data_file)
}

fn writes(holder: &Holder) -> bool {
    match holder.hold {
        Hold::Writing => true,
        Hold::Locked(permissions) => permissions.held.contains(Permission::WRITE),
        _ => false,
    }
}

fn found(
    examination: &mut Examination<'_>,
    number: usize,
    path: &Path,
    writers: &[Holder],
    readers: &[Holder],
) {
    let names = |holders: &[Holder]| {
        let names: Vec<_> = holders.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    let at = || (number, path.display().to_string());
    let is_active = examination.first + number == 0;
    if !writers.is_empty() && !is_active {
        examination.find(
            Code::BackingWritten,
            Severity::Error,
            at(),
            format!("the backing image is open for writing: {}", names(writers)),
            "unless that is a merge into it, everything that builds on it is being damaged",
            Cure::advice("stop whoever writes, unless it is a block job of this guest ('virsh blockjob')"),
        );
    } else if writers.len() > 1 {
        examination.find(
            Code::InUse,
            Severity::Error,
            at(),
            format!(
                "several processes have the image open for writing: {}",
                names(writers)
            ),
            "they overwrite each other's data and tables",
            Cure::advice("stop all but one at once, then check the image"),
        );
    } else if !writers.is_empty() {
        examination.find(
            Code::InUse,
            Severity::Note,
            at(),
            format!("the image is in use: {}", names(writers)),
            "what was read of it may be out of date, and nobody else can write to it",
            Cure::none(),
        );
    } else if !readers.is_empty() {
        examination.find(
            Code::InUse,
            Severity::Note,
            at(),
            format!("the image is being read: {}", names(readers)),
            "nobody can write to it meanwhile",
            Cure::none(),
        );
    }
}
