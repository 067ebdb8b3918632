//! ISO 9660 and UDF file systems: raw data with a name.
//!
//! Source: ECMA-119 and ECMA-167 (volume recognition sequence). An image is used as raw, so the description has no
//! virtual size: it is the length of the file. A hybrid image may start with a partition table too.

use crate::error::Result;
use crate::field::not_this;
use crate::limits::ISO_VOLUME_DESCRIPTORS;
use crate::{Bytes, Description, Format};

/// Where the volume descriptors begin, behind the system area.
const DESCRIPTORS: u64 = 32 << 10;
const SECTOR: u64 = 2048;

/// The standard identifier libvirt looks for, and where.
pub(crate) const ISO_MAGIC: &[u8; 5] = b"CD001";
pub(crate) const ISO_MAGIC_OFFSET: u64 = DESCRIPTORS + 1;

#[derive(Default)]
struct Found {
    iso9660: bool,
    udf: bool,
    /// Blocks and block size of the primary volume.
    volume: Option<(u32, u16)>,
}

/// Walks the descriptors while they are known ones.
fn walk(bytes: &dyn Bytes) -> Result<Found> {
    let mut found = Found::default();
    for number in 0..ISO_VOLUME_DESCRIPTORS {
        let sector = bytes.read_some(DESCRIPTORS + number * SECTOR, 132)?;
        match sector.get(1..6) {
            Some(b"CD001") => {
                // A descriptor later in the sequence is no file system that anyone would find.
                found.iso9660 |= number == 0;
                if let (Some(1), Some(blocks), Some(size)) =
                    (sector.first(), sector.get(80..84), sector.get(128..130))
                {
                    let blocks = <[u8; 4]>::try_from(blocks).map_or(0, u32::from_le_bytes);
                    let size = <[u8; 2]>::try_from(size).map_or(0, u16::from_le_bytes);
                    found.volume.get_or_insert((blocks, size));
                }
            }
            Some(b"NSR02" | b"NSR03") => found.udf = true,
            Some(b"BEA01" | b"TEA01" | b"BOOT2" | b"CDW02") => {}
            _ => break,
        }
    }
    Ok(found)
}

/// Whether there is an ISO 9660 or UDF volume at 32 KiB.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let found = walk(bytes)?;
    Ok(found.iso9660 || found.udf)
}

/// Describes an ISO 9660 or UDF image.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    let found = walk(bytes)?;
    let variant = match (found.iso9660, found.udf) {
        (true, true) => "ISO 9660 and UDF",
        (true, false) => "ISO 9660",
        (false, true) => "UDF",
        (false, false) => return Err(not_this(Format::Iso)),
    };
    let mut description = Description::new(Format::Iso);
    description.variant = Some(variant.into());
    if let Some((blocks, size)) = found.volume
        && u64::from(blocks) * u64::from(size) > bytes.len()
    {
        description
            .oddities
            .push("the volume is longer than the image: the image has been cut off".into());
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(identifiers: &[&[u8; 5]]) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 << 10];
        for (i, identifier) in identifiers.iter().enumerate() {
            let at = (32 << 10) + i * 2048;
            bytes[at] = 1;
            bytes[at + 1..at + 6].copy_from_slice(*identifier);
        }
        bytes
    }

    #[test]
    fn tells_iso_9660_udf_and_both() {
        for (identifiers, variant) in [
            (vec![b"CD001"], "ISO 9660"),
            (vec![b"BEA01", b"NSR02", b"TEA01"], "UDF"),
            (vec![b"CD001", b"CD001", b"BEA01", b"NSR03"], "ISO 9660 and UDF"),
        ] {
            assert_eq!(
                describe(&image(&identifiers)).unwrap().variant.as_deref(),
                Some(variant)
            );
        }
        assert_eq!(
            describe(&image(&[b"BEA01"])).unwrap_err().kind(),
            ErrorKind::NotThisFormat
        );
    }

    #[test]
    fn tells_an_image_cut_off() {
        let mut bytes = image(&[b"CD001"]);
        bytes[(32 << 10) + 80..][..4].copy_from_slice(&100u32.to_le_bytes());
        bytes[(32 << 10) + 128..][..2].copy_from_slice(&2048u16.to_le_bytes());
        assert_eq!(describe(&bytes).unwrap().oddities.len(), 1);
    }
}
