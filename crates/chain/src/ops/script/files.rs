//! What a script does to names of files: each change durable when it returns, and none over what is there.

use super::super::convert::UNFINISHED;
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::sync_directory_of;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Statx, StatxFlags, Timespec, Timestamps, UTIME_OMIT,
    fsync, futimens, linkat, openat, renameat_with, statx, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Which file it is, for as long as it lives: it keeps this through every change of its content and names, and across a restart of
/// the machine, which may renumber devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    inode: u64,
    /// When it was made, where the file system knows: an inode's number is used again.
    born: Option<(i64, u32)>,
}

/// A file at one instant: what shows that it was written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub(super) file: FileId,
    pub(super) len: u64,
    pub(super) modified: (i64, u32),
}

impl FileId {
    /// The file of this name; of a symbolic link, the link.
    pub fn of(path: &Path) -> Result<Self> {
        Ok(Seen::of(path)?.file)
    }

    /// The same, `None` where there is no such name.
    pub(super) fn find(path: &Path) -> Result<Option<Self>> {
        Ok(Seen::find(path)?.map(|seen| seen.file))
    }
}

impl Seen {
    pub(super) fn of(path: &Path) -> Result<Self> {
        ask(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| Self::from(&stat))
            .map_err(|error| failed(error, "find", path))
    }

    pub(super) fn find(path: &Path) -> Result<Option<Self>> {
        match ask(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Self::from(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(failed(error, "find", path)),
        }
    }

    /// Of an open file; `path` is for messages.
    pub(super) fn of_open(file: impl AsFd, path: &Path) -> Result<Self> {
        ask(file.as_fd(), Path::new(""), AtFlags::EMPTY_PATH)
            .map(|stat| Self::from(&stat))
            .map_err(|error| failed(error, "find", path))
    }
}

fn ask(folder: impl AsFd, path: &Path, flags: AtFlags) -> rustix::io::Result<Statx> {
    statx(folder, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

impl From<&Statx> for Seen {
    fn from(stat: &Statx) -> Self {
        let has_born = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        Self {
            file: FileId {
                inode: stat.stx_ino,
                born: has_born.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)),
            },
            len: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        }
    }
}

/// An error of the system's.
pub(super) fn failed(error: Errno, operation: &'static str, path: &Path) -> Error {
    if error == Errno::EXIST {
        return Error::new(ErrorKind::Conflict, "there is something of this name already").with_path(path);
    }
    catena_storage::Error::from_io(error.into(), operation)
        .with_path(path)
        .into()
}

/// What was expected at a name is not what is there.
pub(super) fn another(path: &Path) -> Error {
    Error::new(ErrorKind::Conflict, "it is not the file any more that it was").with_path(path)
}

/// Gives a file another name.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    linkat(CWD, from, CWD, to, AtFlags::empty()).map_err(|error| failed(error, "link", to))?;
    Ok(sync_directory_of(to)?)
}

/// Makes a symbolic link.
pub(super) fn symlink(path: &Path, target: &Path) -> Result<()> {
    rustix::fs::symlink(target, path).map_err(|error| failed(error, "link", path))?;
    Ok(sync_directory_of(path)?)
}

/// Gives a file a new name that nothing has. Between folders it has both for a while: a medium that loses its power within a
/// change of two folders may know neither name.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    if from.parent() != to.parent() && link(from, to).is_ok() {
        return remove(from);
    }
    // Within a folder, or on a file system without links.
    rename_unsynced(from, to)?;
    sync_directory_of(to)?;
    if from.parent() != to.parent() {
        sync_directory_of(from)?;
    }
    Ok(())
}

/// The same, not durable yet.
pub(super) fn rename_unsynced(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system that cannot say "only if there is none" can still not give a name twice.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(CWD, from, CWD, to, AtFlags::empty()).map_err(|error| failed(error, "rename", to))?;
            unlinkat(CWD, from, AtFlags::empty()).map_err(|error| failed(error, "rename", from))
        }
        Err(error) => Err(failed(error, "rename", to)),
    }
}

/// Gives a file the name of another, which goes.
pub(in crate::ops) fn rename_over(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
        .map_err(|error| Error::from(catena_storage::Error::from_io(error, "rename").with_path(to)))?;
    Ok(sync_directory_of(to)?)
}

/// Takes a name away, if it is there.
pub(in crate::ops) fn remove(path: &Path) -> Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) => Ok(sync_directory_of(path)?),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(failed(error, "delete", path)),
    }
}

/// Makes a folder like another one, unless it is there.
pub(super) fn make_folder(path: &Path, like: Option<&Path>) -> Result<()> {
    let cannot = |error: Errno| failed(error, "make the folder", path);
    match rustix::fs::mkdir(
        path,
        Mode::from_raw_mode(if like.is_some() { 0o700 } else { 0o777 }),
    ) {
        Ok(()) => {}
        Err(Errno::EXIST) if path.is_dir() => {}
        Err(error) => return Err(cannot(error)),
    }
    if let Some(like) = like {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder = |path: &Path| {
            openat(CWD, path, flags, Mode::empty())
                .map(File::from)
                .map_err(|error| failed(error, "open", path))
        };
        super::copy::keep_attributes(&folder(like)?, &folder(path)?).map_err(cannot)?;
    }
    Ok(sync_directory_of(path)?)
}

/// Removes a folder, unless it is gone or not empty.
pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(sync_directory_of(path)?),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error, "remove the folder", path)),
    }
}

/// Whether a name is that of a regular file.
pub(super) fn is_regular(path: &Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Sets the time of a file's last change, and makes that durable.
pub fn set_modified(path: &Path, (seconds, nanoseconds): (i64, u32)) -> Result<()> {
    let cannot = |error| failed(error, "set the time of", path);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(cannot)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
    };
    futimens(&file, &times)
        .and_then(|()| fsync(&file))
        .map_err(cannot)
}

/// Where a file is written before it gets its name: a name that no other script, and no other step, uses.
pub(super) fn part_of(path: &Path, script: &str, step: usize) -> PathBuf {
    path.with_file_name(format!("{PREFIX}{script}-{step}{PART}"))
}

/// The same for one of several files that a step makes.
pub(super) fn part_among(path: &Path, script: &str, step: usize, number: usize) -> PathBuf {
    part_of(path, script, step).with_extension(format!("{number}{PART}"))
}

/// Whether a file's name is that of a part, of a script's or of a new image, that was never complete.
pub fn is_part(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.ends_with(UNFINISHED) || (name.starts_with(PREFIX) && name.ends_with(PART))
}

/// How the names of journals and parts begin.
pub(super) const PREFIX: &str = ".catena-";
/// How the names of parts end.
const PART: &str = ".part";
