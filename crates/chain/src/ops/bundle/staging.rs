//! The folder that an import writes to before its files have their names: who works in it holds a lock on it, so one that nobody
//! holds was left by an import that was cut off.

use crate::forest::STAGING;
use crate::ops::script::{self, Journal, Step};
use catena_engine::{Error, ErrorKind, Result};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Such a folder, held until it is dropped, and removed then with everything in it.
#[derive(Debug)]
pub(super) struct Staging {
    folder: TempDir,
    _held: Option<File>,
}

impl Staging {
    /// A new one.
    pub fn make_in(folder: &Path) -> Result<Self> {
        let made = tempfile::Builder::new().prefix(STAGING).tempdir_in(folder);
        let made = made
            .map_err(|error| catena_storage::Error::from_io(error, "create a folder in").with_path(folder))?;
        let held = match hold(made.path()) {
            Ok(held) => Some(held),
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(ErrorKind::Locked, "somebody clears it away").with_path(made.path()));
            }
            // Where there are no locks, nobody takes it for one that was left.
            Err(_) => None,
        };
        Ok(Self {
            folder: made,
            _held: held,
        })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves it there, for the script that is to go on with it.
    pub fn keep(self) {
        let _ = self.folder.keep();
    }
}

/// Holds such a folder that was left. `None` where somebody works in it, or that cannot be known.
pub(in crate::ops) fn left(folder: &Path) -> Option<File> {
    hold(folder).ok()
}

/// What an import that was cut off before it had read all of its bundles left in its folder. Held: nobody works in it.
#[derive(Debug)]
pub struct Left {
    path: PathBuf,
    _held: File,
}

impl Left {
    /// What is left in this folder, but for what a journal is to go on with.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn find_in(folder: &Path) -> Result<Vec<Self>> {
        let mut left = left_in(folder);
        for path in script::find(&[folder])? {
            match Journal::open(&path) {
                Ok(journal) => {
                    let names: Vec<_> = { journal.script().steps.iter() }
                        .flat_map(Step::paths)
                        .filter_map(Path::file_name)
                        .collect();
                    left.retain(|left| left.path.file_name().is_none_or(|name| !names.contains(&name)));
                }
                // What it is about is not known.
                Err(error) if error.kind() == ErrorKind::Locked => left.clear(),
                // None that would be believed, or it has ended.
                Err(_) => {}
            }
        }
        Ok(left)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it away.
    ///
    /// # Errors
    /// Where something in it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).map_err(|error| {
            catena_storage::Error::from_io(error, "delete")
                .with_path(&self.path)
                .into()
        })
    }
}

fn left_in(folder: &Path) -> Vec<Left> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with(STAGING))
    });
    named
        .filter_map(|entry| {
            let path = entry.path();
            let _held = left(&path)?;
            Some(Left { path, _held })
        })
        .collect()
}

fn hold(folder: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, folder, flags, Mode::empty())?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file.into())
}
