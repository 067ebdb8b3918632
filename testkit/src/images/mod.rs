//! Random images and chains, made by QEMU's tools over features × sizes × layout.
//!
//! * [`spec`]: an image or a chain as a plain value that can be printed and shrunk;
//! * [`strategy`]: drawing such values at random ([`images`], [`chains`]);
//! * [`build`]: making the files.

pub mod build;
pub mod spec;
pub mod strategy;

pub use build::{Built, BuiltLayer};
pub use spec::{
    BackingName, ChainSpec, Compression, DataFile, Encryption, Fill, Format, ImageSpec, LayerSpec, Op,
    Preallocation, Qcow2Spec,
};
pub use strategy::{Features, chains, images};
