//! One open disk image, and a stack of them read as one disk.
#![forbid(unsafe_code)]
