//! qcow2 images.

pub mod bitmap;
pub mod check;
mod image;

pub use check::{CheckOptions, Report, check};
pub use image::Qcow2;
