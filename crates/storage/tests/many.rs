//! More files open at once than the process may have descriptors.
#![cfg(test)]

use catena_storage::{ErrorKind, LocalFile, LockMode, Locking, OpenOptions, Storage};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const LIMIT: u64 = 128;
const FILES: u32 = 400;

/// Descriptors belong to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn limit_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(LIMIT),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

fn open_many(folder: &Path, lock: LockMode) -> Vec<(PathBuf, LocalFile)> {
    (0..FILES)
        .map(|n| {
            let path = folder.join(n.to_string());
            std::fs::write(&path, n.to_le_bytes()).unwrap();
            let file = LocalFile::open(&path, &OpenOptions::new().lock(lock)).unwrap();
            (path, file)
        })
        .collect()
}

fn content(file: &LocalFile) -> Result<u32, catena_storage::Error> {
    let mut bytes = [0; 4];
    file.read_at(&mut bytes, 0)?;
    Ok(u32::from_le_bytes(bytes))
}

#[test]
fn more_files_than_descriptors_are_read_from_several_threads() {
    let _alone = ALONE.lock().unwrap();
    limit_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let files = open_many(folder.path(), LockMode::Read);
    assert!(descriptors() <= LIMIT * 7 / 8 + 8, "{}", descriptors());
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let files = &files;
            scope.spawn(move || {
                for turn in 0..2000_u32 {
                    let n = turn.wrapping_mul(2_654_435_761).wrapping_add(thread * 77) % FILES;
                    assert_eq!(content(&files[n as usize].1).unwrap(), n);
                }
            });
        }
    });
    assert!(descriptors() <= LIMIT * 7 / 8 + 8, "{}", descriptors());
    drop(files);
    assert!(descriptors() < 16, "{}", descriptors());
}

#[test]
fn locks_are_held_also_where_the_descriptor_is_not() {
    let _alone = ALONE.lock().unwrap();
    limit_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let files = open_many(folder.path(), LockMode::None);
    for (_, file) in &files {
        assert_eq!(file.set_lock(LockMode::Read).unwrap(), Locking::Held);
    }
    let write = OpenOptions::new().write(true);
    for (path, file) in files.iter().rev().step_by(7) {
        let refused = LocalFile::open(path, &write).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        assert_eq!(file.locking(), Locking::Held);
    }
    let paths: Vec<PathBuf> = files.iter().map(|(path, _)| path.clone()).collect();
    drop(files);
    for path in paths {
        LocalFile::open(path, &write).unwrap();
    }
}

#[test]
fn a_file_that_was_replaced_is_not_read_for_the_one_that_was_opened() {
    let _alone = ALONE.lock().unwrap();
    limit_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let files = open_many(folder.path(), LockMode::Read);
    let other = folder.path().join("other");
    let (mut read, mut refused) = (0, 0);
    for (n, (path, file)) in files.iter().enumerate() {
        std::fs::write(&other, u32::MAX.to_le_bytes()).unwrap();
        std::fs::rename(&other, path).unwrap();
        match content(file) {
            Ok(found) => {
                assert_eq!(found as usize, n);
                read += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(error.to_string().contains("another file lies there"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(read > 0 && refused > 100, "{read} {refused}");
    for (path, _) in &files {
        std::fs::remove_file(path).unwrap();
    }
    let gone = files
        .iter()
        .filter(|(_, file)| content(file).is_err_and(|error| error.kind() == ErrorKind::NotFound));
    assert!(gone.count() > 100);
}
