//! The bitmap directory and the tables it leads to: persistent dirty bitmaps, for incremental backup.
//!
//! Each bitmap has a table with an entry for every cluster of bits. Bits fill a byte from its least significant one.

use super::header::{ClusterBits, Header};
use super::raw;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::limits;
use zerocopy::{FromBytes, IntoBytes};

/// Kind of bitmap: dirty tracking, the only one there is.
const DIRTY_TRACKING: u8 = 1;
const FLAG_IN_USE: u32 = 1 << 0;
const FLAG_AUTO: u32 = 1 << 1;
const FLAG_EXTRA_COMPATIBLE: u32 = 1 << 2;
/// Bits 9 to 55 of a table entry: a host offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 0 of a table entry without an offset: all bits are set.
const ALL_ONES: u64 = 1;

/// A persistent bitmap as the directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// The name, lossily decoded.
    pub name: String,
    /// The name as it is.
    pub name_bytes: Vec<u8>,
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
    /// Flags that nobody here knows, and extra data, which QEMU has no use for: kept as they are.
    pub unknown_flags: u32,
    /// See [`Self::unknown_flags`].
    pub extra_data: Vec<u8>,
}

/// What an entry of a bitmap table says of a cluster of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// All bits are clear.
    Zeros,
    /// All bits are set.
    Ones,
    /// The bits are in the cluster at this offset.
    At(u64),
}

impl BitmapCluster {
    /// Decodes an entry: its offset is cluster-aligned, its reserved bits are zero.
    pub fn decode(entry: u64, cluster_bits: ClusterBits) -> Result<Self> {
        let offset = entry & OFFSET_MASK;
        match (offset, entry & !OFFSET_MASK) {
            (0, 0) => Ok(Self::Zeros),
            (0, ALL_ONES) => Ok(Self::Ones),
            (_, 0) if cluster_bits.offset_in_cluster(offset) == 0 => Ok(Self::At(offset)),
            _ => Err(Error::invalid(format!(
                "invalid bitmap table entry {entry:#018x}"
            ))),
        }
    }

    /// The entry that says this.
    pub fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => ALL_ONES,
            Self::At(offset) => offset & OFFSET_MASK,
        }
    }
}

/// How many bits stand for a disk.
pub fn bits_of(virtual_size: u64, granularity: u64) -> u64 {
    virtual_size.div_ceil(granularity.max(1))
}

/// How many table entries a bitmap of a disk has.
pub fn table_entries(virtual_size: u64, granularity: u64, cluster_bits: ClusterBits) -> u64 {
    cluster_bits.clusters(bits_of(virtual_size, granularity).div_ceil(8))
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

    /// The directory of these bitmaps; at most [`limits::QCOW2_BITMAP_DIRECTORY_BYTES`] and [`limits::QCOW2_BITMAPS`] entries.
    pub fn encode_all(bitmaps: &[Self]) -> Result<Vec<u8>> {
        let mut directory = Vec::new();
        for bitmap in bitmaps {
            bitmap.encode_to(&mut directory)?;
        }
        if directory.len() as u64 > limits::QCOW2_BITMAP_DIRECTORY_BYTES
            || bitmaps.len() as u64 > u64::from(limits::QCOW2_BITMAPS)
        {
            return Err(Error::too_large("not enough space in the bitmap directory"));
        }
        Ok(directory)
    }

    /// Where the flags are in a directory entry.
    pub const FLAGS_OFFSET: u64 = 12;

    /// The flags of its directory entry.
    pub fn flags(&self) -> u32 {
        let mut flags = self.unknown_flags;
        flags |= if self.in_use { FLAG_IN_USE } else { 0 };
        flags |= if self.auto { FLAG_AUTO } else { 0 };
        flags
    }

    /// Bytes of its directory entry with the padding.
    pub fn encoded_len(&self) -> u64 {
        let len = size_of::<raw::BitmapEntry>() + self.extra_data.len() + self.name_bytes.len();
        len.next_multiple_of(8) as u64
    }

    fn encode_to(&self, out: &mut Vec<u8>) -> Result<()> {
        let name_size = u16::try_from(self.name_bytes.len())
            .ok()
            .filter(|len| (1..=limits::QCOW2_BITMAP_NAME_BYTES).contains(len))
            .ok_or_else(|| Error::invalid("bitmap name of no or too many bytes"))?;
        let granularity_bits = u8::try_from(self.granularity.trailing_zeros())
            .ok()
            .filter(|bits| limits::QCOW2_BITMAP_GRANULARITY_BITS.contains(bits))
            .filter(|_| self.granularity.is_power_of_two())
            .ok_or_else(|| Error::invalid("bitmap granularity is out of range"))?;
        let extra_data_size = u32::try_from(self.extra_data.len())
            .map_err(|_| Error::too_large("too much extra data of a bitmap"))?;
        let raw = raw::BitmapEntry {
            bitmap_table_offset: self.table_offset.into(),
            bitmap_table_size: self.table_entries.into(),
            flags: self.flags().into(),
            kind: DIRTY_TRACKING,
            granularity_bits,
            name_size: name_size.into(),
            extra_data_size: extra_data_size.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&self.extra_data);
        out.extend_from_slice(&self.name_bytes);
        out.resize(out.len().next_multiple_of(8), 0);
        Ok(())
    }

    /// Whether a writer may keep the bitmap up to date: it has no flag that is unknown, and no extra data that it would have to
    /// understand.
    pub fn is_understood(&self) -> bool {
        let compatible = self.unknown_flags == FLAG_EXTRA_COMPATIBLE;
        compatible || (self.unknown_flags == 0 && self.extra_data.is_empty())
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
        if extra > limits::QCOW2_BITMAP_DIRECTORY_BYTES {
            return Err(Error::too_large("too much extra data of a bitmap").at(offset));
        }
        let extra_offset = offset.saturating_add(FIXED as u64);
        let extra_data = bytes.read_exact(extra_offset, usize::try_from(extra).unwrap_or(usize::MAX))?;
        let name_offset = extra_offset.saturating_add(extra);
        let name = bytes.read_exact(name_offset, usize::from(raw.name_size.get()))?;
        let bitmap = Self {
            name: String::from_utf8_lossy(&name).into_owned(),
            granularity: 1 << raw.granularity_bits,
            in_use: raw.flags.get() & FLAG_IN_USE != 0,
            auto: raw.flags.get() & FLAG_AUTO != 0,
            table_offset: raw.bitmap_table_offset.get(),
            table_entries: raw.bitmap_table_size.get(),
            unknown_flags: raw.flags.get() & !(FLAG_IN_USE | FLAG_AUTO),
            extra_data,
            name_bytes: name,
        };
        let len = bitmap.encoded_len();
        Ok((bitmap, len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::{CreateOptions, NewImage};
    use super::super::extension::{BitmapsExtension, Extension};
    use super::*;

    fn bitmap(name: &[u8]) -> Bitmap {
        Bitmap {
            name: String::from_utf8_lossy(name).into_owned(),
            name_bytes: name.to_vec(),
            granularity: 1 << 16,
            in_use: false,
            auto: true,
            table_offset: 0x5_0000,
            table_entries: 1,
            unknown_flags: 0,
            extra_data: Vec::new(),
        }
    }

    #[test]
    fn a_directory_reads_back_as_it_was_written() {
        let mut odd = bitmap(b"caf\xe9");
        (odd.in_use, odd.auto, odd.granularity) = (true, false, 1 << 31);
        (odd.unknown_flags, odd.extra_data) = (FLAG_EXTRA_COMPATIBLE, vec![1, 2, 3]);
        let bitmaps = vec![bitmap(b"b0"), odd, bitmap(&[b'x'; 1023])];
        let directory = Bitmap::encode_all(&bitmaps).unwrap();
        let mut header = NewImage::lay_out(&CreateOptions::new(1 << 20).unwrap())
            .unwrap()
            .header;
        header.extensions.push(Extension::Bitmaps(BitmapsExtension {
            count: 3,
            directory_size: directory.len() as u64,
            directory_offset: 0x1_0000,
        }));
        let mut bytes = vec![0; 0x1_0000];
        bytes.extend_from_slice(&directory);
        assert_eq!(Bitmap::read_all(&header, &bytes).unwrap(), bitmaps);
    }

    #[test]
    fn a_bitmap_that_nobody_would_read_is_not_written() {
        assert!(Bitmap::encode_all(&[bitmap(b"")]).is_err());
        assert!(Bitmap::encode_all(&[bitmap(&[b'x'; 1024])]).is_err());
        let mut fine = bitmap(b"b");
        for granularity in [0, 256, 1000, 1 << 32] {
            fine.granularity = granularity;
            assert!(Bitmap::encode_all(std::slice::from_ref(&fine)).is_err());
        }
    }

    #[test]
    fn table_entries_mean_what_the_specification_says() {
        let bits = ClusterBits::new(16).unwrap();
        for cluster in [
            BitmapCluster::Zeros,
            BitmapCluster::Ones,
            BitmapCluster::At(0x5_0000),
        ] {
            assert_eq!(BitmapCluster::decode(cluster.encode(), bits).unwrap(), cluster);
        }
        for bad in [2, 0x5_0001, 0x5_0200, 1 << 63] {
            assert!(BitmapCluster::decode(bad, bits).is_err());
        }
        // 64 KiB of bits stand for 32 GiB.
        assert_eq!(table_entries(32 << 30, 1 << 16, bits), 1);
        assert_eq!(table_entries((32 << 30) + 1, 1 << 16, bits), 2);
        assert_eq!(table_entries(0, 1 << 16, bits), 0);
    }
}
