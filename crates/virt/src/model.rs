//! What a document says of its disks, as values, and where in the text each of them stands.

use catena::reference::Source;
use catena_format::Format;
use std::ops::Range;
use std::path::PathBuf;

/// A document, read.
#[derive(Clone, Debug)]
pub struct Document {
    pub(crate) text: String,
    /// What it describes.
    pub kind: Kind,
    /// The name of the domain, snapshot or volume.
    pub name: Option<String>,
    /// Its disks, in order; of a snapshot, those of the domain in it.
    pub disks: Vec<Disk>,
    /// What a snapshot says of disks.
    pub snapshot_disks: Vec<SnapshotDisk>,
    /// The volume, where it is one.
    pub volume: Option<Volume>,
    /// A domain's `<seclabel>`s.
    pub seclabels: Vec<DomainLabel>,
    /// The groups of `<throttlegroups>`, in order.
    pub throttle_groups: Vec<ThrottleGroup>,
}

/// `<seclabel>` of a domain: how a security driver labels its process and its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainLabel {
    /// Where the label comes from.
    pub kind: LabelKind,
    /// The driver.
    pub model: Option<String>,
    /// Whether files are labelled.
    pub relabel: bool,
    /// The process's label: given where it is static; drawn by libvirt, and seen in live XML, where it is dynamic.
    pub label: Option<String>,
    /// The files' label, in live XML.
    pub image_label: Option<String>,
}

/// Where the label of a domain comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LabelKind {
    /// libvirt makes it at each start.
    #[default]
    Dynamic,
    /// The XML gives it.
    Static,
    /// There is none.
    None,
}

/// What the disks that are in it may do together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThrottleGroup {
    /// Its name.
    pub name: String,
    /// What is limited, in libvirt's words (`total_bytes_sec`), and to how much; without those that are not.
    pub limits: Vec<(&'static str, u64)>,
}

/// What a document describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `<domain>`: a guest.
    Domain,
    /// `<disk>` alone.
    Disk,
    /// `<domainsnapshot>`.
    Snapshot,
    /// `<volume>` of a storage pool.
    Volume,
}

/// A `<disk>`.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What the guest sees it as.
    pub device: Device,
    /// Its name to the guest and to libvirt, `vda`.
    pub target: Option<String>,
    /// The bus, where it is said.
    pub bus: Option<String>,
    /// `<driver>`.
    pub driver: Driver,
    /// The active layer and those below it that the document gives; never empty.
    pub layers: Vec<Layer>,
    /// What the document says of what is below the last of them.
    pub below: Below,
    /// Every `<backingStore>` that stands in the `<disk>` itself: libvirt takes the first.
    pub stores: Vec<Range<usize>>,
    /// `<mirror>`: a copy or commit that runs. libvirt takes it from nobody.
    pub mirror: Option<Mirror>,
    /// `<readonly/>`; CD-ROMs always are.
    pub readonly: bool,
    /// `<shareable/>`.
    pub shareable: bool,
    /// `<transient/>`.
    pub transient: Option<Transient>,
    /// `snapshot`: how it takes part in snapshots, where that is said.
    pub snapshot: Option<crate::snapshot::Mode>,
    /// The groups of `<throttlefilters>`, in order.
    pub throttle: Vec<String>,
    /// The whole element in the text.
    pub span: Range<usize>,
}

/// What the guest sees a disk as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// A hard disk.
    #[default]
    Disk,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI device of the host's, commands and all.
    Lun,
}

/// `<driver>` of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// `name`, where it is given.
    pub name: Option<String>,
    /// `cache`.
    pub cache: CacheMode,
    /// `io`: `native`, `threads`, `io_uring`.
    pub io: Option<String>,
    /// `discard`.
    pub discard: Option<Discard>,
    /// `detect_zeroes`.
    pub detect_zeroes: Option<Zeroes>,
    /// `copy_on_read`.
    pub copy_on_read: bool,
    /// `discard_no_unref`.
    pub discard_no_unref: Option<bool>,
    /// The whole element in the text.
    pub span: Option<Range<usize>>,
}

/// How the host's page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheMode {
    /// The hypervisor's own way.
    #[default]
    Default,
    /// Past it, with a write cache.
    None,
    /// Through it, without a write cache.
    Writethrough,
    /// Through it, with a write cache.
    Writeback,
    /// Past it, without a write cache.
    Directsync,
    /// Through it, and a guest's flush does nothing.
    Unsafe,
}

/// What a guest's discard does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// Nothing.
    Ignore,
    /// It frees space.
    Unmap,
}

/// What is done about zeros that a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zeroes {
    /// They are written.
    Off,
    /// They are written as zeros without data.
    On,
    /// They free space, if discards do.
    Unmap,
}

/// A layer as XML gives it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where it is.
    pub place: Place,
    /// Its format, where it is said; always for a layer below the active one.
    pub format: Option<Format>,
    /// `<metadata_cache>`: most bytes of tables that QEMU keeps.
    pub cache_size: Option<u64>,
    /// What `<source>` says beside the place.
    pub details: Details,
    /// `<dataStore>`: the external data file.
    pub data_store: Option<Box<Layer>>,
    /// Where it stands in the text.
    pub spans: Spans,
}

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: a drive without a medium.
    Empty,
    /// An image.
    Image(Source),
    /// A volume of a storage pool, which only libvirt can find.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name in it.
        volume: String,
        /// `host` or `direct`, for iSCSI pools.
        mode: Option<String>,
        /// Where it is, once libvirt was asked ([`Document::find_volumes`]).
        found: Option<Source>,
        /// How many bytes its guest sees, as libvirt said then.
        capacity: Option<u64>,
    },
    /// A disk that another process serves.
    VhostUser {
        /// Its socket.
        path: PathBuf,
    },
    /// A disk of a vDPA device.
    VhostVdpa {
        /// The device.
        dev: PathBuf,
    },
}

/// What `<source>` says beside the place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// `index` of the active layer's or a data file's `<source>`, or of `<backingStore>`: the number of a live guest's
    /// node. libvirt drops what a user gives.
    pub index: Option<u32>,
    /// `startupPolicy`: `mandatory`, `requisite`, `optional`.
    pub startup_policy: Option<String>,
    /// `fdgroup`: the image is passed as open files.
    pub fd_group: Option<String>,
    /// `tls`.
    pub tls: Option<bool>,
    /// `tlsHostname`.
    pub tls_hostname: Option<String>,
    /// `<initiator>`: the name by which an iSCSI server knows us.
    pub initiator: Option<String>,
    /// `<auth>`.
    pub auth: Option<Auth>,
    /// `<encryption>`.
    pub encryption: Option<Encryption>,
    /// `<reservations>`.
    pub reservations: Option<Reservations>,
    /// `<seclabel>`s.
    pub seclabels: Vec<Seclabel>,
}

/// Who to be to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The user.
    pub user: String,
    /// `ceph` or `iscsi`, where it is said.
    pub secret_type: Option<String>,
    /// Which secret.
    pub secret: SecretUse,
    /// Whether it stands in `<disk>` and not in `<source>`.
    pub outside: bool,
}

/// How libvirt's secret is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretUse {
    /// By its number.
    Uuid(String),
    /// By its use.
    Usage(String),
}

/// How an image is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// `default`, `qcow`, `luks`, `luks2`, `luks-any`.
    pub format: String,
    /// `qemu` or `librbd`.
    pub engine: Option<String>,
    /// The passphrases.
    pub secrets: Vec<SecretUse>,
    /// Whether it says how a new image would be encrypted. No disk may.
    pub cipher: bool,
    /// Whether it stands in `<disk>` and not in `<source>`.
    pub outside: bool,
}

/// Persistent reservations of a SCSI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservations {
    /// Whether libvirt runs the helper.
    pub managed: bool,
    /// The helper's socket, where it does not.
    pub socket: Option<String>,
}

/// A label of a security driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seclabel {
    /// The driver.
    pub model: Option<String>,
    /// Whether the image is labelled.
    pub relabel: Option<bool>,
    /// `labelskip`, which only libvirt writes.
    pub skipped: bool,
    /// The label.
    pub label: Option<String>,
}

/// Where a layer stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    /// `<disk>`, `<backingStore>` or `<dataStore>`.
    pub element: Range<usize>,
    /// `<source>`.
    pub source: Option<Range<usize>>,
    /// The attribute of `<source>` that names a path, its value between the quotes.
    pub path: Option<Range<usize>>,
    /// The `type` attribute of the element, its value between the quotes.
    pub kind: Option<Range<usize>>,
    /// The `type` attribute of `<format>` or `<driver>`, its value between the quotes.
    pub format: Option<Range<usize>>,
}

/// What is said of what is below the last layer of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// Nothing: it is looked for.
    Unsaid,
    /// That there is nothing: an empty `<backingStore/>`, which stands there.
    Closed(Range<usize>),
}

/// A copy or commit that runs.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// `copy` or `active-commit`.
    pub job: String,
    /// `yes`, `abort`, `pivot`; still copying where `None`.
    pub ready: Option<String>,
    /// Where to, where it could be understood.
    pub layer: Option<Layer>,
}

/// A disk whose changes go with its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transient {
    /// Whether several guests use the image below.
    pub shared: bool,
}

/// What a snapshot says of a disk.
#[derive(Clone, Debug)]
pub struct SnapshotDisk {
    /// The disk, by its target or path.
    pub name: String,
    /// `internal`, `external`, `no`, `manual`, where it is said.
    pub mode: Option<String>,
    /// The new overlay of an external one, where it is named.
    pub layer: Option<Layer>,
}

/// A volume of a storage pool.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Whether it is a block device and no file.
    pub block: bool,
    /// `<capacity>` in bytes.
    pub capacity: Option<u64>,
    /// `<target><path>`.
    pub path: Option<PathBuf>,
    /// `<target><format>`.
    pub format: Option<Format>,
    /// `<target><encryption>`: its format.
    pub encryption: Option<String>,
    /// `<backingStore>`: its path, and its format where that is said; libvirt then takes the pool's, which is raw.
    pub backing: Option<(PathBuf, Option<Format>)>,
}

impl Document {
    /// The text that was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text of the document's element, without what stands before and behind it.
    pub fn root(&self) -> &str {
        let root = roxmltree::Document::parse(&self.text).ok();
        let range = root.map(|root| root.root_element().range());
        range.and_then(|range| self.text.get(range)).unwrap_or_default()
    }

    /// The disk of a target's name, or of its active layer's path.
    pub fn disk(&self, name: &str) -> Option<&Disk> {
        let by_target = self
            .disks
            .iter()
            .find(|disk| disk.target.as_deref() == Some(name));
        by_target.or_else(|| {
            let path = std::path::Path::new(name);
            self.disks
                .iter()
                .find(|disk| disk.active().and_then(Layer::source).and_then(Source::path) == Some(path))
        })
    }
}

impl Document {
    /// What the domain says to a security driver.
    pub fn seclabel(&self, model: &str) -> Option<&DomainLabel> {
        self.seclabels
            .iter()
            .find(|label| label.model.as_deref() == Some(model))
    }
}

impl Disk {
    /// The layer that the guest writes.
    pub fn active(&self) -> Option<&Layer> {
        self.layers.first()
    }

    /// The name by which messages speak of it.
    pub fn name(&self) -> &str {
        self.target.as_deref().unwrap_or("disk")
    }

    /// How many layers the document gives below the active one.
    pub fn given(&self) -> usize {
        self.layers.len().saturating_sub(1)
    }
}

impl Layer {
    /// Where it is, if it is an image.
    pub fn source(&self) -> Option<&Source> {
        match &self.place {
            Place::Image(source) => Some(source),
            Place::Volume { found, .. } => found.as_ref(),
            _ => None,
        }
    }

    /// libvirt's word for its type.
    pub fn type_name(&self) -> &'static str {
        match &self.place {
            Place::Empty => "file",
            Place::Image(source) => source.type_name(),
            Place::Volume { .. } => "volume",
            Place::VhostUser { .. } => "vhostuser",
            Place::VhostVdpa { .. } => "vhostvdpa",
        }
    }
}

impl Device {
    /// libvirt's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Cdrom => "cdrom",
            Self::Floppy => "floppy",
            Self::Lun => "lun",
        }
    }
}

impl CacheMode {
    /// libvirt's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::None => "none",
            Self::Writethrough => "writethrough",
            Self::Writeback => "writeback",
            Self::Directsync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }
}
