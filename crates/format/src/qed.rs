//! QEMU enhanced disk.
//!
//! Source: QEMU's `docs/interop/qed_spec.rst` and the checks of its driver. All fields are little-endian.

use crate::error::{Error, Result};
use crate::field::{before_nul, has_magic, not_this, structure};
use crate::limits::{BACKING_NAME_BYTES, QED_CLUSTER_BYTES, QED_TABLE_CLUSTERS, VIRTUAL_SIZE};
use crate::{Bytes, Description, Format, RecordedReference};

pub(crate) const MAGIC: &[u8; 4] = b"QED\0";

bitflags::bitflags! {
    /// Features that change the meaning of the image.
    #[derive(Clone, Copy)]
    struct Features: u64 {
        /// There is a backing file name.
        const BACKING_FILE = 1;
        /// The image was not closed cleanly and must be checked.
        const NEED_CHECK = 2;
        /// The backing image is raw and must not be probed.
        const BACKING_FORMAT_NO_PROBE = 4;
    }
}

mod raw {
    use zerocopy::byteorder::little_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Header {
        pub magic: [u8; 4],
        /// In bytes.
        pub cluster_size: U32,
        /// L1 and L2 table size in clusters.
        pub table_size: U32,
        /// In clusters.
        pub header_size: U32,
        pub features: U64,
        pub compat_features: U64,
        pub autoclear_features: U64,
        pub l1_table_offset: U64,
        /// The virtual size in bytes.
        pub image_size: U64,
        pub backing_filename_offset: U32,
        pub backing_filename_size: U32,
    }
}

/// Whether the magic number is QED's and the geometry one that QED allows.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let Some(header) = header(bytes)? else {
        return Ok(false);
    };
    Ok(geometry(&header).is_ok())
}

fn header(bytes: &dyn Bytes) -> Result<Option<raw::Header>> {
    if !has_magic(bytes, 0, MAGIC)? || bytes.len() < size_of::<raw::Header>() as u64 {
        return Ok(None);
    }
    structure(bytes, 0).map(Some)
}

fn geometry(header: &raw::Header) -> Result<()> {
    let cluster = header.cluster_size.get();
    if !cluster.is_power_of_two() || !QED_CLUSTER_BYTES.contains(&cluster) {
        return Err(Error::invalid(format!(
            "cluster size {cluster} is not a power of two in 4 KiB to 64 MiB"
        ))
        .at(4));
    }
    let table = header.table_size.get();
    if !table.is_power_of_two() || !QED_TABLE_CLUSTERS.contains(&table) {
        return Err(Error::invalid(format!("table size {table} is not 1, 2, 4, 8 or 16 clusters")).at(8));
    }
    Ok(())
}

/// Describes a QED image.
///
/// The format has one bit about its backing image's format: set, it is raw; clear, QEMU and libvirt probe it, and
/// the description's reference has no format.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !has_magic(bytes, 0, MAGIC)? {
        return Err(not_this(Format::Qed));
    }
    let header: raw::Header = structure(bytes, 0)?;
    let features = header.features.get();
    let known = Features::from_bits(features).ok_or_else(|| {
        Error::unsupported(format!(
            "unknown features {:#x}",
            features & !Features::all().bits()
        ))
        .at(16)
    })?;
    geometry(&header)?;

    let cluster = u64::from(header.cluster_size.get());
    let entries = u64::from(header.table_size.get()) * cluster / 8;
    let size = header.image_size.get();
    if !size.is_multiple_of(512) {
        return Err(Error::invalid("the virtual size is not a multiple of 512").at(48));
    }
    if u128::from(size) > u128::from(entries) * u128::from(entries) * u128::from(cluster)
        || size > VIRTUAL_SIZE
    {
        return Err(Error::too_large("the virtual size exceeds what the tables can map").at(48));
    }

    let mut description = Description::new(Format::Qed);
    description.virtual_size = Some(size);
    description.cluster_size = Some(cluster);
    if known.contains(Features::NEED_CHECK) {
        description.features.push("need check".into());
    }
    if known.contains(Features::BACKING_FORMAT_NO_PROBE) {
        description.features.push("backing format no probe".into());
    }
    if known.contains(Features::BACKING_FILE) {
        let (offset, len) = (
            u64::from(header.backing_filename_offset.get()),
            header.backing_filename_size.get(),
        );
        if len > BACKING_NAME_BYTES {
            return Err(Error::too_large(format!("the backing name of {len} bytes exceeds 1023")).at(60));
        }
        if offset + u64::from(len) > cluster * u64::from(header.header_size.get()) {
            return Err(Error::invalid("the backing name lies outside the header's clusters").at(56));
        }
        let recorded = bytes.read_exact(offset, len as usize)?;
        let name = before_nul(&recorded);
        if name.is_empty() {
            description
                .oddities
                .push("the image says that it has a backing file, but its name is empty".into());
        } else {
            let mut backing = RecordedReference {
                offset: Some(offset),
                ..RecordedReference::new(name)
            };
            if known.contains(Features::BACKING_FORMAT_NO_PROBE) {
                backing.format = Some("raw".into());
            }
            description.backing = Some(backing);
        }
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    /// A 1 MiB image with 64 KiB clusters and its backing name at offset 64.
    pub(crate) fn image(features: u64, backing: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [65536u32, 4, 1] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [features, 0, 0, 65536, 1 << 20] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(64u32.to_le_bytes());
        bytes.extend(u32::try_from(backing.len()).unwrap().to_le_bytes());
        bytes.extend(backing);
        bytes
    }

    #[test]
    fn the_no_probe_bit_means_raw_and_its_absence_that_nothing_is_recorded() {
        let d = describe(&image(5, b"base")).unwrap();
        assert_eq!(d.backing.unwrap().format.as_deref(), Some("raw"));
        assert!(d.oddities.is_empty());
        let d = describe(&image(1, b"base")).unwrap();
        assert_eq!(d.backing.unwrap().format, None);
        assert!(d.oddities.is_empty());
    }

    #[test]
    fn without_the_backing_bit_a_name_is_no_reference() {
        let d = describe(&image(0, b"base")).unwrap();
        assert!(d.is_leaf());
        assert_eq!((d.virtual_size, d.cluster_size), (Some(1 << 20), Some(65536)));
    }

    #[test]
    fn refuses_unknown_features_a_wild_name_and_a_crooked_geometry() {
        assert_eq!(
            describe(&image(8, b"")).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        let mut bytes = image(1, b"base");
        bytes[58] = 1;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
        let mut bytes = image(0, b"");
        bytes[4] = 1;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
        assert!(!matches(&bytes).unwrap());
    }
}
