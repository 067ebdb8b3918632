//! Who has an image open: found out from `/proc`, for messages and for diagnosis, never to decide whether to write.
//!
//! What is found was true when it was looked at. Processes of other users are not visible to everybody; of those only their
//! locks show, without a name.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::lock::Permissions;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::slice;

/// What a process is called that only its locks tell of.
pub(crate) const UNSEEN: &str = "another process (not visible to this user)";

/// The most that is read of one file of `/proc`, in bytes.
const MOST: u64 = 1 << 20;

/// One process that has an image open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number; `None` for one that this user cannot see.
    pub pid: Option<u32>,
    /// Its command, without folder; empty where it cannot be seen.
    pub command: String,
    /// The name of the guest it runs, where it is a QEMU that was told one.
    pub guest: Option<String>,
    /// How it has the image open.
    pub hold: Hold,
}

/// How a process has an image open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hold {
    /// With QEMU's locks.
    Locked(Permissions),
    /// For writing, without locks.
    Writing,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return f.write_str(UNSEEN);
        };
        let command = match self.command.as_str() {
            _ if pid == std::process::id() => "this process",
            "" => "a process",
            command => command,
        };
        write!(f, "{command} (pid {pid}")?;
        if let Some(guest) = &self.guest {
            write!(f, ", guest '{guest}'")?;
        }
        f.write_str(")")
    }
}

/// All processes that have the file or block device open with locks, or for writing.
pub fn holders(path: impl AsRef<Path>) -> Result<Vec<Holder>> {
    let path = path.as_ref();
    let failed = |error: io::Error| Error::from_io(error, "find out who uses").with_path(path);
    let subject = Subject::named(path).map_err(failed)?;
    let mut found = find_all(slice::from_ref(&subject), None).map_err(failed)?;
    Ok(found.pop().unwrap_or_default())
}

/// The same for many files at once, in their order: the processes are looked through once. Of a file that cannot be
/// asked about, nobody is known.
pub fn holders_of(paths: &[impl AsRef<Path>]) -> Result<Vec<Vec<Holder>>> {
    let failed = |error: io::Error| Error::from_io(error, "find out who uses files");
    let subjects: Vec<_> = paths
        .iter()
        .map(|path| Subject::named(path.as_ref()).ok())
        .collect();
    let known: Vec<_> = subjects.iter().flatten().cloned().collect();
    let mut found = find_all(&known, None).map_err(failed)?.into_iter();
    Ok(subjects
        .iter()
        .map(|subject| subject.as_ref().and_then(|_| found.next()).unwrap_or_default())
        .collect())
}

/// What makes a file of `/proc/*/fd` the one looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    device: (u32, u32),
    /// `None` for a block device, which its number names alone.
    inode: Option<u64>,
    /// Where the inode of the file itself is, be it a device's: what `/proc/locks` names.
    node: (u32, u32, u64),
}

impl Subject {
    /// What an open file is.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        Ok(Self::from(&stat))
    }

    fn named(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&ask(path)?))
    }

    /// What two names of the same object share.
    fn object(&self) -> Object {
        (self.device, self.inode)
    }
}

/// Device and inode; a block device by its number alone.
type Object = ((u32, u32), Option<u64>);

impl From<&Statx> for Subject {
    fn from(stat: &Statx) -> Self {
        let node = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice {
            Self {
                device: (stat.stx_rdev_major, stat.stx_rdev_minor),
                inode: None,
                node,
            }
        } else {
            Self {
                device: (stat.stx_dev_major, stat.stx_dev_minor),
                inode: Some(stat.stx_ino),
                node,
            }
        }
    }
}

/// Asks what a name stands for, without making a server that does not answer hold us up.
fn ask(path: &Path) -> rustix::io::Result<Statx> {
    statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS)
}

/// Looks through all processes for one file; `except` is a descriptor of this one that does not count.
pub(crate) fn find(subject: &Subject, except: Option<RawFd>) -> io::Result<Vec<Holder>> {
    Ok(find_all(slice::from_ref(subject), except)?
        .pop()
        .unwrap_or_default())
}

/// Looks through all processes once; the answers are in the order of the subjects.
fn find_all(subjects: &[Subject], except: Option<RawFd>) -> io::Result<Vec<Vec<Holder>>> {
    if !Path::new("/proc/self/fd").exists() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "/proc is not mounted"));
    }
    let mut found: HashMap<Object, BTreeMap<u32, Hold>> = subjects
        .iter()
        .map(|subject| (subject.object(), BTreeMap::new()))
        .collect();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok());
        if let Some(pid) = pid {
            look_at(pid, &mut found, except.filter(|_| pid == std::process::id()));
        }
    }
    let listed = read("/proc/locks").unwrap_or_default();
    let listed: Vec<_> = listed.lines().filter_map(parse_lock).collect();
    let answer = |subject: &Subject| {
        let holds = found.get(&subject.object()).cloned().unwrap_or_default();
        with_unseen(subject, holds, &listed, except)
    };
    Ok(subjects.iter().map(answer).collect())
}

/// The holders of a file, with those that only the kernel's list of locks tells of.
fn with_unseen(
    subject: &Subject,
    holds: BTreeMap<u32, Hold>,
    listed: &[Lock],
    except: Option<RawFd>,
) -> Vec<Holder> {
    let mut unseen = Permissions::NONE;
    for lock in listed.iter().filter(|lock| lock.node == subject.node) {
        unseen.add(lock.permissions);
    }
    // What this one holds itself under the descriptor that does not count shows in the list all the same.
    if let Some(fd) = except {
        unseen.remove(read_fdinfo(std::process::id(), fd).locks);
    }
    for hold in holds.values() {
        if let Hold::Locked(permissions) = hold {
            unseen.remove(*permissions);
        }
    }
    let mut all: Vec<Holder> = holds.into_iter().map(|(pid, hold)| by_pid(pid, hold)).collect();
    if !unseen.is_empty() {
        all.push(Holder {
            pid: None,
            command: String::new(),
            guest: None,
            hold: Hold::Locked(unseen),
        });
    }
    all
}

/// Notes how the process has each of the files open, all its descriptors taken together.
fn look_at(pid: u32, found: &mut HashMap<Object, BTreeMap<u32, Hold>>, except: Option<RawFd>) {
    // A process that has gone or is another user's shows nothing.
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return;
    };
    for entry in entries.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if except == Some(fd) {
            continue;
        }
        let object = ask(&entry.path()).map(|stat| Subject::from(&stat).object());
        let Some(holds) = object.ok().and_then(|object| found.get_mut(&object)) else {
            continue;
        };
        let info = read_fdinfo(pid, fd);
        let locks = match holds.get(&pid) {
            Some(Hold::Locked(locks)) => *locks,
            _ => Permissions::NONE,
        };
        let mut all = info.locks;
        all.add(locks);
        if !all.is_empty() {
            holds.insert(pid, Hold::Locked(all));
        } else if info.writing {
            holds.insert(pid, Hold::Writing);
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct FdInfo {
    writing: bool,
    locks: Permissions,
}

fn read_fdinfo(pid: u32, fd: RawFd) -> FdInfo {
    read(&format!("/proc/{pid}/fdinfo/{fd}")).map_or_else(|_| FdInfo::default(), |text| parse_fdinfo(&text))
}

/// `proc_pid_fdinfo(5)`: lines `flags:` (octal) and `lock:`.
fn parse_fdinfo(text: &str) -> FdInfo {
    let mut info = FdInfo::default();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("flags:") {
            let access = u32::from_str_radix(flags.trim(), 8).unwrap_or(0) & 0o3;
            info.writing = access == 1 || access == 2;
        } else if let Some(lock) = line.strip_prefix("lock:").and_then(parse_lock) {
            info.locks.add(lock.permissions);
        }
    }
    info
}

/// One line of `/proc/locks`.
struct Lock {
    /// Device and inode, in the kernel's own numbers.
    node: (u32, u32, u64),
    permissions: Permissions,
}

/// `proc_locks(5)`: `1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 101`; `->` after the number if it only waits.
fn parse_lock(line: &str) -> Option<Lock> {
    let mut words = line.split_whitespace().skip(1);
    let class = words.next()?;
    if class != "OFDLCK" && class != "POSIX" {
        return None;
    }
    let mut words = words.skip(3);
    let mut node = words.next()?.split(':');
    let major = u32::from_str_radix(node.next()?, 16).ok()?;
    let minor = u32::from_str_radix(node.next()?, 16).ok()?;
    let inode = node.next()?.parse().ok()?;
    let first = words.next()?.parse().ok()?;
    let last = match words.next()? {
        "EOF" => u64::MAX,
        last => last.parse().ok()?,
    };
    Some(Lock {
        node: (major, minor, inode),
        permissions: Permissions::of_bytes(first, last),
    })
}

/// A process by its number, with what can be told of it.
pub(crate) fn by_pid(pid: u32, hold: Hold) -> Holder {
    let short = read(&format!("/proc/{pid}/comm")).unwrap_or_default();
    let line = read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<&str> = line.split('\0').collect();
    Holder {
        pid: Some(pid),
        command: command(short.trim_end_matches('\n'), arguments.first().copied()),
        guest: guest(&arguments),
        hold,
    }
}

/// The kernel keeps only 15 bytes of the name; the first argument has it whole, unless the process chose another.
fn command(short: &str, first_argument: Option<&str>) -> String {
    let whole = first_argument
        .and_then(|name| name.rsplit('/').next())
        .unwrap_or("");
    if whole.starts_with(short) && !short.is_empty() {
        whole.to_owned()
    } else {
        short.to_owned()
    }
}

/// QEMU's `-name`: `vm1`, `vm1,debug-threads=on` or `guest=vm1,…`, a comma in the name doubled.
fn guest(arguments: &[&str]) -> Option<String> {
    let at = arguments
        .iter()
        .position(|word| *word == "-name" || *word == "--name")?;
    let value = arguments.get(at.checked_add(1)?)?;
    let joined = value.replace(",,", "\0");
    let name = joined.split(',').find_map(|part| match part.split_once('=') {
        Some(("guest", name)) => Some(name),
        Some(_) => None,
        None => Some(part),
    })?;
    Some(name.replace('\0', ",")).filter(|name| !name.is_empty())
}

/// A file of `/proc` as text, as much of it as is sensible.
fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_locks_of_a_descriptor() {
        let info = parse_fdinfo(
            "pos:\t0\nflags:\t02100002\nmnt_id:\t28\nino:\t10018929\n\
             lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10018929 100 101\n\
             lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:10018929 103 103\n\
             lock:\t3: OFDLCK ADVISORY  READ -1 fe:00:10018929 201 201\n\
             lock:\t4: OFDLCK ADVISORY  READ -1 fe:00:10018929 203 203\n",
        );
        assert!(info.writing);
        assert_eq!(info.locks, Permissions::WRITE);
    }

    #[test]
    fn other_locks_are_no_permissions() {
        let info = parse_fdinfo("flags:\t02100000\nlock:\t1: FLOCK  ADVISORY  WRITE 12 fe:00:7 0 EOF\n");
        assert_eq!(info, FdInfo::default());
        assert!(parse_lock("1: -> OFDLCK ADVISORY READ -1 fe:00:7 100 100").is_none());
        assert!(parse_lock("").is_none());
    }

    #[test]
    fn the_guest_is_named_as_qemu_was_told() {
        assert_eq!(
            guest(&["qemu", "-name", "guest=vm1,debug-threads=on"]),
            Some("vm1".into())
        );
        assert_eq!(guest(&["qemu", "-name", "vm2"]), Some("vm2".into()));
        assert_eq!(
            guest(&["qemu", "-name", "debug-threads=on,guest=a,,b"]),
            Some("a,b".into())
        );
        assert_eq!(guest(&["qemu", "-name"]), None);
    }

    #[test]
    fn a_command_cut_short_is_completed() {
        assert_eq!(
            command("qemu-system-x86", Some("/usr/bin/qemu-system-x86_64")),
            "qemu-system-x86_64"
        );
        assert_eq!(command("worker", Some("/usr/bin/python3")), "worker");
    }
}
