//! Looking for files that are not where an image says they are.
//!
//! Only in the folder of the image itself and in those the caller names, and only what the policy lets be opened.

use super::Examination;
use crate::chain::Layer;
use crate::reference::Source;
use catena_engine::StorageBytes;
use catena_format::{Description, Format, describe, recognise};
use catena_storage::Storage;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// How deep folders are searched.
const DEPTH: usize = 8;
/// Most names that are looked at in one search.
const NAMES: usize = 100_000;
/// Most images whose headers are read in one search.
const IMAGES: usize = 1_000;

/// A file that may be the one looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// The format it is in.
    pub format: Format,
    /// Whether it is certainly the one: it has the identity that the overlay records.
    pub proven: bool,
}

/// Files by the last part of a missing file's name, beside the image that names it or in the folders to be searched.
pub(super) fn namesakes(
    examination: &Examination<'_>,
    image: Option<&Path>,
    missing: Option<&Source>,
) -> Vec<PathBuf> {
    let name = missing.and_then(Source::path).and_then(Path::file_name);
    match name.filter(|_| examination.is_full()) {
        Some(name) => files(examination, image, &|found| found == name),
        None => Vec::new(),
    }
}

/// Images that could be the missing backing image of an overlay: of its name; else, where the overlay knows its parent
/// by an identity, of that identity; else of its format and the overlay's size.
///
/// The flag tells whether they are of its name.
pub(super) fn candidates(
    examination: &Examination<'_>,
    overlay: &Layer,
    missing: Option<&Source>,
    recorded: Option<Format>,
) -> (Vec<Candidate>, bool) {
    if !examination.is_full() {
        return (Vec::new(), false);
    }
    let wanted = overlay
        .description
        .backing
        .as_ref()
        .and_then(|link| link.parent_id);
    let look = |path: PathBuf| {
        let (format, description) = look_at(examination, &path, recorded)?;
        if is_in_chain(examination, &path) {
            return None;
        }
        let proven = wanted.is_some() && description.id == wanted;
        let other = wanted.is_some() && description.id.is_some() && !proven;
        let size = description.virtual_size;
        (!other).then_some((Candidate { path, format, proven }, size))
    };
    let named: Vec<_> = namesakes(examination, overlay.path(), missing)
        .into_iter()
        .filter_map(look)
        .map(|(candidate, _)| candidate)
        .collect();
    if !named.is_empty() {
        return (named, true);
    }
    // A raw image of some size could be anything.
    let size = overlay.virtual_size();
    let others = files(examination, overlay.path(), &|_| true)
        .into_iter()
        .take(IMAGES);
    let others = others.filter_map(look).filter(|(candidate, found)| {
        candidate.proven || (wanted.is_none() && candidate.format != Format::Raw && *found == size)
    });
    (others.map(|(candidate, _)| candidate).collect(), false)
}

fn is_in_chain(examination: &Examination<'_>, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(found) = std::fs::metadata(path) else {
        return false;
    };
    let object = (found.dev(), found.ino());
    let mut files = examination
        .chain
        .layers
        .iter()
        .filter_map(|layer| layer.file.as_ref());
    files.any(|file| file.identity.object() == object)
}

/// The format of a file and what it says of itself, where it could be the one recorded.
fn look_at(
    examination: &Examination<'_>,
    path: &Path,
    recorded: Option<Format>,
) -> Option<(Format, Description)> {
    let file = examination.options.policy.open(path).ok()?;
    let bytes = StorageBytes::new(&file).ok()?;
    let found = recognise::recognise(&bytes).ok()?;
    let format = match (recorded, found.as_slice()) {
        (Some(Format::Raw), _) => Format::Raw,
        (Some(recorded), found) => found.iter().copied().find(|format| *format == recorded)?,
        (None, []) => Format::Raw,
        (None, [one]) => *one,
        (None, _) => return None,
    };
    let mut description = describe::describe(format, &bytes).ok()?;
    if description.virtual_size.is_none() {
        description.virtual_size = file.len().ok();
    }
    Some((format, description))
}

/// Regular files whose name passes, without those reached by links. In the image's own folders, then in those to be
/// searched and all below them.
fn files(
    examination: &Examination<'_>,
    image: Option<&Path>,
    passes: &dyn Fn(&OsStr) -> bool,
) -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    let mut left = NAMES;
    let mut own = Vec::new();
    if let Some(path) = image {
        own.extend(path.parent().map(Path::to_owned));
        // An image that is reached by a link may have been moved there with what it stands on.
        own.extend(
            std::fs::canonicalize(path)
                .ok()
                .and_then(|real| Some(real.parent()?.to_owned())),
        );
    }
    for folder in own {
        search(&folder, 0, passes, &mut left, &mut found);
    }
    for folder in &examination.options.search {
        search(folder, DEPTH, passes, &mut left, &mut found);
    }
    found.into_values().collect()
}

/// One folder. Files are kept by their real names, so that none comes twice.
fn search(
    folder: &Path,
    depth: usize,
    passes: &dyn Fn(&OsStr) -> bool,
    left: &mut usize,
    found: &mut BTreeMap<PathBuf, PathBuf>,
) {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let mut entries: Vec<_> = entries.flatten().take(*left).collect();
    *left = left.saturating_sub(entries.len());
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = entry.path();
        if kind.is_dir() && depth > 0 {
            search(&path, depth - 1, passes, left, found);
        } else if kind.is_file() && passes(&entry.file_name()) {
            let real = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            found.entry(real).or_insert(path);
        }
    }
}
