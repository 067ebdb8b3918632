//! Who may open what: what libvirt 11.3 grants QEMU when a guest starts, file by file, and whether QEMU's user could open
//! the files.
//!
//! [`grants`] computes for each layer, each data file and whatever else is opened for them the owner (DAC), the SELinux
//! label, the AppArmor rule, the devices of the control group and the locks. [`Grant::obstacles`] is what stands in a
//! user's way. [`change`] makes files accessible without libvirt.
//!
//! What holds: only [`change`] changes anything, and lower layers are never granted more than reading.

pub mod apparmor;
mod beside;
pub mod change;
pub mod devices;
mod host;
mod labels;
pub mod selinux;
pub mod undo;

pub use apparmor::Profile;
pub use beside::beside;
pub use devices::DeviceGrant;
pub use host::{Host, Ids};
pub use selinux::SelinuxLabel;

use crate::model::{
    Below, Details, Device, Disk, DomainLabel, Driver, LabelKind, Layer, Place, Seclabel, Spans,
};
use crate::numbered::{self, Running};
use catena::Chain;
use catena::doctor::{Access, Obstacle, User, obstacles, obstacles_if_owned};
use catena::reference::{Location, Source};
use catena_format::Format;
use catena_storage::LocalFile;
use std::fmt;
use std::path::{Path, PathBuf};

/// A file that QEMU opens for a disk, and what libvirt does so that it may.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The layer that it is opened for, the active one being 0.
    pub layer: usize,
    /// What it is to the layer.
    pub role: Role,
    /// Where it is.
    pub source: Source,
    /// What QEMU opens it for.
    pub access: Access,
    /// The owner that libvirt gives it, or why it gives it none.
    pub owner: Result<Ownership, Kept>,
    /// The SELinux label that libvirt gives it.
    pub selinux: Result<SelinuxLabel, Kept>,
    /// What AppArmor's profile has for it.
    pub apparmor: Result<Profile, Kept>,
    /// The devices that the control group lets be opened for it.
    pub devices: Vec<DeviceGrant>,
    /// The locks.
    pub lock: Lock,
    /// The file, if detection opened it.
    pub file: Option<LocalFile>,
    /// Whether it may be looked at: libvirt need not make it first, and the policy does not keep its name from being
    /// followed.
    pub looked_at: bool,
}

/// What a file is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The image itself.
    Image,
    /// Its external data file.
    DataFile,
    /// The socket of its server.
    Socket,
    /// A key, or a file of settings, for its server.
    Settings,
    /// A file that holds data of a VMDK.
    Extent,
    /// Where the disk is being copied or committed to.
    Copy,
    /// The overlay that takes the changes of a transient disk while its guest runs.
    Transient,
}

impl Role {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::DataFile => "data-file",
            Self::Socket => "socket",
            Self::Settings => "settings",
            Self::Extent => "extent",
            Self::Copy => "copy",
            Self::Transient => "transient-overlay",
        }
    }
}

/// An owner that libvirt gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// User and group.
    pub ids: Ids,
    /// Whether the owner before is remembered, and given back when the guest stops.
    pub remembered: bool,
}

/// Why libvirt leaves a file as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// It is no file of this host.
    Elsewhere,
    /// `dynamic_ownership` is off.
    Off,
    /// The domain's `<seclabel>` says so.
    Domain,
    /// The `<seclabel>` of the image, or of its disk's active image, says so.
    Image,
    /// It is a directory.
    Directory,
    /// libvirt does not look at such files.
    Unseen,
    /// libvirt's helper for AppArmor refuses such paths, and the guest with them.
    Refused,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elsewhere => "it is no file of this host",
            Self::Off => "dynamic_ownership is off",
            Self::Domain => "the domain's <seclabel> says so",
            Self::Image => "the image's <seclabel> says so",
            Self::Directory => "it is a directory",
            Self::Unseen => "libvirt does not look at such files",
            Self::Refused => {
                "libvirt's helper refuses such a path, and AppArmor then lets no guest start with it"
            }
        })
    }
}

/// The locks on a file while a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The lease that libvirt's lock manager takes, where one is configured.
    pub lease: Lease,
    /// QEMU's own.
    pub image: ImageLock,
}

/// A lease of libvirt's lock manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lease {
    /// None: nothing but the active image of a disk that is written has one.
    None,
    /// Guests with `<shareable/>` share it.
    Shared,
    /// One guest has it.
    Exclusive,
}

/// QEMU's locks on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageLock {
    /// It has no file that could be locked.
    None,
    /// It is read, and nobody may write.
    Reads,
    /// It is written, and nobody else may write, nor read and rely on it.
    Writes,
    /// It is used beside others who write.
    Shares,
}

/// Why no access can be computed: a label that nothing can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(pub(crate) String);

/// Every file of its chain that QEMU opens for a disk, in the order of the layers; [`beside()`] has the others. `chain` is
/// the disk's; of a broken one, the layers that there are. `domain` is what the domain says to security drivers.
///
/// # Errors
/// Where a label is none.
pub fn grants(
    disk: &Disk,
    chain: &Chain,
    domain: &[DomainLabel],
    host: &Host,
) -> Result<Vec<Grant>, AccessError> {
    let Some(running) = numbered::alone(disk, chain) else {
        return Ok(Vec::new());
    };
    let mut grants = Vec::new();
    let top = running
        .layers
        .first()
        .map(|layer| layer.details.seclabels.clone())
        .unwrap_or_default();
    for (number, layer) in running.layers.iter().enumerate() {
        let found = chain.layers.get(number);
        let active = number == 0;
        let image = One {
            running: &running,
            number,
            role: Role::Image,
            source: &layer.source,
            own: &layer.details.seclabels,
            over: &top,
            top: &top,
            active,
            readonly: !active || disk.readonly,
            shared: active && disk.shareable,
            file: found.and_then(|found| Some(&found.file.as_ref()?.storage)),
        };
        grants.push(image.grant(domain, host)?);
        if let Some(store) = &layer.store {
            let found = found.and_then(|found| found.data_file.as_ref()?.file.as_ref().ok());
            let data = One {
                role: Role::DataFile,
                source: &store.source,
                own: &store.details.seclabels,
                // For its owner its image is the top; for its SELinux label the disk's active image is.
                over: &layer.details.seclabels,
                readonly: store.readonly,
                shared: false,
                file: found.map(|found| &found.storage),
                ..image
            };
            grants.push(data.grant(domain, host)?);
        }
        if let Some(network) = layer.source.network() {
            grants.extend(beside::of_server(number, network));
        }
    }
    Ok(grants)
}

impl Disk {
    /// A disk with nothing but an image, as a user would write it.
    pub fn of_image(source: Source, format: Format) -> Self {
        let spans = Spans {
            element: 0..0,
            source: None,
            path: None,
            kind: None,
            format: None,
        };
        Self {
            device: Device::Disk,
            target: None,
            bus: None,
            driver: Driver::default(),
            layers: vec![Layer {
                place: Place::Image(source),
                format: Some(format),
                cache_size: None,
                details: Details::default(),
                data_store: None,
                spans,
            }],
            below: Below::Unsaid,
            stores: Vec::new(),
            mirror: None,
            readonly: false,
            shareable: false,
            transient: None,
            snapshot: None,
            throttle: Vec::new(),
            span: 0..0,
        }
    }
}

/// The user and group as which QEMU runs.
///
/// # Errors
/// Where the domain's label is none.
pub fn process(domain: &[DomainLabel], host: &Host) -> Result<Ids, AccessError> {
    match labels::of(domain, "dac") {
        Some(label) if label.kind == LabelKind::Static => {
            Ids::parse(label.label.as_deref().unwrap_or_default())
        }
        _ => Ok(host.ids),
    }
}

/// A file, and what its label depends on.
#[derive(Clone, Copy)]
struct One<'a> {
    running: &'a Running<'a>,
    number: usize,
    role: Role,
    source: &'a Source,
    /// Its own labels.
    own: &'a [Seclabel],
    /// The labels that stand in for its own, for its owner.
    over: &'a [Seclabel],
    /// Those of the disk's active image.
    top: &'a [Seclabel],
    /// Whether it belongs to the active layer.
    active: bool,
    readonly: bool,
    shared: bool,
    file: Option<&'a LocalFile>,
}

impl One<'_> {
    fn grant(&self, domain: &[DomainLabel], host: &Host) -> Result<Grant, AccessError> {
        let access = if self.readonly {
            Access::READ
        } else {
            Access::READ | Access::WRITE
        };
        let path = self.source.path();
        Ok(Grant {
            layer: self.number,
            role: self.role,
            source: self.source.clone(),
            access,
            owner: self.owner(domain, host)?,
            selinux: self.selinux(domain, host),
            apparmor: match path {
                Some(path) => apparmor::profile(path, access, domain),
                None => Err(Kept::Elsewhere),
            },
            devices: path.map(|path| devices::of(path, access)).unwrap_or_default(),
            lock: self.lock(),
            file: self.file.cloned(),
            looked_at: true,
        })
    }

    /// Whether libvirt labels it at all.
    fn labelled(&self) -> Result<(), Kept> {
        let active = self.running.layers.first().map(|layer| &layer.source.location);
        match (self.source.path(), active) {
            (_, Some(Location::Dir(_))) => Err(Kept::Directory),
            (None, _) => Err(Kept::Elsewhere),
            _ => Ok(()),
        }
    }

    fn owner(&self, domain: &[DomainLabel], host: &Host) -> Result<Result<Ownership, Kept>, AccessError> {
        if let Err(kept) = self.labelled() {
            return Ok(Err(kept));
        }
        if !host.dynamic_ownership {
            return Ok(Err(Kept::Off));
        }
        let label = labels::of(domain, "dac");
        if label.is_some_and(|label| !label.relabel) {
            return Ok(Err(Kept::Domain));
        }
        let ids = match labels::overriding("dac", &[self.own, self.over]) {
            Some(Err(kept)) => return Ok(Err(kept)),
            Some(Ok(text)) => Ids::parse(text)?,
            None => process(domain, host)?,
        };
        Ok(Ok(Ownership {
            ids,
            remembered: host.remember_owner && self.active && !self.readonly && !self.shared,
        }))
    }

    fn selinux(&self, domain: &[DomainLabel], host: &Host) -> Result<SelinuxLabel, Kept> {
        self.labelled()?;
        let label = labels::of(domain, "selinux");
        if label.is_some_and(|label| !label.relabel) {
            return Err(Kept::Domain);
        }
        if let Some(text) = labels::overriding("selinux", &[self.own, self.top]) {
            return Ok(SelinuxLabel::fixed(text?));
        }
        Ok(if self.active && self.shared {
            SelinuxLabel::fixed(&host.image_context)
        } else if self.active && !self.readonly {
            SelinuxLabel::of_domain(label, &host.image_context)
        } else {
            SelinuxLabel::fixed(&host.content_context)
        })
    }

    fn lock(&self) -> Lock {
        let disk = self.running.disk;
        let lease = match (self.role, self.number) {
            (Role::Image, 0) if disk.readonly => Lease::None,
            (Role::Image, 0) if disk.shareable => Lease::Shared,
            (Role::Image | Role::Copy | Role::Transient, 0) => Lease::Exclusive,
            _ => Lease::None,
        };
        let image = if self.source.path().is_none() {
            ImageLock::None
        } else if disk.shareable {
            ImageLock::Shares
        } else if self.readonly {
            ImageLock::Reads
        } else {
            ImageLock::Writes
        };
        Lock { lease, image }
    }
}

/// What stands in a user's way to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// As things are.
    pub now: Vec<Obstacle>,
    /// Once libvirt has given the file its owner; the modes of files and all that directories have it leaves alone.
    pub started: Vec<Obstacle>,
}

impl Grant {
    /// Its name in this host's file system.
    pub fn path(&self) -> Option<&Path> {
        self.source.path()
    }

    /// What stands in the user's way; nothing where it is no file of this host.
    pub fn obstacles(&self, user: &User) -> Obstacles {
        let Some(path) = self.path().filter(|_| self.looked_at) else {
            return Obstacles::default();
        };
        let now = obstacles(path, user, self.access);
        let started = match &self.owner {
            Ok(owner) => obstacles_if_owned(path, user, self.access, (owner.ids.uid, owner.ids.gid)),
            Err(_) => now.clone(),
        };
        Obstacles { now, started }
    }

    /// Where it lies on a file server that may know better than modes say: the server's kind.
    pub fn server(&self) -> Option<&'static str> {
        // The numbers of statfs(2).
        let path = self.path().filter(|_| self.looked_at)?;
        let kind = rustix::fs::statfs(path).ok()?.f_type;
        [
            (0x6969, "NFS"),
            (0xff53_4d42, "CIFS"),
            (0xfe53_4d42, "SMB"),
            (0x6573_5546, "FUSE"),
            (0x00c3_6400, "CephFS"),
        ]
        .into_iter()
        .find_map(|(magic, name)| (kind == magic).then_some(name))
    }
}

/// A path without links as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    for prefix in path.ancestors() {
        if let Ok(real) = prefix.canonicalize() {
            return rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        match prefix.file_name() {
            Some(name) => rest.push(name),
            None => break,
        }
    }
    path.to_owned()
}
