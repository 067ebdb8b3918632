//! Parallels disk images, which Virtuozzo and libvirt call ploop.
//!
//! Source: QEMU's `docs/interop/parallels.rst` and driver. All fields are little-endian. An image names no parent: the
//! tree of a Parallels disk is in the `DiskDescriptor.xml` beside it, which this crate does not read.

use crate::error::{Error, Result};
use crate::field::{not_this, structure, virtual_size};
use crate::limits::PARALLELS_CLUSTER_SECTORS;
use crate::{Bytes, Description, Format};

/// The older magic: offsets in sectors, and a 32-bit size.
pub(crate) const MAGIC: &[u8; 16] = b"WithoutFreeSpace";
/// The newer magic: offsets in clusters.
pub(crate) const MAGIC_EXTENDED: &[u8; 16] = b"WithouFreSpacExt";
/// `in_use` while the image is open for writing.
const IN_USE: u32 = 0x746f_6e59;
/// `in_use` after Parallels closed the image cleanly.
const CLOSED: u32 = 0x312e_3276;

mod raw {
    use zerocopy::byteorder::little_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Header {
        pub magic: [u8; 16],
        pub version: U32,
        pub heads: U32,
        pub cylinders: U32,
        /// Sectors per cluster.
        pub tracks: U32,
        pub bat_entries: U32,
        /// The virtual size in sectors.
        pub nb_sectors: U64,
        pub in_use: U32,
        pub data_offset: U32,
        pub flags: U32,
        /// Sector of the format extension, or 0.
        pub extension: U64,
    }
}

/// Whether the magic number is one of the two and the version 2.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let read = bytes.read_some(0, 20)?;
    Ok((read.starts_with(MAGIC) || read.starts_with(MAGIC_EXTENDED))
        && read.get(16..20) == Some(&2u32.to_le_bytes()))
}

/// Describes a Parallels image.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    let magic = bytes.read_some(0, MAGIC.len())?;
    let extended = magic == MAGIC_EXTENDED;
    if !extended && magic != MAGIC {
        return Err(not_this(Format::Parallels));
    }
    let header: raw::Header = structure(bytes, 0)?;
    let version = header.version.get();
    if version != 2 {
        return Err(Error::unsupported(format!("Parallels version {version} is not 2")).at(16));
    }
    let tracks = header.tracks.get();
    if tracks == 0 {
        return Err(Error::invalid("the cluster size is zero").at(28));
    }
    if tracks > PARALLELS_CLUSTER_SECTORS {
        return Err(Error::too_large("the cluster size exceeds what QEMU allows").at(28));
    }
    let sectors = match extended {
        true => header.nb_sectors.get(),
        // The upper half of the field is not part of the older format.
        false => header.nb_sectors.get() & u64::from(u32::MAX),
    };
    let mut description = Description::new(Format::Parallels);
    description.variant = Some(if extended { "extended" } else { "original" }.into());
    description.virtual_size = Some(virtual_size(sectors, 512)?);
    description.cluster_size = Some(u64::from(tracks) * 512);
    if u64::from(header.bat_entries.get()) < sectors.div_ceil(u64::from(tracks)) {
        description
            .oddities
            .push("the block table is too short for the virtual size".into());
    }
    if !extended && header.nb_sectors.get() > u64::from(u32::MAX) {
        description
            .oddities
            .push("the upper half of the size is set, which the older format ignores".into());
    }
    match header.in_use.get() {
        0 | CLOSED => {}
        IN_USE => description
            .oddities
            .push("the image is open elsewhere or was not closed cleanly".into()),
        other => description
            .oddities
            .push(format!("the in-use mark {other:#x} is unknown")),
    }
    if header.flags.get() & 1 != 0 {
        description.features.push("empty image".into());
    }
    if header.extension.get() != 0 {
        description.features.push("format extension".into());
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(magic: &[u8; 16], sectors: u64) -> Vec<u8> {
        let mut bytes = magic.to_vec();
        for number in [2u32, 16, 20, 2048, 10] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(sectors.to_le_bytes());
        bytes.extend([0; 20]);
        bytes
    }

    #[test]
    fn both_magics_are_read_and_the_older_has_a_32_bit_size() {
        let d = describe(&image(MAGIC_EXTENDED, 20480)).unwrap();
        assert_eq!((d.virtual_size, d.cluster_size), (Some(10 << 20), Some(1 << 20)));
        assert!(d.oddities.is_empty());
        let d = describe(&image(MAGIC, 20480 | 1 << 32)).unwrap();
        assert_eq!(d.virtual_size, Some(10 << 20));
        assert_eq!(d.oddities.len(), 1);
    }

    #[test]
    fn an_image_in_use_is_told() {
        let mut bytes = image(MAGIC_EXTENDED, 20480);
        bytes[44..48].copy_from_slice(&IN_USE.to_le_bytes());
        assert_eq!(describe(&bytes).unwrap().oddities.len(), 1);
    }

    #[test]
    fn refuses_clusters_of_no_sectors_and_sizes_beyond_addressing() {
        let mut bytes = image(MAGIC, 20480);
        bytes[28..32].fill(0);
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(
            describe(&image(MAGIC_EXTENDED, 1 << 60)).unwrap_err().kind(),
            ErrorKind::TooLarge
        );
    }
}
