//! A text file that gets another text, at once and whole: who reads it finds the old text or the new one.

use super::script::{keep_attributes, remove, rename_over};
use catena_engine::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new text beside the old one, complete and durable, which waits to take its place. It goes again if it does not.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    from: String,
    part: Option<PathBuf>,
}

impl Replacement {
    /// Writes the new text to another file of the same folder, with the owner, mode and attributes of the old one.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where the file has neither the old text nor the new one, which is nothing to do.
    pub fn prepare(path: &Path, part: PathBuf, from: &str, to: &str) -> Result<Self> {
        let cannot = |error, what| Error::from(catena_storage::Error::from_io(error, what).with_path(path));
        remove(&part)?;
        let mut replacement = Self {
            path: path.to_owned(),
            from: from.to_owned(),
            part: None,
        };
        let old = File::open(path).map_err(|error| cannot(error, "open"))?;
        if replacement.found()? == to.as_bytes() {
            return Ok(replacement);
        }
        replacement.check()?;
        // Nobody else may look into it before it has its owner and mode.
        let mut options = std::fs::OpenOptions::new();
        let mut new = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(|error| cannot(error, "create beside"))?;
        replacement.part = Some(part);
        new.write_all(to.as_bytes())
            .map_err(|error| cannot(error, "write to"))?;
        keep_attributes(&old, &new).map_err(|error| cannot(error.into(), "write to"))?;
        new.sync_all().map_err(|error| cannot(error, "flush"))?;
        Ok(replacement)
    }

    /// Puts the new text in the place of the old one.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where somebody has changed the file since.
    pub fn publish(mut self) -> Result<()> {
        let Some(part) = &self.part else {
            return Ok(());
        };
        self.check()?;
        rename_over(part, &self.path)?;
        self.part = None;
        Ok(())
    }

    fn found(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).map_err(|error| {
            catena_storage::Error::from_io(error, "read")
                .with_path(&self.path)
                .into()
        })
    }

    fn check(&self) -> Result<()> {
        if self.found()? == self.from.as_bytes() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "somebody else has changed it meanwhile").with_path(&self.path))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // What matters is the error for which it is not needed any more.
            let _ = std::fs::remove_file(part);
        }
    }
}
