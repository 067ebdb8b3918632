//! What the bytes of virtual-machine disk images mean.
//!
//! Every format has a module that turns bytes into validated values and, where Catena writes the format, values
//! into bytes. Nothing here opens, reads or writes a file: bytes come through [`Bytes`], which a slice implements
//! too. Nothing here panics, allocates by an unchecked number, or loops without bound, whatever the bytes say;
//! every number is hostile until it has been checked against [`limits`].
//!
//! * [`Format`] names the formats, in QEMU's words and libvirt's.
//! * [`recognise()`] tells the formats that an image could be in, [`probe_as_libvirt`] and [`probe_as_qemu`] the one that
//!   they would take it for.
//! * [`describe()`] gives a [`Description`], which tells what an image of a known format says about itself.
#![forbid(unsafe_code)]

pub mod bochs;
pub mod bytes;
pub mod cloop;
pub mod cow;
pub mod describe;
pub mod dmg;
pub mod error;
mod field;
pub mod identifiers;
pub mod iso;
pub mod limits;
pub mod luks;
pub mod name;
pub mod parallels;
pub mod partitions;
pub mod qcow;
pub mod qcow2;
pub mod qed;
pub mod recognise;
pub mod vdi;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

pub use bytes::Bytes;
pub use describe::{DataFile, Description, Encryption, ParentId, RecordedReference, describe};
pub use error::{Error, ErrorKind, Result};
pub use name::Format;
pub use recognise::{probe_as_libvirt, probe_as_qemu, recognise};
