//! QEMU's first copy-on-write format: qcow version 1.
//!
//! Source: QEMU's qcow driver, whose checks are repeated here. All fields are big-endian. The format cannot record
//! the format of its backing image.

use crate::error::{Error, Result};
use crate::field::{before_nul, has_magic, not_this, structure};
use crate::limits::{BACKING_NAME_BYTES, QCOW_CLUSTER_BITS, QCOW_L1_ENTRIES, QCOW_L2_BITS, VIRTUAL_SIZE};
use crate::{Bytes, Description, Encryption, Format, RecordedReference};

/// The first four bytes, shared with qcow2.
pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";

mod raw {
    use zerocopy::byteorder::big_endian::{U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Header {
        pub magic: [u8; 4],
        pub version: U32,
        pub backing_file_offset: U64,
        pub backing_file_size: U32,
        pub mtime: U32,
        pub size: U64,
        pub cluster_bits: u8,
        /// Two-logarithm of the entries of an L2 table.
        pub l2_bits: u8,
        pub padding: [u8; 2],
        pub crypt_method: U32,
        pub l1_table_offset: U64,
    }
}

/// Whether the magic number and the version are qcow's.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    has_magic(bytes, 0, b"QFI\xfb\0\0\0\x01")
}

/// Describes a qcow image.
///
/// Refuses what QEMU refuses in the header; the tables are not read.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !has_magic(bytes, 0, MAGIC)? {
        return Err(not_this(Format::Qcow));
    }
    let header: raw::Header = structure(bytes, 0)?;
    let version = header.version.get();
    if version != 1 {
        return Err(Error::unsupported(format!("qcow version {version} is not 1")).at(4));
    }
    let (cluster_bits, l2_bits) = (u32::from(header.cluster_bits), u32::from(header.l2_bits));
    if !QCOW_CLUSTER_BITS.contains(&cluster_bits) {
        return Err(Error::invalid(format!("cluster bits {cluster_bits} are not 9 to 16")).at(32));
    }
    if !QCOW_L2_BITS.contains(&l2_bits) {
        return Err(Error::invalid(format!("L2 bits {l2_bits} are not 6 to 13")).at(33));
    }
    let size = header.size.get();
    if size <= 1 {
        return Err(Error::invalid("the virtual size is below two bytes").at(24));
    }
    if size > VIRTUAL_SIZE {
        return Err(Error::too_large("the virtual size exceeds what can be addressed").at(24));
    }
    if size >> (cluster_bits + l2_bits) >= QCOW_L1_ENTRIES {
        return Err(Error::too_large("the virtual size needs too large an L1 table").at(24));
    }

    let mut description = Description::new(Format::Qcow);
    description.variant = Some("1".into());
    description.virtual_size = Some(size);
    description.cluster_size = Some(1 << cluster_bits);
    description.encryption = match header.crypt_method.get() {
        0 => None,
        1 => Some(Encryption::Aes),
        other => return Err(Error::invalid(format!("encryption method {other} is unknown")).at(36)),
    };

    let (offset, len) = (header.backing_file_offset.get(), header.backing_file_size.get());
    if offset != 0 && len != 0 {
        if len > BACKING_NAME_BYTES {
            return Err(Error::too_large(format!("the backing name of {len} bytes exceeds 1023")).at(16));
        }
        let recorded = bytes.read_exact(offset, len as usize)?;
        let name = before_nul(&recorded);
        if name.len() < recorded.len() {
            description
                .oddities
                .push("the backing name contains a NUL, at which it ends".into());
        }
        if !name.is_empty() {
            description.backing = Some(RecordedReference {
                offset: Some(offset),
                ..RecordedReference::new(name)
            });
        }
    }
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    /// A 1 MiB image with a backing name at offset 48.
    pub(crate) fn image(backing: &[u8]) -> Vec<u8> {
        let mut bytes = b"QFI\xfb\0\0\0\x01".to_vec();
        bytes.extend(if backing.is_empty() { 0u64 } else { 48 }.to_be_bytes());
        bytes.extend(u32::try_from(backing.len()).unwrap().to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend((1u64 << 20).to_be_bytes());
        bytes.extend([12, 9, 0, 0, 0, 0, 0, 0]);
        bytes.extend(4096u64.to_be_bytes());
        bytes.extend(backing);
        bytes
    }

    #[test]
    fn describes_size_cluster_and_backing_name_without_format() {
        let d = describe(&image(b"base.img")).unwrap();
        assert_eq!(d.virtual_size, Some(1 << 20));
        assert_eq!(d.cluster_size, Some(4096));
        let backing = d.backing.unwrap();
        assert_eq!((backing.name.as_str(), backing.offset), ("base.img", Some(48)));
        assert_eq!(backing.format, None);
        assert!(describe(&image(b"")).unwrap().is_leaf());
    }

    #[test]
    fn refuses_a_backing_name_past_the_end_instead_of_taking_it_for_none() {
        let mut bytes = image(b"base.img");
        bytes[15] = 0xff;
        bytes[14] = 0xff;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Truncated);
    }

    #[test]
    fn refuses_a_name_of_1024_bytes_and_a_version_other_than_one() {
        assert_eq!(
            describe(&image(&[b'a'; 1024])).unwrap_err().kind(),
            ErrorKind::TooLarge
        );
        assert!(describe(&image(&[b'a'; 1023])).is_ok());
        let mut bytes = image(b"");
        bytes[7] = 2;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn tells_aes_encryption_and_refuses_any_other() {
        let mut bytes = image(b"");
        bytes[39] = 1;
        assert_eq!(describe(&bytes).unwrap().encryption, Some(Encryption::Aes));
        bytes[39] = 2;
        assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
