//! qcow2 images: read through their mapping tables, and written.
//!
//! * [`Qcow2`] is an image that is read, a layer of a [`crate::Stack`].
//! * [`Qcow2Disk`] is an active image that is written, over whatever lies below it.
//! * [`check()`] and [`metadata`] are about a whole image that no guest uses: its faults and their repair, internal
//!   snapshots, other sizes.

mod ahead;
pub mod bitmap;
mod carried;
pub mod check;
mod claims;
mod compress;
mod disk;
mod flush;
mod grow;
mod guest_write;
mod image;
mod lookup;
pub mod metadata;
mod numbers;
mod places;
mod refcounts;
mod room;
mod slices;
mod zero;

pub use check::{CheckOptions, Finding, FindingKind, Report, Watch, check};
pub use disk::{DiskOptions, Qcow2Disk};
pub use grow::Preallocation;
pub use image::Qcow2;
pub use metadata::{Repair, Repaired, repair, shrink};
pub use places::OverlapChecks;
