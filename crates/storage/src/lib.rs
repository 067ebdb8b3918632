//! Where the bytes of disk images live.
//!
//! [`Storage`] is one object-safe trait: what an image engine needs of the place its bytes are in. [`LocalFile`] is a
//! file or block device of this machine, locked as QEMU locks it; [`MemoryStorage`] is sparse memory. Nothing here
//! knows what the bytes mean.

mod carry;
mod descriptor;
mod direct;
pub mod error;
pub mod holders;
mod hole;
pub mod local;
pub mod lock;
pub mod memory;
mod open;
pub mod storage;
mod sys;
mod transfer;

pub use carry::{Carry, carry, sharing_unit};
pub use descriptor::Opened;
pub use error::{Error, ErrorKind, Result};
pub use holders::{Hold, Holder, holders, holders_of};
pub use local::LocalFile;
pub use lock::{LockMode, Locking, Permission, Permissions};
pub use memory::MemoryStorage;
pub use open::{OpenOptions, sync_directory_of};
pub use storage::{Alignment, Identity, Span, SpanKind, Storage};
pub use sys::shortcut::Shortcut;
