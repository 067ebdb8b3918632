//! How files were before [`change`](super::change) changed them, in a file, and the way back.
//!
//! The file is complete and on its medium before anything changes. An object is put back if it is the one that was
//! changed, and each of its owner, group, mode and list is what it was or what was made of it: then nobody else has
//! changed it, wherever the change or an earlier way back was cut off.

use catena::doctor::{ACL_ATTRIBUTE, Acl};
use catena::{Error, ErrorKind, Result};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags, chmod, chownat, fstat, getxattr, openat2,
    removexattr, setxattr,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes.
const MOST: u64 = 64 << 20;
/// The longest list.
const LIST: usize = 64 << 10;

/// What can be changed of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub uid: u32,
    pub gid: u32,
    /// The lowest twelve bits.
    pub mode: u32,
    /// The access control list, as stored.
    pub acl: Option<Vec<u8>>,
}

/// An object, how it was, and what was made of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    #[serde(with = "name")]
    pub path: PathBuf,
    device: u64,
    inode: u64,
    pub before: State,
    pub after: State,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<E> {
    catena_access_undo: u32,
    objects: Vec<E>,
}

/// What came of the way back.
#[derive(Debug, Default)]
pub struct Undone {
    /// What was put back.
    pub restored: Vec<PathBuf>,
    /// What was already as it had been.
    pub unchanged: Vec<PathBuf>,
    /// What is left as it is, and why.
    pub left: Vec<(PathBuf, String)>,
}

impl State {
    /// That of an open object.
    pub fn of(handle: impl AsFd) -> rustix::io::Result<Self> {
        let stat = fstat(&handle)?;
        let mut buffer = vec![0; LIST];
        let acl = match getxattr(link(&handle), ACL_ATTRIBUTE, &mut *buffer) {
            Ok(length) => {
                buffer.truncate(length);
                Some(buffer)
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            acl,
        })
    }

    /// Gives the object another mode, and its list what follows from that.
    pub fn set_mode(&mut self, mode: u32) {
        self.mode = mode;
        let list = self.acl.as_deref().and_then(Acl::parse);
        if let Some(list) = list {
            self.acl = Some(list.with_mode(mode).encode());
        }
    }

    /// Makes an open object so. What is closed is closed first, and what is opened is opened last.
    pub fn set(&self, handle: impl AsFd) -> rustix::io::Result<()> {
        let link = link(&handle);
        let now = Self::of(&handle)?;
        if (now.uid, now.gid) != (self.uid, self.gid) {
            let ids = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
            chownat(CWD, &link, ids.0, ids.1, AtFlags::empty())?;
        }
        if now.acl != self.acl {
            match &self.acl {
                Some(list) => setxattr(&link, ACL_ATTRIBUTE, list, XattrFlags::empty())?,
                None => removexattr(&link, ACL_ATTRIBUTE)?,
            }
        }
        // A change of owner clears bits, and a list has some of its own.
        if fstat(&handle)?.st_mode & 0o7777 != self.mode {
            chmod(&link, Mode::from_raw_mode(self.mode))?;
        }
        Ok(())
    }

    /// Whether it is one of the two, or something on the way from one to the other.
    fn is_between(&self, before: &Self, after: &Self) -> bool {
        // A change of owner clears bits until the mode is set.
        let mode = |of: &Self| self.mode == of.mode || self.mode == of.mode & !0o6000;
        (self.uid == before.uid || self.uid == after.uid)
            && (self.gid == before.gid || self.gid == after.gid)
            && (mode(before) || mode(after))
            && (self.acl == before.acl || self.acl == after.acl)
    }
}

impl Entry {
    pub fn new(path: PathBuf, object: (u64, u64), before: State, after: State) -> Self {
        Self {
            path,
            device: object.0,
            inode: object.1,
            before,
            after,
        }
    }

    /// Device and inode.
    pub fn object(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Puts it back; whether there was anything to put back, or why it is left.
    fn undo(&self) -> Result<bool, String> {
        let handle = openat2(
            CWD,
            &self.path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => "it is no longer there".to_owned(),
            Errno::LOOP => "a symbolic link stands in its way".to_owned(),
            other => std::io::Error::from(other).to_string(),
        })?;
        let text = |error: Errno| std::io::Error::from(error).to_string();
        let stat = fstat(&handle).map_err(text)?;
        if (stat.st_dev, stat.st_ino) != self.object() {
            return Err("another file has its name now".to_owned());
        }
        let now = State::of(&handle).map_err(text)?;
        if now == self.before {
            return Ok(false);
        }
        if !now.is_between(&self.before, &self.after) {
            return Err("somebody else has changed its owner, mode or access control list since".to_owned());
        }
        self.before.set(&handle).map_err(text)?;
        Ok(true)
    }
}

/// An open object's name that nobody can exchange.
fn link(handle: impl AsFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

/// Writes the file, which must be new.
pub(super) fn write<'a>(path: &Path, entries: impl Iterator<Item = &'a Entry>) -> Result<()> {
    let io = |error: std::io::Error| {
        let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
        let what = "cannot write down how the files are";
        let error = Error::new(ErrorKind::Io, what).with_path(path).with_source(error);
        if exists {
            error.with_hint(
                "an earlier change is written down there: undo it, or name another file with --undo-file",
            )
        } else {
            error
        }
    };
    let file = File {
        catena_access_undo: 1,
        objects: entries.collect(),
    };
    let text = serde_json::to_vec_pretty(&file).map_err(|error| io(error.into()))?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    file.write_all(&text).map_err(io)?;
    file.sync_all().map_err(io)?;
    Ok(catena_storage::sync_directory_of(path)?)
}

/// Takes the file away, for there is nothing to go back to.
pub(super) fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot remove it")
            .with_path(path)
            .with_source(error)
    })
}

/// Puts back everything that a file tells of. The file is removed if nothing had to be left.
///
/// # Errors
/// Where the file cannot be read or understood.
pub fn undo(path: &Path) -> Result<Undone> {
    let io = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        Error::new(kind, "cannot read how the files were")
            .with_path(path)
            .with_source(error)
    };
    if std::fs::metadata(path).map_err(io)?.len() > MOST {
        return Err(Error::new(ErrorKind::TooLarge, "the file is larger than 64 MiB").with_path(path));
    }
    let text = std::fs::read(path).map_err(io)?;
    let file: File<Entry> = serde_json::from_slice(&text)
        .ok()
        .filter(|file: &File<Entry>| file.catena_access_undo == 1)
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "it does not tell how files were").with_path(path))?;
    let mut undone = Undone::default();
    for entry in file.objects.iter().rev() {
        match entry.undo() {
            Ok(true) => undone.restored.push(entry.path.clone()),
            Ok(false) => undone.unchanged.push(entry.path.clone()),
            Err(why) => undone.left.push((entry.path.clone(), why)),
        }
    }
    if undone.left.is_empty() {
        remove(path)?;
    }
    Ok(undone)
}

/// A path as JSON: text, or the bytes of what is none.
mod name {
    use super::{OsStrExt, OsString, OsStringExt, Path, PathBuf};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Name {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => Name::Text(text.to_owned()),
            None => Name::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
        .serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(match Name::deserialize(from)? {
            Name::Text(text) => text.into(),
            Name::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}
