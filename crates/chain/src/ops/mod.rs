//! Operations on chains, as plans.
//!
//! `plan(…)` decides everything and changes nothing; the plan can be shown; executing it performs it in an order in
//! which every instant keeps the guest's view. Running a finished operation again finds nothing to do.

mod aligned;
mod allocated;
pub mod amend;
pub mod bench;
pub mod bitmap;
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
pub mod hash;
pub mod input;
mod line;
pub mod measure;
pub mod observer;
mod passed;
mod pieces;
pub mod rebase;
pub mod relink;
pub mod resize;
pub mod script;
pub mod snapshot;
pub mod stream;
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
