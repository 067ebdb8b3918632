//! User-mode Linux copy-on-write files, versions 2 and 3.
//!
//! Source: `cow.h` of the Linux kernel's `arch/um` for the layout, and libvirt, which knows version 2. All fields are
//! big-endian. The cluster is a sector (a bitmap bit each).

use crate::error::{Error, Result};
use crate::field::{before_nul, has_magic, not_this, structure};
use crate::limits::VIRTUAL_SIZE;
use crate::{Bytes, Description, Format, RecordedReference};

pub(crate) const MAGIC: &[u8; 4] = b"OOOM";

mod raw {
    use zerocopy::byteorder::big_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct V2 {
        pub magic: [u8; 4],
        pub version: U32,
        pub backing_file: [u8; 1024],
        pub mtime: U32,
        pub size: U64,
        pub sector_size: U32,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct V3 {
        pub magic: [u8; 4],
        pub version: U32,
        pub mtime: U32,
        pub size: U64,
        pub sector_size: U32,
        pub alignment: U32,
        pub format: U32,
        pub backing_file: [u8; 4096],
    }
}

/// Whether the magic number and the version are a UML COW file's.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let read = bytes.read_some(0, 8)?;
    Ok(read.starts_with(MAGIC) && matches!(read.get(4..8), Some([0, 0, 0, 2 | 3])))
}

/// Describes a UML COW file.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !has_magic(bytes, 0, MAGIC)? {
        return Err(not_this(Format::Cow));
    }
    let version = bytes.read_exact(4, 4)?;
    let (version, size, sector_size, name, offset) = match version.as_slice() {
        [0, 0, 0, 2] => {
            let raw: raw::V2 = structure(bytes, 0)?;
            (
                2,
                raw.size.get(),
                raw.sector_size.get(),
                raw.backing_file.to_vec(),
                8,
            )
        }
        [0, 0, 0, 3] => {
            let raw: raw::V3 = structure(bytes, 0)?;
            (
                3,
                raw.size.get(),
                raw.sector_size.get(),
                raw.backing_file.to_vec(),
                32,
            )
        }
        _ => return Err(Error::unsupported("the COW version is not 2 or 3").at(4)),
    };
    if size > VIRTUAL_SIZE {
        return Err(Error::too_large("the virtual size exceeds what can be addressed"));
    }
    let mut description = Description::new(Format::Cow);
    description.variant = Some(format!("{version}"));
    description.virtual_size = Some(size);
    if sector_size.is_power_of_two() {
        description.cluster_size = Some(sector_size.into());
    } else {
        description
            .oddities
            .push(format!("the sector size {sector_size} is not a power of two"));
    }
    let recorded = before_nul(&name);
    if recorded.len() == name.len() {
        description
            .oddities
            .push("the backing name fills its field and may have been cut off".into());
    }
    if !recorded.is_empty() {
        description.backing = Some(RecordedReference {
            offset: Some(offset),
            ..RecordedReference::new(recorded)
        });
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(version: u8, backing: &[u8]) -> Vec<u8> {
        let mut bytes = b"OOOM\0\0\0".to_vec();
        bytes.push(version);
        let numbers = |bytes: &mut Vec<u8>| {
            bytes.extend([0; 4]);
            bytes.extend((1u64 << 20).to_be_bytes());
            bytes.extend(512u32.to_be_bytes());
        };
        if version == 3 {
            numbers(&mut bytes);
            bytes.extend([0; 8]);
        }
        let end = bytes.len() + if version == 3 { 4096 } else { 1024 };
        bytes.extend(backing);
        bytes.resize(end, 0);
        if version != 3 {
            numbers(&mut bytes);
        }
        bytes
    }

    #[test]
    fn both_versions_tell_size_and_backing() {
        for (version, offset) in [(2, 8), (3, 32)] {
            let d = describe(&image(version, b"/base")).unwrap();
            assert_eq!((d.virtual_size, d.cluster_size), (Some(1 << 20), Some(512)));
            let backing = d.backing.unwrap();
            assert_eq!((backing.name.as_str(), backing.offset), ("/base", Some(offset)));
        }
        assert!(describe(&image(2, b"")).unwrap().is_leaf());
    }

    #[test]
    fn refuses_version_one_and_a_header_cut_short() {
        assert_eq!(
            describe(&image(1, b"")).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert_eq!(
            describe(&image(2, b"")[..1000].to_vec()).unwrap_err().kind(),
            ErrorKind::Truncated
        );
    }
}
