//! Who else stands on an image: overlays that would show their guests something else if it were written.
//!
//! No image records its overlays, so they are looked for: in the image's own folder and in those the caller names. An overlay
//! elsewhere is not found; nobody can find it without knowing where to look.

use crate::chain::Layer;
use crate::reference::{Reading, Reference, Source};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::{Format, describe, recognise};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most names that are looked at.
const NAMES: usize = 100_000;
/// Children that an error names.
const NAMED: usize = 4;

/// Where other children of a base are looked for, and what is done about them.
#[derive(Clone, Debug, Default)]
pub struct OtherChildren {
    /// Folders beside the base's own.
    pub folders: Vec<PathBuf>,
    /// Whether what they show may change: the caller answers for it.
    pub forced: bool,
}

/// An object of this host: device and inode.
type Object = (u64, u64);

impl OtherChildren {
    /// Refuses if anybody but `own` stands on one of these layers.
    ///
    /// `doing` completes "it would change what … show": the error names the children.
    pub(super) fn check(&self, layers: &[&Layer], own: &[Layer]) -> Result<()> {
        if self.forced {
            return Ok(());
        }
        let objects = |layers: &mut dyn Iterator<Item = &Layer>| -> Vec<Object> {
            layers
                .filter_map(|layer| Some(layer.file.as_ref()?.identity.object()))
                .collect()
        };
        let wanted: HashMap<Object, &Layer> = layers
            .iter()
            .filter_map(|layer| Some((layer.file.as_ref()?.identity.object(), *layer)))
            .collect();
        let own: BTreeSet<Object> = objects(&mut own.iter()).into_iter().collect();
        // By their real names, so that none is searched twice; as they are called, for messages.
        let mut folders: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        let mut search = |folder: PathBuf| {
            let real = std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone());
            folders.entry(real).or_insert(folder);
        };
        for path in layers.iter().filter_map(|layer| layer.path()) {
            search(folder_of(path));
            if let Ok(real) = std::fs::canonicalize(path) {
                search(folder_of(&real));
            }
        }
        self.folders.iter().cloned().for_each(search);
        let mut seen = own;
        let mut found: Vec<(PathBuf, &Layer)> = Vec::new();
        let mut left = NAMES;
        for folder in folders.values() {
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let Some(rest) = left.checked_sub(1) else { break };
                left = rest;
                let path = entry.path();
                let Ok(metadata) = std::fs::metadata(&path) else {
                    continue;
                };
                let kind = metadata.file_type();
                if !(kind.is_file() || kind.is_block_device())
                    || !seen.insert((metadata.dev(), metadata.ino()))
                {
                    continue;
                }
                if let Some(base) = backing_object(&path).and_then(|object| wanted.get(&object)) {
                    found.push((path, *base));
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        refuse(&found)
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The object that an image names as its backing image, where it names one of this host.
fn backing_object(path: &Path) -> Option<Object> {
    // A file of the folder is only looked at for its header; nothing that it names is opened.
    let file = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None)).ok()?;
    let bytes = StorageBytes::new(&file).ok()?;
    let format = recognise::probe_as_qemu(&bytes, path.to_str()).ok()?;
    if format == Format::Raw {
        return None;
    }
    let backing = describe::describe(format, &bytes).ok()?.backing?;
    let reference = Reference::parse(&backing.name, Reading::Catena).ok()?;
    let source = reference.resolve(&Source::file(path));
    let metadata = std::fs::metadata(source.path()?).ok()?;
    let kind = metadata.file_type();
    // A device is its number, whichever node leads to it.
    Some(if kind.is_block_device() {
        (metadata.rdev(), 0)
    } else {
        (metadata.dev(), metadata.ino())
    })
}

fn refuse(found: &[(PathBuf, &Layer)]) -> Result<()> {
    let Some((_, base)) = found.first() else {
        return Ok(());
    };
    let mut names: Vec<_> = found
        .iter()
        .take(NAMED)
        .map(|(path, _)| format!("'{}'", path.display()))
        .collect();
    if found.len() > NAMED {
        names.push(format!("{} more", found.len() - NAMED));
    }
    Err(Error::new(
        ErrorKind::ViewWouldChange,
        format!(
            "other overlays stand on it, and would show their guests something else: {}",
            names.join(", ")
        ),
    )
    .with_path(base.name())
    .with_hint(
        "flatten them first, so that they hold everything themselves; or, if what they show no longer matters, add --force",
    ))
}
