//! Raw images: guest offset is file offset.

use crate::addr::{GuestOffset, HostOffset};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind, FileRole};
use crate::image::Image;
use catena_storage::Storage;
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

    fn storage(&self, _file: FileRole) -> Result<&dyn Storage> {
        Ok(&*self.storage)
    }

    fn cluster_size(&self) -> u64 {
        SECTOR
    }
}
