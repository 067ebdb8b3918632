//! Complete files that get their names together, out of a folder in which they were made: all of them or none.

use super::files::{self, FileId, Seen};
use super::run;
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

/// Gives the files their names, those first that others stand on; the folder in which they were made goes.
pub(super) fn make(staging: &Path, files: &[Made], observer: &dyn Observer) -> Result<()> {
    for made in files {
        observer.check()?;
        run::rename(&made.from, &made.to, made.file.file)?;
    }
    observer.check()?;
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
    for made in files {
        if FileId::find(&made.from)? == Some(made.file.file) {
            files::remove(&made.from)?;
        }
    }
    files::remove_folder(staging)
}
