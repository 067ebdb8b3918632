//! What is told, as JSON has it; the text is made of the same.

use super::fragment::access_word;
use super::{Args, Found};
use catena::detect::quoted;
use catena::doctor::{Obstacle, User, group_name_of, name_of};
use catena_virt::access::{Grant, Host, ImageLock, Lease};
use serde::Serialize;
use std::os::unix::fs::MetadataExt;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The domain, as it was named.
    pub domain: Option<String>,
    pub user: ShownUser,
    pub dynamic_ownership: bool,
    /// Whether everything can be opened once libvirt has started the guest.
    pub accessible: bool,
    /// Whether everything can be opened as it is.
    pub accessible_now: bool,
    pub disks: Vec<ShownDisk>,
}

#[derive(Debug, Serialize)]
pub struct ShownUser {
    pub name: String,
    pub uid: u32,
    pub groups: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub struct ShownDisk {
    pub disk: String,
    /// Why there is no chain.
    pub no_chain: Option<String>,
    /// Where it breaks.
    pub broken: Option<String>,
    pub files: Vec<ShownFile>,
}

#[derive(Debug, Serialize)]
pub struct ShownFile {
    pub layer: usize,
    pub role: &'static str,
    pub name: String,
    pub path: Option<String>,
    pub access: &'static str,
    /// As it is.
    pub owner_now: Option<Owner>,
    /// What libvirt makes of it, and why nothing.
    pub owner: Option<Owner>,
    pub owner_kept: Option<String>,
    /// Whether the owner before is given back.
    pub remembered: bool,
    pub selinux: Option<Selinux>,
    pub selinux_kept: Option<String>,
    pub apparmor: Option<Vec<String>>,
    pub apparmor_kept: Option<String>,
    /// Whether AppArmor misreads the rule that libvirt writes.
    pub apparmor_misread: bool,
    pub devices: Vec<Device>,
    pub lease: &'static str,
    pub image_lock: &'static str,
    pub file_server: Option<&'static str>,
    pub now: Vec<ShownObstacle>,
    pub started: Vec<ShownObstacle>,
}

#[derive(Debug, Serialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    pub user: String,
    pub group: String,
    /// Four octal digits, of a file as it is.
    pub mode: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Selinux {
    pub context: String,
    pub categories_drawn: bool,
}

#[derive(Debug, Serialize)]
pub struct Device {
    pub path: String,
    pub kind: &'static str,
    pub major: u32,
    pub minor: u32,
    pub access: &'static str,
}

#[derive(Debug, Serialize)]
pub struct ShownObstacle {
    pub path: String,
    pub what: String,
    pub command: Option<String>,
}

impl Shown {
    pub fn of(args: &Args, found: &[Found], user: &User, host: &Host) -> Self {
        let disks: Vec<_> = found
            .iter()
            .map(|disk| ShownDisk {
                disk: disk.disk.clone(),
                no_chain: disk.no_chain.clone(),
                broken: disk.broken.clone(),
                files: disk
                    .files
                    .iter()
                    .map(|grant| ShownFile::of(grant, user))
                    .collect(),
            })
            .collect();
        let mut files = disks.iter().flat_map(|disk| &disk.files);
        Self {
            domain: args.domain.clone(),
            user: ShownUser {
                name: user.name.clone(),
                uid: user.uid,
                groups: user.groups.clone(),
            },
            dynamic_ownership: host.dynamic_ownership,
            accessible: files.clone().all(|file| file.started.is_empty()),
            accessible_now: files.all(|file| file.now.is_empty()),
            disks,
        }
    }
}

impl ShownFile {
    fn of(grant: &Grant, user: &User) -> Self {
        let obstacles = grant.obstacles(user);
        let seen = grant.path().filter(|_| grant.looked_at);
        let shown = |list: &[Obstacle]| list.iter().map(|one| ShownObstacle::of(one, user)).collect();
        let (owner, owner_kept) = split(grant.owner.as_ref());
        let (selinux, selinux_kept) = split(grant.selinux.as_ref());
        let (apparmor, apparmor_kept) = split(grant.apparmor.as_ref());
        Self {
            layer: grant.layer,
            role: grant.role.as_str(),
            name: grant.source.to_string(),
            path: grant.path().map(|path| path.display().to_string()),
            access: access_word(grant.access),
            owner_now: seen.and_then(|path| path.metadata().ok()).map(|file| {
                let mode = format!("{:04o}", file.mode() & 0o7777);
                Owner::of(file.uid(), file.gid(), Some(mode))
            }),
            owner: owner.map(|owner| Owner::of(owner.ids.uid, owner.ids.gid, None)),
            owner_kept,
            remembered: owner.is_some_and(|owner| owner.remembered),
            selinux: selinux.map(|label| Selinux {
                context: label.context.clone(),
                categories_drawn: label.drawn,
            }),
            selinux_kept,
            apparmor: apparmor.map(catena_virt::access::Profile::escaped),
            apparmor_misread: apparmor.is_some_and(catena_virt::access::Profile::is_misread),
            apparmor_kept,
            devices: grant
                .devices
                .iter()
                .map(|device| Device {
                    path: device.path.display().to_string(),
                    kind: if device.block { "block" } else { "char" },
                    major: device.major,
                    minor: device.minor,
                    access: if device.write { "rw" } else { "r" },
                })
                .collect(),
            lease: match grant.lock.lease {
                Lease::None => "none",
                Lease::Shared => "shared",
                Lease::Exclusive => "exclusive",
            },
            image_lock: match grant.lock.image {
                ImageLock::None => "none",
                ImageLock::Reads => "reads",
                ImageLock::Writes => "writes",
                ImageLock::Shares => "shares",
            },
            file_server: grant.server(),
            now: shown(&obstacles.now),
            started: shown(&obstacles.started),
        }
    }
}

fn split<T, K: ToString>(result: Result<T, K>) -> (Option<T>, Option<String>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(kept) => (None, Some(kept.to_string())),
    }
}

impl Owner {
    fn of(uid: u32, gid: u32, mode: Option<String>) -> Self {
        Self {
            uid,
            gid,
            user: name_of(uid),
            group: group_name_of(gid),
            mode,
        }
    }
}

impl ShownObstacle {
    fn of(obstacle: &Obstacle, user: &User) -> Self {
        let command = obstacle.command(user);
        Self {
            path: obstacle.path().display().to_string(),
            what: obstacle.sentence(),
            command: command.map(|words| words.iter().map(quoted).collect::<Vec<_>>().join(" ")),
        }
    }
}
