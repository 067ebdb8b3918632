//! Folders with all that is in them, in memory: read from the disk, and put there again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Bytes that are left out of a file where they are zeros.
const BLOCK: usize = 4096;

/// Some folders and everything below them.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub(super) roots: Vec<PathBuf>,
    pub(super) entries: BTreeMap<PathBuf, Entry>,
    pub(super) files: Vec<File>,
}

/// What a name is that of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Folder,
    Link(PathBuf),
    /// A file by its number; several names may have the same.
    File(usize),
}

/// A regular file.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub bytes: Arc<Vec<u8>>,
    pub mode: u32,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    /// What it was known by where it was read.
    pub identity: Option<Identity>,
}

/// By what a file is known for as long as it lives: its inode, and when that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub inode: u64,
    pub born: (i64, u32),
}

impl Identity {
    fn of(path: &Path) -> Result<Self> {
        let stat = statx(
            CWD,
            path,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::INO | StatxFlags::BTIME,
        )
        .with_context(|| path.display().to_string())?;
        Ok(Self {
            inode: stat.stx_ino,
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        })
    }

    /// As a journal has it.
    fn text(self) -> String {
        let Self { inode, born } = self;
        format!("\"inode\":{inode},\"born\":[{},{}]", born.0, born.1)
    }
}

impl Tree {
    /// Reads folders with everything below.
    ///
    /// # Errors
    /// Where something cannot be read, or is neither folder, link nor file.
    pub fn read<P: Into<PathBuf>>(roots: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut tree = Self {
            roots: roots.into_iter().map(Into::into).collect(),
            ..Self::default()
        };
        let mut known = HashMap::new();
        let mut folders = tree.roots.clone();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let entry = entry?;
                let (path, metadata) = (entry.path(), entry.metadata()?);
                let entry = if metadata.is_dir() {
                    folders.push(path.clone());
                    Entry::Folder
                } else if metadata.is_symlink() {
                    Entry::Link(std::fs::read_link(&path)?)
                } else if metadata.is_file() {
                    let next = tree.files.len();
                    let number = *known.entry((metadata.dev(), metadata.ino())).or_insert(next);
                    if number == next {
                        tree.files.push(File {
                            bytes: Arc::new(std::fs::read(&path)?),
                            mode: metadata.mode() & 0o7777,
                            modified: (metadata.mtime(), metadata.mtime_nsec().try_into()?),
                            identity: Some(Identity::of(&path)?),
                        });
                    }
                    Entry::File(number)
                } else {
                    bail!("{} is nothing that is put anywhere", path.display());
                };
                tree.entries.insert(path, entry);
            }
        }
        Ok(tree)
    }

    /// Makes the folders what they were. What else is in them goes.
    ///
    /// Files are others than they were, by inode and time of birth. As a disk that was cut off from power keeps both, what a journal
    /// (`*.journal`) says of them (`"inode":…,"born":[…]`) is put in the words of the new ones.
    ///
    /// # Errors
    /// Where something cannot be written.
    pub fn put(&self) -> Result<()> {
        for root in &self.roots {
            for entry in std::fs::read_dir(root)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    std::fs::remove_dir_all(entry.path())?;
                } else {
                    std::fs::remove_file(entry.path())?;
                }
            }
        }
        let is_journal = |path: &Path| path.extension() == Some(OsStr::new("journal"));
        let mut there: HashMap<usize, &Path> = HashMap::new();
        let mut renamed = Vec::new();
        // Folders come before what is in them.
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder => std::fs::create_dir(path)?,
                Entry::Link(target) => symlink(target, path)?,
                Entry::File(number) => match there.get(number) {
                    Some(other) => std::fs::hard_link(other, path)?,
                    None if is_journal(path) => {}
                    None => {
                        let file = &self.files[*number];
                        file.put(path, &file.bytes)?;
                        there.insert(*number, path);
                        if let Some(old) = file.identity {
                            renamed.push((old.text(), Identity::of(path)?.text()));
                        }
                    }
                },
            }
        }
        for (path, entry) in &self.entries {
            if let Entry::File(number) = entry
                && is_journal(path)
            {
                let file = &self.files[*number];
                let bytes = { &renamed }
                    .iter()
                    .fold(file.bytes.to_vec(), |bytes, (old, new)| {
                        replaced(&bytes, old.as_bytes(), new.as_bytes())
                    });
                file.put(path, &bytes)?;
            }
        }
        Ok(())
    }

    /// The names of all that is there, below which root, in order.
    pub fn names(&self) -> impl Iterator<Item = &Path> {
        self.entries.keys().map(PathBuf::as_path)
    }

    /// The content of a file; `None` where there is none of that name.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<&[u8]> {
        match self.entries.get(path)? {
            Entry::File(number) => Some(&self.files[*number].bytes),
            _ => None,
        }
    }

    /// A number for all names and contents that `counts` says yes to: of two trees that have the same, they are the same.
    pub fn digest(&self, counts: impl Fn(&Path) -> bool) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, entry) in self.entries.iter().filter(|(path, _)| counts(path)) {
            path.hash(&mut hasher);
            match entry {
                Entry::File(number) => self.files[*number].bytes.hash(&mut hasher),
                Entry::Folder => 0.hash(&mut hasher),
                Entry::Link(target) => target.hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

impl File {
    fn put(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(path)
            .with_context(|| path.display().to_string())?;
        file.set_len(bytes.len() as u64)?;
        for (number, block) in bytes.chunks(BLOCK).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, (number * BLOCK) as u64)?;
            }
        }
        let (seconds, rest) = self.modified;
        file.set_modified(UNIX_EPOCH + Duration::new(seconds.try_into()?, rest))?;
        Ok(())
    }
}

/// The bytes with each occurrence of some replaced by others.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut new = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(from) {
            new.extend_from_slice(to);
            at += from.len();
        } else {
            new.push(bytes[at]);
            at += 1;
        }
    }
    new
}
