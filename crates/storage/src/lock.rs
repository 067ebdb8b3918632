//! QEMU's image locks, so that neither writes under the other.
//!
//! The scheme is that of QEMU's file driver. Who opens an image holds some [`Permission`]s on it and leaves some of them
//! to others. Permission *n* held is a shared lock on byte 100 + *n*; permission *n* not left to others is a shared lock on
//! byte 200 + *n*. All locks are shared ones, so taking them never fails; what excludes is the test that follows: for each
//! permission held nobody else may have byte 200 + *n*, for each permission not shared nobody else byte 100 + *n*. Two
//! that come at the same instant may thus both be refused, but never both be admitted.
//!
//! The locks belong to the open file description: two opens of one file exclude each other within one process too.

#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind, Result};
use crate::holders::{self, Hold, Holder, Subject};
use crate::sys::ofd::{self, Change};
use bitflags::bitflags;
use rustix::io::Errno;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// Byte of the file that stands for the first permission held; QEMU's choice.
const HELD_BASE: u16 = 100;
/// Byte of the file that stands for the first permission not shared; QEMU's choice.
const NOT_SHARED_BASE: u16 = 200;

/// How many processes an error names.
const NAMED: usize = 3;

bitflags! {
    /// What a user of an image may do with it; the numbers are QEMU's.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Permission: u8 {
        /// Read, and rely on what was read.
        const CONSISTENT_READ = 1 << 0;
        /// Write.
        const WRITE = 1 << 1;
        /// Write what does not change what a reader sees.
        const WRITE_UNCHANGED = 1 << 2;
        /// Change the length.
        const RESIZE = 1 << 3;
        /// Change what the image is a part of; QEMU before 7.
        const GRAPH_MOD = 1 << 4;
    }
}

impl Permission {
    /// QEMU's word for the lowest one, as it is in its messages.
    fn name(self) -> &'static str {
        match self.iter().next() {
            Some(Self::CONSISTENT_READ) => "consistent read",
            Some(Self::WRITE) => "write",
            Some(Self::WRITE_UNCHANGED) => "write unchanged",
            Some(Self::RESIZE) => "resize",
            _ => "change children",
        }
    }

    fn infinitive(self) -> &'static str {
        match self.iter().next() {
            Some(Self::CONSISTENT_READ) => "read it",
            Some(Self::WRITE | Self::WRITE_UNCHANGED) => "write to it",
            Some(Self::RESIZE) => "resize it",
            _ => "change what it is a part of",
        }
    }

    fn numbered(self) -> impl Iterator<Item = (u16, Self)> {
        (0_u16..)
            .zip(Self::all().iter())
            .filter(move |(_, one)| self.contains(*one))
    }
}

/// What somebody does with an image, and what they do not let others do meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Permissions {
    /// What they may do.
    pub held: Permission,
    /// What nobody else may do.
    pub not_shared: Permission,
}

impl Permissions {
    /// No claim at all.
    pub const NONE: Self = Self {
        held: Permission::empty(),
        not_shared: Permission::empty(),
    };

    /// As QEMU reads an image of any format but raw, and any backing image: nobody may write to it or resize it.
    pub const READ: Self = Self {
        held: Permission::CONSISTENT_READ,
        not_shared: Permission::WRITE.union(Permission::RESIZE),
    };

    /// As QEMU reads a raw image, and any image with `--force-share`: others may do what they like.
    pub const READ_SHARED: Self = Self {
        held: Permission::CONSISTENT_READ,
        not_shared: Permission::empty(),
    };

    /// As QEMU writes an image of any format but raw: nobody else may write to it or resize it.
    pub const WRITE: Self = Self {
        held: Permission::CONSISTENT_READ
            .union(Permission::WRITE)
            .union(Permission::RESIZE),
        not_shared: Permission::WRITE.union(Permission::RESIZE),
    };

    /// Whether there is no claim.
    pub fn is_empty(self) -> bool {
        self.held.is_empty() && self.not_shared.is_empty()
    }

    fn union(self, other: Self) -> Self {
        Self {
            held: self.held.union(other.held),
            not_shared: self.not_shared.union(other.not_shared),
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            held: self.held.difference(other.held),
            not_shared: self.not_shared.difference(other.not_shared),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        *self = self.union(other);
    }

    pub(crate) fn remove(&mut self, other: Self) {
        *self = self.without(other);
    }

    /// The bytes of the file that stand for it.
    fn bytes(self) -> impl Iterator<Item = u16> {
        let held = self.held.numbered().map(|(n, _)| HELD_BASE.saturating_add(n));
        let not_shared = self
            .not_shared
            .numbered()
            .map(|(n, _)| NOT_SHARED_BASE.saturating_add(n));
        held.chain(not_shared)
    }

    /// What a lock from byte `first` to byte `last`, both included, stands for.
    pub(crate) fn of_bytes(first: u64, last: u64) -> Self {
        let within = |base: u16| {
            Permission::all()
                .numbered()
                .filter(|(n, _)| (first..=last).contains(&u64::from(base.saturating_add(*n))))
                .fold(Permission::empty(), |all, (_, one)| all | one)
        };
        Self {
            held: within(HELD_BASE),
            not_shared: within(NOT_SHARED_BASE),
        }
    }
}

/// Which locks to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// None, and none of others respected: only for looking at an image in use, whose contents then need not agree.
    None,
    /// Those of a reader, [`Permissions::READ`]: refused while anybody writes.
    Read,
    /// Those of a writer, [`Permissions::WRITE`]: refused while anybody writes, or reads and does not share writing.
    Write,
    /// Exactly these.
    Exact(Permissions),
}

impl LockMode {
    /// What it claims.
    pub fn permissions(self) -> Permissions {
        match self {
            Self::None => Permissions::NONE,
            Self::Read => Permissions::READ,
            Self::Write => Permissions::WRITE,
            Self::Exact(permissions) => permissions,
        }
    }
}

/// Whether a file is locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// It is.
    Held,
    /// Locks were asked for, but the file system has none: nothing keeps others away.
    Unsupported,
    /// No locks were asked for.
    #[default]
    Off,
}

/// The locks of one open file description.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    held: Permissions,
    state: Locking,
}

/// Why locks could not be had.
enum Refusal {
    Unsupported,
    /// Somebody has this byte to himself, which QEMU never does.
    Taken(u16),
    Held(Permission, Option<u32>),
    NotShared(Permission, Option<u32>),
    Failed(io::Error),
}

impl Locks {
    pub(crate) fn state(&self) -> Locking {
        self.state
    }

    /// Gives up what is held.
    pub(crate) fn release(&mut self, fd: BorrowedFd<'_>) {
        release(fd, self.held);
        *self = Self::default();
    }

    /// Exchanges the locks held for those of `mode`; where that is refused those held before remain.
    pub(crate) fn set(&mut self, fd: BorrowedFd<'_>, path: &Path, mode: LockMode) -> Result<Locking> {
        let wanted = mode.permissions();
        let added = wanted.without(self.held);
        match take(fd, added).and_then(|()| check(fd, wanted)) {
            Ok(()) => {
                release(fd, self.held.without(wanted));
                self.held = wanted;
                self.state = if wanted.is_empty() {
                    Locking::Off
                } else {
                    Locking::Held
                };
                Ok(self.state)
            }
            Err(Refusal::Unsupported) => {
                release(fd, added.union(self.held));
                self.held = Permissions::NONE;
                self.state = Locking::Unsupported;
                Ok(self.state)
            }
            Err(refusal) => {
                release(fd, added);
                Err(explain(refusal, fd, path))
            }
        }
    }
}

fn take(fd: BorrowedFd<'_>, permissions: Permissions) -> Result<(), Refusal> {
    for byte in permissions.bytes() {
        ofd::change(fd, byte, Change::Share).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => Refusal::Taken(byte),
            _ => refusal(error),
        })?;
    }
    Ok(())
}

fn check(fd: BorrowedFd<'_>, wanted: Permissions) -> Result<(), Refusal> {
    for (n, one) in wanted.held.numbered() {
        if let Some(conflict) = ofd::test(fd, NOT_SHARED_BASE.saturating_add(n)).map_err(refusal)? {
            return Err(Refusal::NotShared(one, conflict.pid));
        }
    }
    for (n, one) in wanted.not_shared.numbered() {
        if let Some(conflict) = ofd::test(fd, HELD_BASE.saturating_add(n)).map_err(refusal)? {
            return Err(Refusal::Held(one, conflict.pid));
        }
    }
    Ok(())
}

/// Gives locks up. That cannot fail where they could be taken, and closing the file does it too.
fn release(fd: BorrowedFd<'_>, permissions: Permissions) {
    for byte in permissions.bytes() {
        ofd::change(fd, byte, Change::Release).unwrap_or_default();
    }
}

fn refusal(error: io::Error) -> Refusal {
    match Errno::from_io_error(&error) {
        Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Refusal::Unsupported,
        _ => Refusal::Failed(error),
    }
}

/// Says who is in the way, beginning in QEMU's words, by which people search.
fn explain(refusal: Refusal, fd: BorrowedFd<'_>, path: &Path) -> Error {
    let locked = || Error::new(ErrorKind::Locked, "lock").with_path(path);
    let in_the_way = |mine: Permissions, pid: Option<u32>| {
        let found = Subject::of(fd)
            .and_then(|subject| holders::find(&subject, Some(fd.as_raw_fd())))
            .unwrap_or_default();
        let shares_a_bit = |theirs: Permissions| {
            theirs.held.intersects(mine.held) || theirs.not_shared.intersects(mine.not_shared)
        };
        let mut all: Vec<Holder> = found
            .into_iter()
            .filter(|holder| matches!(holder.hold, Hold::Locked(theirs) if shares_a_bit(theirs)))
            .collect();
        if all.is_empty() {
            all.extend(pid.map(|pid| holders::by_pid(pid, Hold::Locked(mine))));
        }
        list(&all)
    };
    match refusal {
        Refusal::Held(one, pid) => {
            let theirs = Permissions {
                held: one,
                not_shared: Permission::empty(),
            };
            let does = match one {
                Permission::WRITE => "has it open for writing".to_owned(),
                _ => format!("may {}", one.infinitive()),
            };
            locked().with_detail(format!(
                "Failed to get shared \"{}\" lock: {} {does}",
                one.name(),
                in_the_way(theirs, pid),
            ))
        }
        Refusal::NotShared(one, pid) => {
            let theirs = Permissions {
                held: Permission::empty(),
                not_shared: one,
            };
            locked().with_detail(format!(
                "Failed to get \"{}\" lock: {} does not let others {}",
                one.name(),
                in_the_way(theirs, pid),
                one.infinitive(),
            ))
        }
        Refusal::Taken(byte) => {
            let theirs = Permissions::of_bytes(byte.into(), byte.into());
            locked().with_detail(format!(
                "Failed to lock byte {byte}: {} has it locked for itself",
                in_the_way(theirs, None),
            ))
        }
        Refusal::Failed(error) => Error::from_io(error, "lock").with_path(path),
        // The caller goes on without locks; nothing refuses.
        Refusal::Unsupported => Error::new(ErrorKind::Unsupported, "lock").with_path(path),
    }
}

fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return holders::UNSEEN.to_owned();
    }
    let mut text = String::new();
    for (n, holder) in holders.iter().take(NAMED).enumerate() {
        let comma = if n > 0 { ", " } else { "" };
        // Writing to a string does not fail.
        write!(text, "{comma}{holder}").unwrap_or_default();
    }
    match holders.len().saturating_sub(NAMED) {
        0 => {}
        more => write!(text, " and {more} more").unwrap_or_default(),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_takes_the_bytes_that_qemu_takes() {
        let bytes: Vec<u16> = Permissions::WRITE.bytes().collect();
        assert_eq!(bytes, [100, 101, 103, 201, 203]);
        let bytes: Vec<u16> = Permissions::READ.bytes().collect();
        assert_eq!(bytes, [100, 201, 203]);
    }

    #[test]
    fn ranges_of_bytes_are_read_back_as_permissions() {
        let mut found = Permissions::of_bytes(100, 101);
        found.add(Permissions::of_bytes(103, 103));
        found.add(Permissions::of_bytes(201, 201));
        found.add(Permissions::of_bytes(203, 203));
        assert_eq!(found, Permissions::WRITE);
        assert_eq!(Permissions::of_bytes(0, 99), Permissions::NONE);
        assert_eq!(Permissions::of_bytes(0, u64::MAX).held, Permission::all());
    }
}
