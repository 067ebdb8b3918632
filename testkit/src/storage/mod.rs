//! Stores that go wrong: cut off from power at any moment, out of space, broken.
//!
//! * [`Content`]: sparse bytes that are copied for nothing, since pages are shared until they are written; [`Shared`] is a
//!   store of them;
//! * [`Log`], [`Recording`]: what was written to one or several stores, in order, with every flush;
//! * [`cuts`]: what could be on the disks after a cut at any point of a log;
//! * [`Failing`]: a store whose Nth change fails;
//! * [`Medium`], [`Limited`]: stores whose space runs out as a file system's does.

pub mod content;
pub mod cuts;
pub mod failing;
pub mod medium;
pub mod recording;

pub use content::{Content, Shared};
pub use cuts::{Cut, Cuts, Way};
pub use failing::{Failing, Fault, Faults, Kind, Lasting, Trouble};
pub use medium::{Limited, Medium};
pub use recording::{Log, Recording};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
