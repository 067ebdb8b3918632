//! Opening and creating files without surprises: only regular files and block devices, nothing waited for, and nothing
//! else touched, not even by the attempt.

#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind, Result};
use crate::lock::LockMode;
use rustix::fs::{
    CWD, FileType, Mode, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat, fsync, lstat, openat, unlink,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What kind of file holds an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    Regular,
    /// A block device.
    Block,
}

/// How a local file is opened or created.
///
/// By default for reading only, through the page cache, locked against writers as QEMU does; see [`LockMode`].
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    write: bool,
    direct: bool,
    exclusive: bool,
    overwrite: bool,
    lock: Option<LockMode>,
}

impl OpenOptions {
    /// Reading only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether to write too. [`LocalFile::create`](crate::LocalFile::create) always does.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Whether to bypass the page cache (`O_DIRECT`).
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Whether to refuse a block device that is mounted or otherwise taken (`O_EXCL`). No meaning for a file.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Whether [`LocalFile::create`](crate::LocalFile::create) may empty a file that exists, once it is locked.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Which locks to take, if not those that go with reading or writing.
    #[must_use]
    pub fn lock(mut self, lock: LockMode) -> Self {
        self.lock = Some(lock);
        self
    }

    pub(crate) fn may_write(&self) -> bool {
        self.write
    }

    pub(crate) fn may_overwrite(&self) -> bool {
        self.overwrite
    }

    pub(crate) fn lock_mode(&self) -> LockMode {
        self.lock.unwrap_or(if self.write {
            LockMode::Write
        } else {
            LockMode::Read
        })
    }

    fn flags(&self) -> OFlags {
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
        flags |= if self.write { OFlags::RDWR } else { OFlags::RDONLY };
        flags.set(OFlags::DIRECT, self.direct);
        flags
    }
}

/// Opens a file or block device that exists.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<File> {
    // A handle without access: to ask what it is has no effect on whatever it is.
    reopen(handle(path)?.as_fd(), path, options)
}

/// A handle without access, for what a name leads to.
pub(crate) fn handle(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(error, "open", path))
}

/// Opens what the handle stands for anew, with access. The handle may be one without (`O_PATH`).
pub(crate) fn reopen(handle: BorrowedFd<'_>, path: &Path, options: &OpenOptions) -> Result<File> {
    let (kind, stat) = kind_of(handle, path)?;
    let mut flags = options.flags();
    flags.set(OFlags::EXCL, options.exclusive && kind == Kind::Block);
    // By way of the handle: what was looked at is what is opened, whatever has become of the name.
    let same = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let opened = match openat(CWD, same, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => open_by_name(path, flags, &stat)?,
        other => other.map_err(|error| failed_to_open(error, path, options))?,
    };
    Ok(opened.into())
}

/// Where there is no `/proc`: by its name, and it must turn out the same file.
fn open_by_name(path: &Path, flags: OFlags, expected: &Stat) -> Result<OwnedFd> {
    let opened = openat(CWD, path, flags | OFlags::NONBLOCK, Mode::empty())
        .map_err(|error| failed(error, "open", path))?;
    let (_, stat) = kind_of(opened.as_fd(), path)?;
    if (stat.st_dev, stat.st_ino) != (expected.st_dev, expected.st_ino) {
        return Err(Error::new(ErrorKind::Io, "open")
            .with_path(path)
            .with_detail("the file was replaced while it was being opened"));
    }
    fcntl_getfl(&opened)
        .and_then(|now| fcntl_setfl(&opened, now - OFlags::NONBLOCK))
        .map_err(|error| failed(error, "open", path))?;
    Ok(opened)
}

/// Creates a file that does not exist, for reading and writing, mode 0644 less the process's mask as `qemu-img` does.
/// `None` where the name is taken.
pub(crate) fn create_new(path: &Path, options: &OpenOptions) -> Result<Option<File>> {
    let flags = (options.flags() - OFlags::DIRECT) | OFlags::CREATE | OFlags::EXCL;
    let created = match openat(CWD, path, flags, Mode::from_raw_mode(0o644)) {
        Ok(created) => created,
        Err(Errno::EXIST) => return Ok(None),
        Err(error) => return Err(failed(error, "create", path)),
    };
    // Only now: a file system that cannot bypass the cache would say so only after it has made the file.
    if options.direct
        && let Err(error) = fcntl_getfl(&created).and_then(|now| fcntl_setfl(&created, now | OFlags::DIRECT))
    {
        take_back(created.as_fd(), path);
        return Err(failed_to_open(error, path, options));
    }
    Ok(Some(created.into()))
}

/// Removes a file that was just created in vain, unless its name means another by now. If that fails an empty file is
/// left, which the caller's error is worth more than.
fn take_back(created: BorrowedFd<'_>, path: &Path) {
    if let (Ok(ours), Ok(named)) = (fstat(created), lstat(path))
        && (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
    {
        unlink(path).unwrap_or_default();
    }
}

/// Which of the two kinds it is, or why it is neither.
pub(crate) fn kind_of(fd: BorrowedFd<'_>, path: &Path) -> Result<(Kind, Stat)> {
    let stat = fstat(fd).map_err(|error| failed(error, "open", path))?;
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok((Kind::Regular, stat)),
        FileType::BlockDevice => return Ok((Kind::Block, stat)),
        FileType::Directory => "it is a directory",
        FileType::Fifo => "it is a FIFO",
        FileType::Socket => "it is a socket",
        FileType::CharacterDevice => "it is a character device",
        _ => "it is of an unknown type",
    };
    Err(Error::new(ErrorKind::Unsupported, "open")
        .with_path(path)
        .with_detail(format!("{what}; an image is a regular file or a block device")))
}

/// Makes the name of a file durable that was created, renamed or removed: flushes the directory it is in.
pub fn sync_directory_of(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, parent, flags, Mode::empty())
        .map_err(|error| failed(error, "flush the directory", parent))?;
    match fsync(&directory) {
        // Some file systems keep directories durable by themselves and say so like this.
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(failed(error, "flush the directory", parent)),
    }
}

fn failed(error: Errno, operation: &'static str, path: &Path) -> Error {
    let detail = match error {
        Errno::LOOP => Some("too many symbolic links"),
        _ => None,
    };
    let error = Error::from_io(error.into(), operation).with_path(path);
    match detail {
        Some(detail) => error.with_detail(detail),
        None => error,
    }
}

fn failed_to_open(error: Errno, path: &Path, options: &OpenOptions) -> Error {
    match error {
        Errno::INVAL if options.direct => Error::new(ErrorKind::Unsupported, "open")
            .with_path(path)
            .with_detail("its file system cannot bypass the page cache (O_DIRECT)"),
        Errno::BUSY => Error::new(ErrorKind::Locked, "open")
            .with_path(path)
            .with_detail("the device is mounted or otherwise in use"),
        other => failed(other, "open", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_proc_the_name_must_still_mean_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&two, "2").unwrap();
        let stat = fstat(File::open(&one).unwrap()).unwrap();
        let flags = OpenOptions::new().flags();
        let opened = open_by_name(&one, flags, &stat).unwrap();
        assert!(!fcntl_getfl(&opened).unwrap().contains(OFlags::NONBLOCK));
        let error = open_by_name(&two, flags, &stat).unwrap_err();
        assert!(error.to_string().contains("was replaced"), "{error}");
    }

    #[test]
    fn what_was_created_in_vain_is_taken_back_but_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let created = File::create(&path).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "").unwrap();
        take_back(created.as_fd(), &elsewhere);
        assert!(elsewhere.exists());
        take_back(created.as_fd(), &path);
        assert!(!path.exists());
    }
}
