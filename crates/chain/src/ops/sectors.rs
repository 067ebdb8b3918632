//! A disk as the bytes that a parser reads.

use catena_engine::{Disk, GuestOffset};
use catena_format::Bytes;
use std::io;

/// The guest's bytes, for parsers of what guests write.
pub(super) struct Sectors<'a>(pub &'a dyn Disk);

impl Bytes for Sectors<'_> {
    fn len(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.len().saturating_sub(offset).min(buf.len() as u64);
        let there = usize::try_from(there).unwrap_or(usize::MAX);
        if let Some(buf) = buf.get_mut(..there).filter(|buf| !buf.is_empty()) {
            self.0
                .read_at(buf, GuestOffset(offset))
                .map_err(io::Error::other)?;
        }
        Ok(there)
    }
}
