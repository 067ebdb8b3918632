//! The only unsafe code of this crate: system calls that no safe wrapper offers.

pub(crate) mod clone;
pub(crate) mod mapping;
pub(crate) mod ofd;
pub(crate) mod shortcut;
pub(crate) mod write_back;
