//! VirtualBox disk images.
//!
//! Source: VirtualBox's `VDICore.h` and QEMU's vdi driver. All fields are little-endian; UUIDs are stored as Microsoft
//! GUIDs. A differencing image names its parent by UUID only: whoever wants the file must know every image's UUID.
//! Its description therefore has a backing reference with an **empty name** and a parent identity, because to
//! leave the reference out would make an image that needs another look like a leaf.

use crate::error::{Error, Result};
use crate::field::{guid, has_magic, is_nil, not_this, structure, virtual_size};
use crate::{Bytes, Description, Format, ParentId, RecordedReference};

pub(crate) const MAGIC: &[u8; 4] = &[0x7f, 0x10, 0xda, 0xbe];
const MAGIC_OFFSET: u64 = 64;

/// What kind of image the header says this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageType {
    /// Grows as it is written.
    Dynamic,
    /// Fully allocated.
    Static,
    /// Holds what was before a write; of the format's past.
    Undo,
    /// Holds what differs from a parent.
    Differencing,
}

impl ImageType {
    fn from_raw(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Dynamic,
            2 => Self::Static,
            3 => Self::Undo,
            4 => Self::Differencing,
            _ => return None,
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
            Self::Undo => "undo",
            Self::Differencing => "differencing",
        }
    }
}

mod raw {
    use zerocopy::byteorder::little_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Header {
        pub text: [u8; 64],
        pub signature: [u8; 4],
        /// Major version in the upper, minor in the lower half.
        pub version: U32,
        pub header_size: U32,
        pub image_type: U32,
        pub image_flags: U32,
        pub description: [u8; 256],
        pub offset_bmap: U32,
        pub offset_data: U32,
        pub cylinders: U32,
        pub heads: U32,
        pub sectors: U32,
        pub sector_size: U32,
        pub unused: U32,
        pub disk_size: U64,
        pub block_size: U32,
        /// Bytes before each block's data.
        pub block_extra: U32,
        pub blocks_in_image: U32,
        pub blocks_allocated: U32,
        pub uuid_image: [u8; 16],
        pub uuid_last_snap: [u8; 16],
        /// The parent's `uuid_image`.
        pub uuid_link: [u8; 16],
        /// The parent's `uuid_last_snap` when this image was made.
        pub uuid_parent: [u8; 16],
    }
}

/// Whether the magic number and the major version are VDI's.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let read = bytes.read_some(MAGIC_OFFSET, 8)?;
    Ok(read.starts_with(MAGIC) && read.get(6..8) == Some(&[1, 0]))
}

/// Describes a VDI image.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !has_magic(bytes, MAGIC_OFFSET, MAGIC)? {
        return Err(not_this(Format::Vdi));
    }
    let header: raw::Header = structure(bytes, 0)?;
    let version = header.version.get();
    if version != 0x0001_0001 {
        return Err(Error::unsupported(format!(
            "VDI version {}.{} is not 1.1",
            version >> 16,
            version & 0xffff
        ))
        .at(68));
    }
    let kind = header.image_type.get();
    let kind = ImageType::from_raw(kind)
        .ok_or_else(|| Error::invalid(format!("image type {kind} is not 1 to 4")).at(76))?;
    let block = header.block_size.get();
    if !block.is_power_of_two() || block < 512 {
        return Err(
            Error::invalid(format!("block size {block} is not a power of two of 512 or more")).at(376),
        );
    }
    let recorded = header.disk_size.get();
    let size = virtual_size(recorded.div_ceil(512), 512)?;
    if u128::from(recorded) > u128::from(header.blocks_in_image.get()) * u128::from(block) {
        return Err(Error::invalid("the virtual size exceeds the blocks of the image").at(368));
    }

    let mut description = Description::new(Format::Vdi);
    description.variant = Some(kind.as_str().into());
    description.virtual_size = Some(size);
    description.cluster_size = Some(block.into());
    if size != recorded {
        description
            .oddities
            .push("the virtual size is not a multiple of 512 and is rounded up, as QEMU does".into());
    }
    if header.sector_size.get() != 512 {
        description
            .oddities
            .push(format!("the sector size is {}, not 512", header.sector_size));
    }
    if !is_nil(&header.uuid_image) {
        description.id = Some(ParentId::Uuid(guid(header.uuid_image)));
    }

    let linked = !is_nil(&header.uuid_link);
    let needs_parent = matches!(kind, ImageType::Undo | ImageType::Differencing);
    if linked || needs_parent {
        let mut backing = RecordedReference::new(b"");
        backing.parent_id = linked.then(|| ParentId::Uuid(guid(header.uuid_link)));
        description.backing = Some(backing);
    }
    if linked && !needs_parent {
        description
            .oddities
            .push(format!("a {} image records a parent UUID", kind.as_str()));
    }
    if needs_parent && !linked {
        description
            .oddities
            .push(format!("the {} image records no parent UUID", kind.as_str()));
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(kind: u32, link: [u8; 16]) -> Vec<u8> {
        let mut bytes = vec![0u8; 512];
        bytes[64..68].copy_from_slice(MAGIC);
        for (at, number) in [
            (68, 0x10001u32),
            (72, 400),
            (76, kind),
            (340, 512),
            (344, 1024),
            (360, 512),
            (376, 1 << 20),
            (384, 10),
        ] {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[368..376].copy_from_slice(&(10u64 << 20).to_le_bytes());
        bytes[392..408].copy_from_slice(&std::array::from_fn::<u8, 16, _>(|i| i as u8));
        bytes[424..440].copy_from_slice(&link);
        bytes
    }

    #[test]
    fn a_differencing_image_has_a_parent_known_by_uuid_alone() {
        let link = std::array::from_fn(|i| i as u8 + 16);
        let d = describe(&image(4, link)).unwrap();
        assert_eq!(d.variant.as_deref(), Some("differencing"));
        assert_eq!(d.id.unwrap().to_string(), "03020100-0504-0706-0809-0a0b0c0d0e0f");
        let backing = d.backing.unwrap();
        assert_eq!(backing.name, "");
        assert_eq!(
            backing.parent_id.unwrap().to_string(),
            "13121110-1514-1716-1819-1a1b1c1d1e1f"
        );
        assert!(d.oddities.is_empty());
    }

    #[test]
    fn dynamic_and_static_images_are_leaves() {
        for (kind, word) in [(1, "dynamic"), (2, "static")] {
            let d = describe(&image(kind, [0; 16])).unwrap();
            assert_eq!(d.variant.as_deref(), Some(word));
            assert_eq!(d.virtual_size, Some(10 << 20));
            assert!(d.is_leaf());
        }
        assert!(!describe(&image(1, [1; 16])).unwrap().is_leaf());
    }

    #[test]
    fn refuses_more_bytes_than_blocks_and_an_unknown_type() {
        let mut bytes = image(1, [0; 16]);
        bytes[384] = 9;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(
            describe(&image(5, [0; 16])).unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }
}
