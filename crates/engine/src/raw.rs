//! Raw images: guest offset is file offset.

use crate::addr::{GuestOffset, HostOffset};
use crate::disk::{Carriage, Disk, Unmap, WritableDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind, FileRole};
use crate::image::Image;
use crate::stack::Stack;
use catena_storage::{Carry, Storage, carry};
use std::path::Path;
use std::sync::Arc;

/// QEMU rounds the length of a raw image up to whole sectors of this size; the rest of the last one reads as zeros.
const SECTOR: u64 = 512;

/// A raw image, or a slice of one.
#[derive(Debug)]
pub struct Raw {
    storage: Arc<dyn Storage>,
    offset: u64,
    size: u64,
}

impl Raw {
    /// The whole of a store.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        Self::open_slice(storage, 0, None)
    }

    /// The store's bytes at a guest range, which must lie on the disk.
    fn place(&self, start: GuestOffset, len: u64) -> Result<u64> {
        let end = start.0.checked_add(len).filter(|end| *end <= self.size);
        match end {
            Some(_) => Ok(self.offset.saturating_add(start.0)),
            None => Err(Error::new(
                ErrorKind::OutOfBounds,
                format!(
                    "{len} bytes at {start} reach past the end of the disk at {:#x}",
                    self.size
                ),
            )),
        }
    }

    /// The part of a store from `offset` on, `size` bytes or to the end. It must lie within the store.
    pub fn open_slice(storage: Arc<dyn Storage>, offset: u64, size: Option<u64>) -> Result<Self> {
        let len = storage.len()?;
        let rest = len.checked_sub(offset);
        let size = match (rest, size) {
            (Some(rest), None) => rest,
            (Some(rest), Some(size)) if size <= rest => size,
            _ => {
                return Err(Error::new(
                    ErrorKind::OutOfBounds,
                    format!("the slice at offset {offset} lies outside the file of {len} bytes"),
                ));
            }
        };
        Ok(Self {
            storage,
            offset,
            size: size.checked_next_multiple_of(SECTOR).unwrap_or(size),
        })
    }
}

impl Image for Raw {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn map(&self, start: GuestOffset, end: GuestOffset, extents: &mut Vec<Extent>) -> Result<()> {
        let offset = HostOffset(self.offset.saturating_add(start.0));
        Extent {
            start,
            len: end.0.saturating_sub(start.0),
            kind: ExtentKind::Data {
                file: FileRole::Image,
                offset,
            },
            layer: 0,
        }
        .push_to(extents);
        Ok(())
    }

    fn storage(&self, _file: FileRole) -> Result<&Arc<dyn Storage>> {
        Ok(&self.storage)
    }

    fn cluster_size(&self) -> u64 {
        self.size.max(SECTOR)
    }
}

/// The least write for which space is found in one piece, in bytes.
const WORTH_KEEPING: u64 = 64 << 10;

/// A raw image that is written.
#[derive(Debug)]
pub struct RawDisk {
    image: Arc<Raw>,
    /// The file had next to no space when it was opened (new files begin with a block of zeros): what is written needs some, which is found in one
    /// piece before.
    is_new: bool,
    reading: Stack,
}

impl RawDisk {
    /// A disk whose only layer is that image.
    pub fn new(image: Raw) -> Self {
        let image = Arc::new(image);
        let path = image.storage.path().unwrap_or(Path::new("")).to_owned();
        let reading = Stack::new([(Arc::clone(&image) as Arc<dyn Image>, path)]);
        let is_new = matches!(image.storage.allocated(), Ok(Some(taken)) if taken < WORTH_KEEPING);
        Self {
            image,
            is_new,
            reading,
        }
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.image.size
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        self.reading.read_at(buf, offset)
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        self.reading.extents(offset, end)
    }

    fn store(&self, layer: u32, file: FileRole) -> Option<&dyn Storage> {
        self.reading.store(layer, file)
    }
}

impl WritableDisk for RawDisk {
    fn write_at(&self, buf: &[u8], offset: GuestOffset) -> Result<()> {
        let len = buf.len() as u64;
        let place = self.image.place(offset, len)?;
        if self.is_new && len >= WORTH_KEEPING {
            self.image.storage.keep_ahead(place, len);
        }
        Ok(self.image.storage.write_all_at(buf, place)?)
    }

    fn write_zeroes(&self, offset: GuestOffset, len: u64, unmap: Unmap) -> Result<()> {
        let place = self.image.place(offset, len)?;
        match unmap {
            Unmap::Allow => self.image.storage.punch_hole(place, len)?,
            Unmap::Keep => self.image.storage.write_zeroes(place, len)?,
        }
        Ok(())
    }

    fn discard(&self, offset: GuestOffset, len: u64) -> Result<()> {
        self.write_zeroes(offset, len, Unmap::Allow)
    }

    fn begin_flush(&self) {
        self.image.storage.begin_flush();
    }

    fn flush(&self) -> Result<()> {
        Ok(self.image.storage.flush()?)
    }

    fn carriage(&self, how: Carry) -> Option<Carriage> {
        Carriage::to(how, &*self.image.storage, 1)
            .filter(|carriage| self.image.offset.is_multiple_of(carriage.unit))
    }

    fn write_from(
        &self,
        how: Carry,
        from: &dyn Storage,
        from_offset: u64,
        offset: GuestOffset,
        len: u64,
    ) -> Result<u64> {
        let place = self.image.place(offset, len)?;
        Ok(carry(how, from, from_offset, &*self.image.storage, place, len)?)
    }
}
