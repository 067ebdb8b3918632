//! The system's word for an error, which is all that qemu-img tells of what fails below it.

use super::open::system_word;
use catena::{Error, ErrorKind};
use std::error::Error as _;

/// What C's `strerror` would say.
pub fn word(error: &Error) -> String {
    let mut source = error.source();
    while let Some(inner) = source {
        let io = inner.downcast_ref::<std::io::Error>().or_else(|| {
            inner
                .downcast_ref::<catena_storage::Error>()
                .and_then(catena_storage::Error::io)
        });
        if let Some(io) = io
            && io.raw_os_error().is_some()
        {
            return system_word(io);
        }
        source = inner.source();
    }
    match error.kind() {
        ErrorKind::NoSpace => "No space left on device",
        ErrorKind::NotFound => "No such file or directory",
        ErrorKind::Denied => "Permission denied",
        ErrorKind::Unsupported => "Operation not supported",
        ErrorKind::TooLarge => "File too large",
        ErrorKind::Conflict => "Invalid argument",
        _ => "Input/output error",
    }
    .to_owned()
}
