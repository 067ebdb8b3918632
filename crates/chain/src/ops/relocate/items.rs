//! What moves, and where to: every file, link and folder, with its new name.

use super::leads::{Leads, When, relative};
use super::{Destination, Request};
use crate::detect::{Start, detect, quoted};
use crate::ops::script::{FileId, find};
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Something that moves.
#[derive(Debug)]
pub(super) struct Item {
    /// Its name, free of links.
    pub old: PathBuf,
    pub new: PathBuf,
    pub file: FileId,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    /// A link, and what the new one leads to.
    Symlink(PathBuf),
    /// A file that gets another name.
    Linked,
    /// A file that is copied to another file system.
    Copied,
}

/// All that is asked for, folders before what is in them.
pub(super) fn items(request: &Request, policy: &Policy) -> Result<Vec<Item>> {
    let named = request.sources.iter().map(|path| real_name(path));
    let named: Vec<PathBuf> = named.collect::<Result<_>>()?;
    let (folder, name) = target(request, &named)?;
    let mut sources = named.clone();
    if request.chain {
        for source in &named {
            sources.extend(below(source, policy)?);
        }
    }
    let mut seen = HashSet::new();
    sources.retain(|source| seen.insert(source.clone()));
    for source in &sources {
        if let Some(outer) = sources
            .iter()
            .find(|other| *other != source && source.starts_with(other))
        {
            let message = format!("it lies in '{}', which moves too", outer.display());
            return Err(Error::new(ErrorKind::Conflict, message).with_path(source));
        }
        if folder.starts_with(source) {
            return Err(
                Error::new(ErrorKind::Conflict, "a folder cannot move into itself").with_path(source),
            );
        }
    }
    let mount = mount_of(&folder)?;
    let mut items = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let name = match (&name, source.file_name()) {
            (Some(name), _) if number == 0 => folder.join(name),
            (_, Some(own)) => folder.join(own),
            (_, None) => return Err(cannot_move(source)),
        };
        collect(source, &name, mount, &mut items)?;
    }
    check_free(&items)?;
    retarget(&mut items);
    Ok(items)
}

/// A path without links before its last part, which may be one.
pub(super) fn real_name(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::from(catena_storage::Error::from_io(error, "find").with_path(path));
    let path = std::path::absolute(path).map_err(failed)?;
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok(std::fs::canonicalize(folder).map_err(failed)?.join(name)),
        _ => std::fs::canonicalize(&path).map_err(failed),
    }
}

/// The folder that takes the files, and the name that the first of them gets there if not its own.
fn target(request: &Request, named: &[PathBuf]) -> Result<(PathBuf, Option<PathBuf>)> {
    let (path, exact) = match &request.destination {
        Destination::Place(path) => (path, false),
        Destination::Name(path) => (path, true),
    };
    let failed = |error| Error::from(catena_storage::Error::from_io(error, "find").with_path(path));
    if path.is_dir() && !exact {
        return Ok((std::fs::canonicalize(path).map_err(failed)?, None));
    }
    let wants_folder =
        path.as_os_str().as_encoded_bytes().ends_with(b"/") && !named.iter().all(|one| one.is_dir());
    if named.len() != 1 || wants_folder {
        return Err(Error::new(ErrorKind::NotFound, "it is no folder").with_path(path));
    }
    let real = real_name(path)?;
    match (real.parent(), real.file_name()) {
        (Some(folder), Some(name)) => Ok((folder.to_owned(), Some(name.into()))),
        _ => Err(Error::new(ErrorKind::Conflict, "it is no name for a file").with_path(path)),
    }
}

/// The files that an image needs.
fn below(source: &Path, policy: &Policy) -> Result<Vec<PathBuf>> {
    if source.is_dir() {
        return Ok(Vec::new());
    }
    let chain = detect(&Start::at(source, None), policy);
    chain.check_complete()?;
    let mut found = Vec::new();
    for layer in &chain.layers {
        let data_file = layer
            .data_file
            .as_ref()
            .and_then(|data| data.source.as_ref()?.path());
        for path in [layer.path(), data_file].into_iter().flatten() {
            found.push(std::fs::canonicalize(path).map_err(|error| {
                Error::from(catena_storage::Error::from_io(error, "find").with_path(path))
            })?);
        }
    }
    Ok(found)
}

/// Where something is mounted: within one such place files can have several names.
fn mount_of(path: &Path) -> Result<(u32, u32, u64)> {
    const MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x1000);
    let stat = statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS | MOUNT,
    )
    .map_err(|error| Error::from(catena_storage::Error::from_io(error.into(), "find").with_path(path)))?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
}

/// Adds a file, a link, or a folder with everything in it.
fn collect(old: &Path, new: &Path, mount: (u32, u32, u64), items: &mut Vec<Item>) -> Result<()> {
    let mut waiting = vec![(old.to_owned(), new.to_owned())];
    while let Some((old, new)) = waiting.pop() {
        let failed = |error| Error::from(catena_storage::Error::from_io(error, "look at").with_path(&old));
        let kind = old.symlink_metadata().map_err(failed)?.file_type();
        let own = mount_of(&old)?;
        let kind = if kind.is_dir() {
            if !find(&[&old])?.is_empty() {
                let message = "an operation in this folder was begun and is not finished";
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_path(&old)
                    .with_hint(format!("'catena resume {}' finishes it", quoted(&old))));
            }
            for entry in std::fs::read_dir(&old).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                let inside = old.join(&name);
                if mount_of(&inside)? != own {
                    let message = "another file system is mounted there, which does not move";
                    return Err(Error::new(ErrorKind::Unsupported, message).with_path(inside));
                }
                waiting.push((inside, new.join(&name)));
            }
            Kind::Folder
        } else if kind.is_symlink() {
            Kind::Symlink(std::fs::read_link(&old).map_err(failed)?)
        } else if kind.is_file() {
            if own == mount { Kind::Linked } else { Kind::Copied }
        } else {
            return Err(cannot_move(&old));
        };
        items.push(Item {
            file: FileId::of(&old)?,
            old,
            new,
            kind,
        });
    }
    Ok(())
}

fn cannot_move(path: &Path) -> Error {
    Error::new(ErrorKind::Unsupported, "only files, links and folders are moved").with_path(path)
}

/// Whether nothing has the new names.
fn check_free(items: &[Item]) -> Result<()> {
    let mut seen: HashMap<&Path, &Path> = HashMap::new();
    for Item { old, new, .. } in items {
        if let Some(other) = seen.insert(new, old) {
            let message = format!(
                "'{}' would have the same name as '{}'",
                old.display(),
                other.display()
            );
            return Err(Error::new(ErrorKind::Conflict, message).with_path(new));
        }
        if new.symlink_metadata().is_ok() {
            let message = if old == new {
                "it is there already"
            } else {
                "there is something of this name already"
            };
            return Err(Error::new(ErrorKind::Conflict, message).with_path(new));
        }
    }
    Ok(())
}

/// Has links that move lead to where they do now: the same file, at its new place if it moves too.
fn retarget(items: &mut [Item]) {
    let mut leads = Leads::default();
    for item in items.iter() {
        leads.add(&item.old, &item.new, None);
    }
    for item in items.iter_mut() {
        let Kind::Symlink(target) = &mut item.kind else {
            continue;
        };
        let (Ok(led), Some(folder)) = (std::fs::canonicalize(&item.old), item.new.parent()) else {
            continue;
        };
        let wanted = leads.new_of(&led).unwrap_or(&led);
        if leads.follow(&folder.join(&*target), When::After).as_deref() != Some(wanted) {
            *target = if target.is_absolute() {
                wanted.to_owned()
            } else {
                relative(folder, wanted)
            };
        }
    }
}
