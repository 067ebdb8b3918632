//! Chains as the hypervisor has them: what libvirt's XML says of disks, and what QEMU is given for them.
//!
//! [`Document::parse`] reads a domain, a bare `<disk>`, a `<domainsnapshot>` or a storage `<volume>`, and refuses what
//! libvirt 11.3 refuses, in its words. [`Disk::chain`] is the chain as libvirt would have it, where XML gives the upper
//! layers and headers the rest; [`disagreements`] is what XML says that the images' headers do not. [`edit`] changes a
//! document and keeps every byte that the change is not about; [`live`] writes it as libvirt has it while its guest runs;
//! [`blockdev`] is the nodes that libvirt gives QEMU, and [`access`] who may then open which file; [`volume`](mod@volume) is
//! an image as a storage pool shows it; [`snapshot`] is external snapshots of a domain's disks.
//!
//! What holds: nothing here writes, but [`access::change`], what it was told to. XML is hostile until it is read: no document
//! type, no entity but XML's own five, and bounds on size, nesting and attributes ([`limits`]).
#![forbid(unsafe_code)]

pub mod access;
pub mod blockdev;
mod combine;
pub mod edit;
mod error;
mod generation;
pub mod limits;
pub mod live;
mod model;
pub mod numbered;
mod order;
mod read;
pub mod snapshot;
mod throttle;
pub mod volume;
mod volumes;
mod write;

pub use combine::{disagreements, snapshot_disagreements};
pub use error::{XmlError, XmlErrorKind};
pub use generation::Generation;
pub use model::{
    Auth, Below, CacheMode, Details, Device, Discard, Disk, Document, DomainLabel, Driver, Encryption, Kind,
    LabelKind, Layer, Mirror, Place, Reservations, Seclabel, SecretUse, SnapshotDisk, Spans, ThrottleGroup,
    Transient, Volume, Zeroes,
};
pub use read::pool_folder;
pub use volumes::volume_disagreements;
