//! Complete files that get their names together, out of a folder in which they were made: all of them or none.

use super::files::{self, FileId, Seen};
use crate::open::in_use;
use crate::ops::observer::Observer;
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A file that was made for a place, and is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Where it was made.
    from: PathBuf,
    /// Where it goes.
    to: PathBuf,
    /// What it is.
    file: Seen,
}

impl Made {
    /// A file as it is now.
    ///
    /// # Errors
    /// Where it cannot be found.
    pub fn find(from: PathBuf, to: PathBuf) -> Result<Self> {
        let file = Seen::of(&from)?;
        Ok(Self { from, to, file })
    }

    /// Where it goes.
    pub(super) fn to(&self) -> &Path {
        &self.to
    }

    fn has_its_name(&self) -> Result<bool> {
        Ok(FileId::find(&self.to)? == Some(self.file.file))
    }

    fn forget_old_name(&self) -> Result<()> {
        match FileId::find(&self.from)? {
            Some(found) if found == self.file.file => files::remove(&self.from),
            _ => Ok(()),
        }
    }

    /// Holds it, if nobody has written to it since.
    fn check_untouched(&self) -> Result<LocalFile> {
        let file = LocalFile::open(&self.to, &OpenOptions::new().lock(LockMode::Write))
            .map_err(|error| in_use(error.into(), "stop it first: an image in use is not taken back"))?;
        if Seen::of_open(file.opened()?, &self.to)? == self.file {
            return Ok(file);
        }
        Err(
            Error::new(ErrorKind::Conflict, "it was written since it was made")
                .with_path(&self.to)
                .with_hint("to take it back would lose that; 'catena resume' without --undo keeps it"),
        )
    }
}

/// Gives the files their names, those first that others stand on; then the names in the folder go, and the folder. A file has one
/// of its names always: a medium that loses its power within a change of both may know neither.
pub(super) fn make(staging: &Path, files: &[Made], observer: &dyn Observer) -> Result<()> {
    for made in files {
        observer.check()?;
        if made.has_its_name()? {
            continue;
        }
        if FileId::find(&made.from)? != Some(made.file.file) {
            return Err(files::another(&made.from));
        }
        // There are file systems without links.
        files::link(&made.from, &made.to).or_else(|_| files::rename_new(&made.from, &made.to))?;
    }
    observer.check()?;
    files.iter().try_for_each(Made::forget_old_name)?;
    files::remove_folder(staging)
}

/// Removes the files, unless somebody has written to one that has its name, and the folder.
pub(super) fn take_back(staging: &Path, files: &[Made]) -> Result<()> {
    let mut named = Vec::new();
    for made in files {
        if made.has_its_name()? {
            made.check_untouched()?;
            named.push(made);
        }
    }
    for made in named.iter().rev() {
        let _locked = made.check_untouched()?;
        files::remove(&made.to)?;
    }
    files.iter().try_for_each(Made::forget_old_name)?;
    files::remove_folder(staging)
}
