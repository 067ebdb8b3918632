//! A store seen as bytes to parse.

use catena_format::Bytes;
use catena_storage::Storage;
use std::io;

/// Headers, and what formats are recognised by, mostly lie within so many bytes.
const HEAD: usize = 4096;

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

impl<'a> StorageBytes<'a> {
    /// Reads the first bytes now, all at once: who finds out what an image is asks for a few of them many times. Where they cannot be
    /// read, who asks for them is told.
    pub fn with_head(self) -> Headed<'a> {
        let mut head = vec![0; HEAD];
        let read = self.storage.read_at(&mut head, 0).unwrap_or(0);
        head.truncate(read);
        Headed { bytes: self, head }
    }
}

/// A store whose first bytes were read once, and are those for as long as this lives.
#[derive(Clone, Debug)]
pub struct Headed<'a> {
    bytes: StorageBytes<'a>,
    head: Vec<u8>,
}

impl Bytes for Headed<'_> {
    fn len(&self) -> u64 {
        self.bytes.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.head.get(start..).and_then(|rest| rest.get(..buf.len())) {
            Some(known) => {
                buf.copy_from_slice(known);
                Ok(buf.len())
            }
            None => self.bytes.read_at(offset, buf),
        }
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
