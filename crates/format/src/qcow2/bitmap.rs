//! The bitmap directory: persistent dirty bitmaps, for incremental backup.

use super::header::Header;
use super::raw;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::limits;
use zerocopy::FromBytes;

/// Kind of bitmap: dirty tracking, the only one there is.
const DIRTY_TRACKING: u8 = 1;
const FLAG_IN_USE: u32 = 1 << 0;
const FLAG_AUTO: u32 = 1 << 1;

/// A persistent bitmap as the directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// The name, lossily decoded.
    pub name: String,
    /// Guest bytes one bit stands for.
    pub granularity: u64,
    /// Whether a writer was killed while it kept the bitmap: its content is not to be believed.
    pub in_use: bool,
    /// Whether the bitmap records writes by itself.
    pub auto: bool,
    /// Offset of its table.
    pub table_offset: u64,
    /// Entries of its table.
    pub table_entries: u32,
}

impl Bitmap {
    /// Reads the bitmap directory of an image; empty where there is none.
    pub fn read_all(header: &Header, bytes: &dyn Bytes) -> Result<Vec<Self>> {
        let Some(extension) = header.bitmaps() else {
            return Ok(Vec::new());
        };
        let start = extension.directory_offset;
        if extension.count == 0 || extension.count > limits::QCOW2_BITMAPS {
            return Err(Error::invalid(format!(
                "bitmaps extension with {} bitmaps",
                extension.count
            )));
        }
        if extension.directory_size > limits::QCOW2_BITMAP_DIRECTORY_BYTES {
            return Err(Error::too_large("bitmap directory too large").at(start));
        }
        if header.cluster_bits.offset_in_cluster(start) != 0 {
            return Err(Error::invalid("bitmap directory offset is not cluster-aligned").at(start));
        }
        let end = start
            .checked_add(extension.directory_size)
            .ok_or_else(|| Error::invalid("bitmap directory out of range"))?;
        let mut bitmaps = Vec::new();
        let mut offset = start;
        for _ in 0..extension.count {
            let (bitmap, len) = Self::read(bytes, offset)?;
            offset = offset.saturating_add(len);
            if offset > end {
                return Err(Error::invalid("bitmap directory entries exceed the directory").at(start));
            }
            bitmaps.push(bitmap);
        }
        if offset != end {
            return Err(Error::invalid("bitmap directory is longer than its entries").at(start));
        }
        Ok(bitmaps)
    }

    fn read(bytes: &dyn Bytes, offset: u64) -> Result<(Self, u64)> {
        const FIXED: usize = size_of::<raw::BitmapEntry>();
        let fixed = bytes.read_exact(offset, FIXED)?;
        let raw = raw::BitmapEntry::read_from_bytes(&fixed)
            .map_err(|_| Error::truncated("bitmap entry").at(offset))?;
        if raw.kind != DIRTY_TRACKING {
            return Err(Error::unsupported(format!("unknown bitmap type {}", raw.kind)).at(offset));
        }
        if !limits::QCOW2_BITMAP_GRANULARITY_BITS.contains(&raw.granularity_bits) {
            return Err(Error::invalid(format!(
                "bitmap granularity 2^{} is out of range",
                raw.granularity_bits
            ))
            .at(offset));
        }
        if raw.name_size.get() == 0 || raw.name_size.get() > limits::QCOW2_BITMAP_NAME_BYTES {
            return Err(Error::invalid("bitmap name of no or too many bytes").at(offset));
        }
        let extra = u64::from(raw.extra_data_size.get());
        let name_offset = offset.saturating_add(FIXED as u64).saturating_add(extra);
        let name = bytes.read_exact(name_offset, usize::from(raw.name_size.get()))?;
        let bitmap = Self {
            name: String::from_utf8_lossy(&name).into_owned(),
            granularity: 1 << raw.granularity_bits,
            in_use: raw.flags.get() & FLAG_IN_USE != 0,
            auto: raw.flags.get() & FLAG_AUTO != 0,
            table_offset: raw.bitmap_table_offset.get(),
            table_entries: raw.bitmap_table_size.get(),
        };
        Ok((
            bitmap,
            (FIXED as u64 + extra + name.len() as u64).next_multiple_of(8),
        ))
    }
}
