//! The files below some folders, found by several threads; nothing is opened but folders.

use super::Object;
use super::search::Place;
use catena_engine::Error;
use rustix::fs::FsWord;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

/// File systems whose files are no files: reading some of them waits for ever.
const PSEUDO: [FsWord; 4] = [
    // procfs, sysfs, debugfs, tracefs
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
];
const SECOND: i128 = 1_000_000_000;

/// A name, and what it leads to.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub path: PathBuf,
    /// The folder that the name is in, where that was walked.
    folder: Option<Object>,
    /// Whether the name itself is a symbolic link.
    pub link: bool,
    pub stat: Stat,
}

/// What the file system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub object: Object,
    pub len: u64,
    /// Bytes on its medium.
    pub allocated: u64,
    /// Last change of the content, and of anything at all, in nanoseconds since 1970.
    pub modified: i128,
    pub changed: i128,
    pub block_device: bool,
}

impl Stat {
    /// Of a file or block device; `None` for everything else.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        let kind = metadata.file_type();
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * SECOND + i128::from(rest);
        (kind.is_file() || kind.is_block_device()).then(|| Self {
            object: if kind.is_file() {
                (metadata.dev(), metadata.ino())
            } else {
                // A device is its number, whichever node leads to it.
                (metadata.rdev(), 0)
            },
            len: metadata.len(),
            allocated: metadata.blocks().saturating_mul(512),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            block_device: kind.is_block_device(),
        })
    }
}

/// The folder that keeps what was removed, beside where it was: nothing in it stands on anything, and nothing stands on it.
pub const TRASH: &str = ".catena-trash";

/// How the name begins of a folder in which an import writes its files before they have their names: what is there is no image yet.
pub const STAGING: &str = ".catena-import-";

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub entries: Vec<Entry>,
    /// Folders of what was removed and is kept for a while. They are not looked into.
    pub trash: Vec<PathBuf>,
    /// Folders of imports that run or were cut off. They are not looked into either.
    pub staging: Vec<PathBuf>,
    /// Folders that could not be read.
    pub errors: Vec<Error>,
}

/// Walks so many levels of folders below each of these names, which may be files themselves. Links to folders are not followed,
/// unless they are what was asked for. A folder that is reached in several ways is walked once, by the first of them that goes
/// as deep.
pub(super) fn walk(places: &[Place]) -> Walked {
    let mut walked = Walked::default();
    let mut waiting = Waiting::default();
    let mut guessed = Vec::new();
    for place in places {
        let path = &place.path;
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => waiting.push(place.clone(), object(&metadata)),
            Ok(metadata) => {
                let entry = Stat::of(&metadata).map(|stat| Entry {
                    path: path.clone(),
                    folder: folder_of(path),
                    link: path.is_symlink(),
                    stat,
                });
                match place.guessed {
                    true => guessed.extend(entry),
                    false => walked.entries.extend(entry),
                }
            }
            Err(error) => walked.fail(error, place),
        }
    }
    let queue = Queue {
        state: Mutex::new(waiting),
        more: Condvar::new(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let parts: Vec<Walked> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| queue.work())).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    for part in parts {
        walked.entries.extend(part.entries);
        walked.trash.extend(part.trash);
        walked.staging.extend(part.staging);
        walked.errors.extend(part.errors);
    }
    // Real names before links, then by name: what is found does not depend on who found it first.
    walked.trash.sort_unstable();
    walked.trash.dedup();
    walked.staging.sort_unstable();
    walked.staging.dedup();
    let in_order = |a: &Entry, b: &Entry| (a.link, &a.path).cmp(&(b.link, &b.path));
    walked.entries.sort_unstable_by(in_order);
    // Files may have been met in several ways; what was asked for keeps the name by which it was.
    walked.entries.extend(guessed);
    let mut seen = HashSet::with_capacity(walked.entries.len());
    walked.entries.retain(|entry| {
        let name = entry.path.file_name().map(OsStr::to_owned);
        entry.folder.is_none() || seen.insert((entry.folder, name))
    });
    walked.entries.sort_unstable_by(in_order);
    walked
}

fn object(metadata: &Metadata) -> Object {
    (metadata.dev(), metadata.ino())
}

fn folder_of(file: &Path) -> Option<Object> {
    let parent = file.parent()?;
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    Some(object(&std::fs::metadata(parent).ok()?))
}

/// Folders that wait to be read.
struct Queue {
    state: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    folders: Vec<(Place, Object)>,
    /// How many levels were walked, or will be, below each folder that was met.
    deep: HashMap<Object, usize>,
    /// Threads that read one, and may find more.
    working: usize,
}

impl Waiting {
    fn push(&mut self, folder: Place, object: Object) {
        let deep = self.deep.get(&object);
        if deep.is_none_or(|deep| *deep < folder.levels) {
            self.deep.insert(object, folder.levels);
            self.folders.push((folder, object));
        }
    }
}

impl Queue {
    fn work(&self) -> Walked {
        let mut walked = Walked::default();
        while let Some((folder, object)) = self.next() {
            let mut deeper = Vec::new();
            walked.read(&folder, object, &mut deeper);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            for (folder, object) in deeper {
                state.push(folder, object);
            }
            state.working -= 1;
            self.more.notify_all();
        }
        walked
    }

    fn next(&self) -> Option<(Place, Object)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(folder) = state.folders.pop() {
                state.working += 1;
                return Some(folder);
            }
            if state.working == 0 {
                return None;
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Walked {
    fn read(&mut self, place: &Place, object: Object, deeper: &mut Vec<(Place, Object)>) {
        let folder = place.path.as_path();
        if rustix::fs::statfs(folder).is_ok_and(|system| PSEUDO.contains(&system.f_type)) {
            return;
        }
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.fail(error, place),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.fail(error, place),
            };
            let Ok(kind) = entry.file_type() else { continue };
            // What is below '.' has a name of its own.
            let path = if folder == Path::new(".") {
                PathBuf::from(entry.file_name())
            } else {
                entry.path()
            };
            if kind.is_dir() {
                if entry.file_name() == TRASH {
                    self.trash.push(path);
                } else if entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(STAGING.as_bytes())
                {
                    self.staging.push(path);
                } else if let Some(levels) = place.levels.checked_sub(1)
                    && let Ok(metadata) = entry.metadata()
                {
                    let guessed = place.guessed;
                    deeper.push((
                        Place {
                            path,
                            levels,
                            guessed,
                        },
                        self::object(&metadata),
                    ));
                }
                continue;
            }
            // A link that leads nowhere, or a file that has just gone, is nothing.
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            self.entries.extend(Stat::of(&metadata).map(|stat| Entry {
                path,
                folder: Some(object),
                link: kind.is_symlink(),
                stat,
            }));
        }
    }

    fn fail(&mut self, error: std::io::Error, place: &Place) {
        if !place.guessed {
            self.errors.push(
                catena_storage::Error::from_io(error, "look into")
                    .with_path(&place.path)
                    .into(),
            );
        }
    }
}
