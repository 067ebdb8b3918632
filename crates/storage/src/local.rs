//! Files and block devices of this machine.
//!
//! A [`LocalFile`] is one open file description with the locks it holds; its clones are the same. All requests name
//! their offset, so any number of threads may use one at once. After a failed flush none succeeds any more: the kernel
//! reports lost writes once and then forgets them.

#![forbid(unsafe_code)]

use crate::descriptor::{Descriptor, Opened};
use crate::direct::Direct;
use crate::error::{Error, ErrorKind, Result};
use crate::hole;
use crate::lock::{LockMode, Locking};
use crate::open::{self, Kind, OpenOptions};
use crate::storage::{Alignment, Identity, Span, SpanKind, Storage};
use crate::sys::shortcut::Shortcut;
use crate::sys::write_back::begin_write_back;
use crate::transfer::{self, uninterrupted, wide};
use rustix::fs::{OFlags, fcntl_getfl, fdatasync, fstat, ftruncate};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// The most zeros written at once where a store cannot clear a range itself.
const ZEROS: usize = 1 << 20;

/// A local file or block device. Clones share the open file and its locks, which the last of them gives up.
#[derive(Clone, Debug)]
pub struct LocalFile {
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    descriptor: Descriptor,
    path: PathBuf,
    kind: Kind,
    writable: bool,
    direct: Option<Direct>,
    lost_writes: AtomicBool,
    known_data: Mutex<Range<u64>>,
}

impl LocalFile {
    /// Opens a file or block device that exists, and locks it as the options say.
    ///
    /// [`ErrorKind::Unsupported`] for anything else, which is not touched; [`ErrorKind::Locked`] names who is in the
    /// way.
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        Self::locked(open::open(path, options)?, path, options)
    }

    /// Like [`LocalFile::open`] of what an open handle stands for, be it one without access (`O_PATH`): the way to open
    /// what was looked up by other means than its whole name. `path` is for messages.
    pub fn open_handle(handle: impl AsFd, path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = open::reopen(handle.as_fd(), path, options)?;
        Self::locked(file, path, options)
    }

    /// Creates a file of mode 0644 (less the process's mask) and opens it for reading and writing.
    ///
    /// A name that is taken is refused, unless the options allow to overwrite: then the file is locked first and emptied
    /// only after that; a block device is left as it is. The name is durable after [`crate::sync_directory_of`].
    pub fn create(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let options = options.write(true);
        if let Some(file) = open::create_new(path, &options)? {
            return Self::locked(file, path, &options);
        }
        if !options.may_overwrite() {
            let taken = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(Error::from_io(taken, "create")
                .with_path(path)
                .with_detail("it exists"));
        }
        let file = Self::open(path, &options)?;
        if file.open.kind == Kind::Regular {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Takes over a file that is open already: one passed by another process, or one in memory. It is not locked; see
    /// [`LocalFile::set_lock`]. `path` is for messages.
    pub fn from_file(file: File, path: impl AsRef<Path>) -> Result<Self> {
        Self::new(file, path.as_ref(), Descriptor::kept)
    }

    fn new(file: File, path: &Path, descriptor: impl FnOnce(File) -> Descriptor) -> Result<Self> {
        let failed = |error: io::Error| Error::from_io(error, "open").with_path(path);
        let (kind, _) = open::kind_of(file.as_fd(), path)?;
        let flags = fcntl_getfl(&file).map_err(|error| failed(error.into()))?;
        let access = flags & OFlags::RWMODE;
        if flags.contains(OFlags::PATH) || (access != OFlags::RDONLY && access != OFlags::RDWR) {
            return Err(Error::new(ErrorKind::Unsupported, "open")
                .with_path(path)
                .with_detail("the descriptor is not open for reading"));
        }
        let direct = if flags.contains(OFlags::DIRECT) {
            let found = Direct::new(file.as_fd(), kind).map_err(failed)?;
            Some(found.ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "open")
                    .with_path(path)
                    .with_detail("its file system cannot bypass the page cache (O_DIRECT)")
            })?)
        } else {
            None
        };
        Ok(Self {
            open: Arc::new(Open {
                descriptor: descriptor(file),
                path: path.to_owned(),
                kind,
                writable: access == OFlags::RDWR,
                direct,
                lost_writes: AtomicBool::new(false),
                known_data: Mutex::new(0..0),
            }),
        })
    }

    fn locked(file: File, path: &Path, options: &OpenOptions) -> Result<Self> {
        let file = Self::new(file, path, |file| Descriptor::of_named(file, path, options))?;
        file.set_lock(options.lock_mode())?;
        Ok(file)
    }

    /// Exchanges the locks held for those of `mode`. Where that is refused, the former ones are held still.
    pub fn set_lock(&self, mode: LockMode) -> Result<Locking> {
        self.open.descriptor.set_lock(&self.open.path, mode)
    }

    /// Whether the file is locked.
    pub fn locking(&self) -> Locking {
        self.open.descriptor.locking()
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.open.writable
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.open.kind == Kind::Block
    }

    /// The descriptor, which stays open for as long as what comes back lives.
    ///
    /// Of many files that are read, not all have theirs open at once: [`ErrorKind::Io`] or [`ErrorKind::NotFound`] where it was closed and
    /// the name leads to another file, or none, by now.
    pub fn opened(&self) -> Result<Opened<'_>> {
        self.open.descriptor.open()
    }

    /// The descriptor, where it stays open for as long as the file does and takes requests of any alignment.
    pub(crate) fn kept_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.open.descriptor.own().filter(|_| self.open.direct.is_none())
    }

    pub(crate) fn failed(&self, error: impl Into<io::Error>, operation: &'static str) -> Error {
        Error::from_io(error.into(), operation).with_path(&self.open.path)
    }

    fn check_writable(&self, operation: &'static str) -> Result<()> {
        if self.open.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Denied, operation)
            .with_path(&self.open.path)
            .with_detail("it was opened for reading only"))
    }

    /// What is known of the stretch at `offset` without asking: finding where a long stretch of data ends takes some file systems a
    /// look at each of its pages, and an image's map asks about every part of it. Only data is remembered: that it was made a hole
    /// since, by others, costs reading zeros, while a hole that was filled must be seen.
    fn known_at(&self, offset: u64) -> Option<Span> {
        let known = self.known_data();
        known.contains(&offset).then(|| Span {
            kind: SpanKind::Data,
            offset,
            len: known.end - offset,
        })
    }

    fn known_data(&self) -> MutexGuard<'_, Range<u64>> {
        self.open
            .known_data
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change that may make holes or move the end.
    fn forgetting<T>(&self, change: impl FnOnce() -> T) -> T {
        let changed = change();
        *self.known_data() = 0..0;
        changed
    }

    /// Runs a change that is no write while no part of a block is being rewritten.
    fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        match &self.open.direct {
            Some(direct) => direct.alone(change),
            None => change(),
        }
    }

    fn write_zeros(&self, start: u64, end: u64) -> Result<()> {
        let most = end.saturating_sub(start).min(wide(ZEROS));
        let zeros = vec![0; usize::try_from(most).unwrap_or(ZEROS)];
        let mut at = start;
        while at < end {
            let n = end.saturating_sub(at).min(wide(zeros.len()));
            let piece = zeros.get(..usize::try_from(n).unwrap_or(0)).unwrap_or_default();
            self.write_all_at(piece, at)?;
            at = at.saturating_add(n);
        }
        Ok(())
    }
}

impl Storage for LocalFile {
    fn len(&self) -> Result<u64> {
        hole::length(self.opened()?.as_fd(), self.open.kind)
            .map_err(|error| self.failed(error, "tell the length of"))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let opened = self.opened()?;
        match &self.open.direct {
            Some(direct) => direct.read(opened.as_fd(), buf, offset),
            None => transfer::read(opened.as_fd(), buf, offset),
        }
        .map_err(|error| self.failed(error, "read").at(offset))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        let opened = self.opened()?;
        match &self.open.direct {
            Some(direct) => direct.read_vectored(opened.as_fd(), bufs, offset),
            None => transfer::read_vectored(opened.as_fd(), bufs, offset),
        }
        .map_err(|error| self.failed(error, "read").at(offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_writable("write to")?;
        let opened = self.opened()?;
        match &self.open.direct {
            Some(direct) => direct.write(opened.as_fd(), buf, offset),
            None => transfer::write(opened.as_fd(), buf, offset),
        }
        .map_err(|error| self.failed(error, "write to").at(offset))
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        self.check_writable("write to")?;
        let opened = self.opened()?;
        match &self.open.direct {
            Some(direct) => direct.write_vectored(opened.as_fd(), bufs, offset),
            None => transfer::write_vectored(opened.as_fd(), bufs, offset),
        }
        .map_err(|error| self.failed(error, "write to").at(offset))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable("punch a hole in")?;
        let opened = self.opened()?;
        let left = self
            .forgetting(|| self.alone(|| hole::punch(opened.as_fd(), self.open.kind, offset, len)))
            .map_err(|error| self.failed(error, "punch a hole in").at(offset))?;
        for (start, end) in left {
            self.write_zeros(start, end)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable("write to")?;
        let opened = self.opened()?;
        let zeroed = self
            .forgetting(|| self.alone(|| hole::zero(opened.as_fd(), self.open.kind, offset, len)))
            .map_err(|error| self.failed(error, "write to").at(offset))?;
        if zeroed {
            Ok(())
        } else {
            self.write_zeros(offset, offset.saturating_add(len))
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.check_writable("keep space in")?;
        let opened = self.opened()?;
        let kept = self
            .alone(|| hole::allocate(opened.as_fd(), self.open.kind, offset, len))
            .map_err(|error| self.failed(error, "keep space in").at(offset))?;
        if kept {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Unsupported, "keep space in")
                .with_path(&self.open.path)
                .at(offset))
        }
    }

    fn keep_ahead(&self, offset: u64, len: u64) -> bool {
        let kind = self.open.kind;
        let Ok(opened) = self.opened() else { return false };
        self.open.writable && hole::keep_ahead(opened.as_fd(), kind, offset, len).unwrap_or(false)
    }

    fn begin_flush(&self) {
        if let Ok(opened) = self.opened() {
            // What fails on its way to the medium is told by the flush.
            let _ = begin_write_back(opened.as_fd());
        }
    }

    fn flush(&self) -> Result<()> {
        if self.open.lost_writes.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Io, "flush")
                .with_path(&self.open.path)
                .with_detail("an earlier flush failed, so that writes before it may be lost"));
        }
        let opened = self.opened()?;
        uninterrupted(|| fdatasync(opened.as_fd())).map_err(|error| {
            self.open.lost_writes.store(true, Ordering::Release);
            self.failed(error, "flush")
        })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.check_writable("resize")?;
        if self.open.kind == Kind::Block {
            if len == self.len()? {
                return Ok(());
            }
            return Err(Error::new(ErrorKind::Unsupported, "resize")
                .with_path(&self.open.path)
                .with_detail("a block device has the length it has"));
        }
        let opened = self.opened()?;
        self.forgetting(|| self.alone(|| uninterrupted(|| ftruncate(opened.as_fd(), len))))
            .map_err(|error| self.failed(error, "resize").at(len))
    }

    fn span_at(&self, offset: u64) -> Result<Option<Span>> {
        if let Some(known) = self.known_at(offset) {
            return Ok(Some(known));
        }
        let opened = self.opened()?;
        let span = hole::span(opened.as_fd(), self.open.kind, offset)
            .map_err(|error| self.failed(error, "find the holes of").at(offset))?;
        if let Some(span) = span
            && span.kind == SpanKind::Data
        {
            *self.known_data() = offset..offset.saturating_add(span.len);
        }
        Ok(span)
    }

    fn is_hole(&self, offset: u64, len: u64) -> Result<bool> {
        if self.known_at(offset).is_some() {
            return Ok(false);
        }
        let opened = self.opened()?;
        hole::is_hole(opened.as_fd(), self.open.kind, offset, len)
            .map_err(|error| self.failed(error, "find the holes of").at(offset))
    }

    fn allocated(&self) -> Result<Option<u64>> {
        if self.open.kind == Kind::Block {
            return Ok(None);
        }
        let stat = fstat(self.opened()?).map_err(|error| self.failed(error, "tell the space taken by"))?;
        // `stat(2)`: in units of 512 bytes, whatever the file system's blocks are.
        Ok(u64::try_from(stat.st_blocks)
            .ok()
            .map(|blocks| blocks.saturating_mul(512)))
    }

    fn alignment(&self) -> Alignment {
        self.open
            .direct
            .as_ref()
            .map_or(Alignment::NONE, Direct::alignment)
    }

    fn identity(&self) -> Option<Identity> {
        let stat = fstat(self.opened().ok()?).ok()?;
        Some(match self.open.kind {
            Kind::Regular => Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
                len: u64::try_from(stat.st_size).unwrap_or(0),
                modified: modified(stat.st_mtime, stat.st_mtime_nsec),
            },
            Kind::Block => Identity {
                device: stat.st_rdev,
                inode: 0,
                len: self.len().ok()?,
                modified: None,
            },
        })
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.open.path)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.open.descriptor.own()
    }

    fn shortcut(&self) -> Option<Shortcut> {
        Shortcut::to(self)
    }
}

/// A time of the file system's, which may lie before 1970.
fn modified(seconds: i64, nanoseconds: u64) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)?
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)?
    };
    time.checked_add(Duration::from_nanos(nanoseconds))
}
