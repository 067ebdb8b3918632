//! One open disk image, and a stack of them read as one disk.
//!
//! * [`Image`] is one layer: what it says itself about a guest range, and the bytes it holds. [`Raw`] and [`Qcow2`] are
//!   images over a [`Storage`](catena_storage::Storage).
//! * [`Stack`] puts images on top of each other. It merges their maps once per stretch of guest addresses, so that a
//!   read costs the same however many layers there are.
//! * [`Disk`] is the guest's view, and [`Extent`] the currency in which everyone speaks of it.
//! * [`WritableDisk`] is a disk whose active image is written: [`RawDisk`] and [`Qcow2Disk`] are.
//!
//! Nothing here opens a path: who may be opened is decided above, and what comes in is open already.
#![forbid(unsafe_code)]

pub mod addr;
pub mod bytes;
pub mod decompress;
pub mod disk;
pub mod error;
pub mod extent;
pub mod image;
pub mod qcow2;
pub mod raw;
pub mod stack;

pub use addr::{GuestOffset, HostOffset};
pub use bytes::StorageBytes;
pub use disk::{Carriage, Disk, Unmap, WritableDisk};
pub use error::{Error, ErrorKind, Result};
pub use extent::{Extent, ExtentKind, FileRole};
pub use image::Image;
pub use qcow2::{Qcow2, Qcow2Disk};
pub use raw::{Raw, RawDisk};
pub use stack::Stack;
