//! Fork: many new overlays of one base at once, all of them or none.
//!
//! They are written under other names, made durable together, and then given theirs. What is stopped or killed on the way is
//! finished by the same request: an overlay that is there and was never written is one that need not be made.

use super::convert::part_of;
use super::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use super::observer::Observer;
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::qcow2::{Header, NewImage};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with, syncfs};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The new files, all in one folder.
    pub names: Vec<PathBuf>,
    /// Bytes their guests see; those of the base where `None`.
    pub size: Option<u64>,
    /// What they are, the base included.
    pub options: Qcow2Options,
}

/// New overlays, decided.
#[derive(Debug)]
pub struct Plan {
    image: NewImage,
    /// The files that are not there yet.
    missing: Vec<PathBuf>,
    there: usize,
}

/// Decides what to write.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let (first, others) = request
        .names
        .split_first()
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "no new image is named"))?;
    if request.options.data_file.is_some() {
        return Err(Error::new(
            ErrorKind::Conflict,
            "one data file cannot be that of many images",
        ));
    }
    if let Some(other) = others.iter().find(|name| name.parent() != first.parent()) {
        let message =
            "the new images must be in one folder, so that the base's name leads to the same for all";
        return Err(Error::new(ErrorKind::Conflict, message).with_path(other));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = request.names.iter().find(|name| !seen.insert(*name)) {
        return Err(Error::new(ErrorKind::Conflict, "two new images would have this name").with_path(twice));
    }
    let image = create::lay_out(
        &create::Request {
            path: first.clone(),
            existing: Existing::Overwrite,
            size: request.size,
            kind: Kind::Qcow2(Box::new(request.options.clone())),
            preallocation: Preallocation::Off,
        },
        policy,
    )?;
    let mut missing = Vec::new();
    for name in &request.names {
        if name.symlink_metadata().is_err() {
            missing.push(name.clone());
        } else if !is_untouched(name, &image)? {
            create::refuse_existing(name, Existing::Refuse)?;
        }
    }
    Ok(Plan {
        image,
        there: request.names.len() - missing.len(),
        missing,
    })
}

impl Plan {
    /// How many are made.
    pub fn len(&self) -> usize {
        self.missing.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }

    /// Makes them. What fails or is stopped leaves none of them.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        let Some(first) = self.missing.first() else {
            return Ok(());
        };
        let mut made = Made::default();
        let total = self.missing.len() as u64;
        for (done, name) in self.missing.iter().enumerate() {
            observer.check()?;
            let part = part_of(name);
            made.0.push(part.clone());
            self.write(&part)?;
            observer.progress(done as u64, total);
        }
        sync_file_system_of(first)?;
        observer.check()?;
        for name in &self.missing {
            let part = part_of(name);
            renameat_with(CWD, &part, CWD, name, RenameFlags::NOREPLACE)
                .map_err(|error| catena_storage::Error::from_io(error.into(), "rename").with_path(&part))?;
            made.0.push(name.clone());
        }
        sync_directory_of(first)?;
        made.0.clear();
        observer.progress(total, total);
        Ok(())
    }

    fn write(&self, path: &Path) -> Result<()> {
        let options = OpenOptions::new().lock(LockMode::Write).overwrite(true);
        let file = LocalFile::create(path, &options)?;
        file.set_len(self.image.len)?;
        for (offset, bytes) in &self.image.writes {
            file.write_all_at(bytes, *offset)?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(first), Some(last)) = (self.missing.first(), self.missing.last()) else {
            return write!(f, "all {} overlays are there already", self.there);
        };
        let base = self.image.header.backing.as_ref();
        let base = base
            .map(|backing| String::from_utf8_lossy(&backing.name))
            .unwrap_or_default();
        match self.missing.len() {
            1 => write!(f, "{}: a new overlay of '{base}'", first.display())?,
            count => write!(
                f,
                "{} to {}: {count} new overlays of '{base}'",
                first.display(),
                last.display()
            )?,
        }
        match self.there {
            0 => Ok(()),
            there => write!(f, "; {there} are there already"),
        }
    }
}

/// Files made so far, removed again unless all goes well.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // The first error is the one that is reported; a part that has its name is not there any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether a file is what would be written, byte for byte: an overlay that no guest has written.
fn is_untouched(path: &Path, image: &NewImage) -> Result<bool> {
    let file = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None))?;
    if file.is_block_device() || file.len()? != image.len {
        return Ok(false);
    }
    let mut writes: BTreeMap<u64, Vec<u8>> = image.writes.iter().cloned().collect();
    // Two stamps of one base are two all the same: they were not taken at the same time.
    let mut header = image.header.clone();
    let ours = header.stamp().cloned();
    let theirs = Header::read(&StorageBytes::new(&file)?)
        .ok()
        .and_then(|found| found.stamp().cloned());
    if let (Some(ours), Some(theirs)) = (ours, theirs)
        && ours.same_base(&theirs)
    {
        header.set_stamp(Some(theirs));
        writes.insert(0, header.encode()?);
    }
    let mut expected = vec![0; usize::try_from(image.len).unwrap_or(usize::MAX)];
    for (offset, bytes) in writes {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(place) = start
            .checked_add(bytes.len())
            .and_then(|end| expected.get_mut(start..end))
        {
            place.copy_from_slice(&bytes);
        }
    }
    let mut found = vec![0; expected.len()];
    file.read_at(&mut found, 0)?;
    Ok(found == expected)
}

/// One flush for all files there, which costs as much as one for a single file.
fn sync_file_system_of(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, folder, flags, Mode::empty())
        .and_then(syncfs)
        .map_err(|error| {
            catena_storage::Error::from_io(error.into(), "flush")
                .with_path(folder)
                .into()
        })
}
