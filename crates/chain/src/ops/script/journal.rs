//! The journal of a script: what it does, and how far it has come, in a file beside what it changes.
//!
//! Lines of JSON, each durable before anything else happens. The first says everything about the script; each further one, that a
//! step was done or taken back, or what a copy was made of. A line that is cut off was never written. Who runs the script holds a lock on the
//! file, so that another one finds out that somebody is at work.
//!
//! A journal is a list of orders, so not every file of that name is one: it must belong to who resumes it, and nobody else may have been
//! able to write it.

use super::files::{PREFIX, Seen, failed};
use super::{Script, Step};
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::sync_directory_of;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags, fdatasync, flock, fstat, ftruncate, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const SUFFIX: &str = ".journal";
/// The version of what is written here. Another one is refused.
const VERSION: u32 = 1;
/// Bytes of a journal that are read: some hundred thousand steps.
const MOST: u64 = 256 << 20;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head<S> {
    version: u32,
    id: String,
    process: u32,
    script: S,
}

/// Every further line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// So many steps are done from here on.
    Done(usize),
    /// What cannot be taken back begins, or names begin to be given.
    Begun(usize),
    /// A copy is complete, and gets its name now.
    Copied { step: usize, of: Seen, copy: Seen },
}

/// What a copy was made of, and what it was when it was complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub of: Seen,
    pub copy: Seen,
}

/// An open file that is unlocked when it is let go. Closing it would not do while a child of this process, in the instant before it
/// becomes another program, has it open too.
#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // There is nothing to be done about what cannot be unlocked.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// The journal of a script that is not finished, locked.
#[derive(Debug)]
pub struct Journal {
    file: Locked,
    path: PathBuf,
    id: String,
    pub(super) script: Script,
    done: usize,
    begun: BTreeSet<usize>,
    copied: BTreeMap<usize, Copied>,
}

/// The journals in some folders, in order.
///
/// # Errors
/// Where a folder cannot be read.
pub fn find(folders: &[impl AsRef<Path>]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        let folder = folder.as_ref();
        let cannot =
            |error| Error::from(catena_storage::Error::from_io(error, "look into").with_path(folder));
        for entry in std::fs::read_dir(folder).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name();
            let is_one = name
                .to_str()
                .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
            if is_one {
                found.push(folder.join(name));
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

impl Journal {
    /// Writes a new one in a folder.
    pub(super) fn create(home: &Path, script: &Script) -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:x}-{:x}", std::process::id(), since.as_nanos());
        let path = home.join(format!("{PREFIX}{}-{id}{SUFFIX}", script.operation));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| failed(error, "create the journal", &path))?;
        let mut journal = Self {
            file: Locked(file.into()),
            path,
            id,
            script: script.clone(),
            done: 0,
            begun: BTreeSet::new(),
            copied: BTreeMap::new(),
        };
        journal.begin().inspect_err(|_| {
            // Nothing was done yet; the first error is the one that is told.
            let _ = journal.remove();
        })?;
        Ok(journal)
    }

    fn begin(&mut self) -> Result<()> {
        lock(&self.file.0, &self.path)?;
        let stat = fstat(&self.file.0).map_err(|error| failed(error, "read", &self.path))?;
        if stat.st_nlink == 0 {
            // Somebody else came here in the instant before, and found one that says nothing.
            let message = "another operation began here at the same time";
            return Err(Error::new(ErrorKind::Locked, message)
                .with_path(&self.path)
                .with_hint("try again"));
        }
        let head = Head {
            version: VERSION,
            id: self.id.clone(),
            process: std::process::id(),
            script: &self.script,
        };
        let line = serde_json::to_vec(&head).map_err(|error| {
            // Nothing else in it can be refused.
            Error::new(
                ErrorKind::Unsupported,
                "a name that is not UTF-8 cannot be kept in a journal",
            )
            .with_source(error)
        })?;
        self.write(line)?;
        Ok(sync_directory_of(&self.path)?)
    }

    /// What one is about, also while it runs.
    pub(super) fn script_in(path: &Path) -> Result<Script> {
        let file = open_trusted(path, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        let read = file.take(MOST).read_to_end(&mut bytes);
        read.map_err(|error| Error::from(catena_storage::Error::from_io(error, "read").with_path(path)))?;
        let head = bytes.split_inclusive(|byte| *byte == b'\n').next();
        let head = head.and_then(|head| serde_json::from_slice::<Head<Script>>(head).ok());
        head.map(|head| head.script)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "it is no journal of this program").with_path(path))
    }

    /// Opens and locks one that was left.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while its operation runs; [`ErrorKind::Refused`] where somebody else could have written it;
    /// [`ErrorKind::NotFound`] where its operation has just ended; [`ErrorKind::Unsupported`] where another version of Catena wrote it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_trusted(path, OFlags::RDWR)?;
        lock(&file, path)?;
        let mut file = Locked(file);
        let cannot = |error: std::io::Error| {
            Error::from(catena_storage::Error::from_io(error, "read").with_path(path))
        };
        let stat = fstat(&file.0).map_err(|error| failed(error, "read", path))?;
        if stat.st_nlink == 0 {
            return Err(Error::new(ErrorKind::NotFound, "its operation has just ended").with_path(path));
        }
        let mut bytes = Vec::new();
        (&file.0).take(MOST + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > MOST {
            return Err(Error::new(ErrorKind::TooLarge, "no journal is as large as this").with_path(path));
        }
        // What is behind the last end of a line was never written, nor is what a disk that lost its power has zeros in.
        bytes.truncate(bytes.iter().take_while(|byte| **byte != 0).count());
        let written = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        bytes.truncate(written);
        ftruncate(&file.0, written as u64).map_err(|error| failed(error, "write to", path))?;
        file.0.seek(SeekFrom::End(0)).map_err(cannot)?;
        Self::parse(file, path, &bytes)
    }

    fn parse(file: Locked, path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |error: serde_json::Error| {
            Error::new(ErrorKind::Corrupt, "it is no journal of this program")
                .with_path(path)
                .with_source(error)
        };
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let Some(first) = lines.next() else {
            // It was cut off before anything was done.
            return Ok(Self {
                file,
                path: path.to_owned(),
                id: String::new(),
                script: Script::default(),
                done: 0,
                begun: BTreeSet::new(),
                copied: BTreeMap::new(),
            });
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(first).map_err(bad)?;
        if version != VERSION {
            let message = format!("it is a journal of version {version}, and only {VERSION} is known");
            return Err(Error::new(ErrorKind::Unsupported, message).with_path(path));
        }
        let head: Head<Script> = serde_json::from_slice(first).map_err(bad)?;
        let plain = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !plain(&head.id)
            || head
                .script
                .steps
                .iter()
                .flat_map(Step::paths)
                .any(|path| !path.is_absolute())
        {
            return Err(
                Error::new(ErrorKind::Corrupt, "it names files that no journal names").with_path(path),
            );
        }
        let mut journal = Self {
            file,
            path: path.to_owned(),
            id: head.id,
            script: head.script,
            done: 0,
            begun: BTreeSet::new(),
            copied: BTreeMap::new(),
        };
        for line in lines {
            journal.learn(serde_json::from_slice(line).map_err(bad)?);
        }
        journal.done = journal.done.min(journal.script.steps.len());
        Ok(journal)
    }

    fn learn(&mut self, line: Line) {
        match line {
            Line::Done(steps) => self.done = steps,
            Line::Begun(step) => {
                self.begun.insert(step);
            }
            Line::Copied { step, of, copy } => {
                self.copied.insert(step, Copied { of, copy });
            }
        }
    }

    /// Whether it was cut off before it said anything.
    pub(super) fn says_nothing(&self) -> bool {
        self.id.is_empty()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is the journal of.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// How many steps are done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Whether it can be taken back still.
    pub fn can_be_taken_back(&self) -> bool {
        !self.script.steps.iter().take(self.done).any(Step::is_final)
    }

    /// The script's own mark, which is in the names of what it leaves.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether a step has come to where it cannot be taken back, or gives names.
    pub(super) fn has_begun(&self, step: usize) -> bool {
        self.begun.contains(&step)
    }

    pub(super) fn copied(&self, step: usize) -> Option<Copied> {
        self.copied.get(&step).copied()
    }

    pub(super) fn set_done(&mut self, steps: usize) -> Result<()> {
        self.append(Line::Done(steps))
    }

    pub(super) fn set_begun(&mut self, step: usize) -> Result<()> {
        self.append(Line::Begun(step))
    }

    pub(super) fn set_copied(&mut self, step: usize, of: Seen, copy: Seen) -> Result<()> {
        self.append(Line::Copied { step, of, copy })
    }

    fn append(&mut self, line: Line) -> Result<()> {
        let text = serde_json::to_vec(&line)
            .map_err(|error| Error::new(ErrorKind::Io, "cannot write the journal").with_source(error))?;
        self.write(text)?;
        self.learn(line);
        Ok(())
    }

    fn write(&mut self, mut line: Vec<u8>) -> Result<()> {
        line.push(b'\n');
        let path = &self.path;
        self.file.0.write_all(&line).map_err(|error| {
            Error::from(catena_storage::Error::from_io(error, "write to").with_path(path))
        })?;
        fdatasync(&self.file.0).map_err(|error| failed(error, "flush", path))
    }

    /// Removes it: everything is done, or nothing is.
    pub(super) fn remove(&self) -> Result<()> {
        super::files::remove(&self.path)
    }
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            Err(Error::new(ErrorKind::Locked, "its operation is running").with_path(path))
        }
        Err(error) => Err(failed(error, "lock", path)),
    }
}

/// Opens one that nobody but this user can have written.
fn open_trusted(path: &Path, access: OFlags) -> Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP => refused(path, "it is a symbolic link"),
        error => failed(error, "open", path),
    })?;
    let file = File::from(file);
    check_trust(&file, path)?;
    Ok(file)
}

/// Whether nobody but this user can have written it.
fn check_trust(file: impl AsFd, path: &Path) -> Result<()> {
    let stat = fstat(file).map_err(|error| failed(error, "read", path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(path, "it is no file"));
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(refused(path, "it belongs to another user"));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(refused(path, "others may write it"));
    }
    if stat.st_nlink > 1 {
        return Err(refused(path, "it has another name"));
    }
    Ok(())
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("a journal is a list of orders, and {why}"),
    )
    .with_path(path)
}
