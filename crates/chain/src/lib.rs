//! Chains of virtual-machine disk images.
//!
//! An overlay records its backing image and, one hopes, that image's format. [`detect()`] follows such references to
//! the end of a chain, by libvirt's rules and under a [`Policy`] that decides what may be opened and believed. The
//! result, a [`Chain`], says for each layer where it is, which format it is in and why we believe it, what its header
//! says, and how the chain ends. [`Chain::open`] then reads it as one disk, however deep it is.
#![forbid(unsafe_code)]

pub mod chain;
pub mod contribution;
pub mod detect;
pub mod doctor;
pub mod extents;
pub mod forest;
pub mod open;
pub mod ops;
pub mod policy;
pub mod reference;
pub mod stamp;
pub mod stated;
pub mod writable;

pub use catena_engine::{Disk, Error, ErrorKind, Extent, ExtentKind, GuestOffset, HostOffset, Result, Stack};
pub use catena_format::Format;
pub use chain::{Break, Chain, Consent, DataFileLayer, End, Layer, LayerFile, Link, OpenEnd, Origin};
pub use contribution::{Contribution, Contributions};
pub use detect::{Start, detect, detect_stated};
pub use extents::Extents;
pub use forest::Forest;
pub use policy::Policy;
pub use reference::{Reading, Reference, ReferenceError, Source};
pub use stamp::Stamped;
pub use stated::{Stated, StatedLayer};
pub use writable::Writable;
