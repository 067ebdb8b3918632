//! Bytes that go from one store to another without passing through this process: shared between two files, or copied by the kernel.
//!
//! What the kernel cannot do is no failure. The caller moves it in its own way.

use crate::error::{Error, Result};
use crate::storage::{Alignment, Storage};
use crate::sys::clone::clone_range;
use crate::transfer::{OFFSET_LIMIT, uninterrupted};
use rustix::fs::{copy_file_range, fstatfs};
use rustix::io::Errno;
use std::io;

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// That both stores share the bytes, until either is written: on file systems with reflinks.
    Share,
    /// That it copies them, or shares them where it finds that it can.
    Copy,
}

/// The unit in bytes that offsets and lengths of what is shared with a store must be multiples of; `None` where its file
/// system cannot share.
pub fn sharing_unit(store: &dyn Storage) -> Option<u64> {
    let fd = store.descriptor()?;
    let block = fstatfs(fd)
        .ok()
        .and_then(|stat| u64::try_from(stat.f_bsize).ok())?;
    if !block.is_power_of_two() {
        return None;
    }
    // A range past the end with itself: there is nothing to share, which file systems that can share at all find wrong with the request.
    let behind = store
        .len()
        .ok()?
        .checked_next_multiple_of(block)?
        .checked_add(block)?;
    match clone_range(fd, behind, fd, behind, block) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Some(block),
        _ => None,
    }
}

/// Has the kernel move `len` bytes from one place to the other, and tells how many from the start on it did: 0 where it cannot.
///
/// The ranges do not overlap. What is shared lies at multiples of [`sharing_unit`] and is as many bytes.
pub fn carry(
    how: Carry,
    from: &dyn Storage,
    from_offset: u64,
    to: &dyn Storage,
    to_offset: u64,
    len: u64,
) -> Result<u64> {
    let (Some(source), Some(target)) = (from.descriptor(), to.descriptor()) else {
        return Ok(0);
    };
    let reach = from_offset.max(to_offset).saturating_add(len);
    if len == 0 || reach > OFFSET_LIMIT {
        return Ok(0);
    }
    let shared = clone_range(source, from_offset, target, to_offset, len);
    match shared {
        Ok(()) => return Ok(len),
        Err(error) if !is_refusal(&error) => return Err(failed(to, to_offset, error)),
        Err(_) => {}
    }
    if how == Carry::Share || from.alignment() != Alignment::NONE || to.alignment() != Alignment::NONE {
        return Ok(0);
    }
    let most = usize::try_from(len).unwrap_or(usize::MAX);
    let (mut read_from, mut write_to) = (from_offset, to_offset);
    let copied =
        uninterrupted(|| copy_file_range(source, Some(&mut read_from), target, Some(&mut write_to), most));
    match copied.map_err(io::Error::from) {
        Ok(bytes) => Ok(u64::try_from(bytes).unwrap_or(len)),
        Err(error) if is_refusal(&error) => Ok(0),
        Err(error) => Err(failed(to, to_offset, error)),
    }
}

fn failed(to: &dyn Storage, offset: u64, error: io::Error) -> Error {
    let error = Error::from_io(error, "write to").at(offset);
    match to.path() {
        Some(path) => error.with_path(path),
        None => error,
    }
}

/// The kernel does not do this, between these files or at all. That bytes cannot be read is left to reading them.
fn is_refusal(error: &io::Error) -> bool {
    ![Errno::NOSPC, Errno::DQUOT, Errno::FBIG]
        .iter()
        .any(|real| error.raw_os_error() == Some(real.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalFile, MemoryStorage, OpenOptions};

    #[test]
    fn the_kernel_copies_between_files_and_not_from_memory() {
        let folder = tempfile::tempdir().unwrap();
        let create = |name: &str| LocalFile::create(folder.path().join(name), &OpenOptions::new()).unwrap();
        let (from, to) = (create("from"), create("to"));
        from.write_all_at(&[7; 10_000], 0).unwrap();
        to.write_all_at(&[1; 100], 0).unwrap();
        let copied = carry(Carry::Copy, &from, 4000, &to, 50, 5000).unwrap();
        let mut bytes = vec![0; 6000];
        let len = to.read_at(&mut bytes, 0).unwrap();
        if copied == 0 {
            assert_eq!(len, 100, "what was refused changes nothing");
        } else {
            assert_eq!(copied, 5000);
            assert_eq!(len, 5050);
            assert!(bytes[..50].iter().all(|byte| *byte == 1));
            assert!(bytes[50..5050].iter().all(|byte| *byte == 7));
        }
        let memory = MemoryStorage::with_len(10_000);
        assert_eq!(carry(Carry::Copy, &memory, 0, &to, 0, 10).unwrap(), 0);
        assert_eq!(sharing_unit(&memory), None);
    }

    #[test]
    fn what_is_shared_reads_alike_where_files_can_share() {
        let folder = tempfile::tempdir().unwrap();
        let create = |name: &str| LocalFile::create(folder.path().join(name), &OpenOptions::new()).unwrap();
        let (from, to) = (create("from"), create("to"));
        from.write_all_at(&[7; 1 << 20], 0).unwrap();
        let unit = sharing_unit(&to);
        assert_eq!(to.len().unwrap(), 0, "asking changes nothing");
        let shared = carry(Carry::Share, &from, 0, &to, 1 << 20, 1 << 20).unwrap();
        assert_eq!(shared, unit.map_or(0, |_| 1 << 20));
        if shared > 0 {
            let mut bytes = vec![0; 2 << 20];
            assert_eq!(to.read_at(&mut bytes, 0).unwrap(), 2 << 20);
            assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0));
            assert!(bytes[1 << 20..].iter().all(|byte| *byte == 7));
        }
    }
}
