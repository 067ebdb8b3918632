//! Operations on chains, as plans.
//!
//! `plan(…)` decides everything and changes nothing; the plan can be shown; executing it performs it in an order in
//! which every instant keeps the guest's view. Running a finished operation again finds nothing to do.

pub mod create;
pub mod hash;
pub mod observer;
pub mod relink;
pub mod view;

pub use observer::{Observer, Silent};
