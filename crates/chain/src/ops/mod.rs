//! Operations on chains, as plans.
//!
//! `plan(…)` decides everything and changes nothing; the plan can be shown; executing it performs it in an order in
//! which every instant keeps the guest's view. Running a finished operation again finds nothing to do.

pub mod active;
mod aligned;
mod allocated;
pub mod amend;
pub mod bench;
pub mod bitmap;
pub mod bundle;
mod carried;
pub mod check;
pub mod children;
mod choice;
pub mod commit;
pub mod compare;
pub mod convert;
pub mod copy;
pub mod create;
pub mod diff;
pub mod fork;
pub mod gc;
pub mod hash;
pub mod heal;
pub mod input;
pub mod keep;
mod line;
pub mod measure;
mod noise;
pub mod observer;
pub mod overlays;
mod passed;
mod pieces;
pub mod prune;
pub mod rebase;
pub mod relink;
pub mod relocate;
pub mod remove;
pub mod replaced;
pub mod resize;
pub mod script;
mod sectors;
pub mod snapshot;
pub mod stamp;
pub mod stream;
mod together;
mod unsynced;
pub mod view;

pub use carried::Offload;
pub use children::OtherChildren;
pub use choice::LayerChoice;
pub use copy::Moving;
pub use input::{Concatenated, Input, Part};
pub use line::{MOST_THREADS, processors};
pub use observer::{Observer, Silent};
pub use unsynced::Unsynced;

use std::path::{Path, PathBuf};

/// The folder that a file lies in; `.` where its name has none.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
