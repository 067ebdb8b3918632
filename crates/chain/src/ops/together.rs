//! New images that are made together: all of them or none.
//!
//! They are written under other names, made durable, and then given theirs, which nothing may have. What is stopped or
//! killed on the way is finished by the same request: an image that is there and that nobody has written is one that need
//! not be made.

use super::convert::part_of;
use super::create::{self, Existing};
use super::observer::Observer;
use catena_engine::{Result, StorageBytes};
use catena_format::qcow2::{Header, NewImage};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use rustix::fs::{
    CWD, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, openat, renameat_with, syncfs,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Up to so many files are made durable one by one; more of them with all else that waits on their file systems, which
/// costs as much as one of them.
const ONE_BY_ONE: usize = 16;

/// The images.
#[derive(Debug, Default)]
pub(super) struct Together {
    missing: Vec<Missing>,
    /// How many are there already.
    there: usize,
}

/// One that is not there yet.
#[derive(Debug)]
struct Missing {
    path: PathBuf,
    image: Arc<NewImage>,
    /// The file whose owner and permissions it gets.
    like: Option<LocalFile>,
}

impl Together {
    /// Adds one. What is there must be what would be made, untouched.
    pub fn add(&mut self, path: &Path, image: &Arc<NewImage>, like: Option<&LocalFile>) -> Result<()> {
        if path.symlink_metadata().is_err() {
            self.missing.push(Missing {
                path: path.to_owned(),
                image: Arc::clone(image),
                like: like.cloned(),
            });
        } else if is_untouched(path, image)? {
            self.there += 1;
        } else {
            create::refuse_existing(path, Existing::Refuse)?;
        }
        Ok(())
    }

    /// Those that are made, in order.
    pub fn missing(&self) -> impl DoubleEndedIterator<Item = (&Path, &NewImage)> + ExactSizeIterator {
        self.missing
            .iter()
            .map(|missing| (missing.path.as_path(), missing.image.as_ref()))
    }

    /// How many are there already.
    pub fn there(&self) -> usize {
        self.there
    }

    /// Makes them. What fails or is stopped leaves none of them.
    pub fn make(&self, observer: &dyn Observer) -> Result<()> {
        let mut made = Made::default();
        let one_by_one = self.missing.len() <= ONE_BY_ONE;
        let mut folders = BTreeSet::new();
        let total = self.missing.len() as u64;
        for (done, missing) in self.missing.iter().enumerate() {
            observer.check()?;
            let part = part_of(&missing.path);
            made.0.push(part.clone());
            missing.write(&part, one_by_one)?;
            folders.insert(missing.path.parent());
            observer.progress(done as u64, total);
        }
        // One file of each folder stands for it.
        let one_of_each: Vec<_> = folders
            .iter()
            .filter_map(|folder| self.missing.iter().find(|file| file.path.parent() == *folder))
            .collect();
        if !one_by_one {
            for file in &one_of_each {
                sync_file_system_of(&file.path)?;
            }
        }
        observer.check()?;
        for Missing { path, .. } in &self.missing {
            let part = part_of(path);
            renameat_with(CWD, &part, CWD, path, RenameFlags::NOREPLACE)
                .map_err(|error| catena_storage::Error::from_io(error.into(), "rename").with_path(&part))?;
            made.0.push(path.clone());
        }
        for file in &one_of_each {
            sync_directory_of(&file.path)?;
        }
        made.0.clear();
        observer.progress(total, total);
        Ok(())
    }
}

impl Missing {
    fn write(&self, path: &Path, durably: bool) -> Result<()> {
        let options = OpenOptions::new().lock(LockMode::Write).overwrite(true);
        let file = LocalFile::create(path, &options)?;
        if let Some(like) = &self.like {
            keep_out(like, &file)
                .map_err(|error| catena_storage::Error::from_io(error.into(), "write to").with_path(path))?;
        }
        file.set_len(self.image.len)?;
        for (offset, bytes) in &self.image.writes {
            file.write_all_at(bytes, *offset)?;
        }
        if durably {
            file.flush()?;
        }
        Ok(())
    }
}

/// Lets nobody at a file who may not read another one, and its owner write it. A device's permissions say nothing about
/// files: its overlay is its maker's alone.
fn keep_out(like: &LocalFile, file: &LocalFile) -> rustix::io::Result<()> {
    let invalid = |_| rustix::io::Errno::BADF;
    let (like, is_block) = (like.opened().map_err(invalid)?, like.is_block_device());
    let file = file.opened().map_err(invalid)?;
    let stat = fstat(&like)?;
    if is_block {
        return fchmod(&file, Mode::RUSR | Mode::WUSR);
    }
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // Who may not give it away keeps it, as with any copy; the group perhaps can be kept alone.
    if fchown(&file, Some(user), Some(group)).is_err() {
        let _ = fchown(&file, None, Some(group));
    }
    fchmod(&file, Mode::from_raw_mode((stat.st_mode & 0o666) | 0o600))
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

/// One flush for all files there.
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
