//! A whole file copied: shared where the file system can, sparse as it was, with everything that is known about it.

use super::files::{Seen, failed, part_of};
use super::recorded::Recorded;
use crate::ops::observer::Observer;
use catena_engine::{Error, Result};
use catena_storage::{Carry, LocalFile, SpanKind, Storage, carry};
use rustix::fs::{
    CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, fstat, fsync, futimens, openat,
};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Bytes moved before anybody is asked whether to go on.
const PIECE: u64 = 8 << 20;
/// Bytes that an attribute or the list of their names may have; what the kernel allows.
const ATTRIBUTE: usize = 64 << 10;

/// Copies a file beside where it shall be, durable and complete but for its name. The part's name, and what it was made of and is.
pub(super) fn write_part(
    source: &LocalFile,
    from: &Path,
    to: &Path,
    records: Option<&Recorded>,
    (script, step): (&str, usize),
    observer: &dyn Observer,
) -> Result<(PathBuf, Seen, Seen)> {
    let part = part_of(to, script, step);
    super::files::remove(&part)?;
    let opened = source.opened()?;
    let before = Seen::of_open(&opened, from)?;
    // Nobody else may look into it before it has its owner and mode.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, &part, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| failed(error, "create", &part))?;
    let file = File::from(file);
    let cannot = |error: Errno| failed(error, "write to", &part);
    let target = LocalFile::from_file(
        file.try_clone()
            .map_err(|error| Error::from(catena_storage::Error::from_io(error, "open").with_path(&part)))?,
        &part,
    )?;
    observer.check()?;
    bytes(source, &target, observer)?;
    if let Some(records) = records {
        records.write(&target)?;
    }
    let source_file = File::from(rustix::io::dup(&opened).map_err(|error| failed(error, "open", from))?);
    keep_all(&source_file, &file).map_err(cannot)?;
    let copy = Seen::of_open(&file, &part)?;
    observer.check()?;
    Ok((part, before, copy))
}

/// Copies the bytes: holes stay holes.
fn bytes(source: &LocalFile, target: &LocalFile, observer: &dyn Observer) -> Result<()> {
    let len = source.len()?;
    target.set_len(len)?;
    if len == 0 || carry(Carry::Share, source, 0, target, 0, len)? == len {
        return Ok(());
    }
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < len {
        observer.check()?;
        let Some(span) = source.span_at(at)? else { break };
        let end = span.offset.saturating_add(span.len).min(len);
        if span.kind == SpanKind::Hole {
            at = end.max(at + 1);
            continue;
        }
        let piece = (end.saturating_sub(at)).clamp(1, PIECE);
        let carried = carry(Carry::Copy, source, at, target, at, piece)?;
        if carried > 0 {
            at += carried;
        } else {
            buffer.resize(usize::try_from(piece).unwrap_or_default(), 0);
            let read = source.read_at(&mut buffer, at)?;
            target.write_all_at(buffer.get(..read).unwrap_or_default(), at)?;
            at += piece;
        }
        observer.progress(at, len);
    }
    Ok(())
}

/// Gives a file everything that is known about another one but its content, durably.
pub(super) fn keep_all(from: &impl AsFd, to: &impl AsFd) -> rustix::io::Result<()> {
    keep_attributes(from, to)?;
    let stat = fstat(from)?;
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.try_into().unwrap_or_default(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    futimens(to, &times)?;
    fsync(to)
}

/// Gives a file the owner, mode and extended attributes of another, as far as this user may.
pub(in crate::ops) fn keep_attributes(from: &impl AsFd, to: &impl AsFd) -> rustix::io::Result<()> {
    let stat = fstat(from)?;
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // Who may not give it away keeps it, as with any copy; the group perhaps can be kept alone.
    if fchown(to, Some(user), Some(group)).is_err() {
        let _ = fchown(to, None, Some(group));
    }
    let mut names = vec![0; ATTRIBUTE];
    let len = flistxattr(from, &mut names[..]).unwrap_or(0);
    let names = names.get(..len).unwrap_or_default();
    let mut value = vec![0; ATTRIBUTE];
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if let Ok(len) = fgetxattr(from, name, &mut value[..]) {
            // A file system without them, or a label that only the system may give: the bytes are what is moved.
            let _ = fsetxattr(
                to,
                name,
                value.get(..len).unwrap_or_default(),
                XattrFlags::empty(),
            );
        }
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))
}
