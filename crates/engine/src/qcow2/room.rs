//! Space on the medium for metadata, kept when its place is chosen.
//!
//! Metadata is written at flushes, long after the data that it maps. Were its space found only then, a medium that data has filled would
//! keep the data from ever being mapped. So nothing of the metadata changes in memory before there is space for it.

use catena_storage::{ErrorKind, Result, SpanKind, Storage};

/// What is kept at once of metadata that the image has already: no file system gives out less.
pub(super) const PAGE: u64 = 4096;

/// Keeps space for a range, so that it can be written when the medium is full.
///
/// What holds data has it. A store that cannot keep space makes no promise, and the write will tell. So the only error is that there is
/// none.
pub(super) fn keep(storage: &dyn Storage, offset: u64, len: u64) -> Result<()> {
    if let Ok(Some(span)) = storage.span_at(offset)
        && span.kind == SpanKind::Data
        && span.len >= len
    {
        return Ok(());
    }
    match storage.allocate(offset, len) {
        Err(error) if error.kind() == ErrorKind::NoSpace => Err(error),
        _ => Ok(()),
    }
}
