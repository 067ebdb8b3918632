//! Permissions: what on the way to a file is closed to somebody, by the kernel's own rules.
//!
//! Mode bits, access control lists, symbolic links and read-only file systems are looked at. Security modules
//! (SELinux, AppArmor) and servers that know better (NFS with `root_squash`) are not, and can only deny more.

use super::acl::Acl;
use super::user::User;
use super::{Code, Cure, Examination, Severity};
use crate::chain::Layer;
use crate::reference::Source;
use bitflags::bitflags;
use catena_engine::Error;
use rustix::fs::{FileType, Mode, Stat, StatVfsMountFlags, fstat, lstat, readlink, statvfs};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Most symbolic links that the kernel follows on one way.
const LINKS: usize = 40;

bitflags! {
    /// What somebody wants to do; the numbers are those of a mode's last digit.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Read.
        const READ = 4;
        /// Write.
        const WRITE = 2;
        /// Search a directory.
        const SEARCH = 1;
    }
}

impl Access {
    /// The lowest three bits.
    pub fn from_mode(mode: u32) -> Self {
        Self::from_bits_truncate(u8::try_from(mode & 7).unwrap_or_default())
    }

    /// As setfacl and chmod write it: `rw`.
    pub fn letters(self) -> String {
        let letters = [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::SEARCH, 'x')];
        let has = letters.into_iter().filter(|(one, _)| self.contains(*one));
        has.map(|(_, letter)| letter).collect()
    }

    fn words(self) -> String {
        let words = [
            (Self::READ, "read"),
            (Self::WRITE, "written"),
            (Self::SEARCH, "searched"),
        ];
        let has: Vec<_> = words
            .into_iter()
            .filter(|(one, _)| self.contains(*one))
            .map(|(_, word)| word)
            .collect();
        has.join(" and ")
    }
}

/// Something on the way to a file that stops somebody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// A directory or file whose mode or access control list denies it.
    Closed {
        /// Which.
        path: PathBuf,
        /// What is wanted and denied.
        lacks: Access,
        /// What an access control list entry must allow so that nothing is lost and the rest is gained.
        grant: Access,
        /// Whether the user owns it, so that only the mode counts.
        own: bool,
    },
    /// A symbolic link in a directory anybody may write to, which the kernel does not follow for others than its owner
    /// (`fs.protected_symlinks`).
    Link(PathBuf),
    /// The file system is mounted read-only.
    ReadOnly(PathBuf),
    /// It is not there, or not a directory though it should be.
    Missing(PathBuf),
    /// We may not look ourselves.
    Unseen(PathBuf),
}

impl Obstacle {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Closed { path, .. }
            | Self::Link(path)
            | Self::ReadOnly(path)
            | Self::Missing(path)
            | Self::Unseen(path) => path,
        }
    }

    /// Whether it lies before the file: a directory that cannot be searched, or a link.
    pub fn is_on_the_way(&self) -> bool {
        !matches!(self, Self::Closed { lacks, .. } if *lacks != Access::SEARCH)
    }

    /// What is the case, as a part of a sentence.
    pub fn sentence(&self) -> String {
        let shown = self.path().display();
        match self {
            Self::Closed { lacks, .. } if *lacks == Access::SEARCH => {
                format!("the directory '{shown}' lacks x")
            }
            Self::Closed { lacks, .. } => format!("the file '{shown}' lacks {}", lacks.letters()),
            Self::Link(_) => format!(
                "the symbolic link '{shown}' is in a directory that anybody may write to, and is followed for its owner only"
            ),
            Self::ReadOnly(_) => format!("the file system of '{shown}' is mounted read-only"),
            Self::Missing(_) => format!("'{shown}' does not exist"),
            Self::Unseen(_) => format!("'{shown}' cannot be looked at by this user"),
        }
    }

    /// The command that takes it away for that user, where there is one.
    pub fn command(&self, user: &User) -> Option<Vec<OsString>> {
        let Self::Closed {
            path,
            lacks,
            grant,
            own,
        } = self
        else {
            return None;
        };
        let path = path.as_os_str().to_owned();
        Some(if *own {
            vec!["chmod".into(), format!("u+{}", lacks.letters()).into(), path]
        } else {
            vec![
                "setfacl".into(),
                "-m".into(),
                format!("u:{}:{}", user.name, grant.letters()).into(),
                path,
            ]
        })
    }
}

/// All that stops a user from opening a file: the directories on the way, links resolved, and the file itself.
///
/// A relative path starts at the working directory. Nothing is opened.
pub fn obstacles(path: &Path, user: &User, wanted: Access) -> Vec<Obstacle> {
    walk(path, user, wanted, None)
}

/// The same, if the file were owned by that user id and group id.
pub fn obstacles_if_owned(path: &Path, user: &User, wanted: Access, owner: (u32, u32)) -> Vec<Obstacle> {
    walk(path, user, wanted, Some(owner))
}

/// Whether an open file's mode and access control list deny something to a user.
///
/// # Errors
/// Where it cannot be looked at.
pub fn is_denied(file: impl AsFd, user: &User, wanted: Access) -> Result<bool, Errno> {
    let stat = fstat(&file)?;
    let acl = Acl::of_file(&file)?;
    Ok(!permits(user, &stat, acl.as_ref(), wanted))
}

fn walk(path: &Path, user: &User, wanted: Access, owner: Option<(u32, u32)>) -> Vec<Obstacle> {
    let mut walk = Walk {
        user,
        owner,
        found: Vec::new(),
        here: PathBuf::from("/"),
        links: 0,
    };
    match std::path::absolute(path) {
        Ok(whole) => walk.go(&whole, wanted),
        Err(_) => walk.found.push(Obstacle::Missing(path.to_owned())),
    }
    walk.found
}

struct Walk<'a> {
    user: &'a User,
    /// Who is to be taken for the file's owner, and its group.
    owner: Option<(u32, u32)>,
    found: Vec<Obstacle>,
    /// The directory reached so far.
    here: PathBuf,
    links: usize,
}

impl Walk<'_> {
    fn go(&mut self, whole: &Path, wanted: Access) {
        let mut rest: VecDeque<OsString> = parts(whole).collect();
        let mut directory = match lstat("/") {
            Ok(stat) => stat,
            Err(_) => return self.found.push(Obstacle::Unseen("/".into())),
        };
        while let Some(part) = rest.pop_front() {
            self.ask(&self.here.clone(), &directory, Access::SEARCH);
            let path = self.here.join(&part);
            let stat = match lstat(&path) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR) => return self.found.push(Obstacle::Missing(path)),
                Err(_) => return self.found.push(Obstacle::Unseen(path)),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    self.links += 1;
                    if self.is_protected(&directory, &stat) {
                        self.found.push(Obstacle::Link(path.clone()));
                    }
                    let Ok(target) = readlink(&path, Vec::new()) else {
                        return self.found.push(Obstacle::Unseen(path));
                    };
                    if self.links > LINKS {
                        return self.found.push(Obstacle::Missing(path));
                    }
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        self.here = PathBuf::from("/");
                    }
                    for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(part);
                    }
                    // Where the link started from, or the root: either has been asked about, or will be.
                    match lstat(&self.here) {
                        Ok(stat) => directory = stat,
                        Err(_) => return self.found.push(Obstacle::Unseen(self.here.clone())),
                    }
                }
                FileType::Directory if part == OsStr::new("..") => {
                    self.here.pop();
                    directory = stat;
                }
                FileType::Directory => {
                    self.here = path;
                    directory = stat;
                }
                _ if !rest.is_empty() => return self.found.push(Obstacle::Missing(path)),
                kind => {
                    let mut stat = stat;
                    if let Some((uid, gid)) = self.owner {
                        (stat.st_uid, stat.st_gid) = (uid, gid);
                    }
                    self.ask(&path, &stat, wanted);
                    let writes = wanted.contains(Access::WRITE) && kind == FileType::RegularFile;
                    if writes && statvfs(&path).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
                    {
                        self.found.push(Obstacle::ReadOnly(path));
                    }
                    return;
                }
            }
        }
        // The name is a directory's.
        self.ask(&self.here.clone(), &directory, wanted);
    }

    /// Notes what of `wanted` is denied.
    fn ask(&mut self, path: &Path, stat: &Stat, wanted: Access) {
        let known =
            |obstacle: &Obstacle| matches!(obstacle, Obstacle::Closed { path: known, .. } if known == path);
        if self.found.iter().any(known) {
            return;
        }
        let acl = if self.user.uid == stat.st_uid {
            None
        } else {
            match Acl::of_path(path) {
                Ok(acl) => acl,
                Err(_) => return self.found.push(Obstacle::Unseen(path.to_owned())),
            }
        };
        let permits = |wanted| permits(self.user, stat, acl.as_ref(), wanted);
        if permits(wanted) {
            return;
        }
        let has: Access = Access::all().iter().filter(|one| permits(*one)).collect();
        let lacks = match wanted.difference(has) {
            // Each is granted by another group; together they are denied.
            none if none.is_empty() => wanted,
            lacks => lacks,
        };
        self.found.push(Obstacle::Closed {
            path: path.to_owned(),
            lacks,
            grant: has | wanted,
            own: self.user.uid == stat.st_uid,
        });
    }

    /// The kernel's rule for links in sticky directories that anybody may write to.
    fn is_protected(&self, directory: &Stat, link: &Stat) -> bool {
        let mode = Mode::from_raw_mode(directory.st_mode);
        mode.contains(Mode::SVTX | Mode::WOTH)
            && link.st_uid != self.user.uid
            && link.st_uid != directory.st_uid
            && std::fs::read_to_string("/proc/sys/fs/protected_symlinks").is_ok_and(|text| text.trim() == "1")
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// The kernel's decision: the owner's bits for the owner; else the list, unless the group's bits, which are its mask,
/// are all off; else the group's bits or the others'.
fn permits(user: &User, stat: &Stat, acl: Option<&Acl>, wanted: Access) -> bool {
    if user.uid == 0 {
        return true;
    }
    let bits = |shift: u32| Access::from_mode(stat.st_mode >> shift);
    if user.uid == stat.st_uid {
        return bits(6).contains(wanted);
    }
    if let Some(acl) = acl.filter(|_| !bits(3).is_empty()) {
        return acl.permits(user, stat.st_gid, wanted);
    }
    if user.groups.contains(&stat.st_gid) {
        bits(3).contains(wanted)
    } else {
        bits(0).contains(wanted)
    }
}

/// Whether the user the doctor was told of may open a layer.
pub(super) fn check(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    if !examination.is_full() {
        return;
    }
    let Some(user) = examination.options.user.clone() else {
        return;
    };
    let wanted = wanted(examination.first + number);
    if let Some(path) = layer.path() {
        report(examination, number, path, &user, wanted, None);
    }
    let data_file = layer.data_file.as_ref().filter(|file| file.file.is_ok());
    if let Some(path) = data_file.and_then(|file| file.source.as_ref()?.path()) {
        report(examination, number, path, &user, wanted, None);
    }
}

/// The active layer is written, the others are read.
fn wanted(number: usize) -> Access {
    match number {
        0 => Access::READ | Access::WRITE,
        _ => Access::READ,
    }
}

/// A file that the system did not let us open.
pub(super) fn denied(
    examination: &mut Examination<'_>,
    number: usize,
    source: Option<&Source>,
    error: &Error,
) {
    let user = User::current();
    match source.and_then(Source::path) {
        Some(path) => report(examination, number, path, &user, Access::READ, Some(error)),
        None => examination.find(
            Code::PermissionDenied,
            Severity::Error,
            (number, source.map(ToString::to_string).unwrap_or_default()),
            error.full(),
            "the chain cannot be followed from here",
            Cure::advice("run the doctor as root, with --as-user"),
        ),
    }
    let told = examination.options.user.clone().filter(|told| *told != user);
    if let (Some(told), Some(path)) = (told, source.and_then(Source::path)) {
        report(
            examination,
            number,
            path,
            &told,
            wanted(examination.first + number),
            None,
        );
    }
}

fn report(
    examination: &mut Examination<'_>,
    number: usize,
    path: &Path,
    user: &User,
    wanted: Access,
    error: Option<&Error>,
) {
    let mut obstacles = obstacles(path, user, wanted);
    let at = (number, path.display().to_string());
    let who = format!("the user {} (uid {})", user.name, user.uid);
    if obstacles.is_empty() {
        if let Some(error) = error {
            examination.find(
                Code::PermissionDenied,
                Severity::Error,
                at,
                format!("{who} is denied the file although modes and access control lists allow it: {}", error.full()),
                "a security module (SELinux, AppArmor) or the file server denies it",
                Cure::advice(
                    "look for 'denied' in the system's audit log: 'ausearch -m avc -ts recent' or 'journalctl -k'",
                ),
            );
        }
        return;
    }
    // A directory that closes off one layer closes off many: once is enough.
    obstacles.retain(|obstacle| !examination.obstacles.contains(&(user.uid, obstacle.clone())));
    if obstacles.is_empty() {
        return;
    }
    let told = obstacles.iter().map(|obstacle| (user.uid, obstacle.clone()));
    examination.obstacles.extend(told);
    let sentences: Vec<_> = obstacles.iter().map(Obstacle::sentence).collect();
    let mut cure = Cure::none();
    for command in obstacles.iter().filter_map(|obstacle| obstacle.command(user)) {
        cure = cure.and(command);
    }
    if obstacles
        .iter()
        .any(|obstacle| matches!(obstacle, Obstacle::Unseen(_)))
    {
        cure = cure.saying("run the doctor as root, with --as-user, to see the rest of the way");
    } else if cure.commands.is_empty() {
        cure = cure.saying("move the image, or record a name that does not lead this way");
    }
    let only_files = obstacles.iter().all(|obstacle| !obstacle.is_on_the_way());
    let libvirt = if only_files {
        "; libvirt makes the files of a guest's chain over to its user at the start, unless dynamic_ownership is off"
    } else {
        "; libvirt never changes the permissions of a directory"
    };
    examination.find(
        Code::PermissionDenied,
        Severity::Error,
        at,
        format!(
            "{who} cannot have the file {}: {}",
            wanted.words(),
            sentences.join("; ")
        ),
        format!("a guest that runs as this user does not start{libvirt}"),
        cure,
    );
}

/// Whether the user the doctor was told of may open an image that did not become a layer.
pub(super) fn check_source(examination: &mut Examination<'_>, source: Option<&Source>) {
    let number = examination.chain.layers.len();
    let user = examination.options.user.clone().filter(|_| examination.is_full());
    if let (Some(user), Some(path)) = (user, source.and_then(Source::path)) {
        report(
            examination,
            number,
            path,
            &user,
            wanted(examination.first + number),
            None,
        );
    }
}
