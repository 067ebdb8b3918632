//! What the bytes of virtual-machine disk images mean.
//!
//! Every format has a module that turns bytes into validated values and, where Catena writes the format, values
//! into bytes. Nothing here opens, reads or writes a file: bytes come through [`Bytes`], which a slice implements
//! too. Nothing here panics, allocates by an unchecked number, or loops without bound, whatever the bytes say;
//! every number is hostile until it has been checked against [`limits`].
//!
//! * [`Format`] names the formats, in QEMU's words and libvirt's.
//! * [`Description`] tells what an image of a known format says about itself.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod describe;
pub mod error;
pub mod limits;
pub mod luks;
pub mod name;
pub mod qcow2;

pub use bytes::Bytes;
pub use describe::{DataFile, Description, Encryption, ParentId, RecordedReference};
pub use error::{Error, ErrorKind, Result};
pub use name::Format;
