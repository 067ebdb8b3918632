//! Length and holes of an open file or device: where they are, and how they are made.
//!
//! A stretch that is called a hole reads as zeros. Where the system does not tell, everything is data.

#![forbid(unsafe_code)]

use crate::open::Kind;
use crate::storage::{Span, SpanKind};
use crate::transfer::{OFFSET_LIMIT, uninterrupted};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, fstatfs, ioctl_blksszget, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;

/// How often a file that changes while it is looked at is looked at again.
const LOOKS: usize = 4;

/// No file system keeps space in larger units by default, in bytes.
const LARGEST_BLOCK: u64 = 1 << 20;

/// Bytes there are now. The file's own position, which a device's length is told by, is never relied on.
pub(crate) fn length(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<u64> {
    match kind {
        Kind::Regular => Ok(u64::try_from(fstat(fd)?.st_size).unwrap_or(0)),
        Kind::Block => Ok(uninterrupted(|| seek(fd, SeekFrom::End(0)))?),
    }
}

/// The stretch of data or hole that starts at `offset`; `None` at and past the end.
pub(crate) fn span(fd: BorrowedFd<'_>, kind: Kind, offset: u64) -> io::Result<Option<Span>> {
    let span = |kind, end: u64| {
        Ok(Some(Span {
            kind,
            offset,
            len: end.saturating_sub(offset).max(1),
        }))
    };
    for _ in 0..LOOKS {
        let end = length(fd, kind)?;
        if offset >= end {
            return Ok(None);
        }
        match uninterrupted(|| seek(fd, SeekFrom::Data(offset))) {
            Ok(data) if data > offset => return span(SpanKind::Hole, data.min(end)),
            Ok(_) => match uninterrupted(|| seek(fd, SeekFrom::Hole(offset))) {
                Ok(hole) if hole > offset => return span(SpanKind::Data, hole.min(end)),
                // A hole was made, or the end was cut off, since the last question.
                Ok(_) | Err(Errno::NXIO) => {}
                Err(error) if is_unknown(error) => return span(SpanKind::Data, end),
                Err(error) => return Err(error.into()),
            },
            // No data from here to the end, unless the file has been cut short.
            Err(Errno::NXIO) if length(fd, kind)? == end => return span(SpanKind::Hole, end),
            Err(Errno::NXIO) => {}
            Err(error) if is_unknown(error) => return span(SpanKind::Data, end),
            Err(error) => return Err(error.into()),
        }
    }
    match length(fd, kind)? {
        end if offset < end => span(SpanKind::Data, end),
        _ => Ok(None),
    }
}

/// Whether there is no data in a range. Unlike [`span`] this does not ask where data ends.
pub(crate) fn is_hole(fd: BorrowedFd<'_>, kind: Kind, offset: u64, len: u64) -> io::Result<bool> {
    match uninterrupted(|| seek(fd, SeekFrom::Data(offset))) {
        Ok(data) => Ok(data >= offset.saturating_add(len)),
        // No data from here to the end.
        Err(Errno::NXIO) => Ok(true),
        Err(error) if is_unknown(error) => Ok(offset >= length(fd, kind)?),
        Err(error) => Err(error.into()),
    }
}

/// Makes a hole by the system's own means. What comes back are the stretches `(start, end)` that still have to be
/// overwritten with zeros, none of them past the end.
pub(crate) fn punch(fd: BorrowedFd<'_>, kind: Kind, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let end = length(fd, kind)?;
    let asked = offset.saturating_add(len).min(OFFSET_LIMIT);
    if len == 0 || offset >= end {
        return Ok(Vec::new());
    }
    let stop = asked.min(end);
    let zeros = vec![(offset, stop)];
    let (from, to) = match kind {
        Kind::Regular => (offset, stop),
        // A device takes whole blocks only.
        Kind::Block => {
            let block = ioctl_blksszget(fd).map_or(4096, u64::from).max(1);
            match offset.checked_next_multiple_of(block) {
                Some(from) => (from, stop / block * block),
                None => return Ok(zeros),
            }
        }
    };
    if from >= to {
        return Ok(zeros);
    }
    // The last block of a file is freed, not just cleared, if the hole covers what of it lies past the end. Never further
    // than was asked: another thread may just be appending.
    let generous = match kind {
        Kind::Regular => stop
            .checked_next_multiple_of(LARGEST_BLOCK)
            .unwrap_or(stop)
            .min(asked),
        Kind::Block => to,
    };
    // Never with `NO_HIDE_STALE`, nor by `BLKDISCARD`: neither promises zeros.
    for (way, to) in [
        (FallocateFlags::PUNCH_HOLE, generous),
        (FallocateFlags::PUNCH_HOLE, to),
        (FallocateFlags::ZERO_RANGE, to),
    ] {
        let len = to.saturating_sub(from);
        match uninterrupted(|| fallocate(fd, way | FallocateFlags::KEEP_SIZE, from, len)) {
            Ok(()) => {
                let edges = [(offset, from), (to, stop)];
                return Ok(edges.into_iter().filter(|(start, end)| start < end).collect());
            }
            // Too far for this file system: a hole can be no longer than a file.
            Err(Errno::FBIG) => {}
            Err(error) if is_unknown(error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(zeros)
}

/// Makes a range read as zeros by the system's own means, growing a file where it reaches past the end. `false` where
/// the system cannot, and nothing has changed.
pub(crate) fn zero(fd: BorrowedFd<'_>, kind: Kind, offset: u64, len: u64) -> io::Result<bool> {
    let way = match kind {
        Kind::Regular => FallocateFlags::ZERO_RANGE,
        // A device takes whole blocks only, and does not grow.
        Kind::Block => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    };
    change(fd, way, offset, len)
}

/// Keeps space for a range by the system's own means, growing a file where it reaches past the end. `false` where the
/// system cannot. A device's space is its own.
pub(crate) fn allocate(fd: BorrowedFd<'_>, kind: Kind, offset: u64, len: u64) -> io::Result<bool> {
    match kind {
        Kind::Regular => change(fd, FallocateFlags::empty(), offset, len),
        Kind::Block => Ok(offset.saturating_add(len) <= length(fd, kind)?),
    }
}

/// Finds space for a range in one piece, without changing how long the file is. `false` where that is not known to be worth it: in memory
/// space has no order, some file systems compress or copy what was not kept, and others ask a server.
pub(crate) fn keep_ahead(fd: BorrowedFd<'_>, kind: Kind, offset: u64, len: u64) -> io::Result<bool> {
    /// `statfs(2)`'s `EXT4_SUPER_MAGIC` and `XFS_SUPER_MAGIC`.
    const WORTH_IT: [u64; 2] = [0xef53, 0x5846_5342];
    if kind == Kind::Block || !u64::try_from(fstatfs(fd)?.f_type).is_ok_and(|kind| WORTH_IT.contains(&kind)) {
        return Ok(false);
    }
    change(fd, FallocateFlags::KEEP_SIZE, offset, len)
}

fn change(fd: BorrowedFd<'_>, way: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
    if len == 0 {
        return Ok(true);
    }
    match uninterrupted(|| fallocate(fd, way, offset, len)) {
        Ok(()) => Ok(true),
        Err(error) if is_unknown(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The file system or device does not know of holes.
fn is_unknown(error: Errno) -> bool {
    [
        Errno::INVAL,
        Errno::OPNOTSUPP,
        Errno::NOSYS,
        Errno::NODEV,
        Errno::NOTTY,
        Errno::SPIPE,
    ]
    .contains(&error)
}
