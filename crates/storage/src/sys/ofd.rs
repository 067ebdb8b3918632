//! Open file description locks: byte-range locks that belong to an open file, not to a process (`fcntl(2)`, Linux 3.15).
//!
//! Every function here makes one system call and gives back what it said. Nothing here waits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What to do with a byte of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Lock it as others may too.
    Share,
    /// Give it up.
    Release,
}

/// A lock of another open file that excludes the tested one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The process, which the kernel tells only of locks that belong to processes.
    pub(crate) pid: Option<u32>,
}

/// Locks or releases one byte. `WouldBlock` or `PermissionDenied` where another open file has it to itself.
pub(crate) fn change(fd: BorrowedFd<'_>, byte: u16, change: Change) -> io::Result<()> {
    let kind = match change {
        Change::Share => libc::F_RDLCK,
        Change::Release => libc::F_UNLCK,
    };
    call(fd, libc::F_OFD_SETLK, one_byte(kind, byte)).map(|_| ())
}

/// Whether any other open file has a lock on the byte, be it shared.
pub(crate) fn test(fd: BorrowedFd<'_>, byte: u16) -> io::Result<Option<Conflict>> {
    let found = call(fd, libc::F_OFD_GETLK, one_byte(libc::F_WRLCK, byte))?;
    Ok((i32::from(found.l_type) != libc::F_UNLCK).then(|| Conflict {
        pid: u32::try_from(found.l_pid).ok().filter(|&pid| pid != 0),
    }))
}

fn one_byte(kind: libc::c_int, byte: u16) -> libc::flock {
    // SAFETY: `flock` is a plain C structure of integers, for which zero bytes are a valid value. The kernel requires
    // `l_pid` to be zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are small on every Linux; their C type differs from that of the field.
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte.into();
    lock.l_len = 1;
    lock
}

fn call(fd: BorrowedFd<'_>, command: libc::c_int, mut lock: libc::flock) -> io::Result<libc::flock> {
    loop {
        // SAFETY: the descriptor is open for as long as it is borrowed; both commands used here take a pointer to one
        // `flock`, which lives through the call and of which no other reference exists.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
        if result != -1 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
