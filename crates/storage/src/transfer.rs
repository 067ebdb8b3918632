//! Moving bytes to and from a descriptor at given offsets: whole requests, whatever the kernel makes of them.
//!
//! Interrupted calls are made again, short ones continued. What offsets and buffers must be aligned to is the caller's
//! matter (see [`crate::direct`]).

#![forbid(unsafe_code)]

use rustix::io::{Errno, pread, preadv, pwrite, pwritev};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// The first offset that no file can have: the kernel counts in signed 64 bits.
pub(crate) const OFFSET_LIMIT: u64 = i64::MAX as u64;

/// The kernel takes at most this many buffers in one call.
const MOST_BUFFERS: usize = 1024;

/// Makes the call until it is not interrupted.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Bytes as a count of file offsets.
pub(crate) fn wide(len: usize) -> u64 {
    // No machine has more memory than 64 bits can address.
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// The part of a request of `len` bytes that no file offset stands in the way of.
pub(crate) fn reachable(len: usize, offset: u64, limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(offset)).map_or(len, |room| room.min(len))
}

/// The last offset a write needs is one that files can have.
pub(crate) fn check_reach(len: usize, offset: u64) -> io::Result<()> {
    match offset.checked_add(wide(len)) {
        Some(end) if end <= OFFSET_LIMIT => Ok(()),
        _ => Err(io::Error::from(Errno::FBIG)),
    }
}

/// Fills `buf` from `offset` or until the bytes end; tells how many there were.
pub(crate) fn read(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let within = reachable(buf.len(), offset, OFFSET_LIMIT);
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..within).filter(|rest| !rest.is_empty()) {
        match uninterrupted(|| pread(fd, &mut *rest, offset.saturating_add(wide(done))))? {
            0 => break,
            n => done = done.saturating_add(n),
        }
    }
    Ok(done)
}

/// Fills the buffers in turn from `offset` or until the bytes end; tells how many there were.
pub(crate) fn read_vectored(
    fd: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    offset: u64,
) -> io::Result<usize> {
    let mut done = 0;
    for group in bufs.chunks_mut(MOST_BUFFERS) {
        let at = offset.saturating_add(wide(done));
        let wanted = total(group.iter().map(|buf| buf.len()));
        if reachable(wanted, at, OFFSET_LIMIT) < wanted {
            return Ok(done.saturating_add(read_each(fd, group, 0, at)?));
        }
        let mut n = uninterrupted(|| preadv(fd, &mut *group, at))?;
        if n > 0 && n < wanted {
            n = read_each(fd, group, n, at)?;
        }
        done = done.saturating_add(n);
        if n < wanted {
            break;
        }
    }
    Ok(done)
}

/// Continues a vectored read of which `done` bytes have arrived, one buffer after the other; tells how many there are
/// now.
fn read_each(
    fd: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    mut done: usize,
    offset: u64,
) -> io::Result<usize> {
    let mut start = 0_usize;
    for buf in bufs {
        let end = start.saturating_add(buf.len());
        if let Some(rest) = buf
            .get_mut(done.saturating_sub(start)..)
            .filter(|rest| !rest.is_empty())
        {
            let wanted = rest.len();
            let n = read(fd, rest, offset.saturating_add(wide(done)))?;
            done = done.saturating_add(n);
            if n < wanted {
                break;
            }
        }
        start = end;
    }
    Ok(done)
}

/// Writes all of `buf`.
pub(crate) fn write(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
    check_reach(buf.len(), offset)?;
    let mut done = 0;
    while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
        match uninterrupted(|| pwrite(fd, rest, offset.saturating_add(wide(done))))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => done = done.saturating_add(n),
        }
    }
    Ok(())
}

/// Writes all of the buffers in turn.
pub(crate) fn write_vectored(fd: BorrowedFd<'_>, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
    check_reach(total(bufs.iter().map(|buf| buf.len())), offset)?;
    let mut at = offset;
    for group in bufs.chunks(MOST_BUFFERS) {
        let wanted = total(group.iter().map(|buf| buf.len()));
        if wanted == 0 {
            continue;
        }
        let mut skip = match uninterrupted(|| pwritev(fd, group, at))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => n,
        };
        if skip < wanted {
            let mut position = at;
            for buf in group {
                let written = skip.min(buf.len());
                skip = skip.saturating_sub(written);
                if let Some(rest) = buf.get(written..).filter(|rest| !rest.is_empty()) {
                    write(fd, rest, position.saturating_add(wide(written)))?;
                }
                position = position.saturating_add(wide(buf.len()));
            }
        }
        at = at.saturating_add(wide(wanted));
    }
    Ok(())
}

/// The bytes of several buffers together.
pub(crate) fn total(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.fold(0, usize::saturating_add)
}
