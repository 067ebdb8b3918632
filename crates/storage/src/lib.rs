//! Where the bytes of disk images live.
//!
//! [`Storage`] is one object-safe trait: what an image engine needs of the place its bytes are in. Nothing here knows
//! what the bytes mean.

pub mod error;
pub mod storage;

pub use error::{Error, ErrorKind, Result};
pub use storage::{Alignment, Identity, Span, SpanKind, Storage};
