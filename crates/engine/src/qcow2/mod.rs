//! qcow2 images.

mod image;

pub use image::Qcow2;
