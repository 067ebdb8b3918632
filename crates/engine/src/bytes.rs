//! A store seen as bytes to parse.

use catena_format::Bytes;
use catena_storage::Storage;
use std::io;

/// A [`Storage`] as the [`Bytes`] that format parsers read.
#[derive(Clone, Copy, Debug)]
pub struct StorageBytes<'a> {
    storage: &'a dyn Storage,
    len: u64,
}

impl<'a> StorageBytes<'a> {
    /// Wraps a store; its length is asked once.
    pub fn new(storage: &'a dyn Storage) -> Result<Self, catena_storage::Error> {
        Ok(Self {
            storage,
            len: storage.len()?,
        })
    }
}

impl Bytes for StorageBytes<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.storage.read_at(buf, offset).map_err(io::Error::other)
    }
}
