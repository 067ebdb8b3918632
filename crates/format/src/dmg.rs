//! Apple disk images (UDIF), known by the trailer at their end.
//!
//! Source: the published descriptions of the `koly` trailer, and QEMU's dmg driver for where it looks for it. All
//! fields are big-endian. The property list with the block tables is not read.

use crate::error::{Error, Result};
use crate::field::{not_this, structure, virtual_size};
use crate::limits::DMG_TRAILER_SEARCH_BYTES;
use crate::{Bytes, DataFile, Description, Format};

const MAGIC: &[u8; 4] = b"koly";

mod raw {
    use zerocopy::byteorder::big_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Trailer {
        pub magic: [u8; 4],
        pub version: U32,
        pub header_size: U32,
        pub flags: U32,
        pub running_data_fork_offset: U64,
        pub data_fork_offset: U64,
        pub data_fork_length: U64,
        pub rsrc_fork_offset: U64,
        pub rsrc_fork_length: U64,
        pub segment_number: U32,
        pub segment_count: U32,
        pub segment_id: [u8; 16],
        pub data_checksum: [u8; 136],
        pub xml_offset: U64,
        pub xml_length: U64,
        pub reserved: [u8; 120],
        pub checksum: [u8; 136],
        pub image_variant: U32,
        pub sector_count: U64,
        pub padding: [u8; 12],
    }
}

const TRAILER: u64 = size_of::<raw::Trailer>() as u64;

/// The trailer and where it is: at the end, or a little before it, as QEMU accepts.
fn trailer(bytes: &dyn Bytes) -> Result<Option<(u64, raw::Trailer)>> {
    let start = bytes.len().saturating_sub(DMG_TRAILER_SEARCH_BYTES);
    let end = bytes.read_some(start, DMG_TRAILER_SEARCH_BYTES as usize)?;
    let found = end
        .windows(MAGIC.len())
        .rposition(|window| window == MAGIC)
        .map(|at| start + at as u64)
        .filter(|at| at + TRAILER <= bytes.len());
    match found {
        Some(at) => Ok(Some((at, structure(bytes, at)?))),
        None => Ok(None),
    }
}

fn is_plausible(trailer: &raw::Trailer) -> bool {
    trailer.version.get() == 4 && u64::from(trailer.header_size.get()) == TRAILER
}

/// Whether there is a trailer of the known version and size.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    Ok(trailer(bytes)?.is_some_and(|(_, trailer)| is_plausible(&trailer)))
}

/// Describes an Apple disk image.
///
/// The virtual size is the trailer's; one segment of several has a nameless data file, the other segments.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    let (offset, trailer) = trailer(bytes)?.ok_or_else(|| not_this(Format::Dmg))?;
    if !is_plausible(&trailer) {
        return Err(Error::unsupported("the trailer is not a 512-byte trailer of version 4").at(offset));
    }
    let mut description = Description::new(Format::Dmg);
    description.variant = Some("4".into());
    description.virtual_size = Some(virtual_size(trailer.sector_count.get(), 512)?);
    if offset + TRAILER != bytes.len() {
        description
            .oddities
            .push("there are bytes behind the trailer".into());
    }
    let segments = trailer.segment_count.get();
    if segments > 1 {
        description
            .features
            .push(format!("segment {} of {segments}", trailer.segment_number));
        description.data_file = Some(DataFile {
            name: None,
            raw: false,
        });
    }
    for (what, at, len) in [
        ("property list", trailer.xml_offset, trailer.xml_length),
        ("data fork", trailer.data_fork_offset, trailer.data_fork_length),
        (
            "resource fork",
            trailer.rsrc_fork_offset,
            trailer.rsrc_fork_length,
        ),
    ] {
        if at.get().checked_add(len.get()).is_none_or(|end| end > offset) {
            description
                .oddities
                .push(format!("the {what} reaches beyond the trailer"));
        }
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(sectors: u64, segments: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; 2048];
        let trailer = &mut bytes[1536..];
        trailer[..4].copy_from_slice(MAGIC);
        trailer[7] = 4;
        trailer[8..12].copy_from_slice(&512u32.to_be_bytes());
        trailer[60..64].copy_from_slice(&segments.to_be_bytes());
        trailer[492..500].copy_from_slice(&sectors.to_be_bytes());
        bytes
    }

    #[test]
    fn the_trailer_tells_the_size() {
        let d = describe(&image(2048, 1)).unwrap();
        assert_eq!(d.virtual_size, Some(1 << 20));
        assert!(d.is_leaf() && d.oddities.is_empty());
    }

    #[test]
    fn a_trailer_before_the_end_is_found_and_told() {
        let mut bytes = image(2048, 1);
        bytes.extend([0; 100]);
        assert_eq!(describe(&bytes).unwrap().oddities.len(), 1);
        bytes.extend([0; 1024]);
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::NotThisFormat);
    }

    #[test]
    fn one_segment_of_several_needs_other_files() {
        assert!(!describe(&image(2048, 2)).unwrap().is_leaf());
    }
}
