//! Changes of a whole qcow2 image that no guest uses: snapshots, shrinking, other refcount widths, repair.
//!
//! They all change refcounts and tables all over the disk, which no order of writes in place makes safe. So they are
//! made beside ([`beside`]), and one sector makes them the image. The caller holds the image alone.

mod amend;
pub(in crate::qcow2) mod beside;
mod bitmaps;
mod empty;
mod in_place;
mod rehearsal;
mod repair;
mod resize;
pub mod snapshot;
mod space;
mod tables;

pub use amend::{Amend, amend};
pub use empty::empty;
pub(in crate::qcow2) use rehearsal::Rehearsal;
pub use repair::{Repair, Repaired, repair};
pub use resize::shrink;
