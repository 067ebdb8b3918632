//! Bochs redolog images: growing disks, and the undoable and volatile logs above a base.
//!
//! Source: Bochs' `hdimage.h` and QEMU's bochs driver, which opens growing disks only. All fields are little-endian.
//! An undoable or volatile log needs a base but does not name it: the description has a backing reference with an
//! empty name, so that the log does not look like a leaf.

use crate::error::{Error, Result};
use crate::field::{before_nul, not_this, structure};
use crate::limits::{BOCHS_CATALOG_ENTRIES, BOCHS_EXTENT_BYTES, VIRTUAL_SIZE};
use crate::{Bytes, Description, Format, RecordedReference};
use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U64;

const MAGIC: &[u8] = b"Bochs Virtual HD Image";

mod raw {
    use zerocopy::byteorder::little_endian::U32;
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Header {
        pub magic: [u8; 32],
        pub kind: [u8; 16],
        pub subtype: [u8; 16],
        pub version: U32,
        /// Header size in bytes.
        pub header: U32,
        /// Entries of the catalogue.
        pub catalog: U32,
        /// Bytes of each extent's bitmap.
        pub bitmap: U32,
        /// Bytes of an extent.
        pub extent: U32,
        /// The size in bytes in version 1, four reserved bytes and then the size in version 2.
        pub tail: [u8; 12],
    }
}

/// Whether the magic number, the type and the version are a Bochs redolog's.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    if bytes.len() < size_of::<raw::Header>() as u64 {
        return Ok(false);
    }
    let header: raw::Header = structure(bytes, 0)?;
    Ok(before_nul(&header.magic) == MAGIC
        && before_nul(&header.kind) == b"Redolog"
        && matches!(header.version.get(), 0x10000 | 0x20000))
}

/// QEMU's test of a first sector: a growing redolog of either version.
pub(crate) fn qemu_takes_for_bochs(sector: &[u8]) -> bool {
    raw::Header::ref_from_prefix(sector).is_ok_and(|(header, _)| {
        before_nul(&header.magic) == MAGIC
            && before_nul(&header.kind) == b"Redolog"
            && before_nul(&header.subtype) == b"Growing"
            && matches!(header.version.get(), 0x10000 | 0x20000)
    })
}

/// Describes a Bochs redolog.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !bytes.read_some(0, MAGIC.len() + 1)?.starts_with(MAGIC) {
        return Err(not_this(Format::Bochs));
    }
    let header: raw::Header = structure(bytes, 0)?;
    if before_nul(&header.kind) != b"Redolog" {
        return Err(Error::unsupported("the Bochs image is not a redolog").at(32));
    }
    let subtype = match before_nul(&header.subtype) {
        b"Growing" => "growing",
        b"Undoable" => "undoable",
        b"Volatile" => "volatile",
        _ => return Err(Error::unsupported("the redolog is not growing, undoable or volatile").at(48)),
    };
    let [a, b, c, d, rest @ ..] = header.tail;
    let [e, f, g, h, ..] = rest;
    let size = match header.version.get() {
        0x10000 => U64::from_bytes([a, b, c, d, e, f, g, h]).get(),
        0x20000 => U64::from_bytes(rest).get(),
        other => return Err(Error::unsupported(format!("redolog version {other:#x} is unknown")).at(64)),
    };
    let extent = header.extent.get();
    if !extent.is_power_of_two() || !BOCHS_EXTENT_BYTES.contains(&extent) {
        return Err(Error::invalid(format!(
            "extent size {extent} is not a power of two in 512 B to 8 MiB"
        ))
        .at(80));
    }
    let catalog = header.catalog.get();
    if catalog > BOCHS_CATALOG_ENTRIES {
        return Err(Error::too_large(format!("{catalog} catalogue entries exceed 1,048,576")).at(72));
    }
    if size > VIRTUAL_SIZE {
        return Err(Error::too_large("the virtual size exceeds what can be addressed"));
    }
    if u64::from(catalog) < size.div_ceil(u64::from(extent)) {
        return Err(Error::invalid("the catalogue is too small for the virtual size").at(72));
    }
    let mut description = Description::new(Format::Bochs);
    description.variant = Some(subtype.into());
    description.virtual_size = Some(size);
    description.cluster_size = Some(extent.into());
    if subtype != "growing" {
        description.backing = Some(RecordedReference::new(b""));
        description.oddities.push(format!(
            "the {subtype} redolog lies above a base that it does not name"
        ));
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(subtype: &[u8], version: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; 512];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[32..39].copy_from_slice(b"Redolog");
        bytes[48..48 + subtype.len()].copy_from_slice(subtype);
        for (at, number) in [(64, version), (68, 512), (72, 20), (76, 1024), (80, 1 << 19)] {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let at = if version == 0x10000 { 84 } else { 88 };
        bytes[at..at + 8].copy_from_slice(&(10u64 << 20).to_le_bytes());
        bytes
    }

    #[test]
    fn both_versions_tell_their_size() {
        for version in [0x10000, 0x20000] {
            let d = describe(&image(b"Growing", version)).unwrap();
            assert_eq!((d.virtual_size, d.cluster_size), (Some(10 << 20), Some(1 << 19)));
            assert!(d.is_leaf());
        }
    }

    #[test]
    fn a_log_above_an_unnamed_base_is_no_leaf() {
        assert!(!describe(&image(b"Undoable", 0x20000)).unwrap().is_leaf());
    }

    #[test]
    fn refuses_a_catalogue_too_small_for_the_size() {
        let mut bytes = image(b"Growing", 0x20000);
        bytes[72] = 19;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
