//! Making files accessible to QEMU's user without libvirt: by owners and modes, or by access control lists.
//!
//! [`plan`] decides and changes nothing; [`Plan::execute`] first writes down how everything was ([`undo`]).
//! What is already accessible stays as it is. What is only read is granted reading alone: lower layers get a group that
//! may read them, and no owner.
//!
//! What holds: each object is opened once, judged, shown and changed through that, so a name that is exchanged meanwhile
//! changes nothing else. Images are those that detection opened; directories are opened by names without links.

use super::undo::{self, Entry, State};
use super::{Grant, Role};
use catena::doctor::{Access, Acl, Obstacle, User, group_name_of, is_denied, name_of};
use catena::{Error, ErrorKind, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat2};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// By what means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// Owners, groups and modes of files. Directories stay as they are, as under libvirt.
    Owners,
    /// Entries of access control lists, of files and of directories on the way.
    Lists,
}

/// What is going to be changed.
#[derive(Debug)]
pub struct Plan {
    /// The changes, each of another object.
    pub steps: Vec<Step>,
    /// What stays in the way.
    pub left: Vec<Obstacle>,
    how: How,
    user: User,
}

/// The change of one object.
#[derive(Debug)]
pub struct Step {
    pub(super) handle: OwnedFd,
    pub(super) entry: Entry,
    /// What an entry of its list allows then.
    allowed: Access,
}

/// Decides what makes these files accessible to a user.
///
/// # Errors
/// Where an object cannot be looked at.
pub fn plan(grants: &[Grant], user: &User, how: How) -> Result<Plan> {
    let mut plan = Plan {
        steps: Vec::new(),
        left: Vec::new(),
        how,
        user: user.clone(),
    };
    for grant in grants {
        for obstacle in grant.obstacles(user).now {
            let done = match &obstacle {
                // An image names it, and images come from strangers.
                _ if grant.role == Role::Extent => false,
                Obstacle::Closed {
                    lacks, path, grant, ..
                } if *lacks == Access::SEARCH => how == How::Lists && plan.directory(path, *grant)?,
                Obstacle::Closed { grant: allowed, .. } => plan.file(grant, *allowed)?,
                _ => false,
            };
            if !done && !plan.left.contains(&obstacle) {
                plan.left.push(obstacle);
            }
        }
    }
    Ok(plan)
}

impl Plan {
    fn directory(&mut self, path: &Path, allowed: Access) -> Result<bool> {
        let handle = openat2(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|error| system(error, "cannot open the directory").with_path(path))?;
        self.object(handle, Access::SEARCH, allowed)
    }

    fn file(&mut self, grant: &Grant, allowed: Access) -> Result<bool> {
        let Some(file) = &grant.file else {
            return Ok(false);
        };
        let opened = file.opened()?;
        let handle = opened
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::new(ErrorKind::Io, "cannot hold on to the file").with_source(error))?;
        self.object(handle, grant.access, allowed)
    }

    /// Plans for an open object, which may have been planned for already. Whether it will be accessible.
    fn object(&mut self, handle: OwnedFd, wanted: Access, allowed: Access) -> Result<bool> {
        let path = name_of_open(&handle)?;
        let at = |error| system(error, "cannot look at it").with_path(&path);
        let stat = fstat(&handle).map_err(at)?;
        let object = (stat.st_dev, stat.st_ino);
        let known = self.steps.iter().position(|step| step.entry.object() == object);
        if known.is_none() && !is_denied(&handle, &self.user, wanted).map_err(at)? {
            return Ok(true);
        }
        let before = match known.and_then(|known| self.steps.get(known)) {
            Some(step) => step.entry.after.clone(),
            None => State::of(&handle).map_err(at)?,
        };
        let Some(after) = self.after(&before, wanted, allowed) else {
            return Ok(false);
        };
        match known.and_then(|known| self.steps.get_mut(known)) {
            Some(step) => {
                step.entry.after = after;
                step.allowed |= allowed;
            }
            None => self.steps.push(Step {
                entry: Entry::new(path, object, before, after),
                handle,
                allowed,
            }),
        }
        Ok(true)
    }

    /// How an object is to be; `None` where this means does not make it accessible.
    fn after(&self, before: &State, wanted: Access, allowed: Access) -> Option<State> {
        let mut after = before.clone();
        let digit = |access: Access, shift: u32| u32::from(access.bits()) << shift;
        if before.uid == self.user.uid {
            after.set_mode(before.mode | digit(wanted, 6));
            return Some(after);
        }
        match self.how {
            How::Lists => {
                let list = match &before.acl {
                    Some(stored) => Acl::parse(stored)?,
                    None => Acl::of_mode(before.mode),
                };
                let list = list.granting(self.user.uid, allowed);
                after.mode = before.mode & !0o070 | list.group_bits() << 3;
                after.acl = Some(list.encode());
            }
            How::Owners if wanted.contains(Access::WRITE) => {
                after.uid = self.user.uid;
                after.gid = self.user.groups.first().copied().unwrap_or(before.gid);
                // Whoever gets a program that runs as its owner would get more than the file.
                after.set_mode(before.mode & 0o1777 | digit(wanted, 6));
            }
            // The digit of its group is the list's mask.
            How::Owners if before.acl.is_some() => return None,
            How::Owners => {
                let group = self.user.groups.first().copied()?;
                let mode = before.mode & 0o1777;
                if self.user.groups.contains(&before.gid) {
                    after.mode = mode | digit(wanted, 3);
                } else {
                    after.gid = group;
                    after.mode = mode & !0o070 | digit(wanted, 3);
                }
            }
        }
        Some(after)
    }

    /// The commands that do the same, each a list of words.
    pub fn commands(&self) -> Vec<Vec<OsString>> {
        let mut commands = Vec::new();
        for step in &self.steps {
            let (before, after) = (&step.entry.before, &step.entry.after);
            let mut command = |name: &str, what: String| {
                let path = step.entry.path.as_os_str().to_owned();
                commands.push(vec![name.into(), what.into(), "--".into(), path]);
            };
            if before.uid != after.uid {
                command(
                    "chown",
                    format!("{}:{}", name_of(after.uid), group_name_of(after.gid)),
                );
            } else if before.gid != after.gid {
                command("chgrp", group_name_of(after.gid));
            }
            if before.acl != after.acl && before.uid != self.user.uid {
                let entry = format!("u:{}:{}", self.user.name, step.allowed.letters());
                let path = step.entry.path.as_os_str().to_owned();
                commands.push(vec![
                    "setfacl".into(),
                    "-m".into(),
                    entry.into(),
                    "--".into(),
                    path,
                ]);
            } else if before.mode != after.mode {
                command("chmod", format!("{:04o}", after.mode));
            }
        }
        commands
    }

    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Writes down how everything was, into a new file, and changes it. Where a change fails, those before it are taken
    /// back.
    ///
    /// # Errors
    /// Where the file exists, an object changed since the plan was made, or the system refuses.
    pub fn execute(&self, undo_file: &Path) -> Result<()> {
        undo::write(undo_file, self.steps.iter().map(|step| &step.entry))?;
        for (done, step) in self.steps.iter().enumerate() {
            if let Err(error) = step.change() {
                let failed = self
                    .steps
                    .iter()
                    .take(done.saturating_add(1))
                    .rev()
                    .any(|step| step.entry.before.set(&step.handle).is_err());
                return Err(if failed {
                    error.with_hint(format!(
                        "what was changed until then can be put back with 'catena access --undo {}'",
                        catena::detect::quoted(undo_file)
                    ))
                } else {
                    undo::remove(undo_file)?;
                    error.with_hint("nothing is changed: what was done until then was put back")
                });
            }
        }
        Ok(())
    }
}

impl Step {
    /// Where the object is.
    pub fn path(&self) -> &Path {
        &self.entry.path
    }

    fn change(&self) -> Result<()> {
        let at = |error| system(error, "cannot change it").with_path(&self.entry.path);
        if State::of(&self.handle).map_err(at)? != self.entry.before {
            let message = "it was changed by somebody else since it was looked at";
            return Err(Error::new(ErrorKind::Conflict, message).with_path(&self.entry.path));
        }
        self.entry.after.set(&self.handle).map_err(at)
    }
}

/// What an open object is called now.
fn name_of_open(handle: &OwnedFd) -> Result<PathBuf> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    std::fs::read_link(link)
        .map_err(|error| Error::new(ErrorKind::Io, "cannot find out a file's name").with_source(error))
}

fn system(error: rustix::io::Errno, what: &'static str) -> Error {
    let kind = match error {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => ErrorKind::Denied,
        rustix::io::Errno::NOENT => ErrorKind::NotFound,
        rustix::io::Errno::OPNOTSUPP => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::new(kind, what).with_source(std::io::Error::from(error))
}
