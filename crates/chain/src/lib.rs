//! Chains of virtual-machine disk images: detection, policy, diagnosis, repair and reading.
#![forbid(unsafe_code)]

pub mod reference;

pub use reference::{Reading, Reference, ReferenceError, Source};
