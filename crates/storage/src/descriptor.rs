//! A bounded number of descriptors for any number of open files.
//!
//! A process may have so many descriptors and no more (`RLIMIT_NOFILE`), and chains have more layers than that. So the first files that are
//! opened keep their descriptor, as do all that are written. Of those that are opened for reading when the share of these is used up, the
//! descriptor is *lent*: it is closed when others need it more, and opened anew, by the file's name, when the file is read again.
//!
//! What holds then:
//!
//! * It is the same file. The name must lead to the same device and inode as before, else reading fails: [`ErrorKind::Io`], and the file
//!   that lies there now is not read. The inode cannot have become another file's, since a mapping keeps the file.
//! * Its locks are held throughout: they belong to the open file description, which the mapping keeps too. Where a file system has no such
//!   mappings (overlayfs maps the file beneath), locks are taken again, and a file that was changed meanwhile is refused.
//! * No more than 7 in 8 of the descriptors that the process may have are taken by files that are read: 5 are kept, 2 are lent.

#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind, Result};
use crate::lock::{LockMode, Locking, Locks};
use crate::open::{self, OpenOptions};
use crate::sys::mapping::Mapping;
use rustix::fs::{fstat, fstatfs};
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The process may have this many eighths of its descriptors kept, and lent.
const KEPT_EIGHTHS: usize = 5;
const LENT_EIGHTHS: usize = 2;
/// Where the system says that there is no limit.
const UNLIMITED: usize = 1 << 20;
/// `statfs(2)`: the magic number of overlayfs.
const OVERLAYFS: u64 = 0x794c_7630;

/// Files that keep their descriptor.
static KEPT: AtomicUsize = AtomicUsize::new(0);
/// Files whose descriptor is lent to them now, in the order in which they are looked at for closing.
static LENT: Mutex<VecDeque<Weak<Lent>>> = Mutex::new(VecDeque::new());

/// How one open file has its descriptor.
#[derive(Debug)]
pub(crate) enum Descriptor {
    /// For as long as it is open.
    Kept {
        file: File,
        locks: Mutex<Locks>,
        /// Whether it counts.
        counted: bool,
    },
    /// While it is used.
    Lent(Arc<Lent>),
}

/// An open file whose descriptor may be closed and opened again.
#[derive(Debug)]
pub(crate) struct Lent {
    slot: Mutex<Slot>,
    used: AtomicBool,
    /// The whole name, which does not change with the working directory.
    path: PathBuf,
    options: OpenOptions,
    was: Look,
}

/// What is seen of a file from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    /// Device, inode, and the device that a device node stands for.
    object: (u64, u64, u64),
    /// Length, and when it was modified, in seconds and nanoseconds.
    content: (i64, i64, u64),
}

#[derive(Debug, Default)]
struct Slot {
    file: Option<Arc<File>>,
    locks: Locks,
    mode: Option<LockMode>,
    /// The open file that has the locks.
    locked: Weak<File>,
    /// Keeps that one, or the first.
    keeper: Option<Mapping>,
    /// What the file looked like when its descriptor was closed and nothing kept its locks.
    left: Option<Look>,
}

/// A descriptor in use: it stays open until this is dropped.
#[derive(Debug)]
pub enum Opened<'a> {
    /// The file's own.
    Kept(&'a File),
    /// One that is lent.
    Lent(Arc<File>),
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kept(file) => file.as_fd(),
            Self::Lent(file) => file.as_fd(),
        }
    }
}

impl Descriptor {
    /// A descriptor that is kept, whatever there are.
    pub(crate) fn kept(file: File) -> Self {
        Self::Kept {
            file,
            locks: Mutex::default(),
            counted: false,
        }
    }

    /// The descriptor of a file that was opened by that name: kept while there is room, or if it is written.
    pub(crate) fn of_named(file: File, path: &Path, options: &OpenOptions) -> Self {
        let most = share(KEPT_EIGHTHS);
        let room = KEPT.fetch_add(1, Ordering::Relaxed) < most;
        if room || options.may_write() {
            return Self::Kept {
                file,
                locks: Mutex::default(),
                counted: true,
            };
        }
        KEPT.fetch_sub(1, Ordering::Relaxed);
        match (std::path::absolute(path), look(file.as_fd())) {
            (Ok(path), Some(was)) => Self::Lent(Lent::new(file, path, *options, was)),
            _ => Self::kept(file),
        }
    }

    /// The descriptor, for as long as what comes back lives.
    pub(crate) fn open(&self) -> Result<Opened<'_>> {
        match self {
            Self::Kept { file, .. } => Ok(Opened::Kept(file)),
            Self::Lent(lent) => lent.file().map(Opened::Lent),
        }
    }

    /// The descriptor, where it is kept.
    pub(crate) fn own(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Kept { file, .. } => Some(file.as_fd()),
            Self::Lent(_) => None,
        }
    }

    pub(crate) fn set_lock(&self, path: &Path, mode: LockMode) -> Result<Locking> {
        match self {
            Self::Kept { file, locks, .. } => {
                locks
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .set(file.as_fd(), path, mode)
            }
            Self::Lent(lent) => lent.set_lock(path, mode),
        }
    }

    pub(crate) fn locking(&self) -> Locking {
        match self {
            Self::Kept { locks, .. } => locks.lock().unwrap_or_else(PoisonError::into_inner).state(),
            Self::Lent(lent) => lent.slot().locks.state(),
        }
    }
}

impl Drop for Descriptor {
    /// Gives the locks up even if a child process has the descriptor still, as it has between fork and exec.
    fn drop(&mut self) {
        match self {
            Self::Kept { file, locks, counted } => {
                let locks = locks.get_mut().unwrap_or_else(PoisonError::into_inner);
                locks.release(file.as_fd());
                if *counted {
                    KEPT.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Self::Lent(lent) => {
                let mut slot = lent.slot();
                if let Some(locked) = slot.locked.upgrade() {
                    slot.locks.release(locked.as_fd());
                }
                *slot = Slot::default();
            }
        }
    }
}

impl Lent {
    fn new(file: File, path: PathBuf, options: OpenOptions, was: Look) -> Arc<Self> {
        let keeper = keep(file.as_fd());
        let lent = Arc::new(Self {
            slot: Mutex::new(Slot {
                file: Some(Arc::new(file)),
                keeper,
                ..Slot::default()
            }),
            used: AtomicBool::new(true),
            path,
            options,
            was,
        });
        lend(&lent);
        lent
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor, opened where it is not.
    fn file(self: &Arc<Self>) -> Result<Arc<File>> {
        let mut slot = self.slot();
        if let Some(file) = &slot.file {
            if !self.used.load(Ordering::Relaxed) {
                self.used.store(true, Ordering::Relaxed);
            }
            return Ok(Arc::clone(file));
        }
        // While the slot is held nobody takes this file off the list before it is open; who has the list waits for no slot.
        lend(self);
        let file = Arc::new(self.reopen(&mut slot)?);
        slot.file = Some(Arc::clone(&file));
        self.used.store(true, Ordering::Relaxed);
        if slot.keeper.is_none() && slot.mode.is_some() {
            slot.locked = Arc::downgrade(&file);
        }
        Ok(file)
    }

    fn reopen(&self, slot: &mut Slot) -> Result<File> {
        let changed = |what| {
            Error::new(ErrorKind::Io, "open")
                .with_path(&self.path)
                .with_detail(what)
        };
        let handle = open::handle(&self.path)?;
        let now = look(handle.as_fd()).ok_or_else(|| changed("the system does not tell which file it is"))?;
        if now.object != self.was.object {
            return Err(changed(
                "another file lies there now: it was replaced while it was in use",
            ));
        }
        let file = open::reopen(handle.as_fd(), &self.path, &self.options)?;
        if slot.keeper.is_none()
            && let Some(mode) = slot.mode
        {
            let mut locks = Locks::default();
            locks.set(file.as_fd(), &self.path, mode)?;
            slot.locks = locks;
            if slot.left.is_some_and(|left| Some(left) != look(file.as_fd())) {
                return Err(changed("it was changed while it was in use"));
            }
        }
        Ok(file)
    }

    fn set_lock(self: &Arc<Self>, path: &Path, mode: LockMode) -> Result<Locking> {
        let file = self.file()?;
        let mut slot = self.slot();
        let state = if Weak::ptr_eq(&slot.locked, &Arc::downgrade(&file)) {
            slot.locks.set(file.as_fd(), path, mode)?
        } else {
            // The locks of another open file of ours are given up when these are had.
            let mut locks = Locks::default();
            let state = locks.set(file.as_fd(), path, mode)?;
            slot.locks = locks;
            state
        };
        let locked = state == Locking::Held;
        slot.mode = locked.then_some(mode);
        slot.locked = if locked {
            Arc::downgrade(&file)
        } else {
            Weak::new()
        };
        slot.keeper = keep(file.as_fd());
        Ok(state)
    }

    /// Closes the descriptor, unless somebody is about to use it.
    fn close(&self) -> bool {
        let Ok(mut slot) = self.slot.try_lock() else {
            return false;
        };
        if let Some(file) = slot.file.take()
            && slot.keeper.is_none()
        {
            slot.left = look(file.as_fd());
        }
        true
    }
}

/// Makes room for a descriptor that is lent, and notes to whom.
fn lend(to: &Arc<Lent>) {
    let mut lent = LENT.lock().unwrap_or_else(PoisonError::into_inner);
    let most = share(LENT_EIGHTHS).max(1);
    // Each gets a second chance if it was used.
    let mut chances = lent.len();
    while lent.len() >= most {
        let Some(candidate) = lent.pop_front() else {
            break;
        };
        let Some(file) = candidate.upgrade() else {
            continue;
        };
        let spared = chances > 0 && file.used.swap(false, Ordering::Relaxed);
        if spared || !file.close() {
            lent.push_back(candidate);
            match chances.checked_sub(1) {
                Some(fewer) => chances = fewer,
                None => break,
            }
        }
    }
    lent.push_back(Arc::downgrade(to));
}

/// So many eighths of the descriptors that the process may have.
fn share(eighths: usize) -> usize {
    let most = getrlimit(Resource::Nofile)
        .current
        .and_then(|most| usize::try_from(most).ok())
        .unwrap_or(UNLIMITED)
        .min(UNLIMITED);
    (most / 8).saturating_mul(eighths)
}

/// A mapping that keeps the open file, where the file system has such.
fn keep(fd: BorrowedFd<'_>) -> Option<Mapping> {
    let maps_another = fstatfs(fd).is_ok_and(|system| u64::try_from(system.f_type) == Ok(OVERLAYFS));
    if maps_another {
        return None;
    }
    Mapping::of(fd).ok()
}

fn look(fd: BorrowedFd<'_>) -> Option<Look> {
    let stat = fstat(fd).ok()?;
    Some(Look {
        object: (stat.st_dev, stat.st_ino, stat.st_rdev),
        content: (stat.st_size, stat.st_mtime, stat.st_mtime_nsec),
    })
}
