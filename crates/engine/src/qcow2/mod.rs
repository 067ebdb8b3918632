//! qcow2 images.

pub mod bitmap;
mod image;

pub use image::Qcow2;
