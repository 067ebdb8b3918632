//! Length and holes of an open file or device: where they are, and how they are made.
//!
//! A stretch that is called a hole reads as zeros. Where the system does not tell, everything is data.

#![forbid(unsafe_code)]

use crate::open::Kind;
use crate::storage::{Span, SpanKind};
use crate::transfer::{OFFSET_LIMIT, uninterrupted};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, ioctl_blksszget, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;

/// How often a file that changes while it is looked at is looked at again.
const LOOKS: usize = 4;

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

/// Makes a hole by the system's own means. What comes back are the stretches `(start, end)` that still have to be
/// overwritten with zeros, none of them past the end.
pub(crate) fn punch(fd: BorrowedFd<'_>, kind: Kind, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let end = length(fd, kind)?;
    let stop = offset.saturating_add(len).min(OFFSET_LIMIT);
    if len == 0 || offset >= end {
        return Ok(Vec::new());
    }
    let zeros = vec![(offset, stop.min(end))];
    // A file may be cleared past its end, which frees the last block as well. A device takes whole blocks only.
    let (from, to) = match kind {
        Kind::Regular => (offset, stop),
        Kind::Block => {
            let block = ioctl_blksszget(fd).map_or(4096, u64::from).max(1);
            match offset.checked_next_multiple_of(block) {
                Some(from) => (from, stop.min(end) / block * block),
                None => return Ok(zeros),
            }
        }
    };
    if from >= to {
        return Ok(zeros);
    }
    // Never with `NO_HIDE_STALE`, nor by `BLKDISCARD`: neither promises zeros.
    for way in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        match uninterrupted(|| fallocate(fd, way | FallocateFlags::KEEP_SIZE, from, to.saturating_sub(from)))
        {
            Ok(()) => {
                let edges = [(offset, from), (to, stop.min(end))];
                return Ok(edges.into_iter().filter(|(start, end)| start < end).collect());
            }
            Err(error) if is_unknown(error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(zeros)
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
