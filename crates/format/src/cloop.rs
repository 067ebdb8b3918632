//! Compressed loop images of the old Knoppix kernel module, format 2.0.
//!
//! Source: QEMU's cloop driver. The file starts with a shell script; the two numbers behind it are big-endian.

use crate::error::{Error, Result};
use crate::field::{has_magic, not_this, structure, virtual_size};
use crate::limits::{CLOOP_BLOCK_BYTES, CLOOP_OFFSETS_BYTES};
use crate::{Bytes, Description, Format};

/// How every file of format 2.0 starts.
const MAGIC: &[u8] = b"#!/bin/sh\n#V2.0 Format\n";
/// The whole script as cloop's tools write it, which is what QEMU compares.
pub(crate) const SCRIPT: &[u8] =
    b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";
/// Where the script's field ends and the numbers begin.
const NUMBERS: u64 = 128;

mod raw {
    use zerocopy::byteorder::big_endian::U32;
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Numbers {
        /// Bytes of a block before compression.
        pub block_size: U32,
        pub blocks: U32,
    }
}

/// Whether the file starts as format 2.0 does and its block size is possible.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    if !has_magic(bytes, 0, MAGIC)? || bytes.len() < NUMBERS + 8 {
        return Ok(false);
    }
    let numbers: raw::Numbers = structure(bytes, NUMBERS)?;
    Ok(block_size(&numbers).is_ok())
}

fn block_size(numbers: &raw::Numbers) -> Result<u32> {
    let block = numbers.block_size.get();
    if block == 0 || !block.is_multiple_of(512) {
        return Err(Error::invalid(format!("block size {block} is not a multiple of 512")).at(NUMBERS));
    }
    if block > CLOOP_BLOCK_BYTES {
        return Err(Error::too_large(format!("block size {block} exceeds 64 MiB")).at(NUMBERS));
    }
    Ok(block)
}

/// Describes a compressed loop image.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if !has_magic(bytes, 0, MAGIC)? {
        return Err(not_this(Format::Cloop));
    }
    let numbers: raw::Numbers = structure(bytes, NUMBERS)?;
    let block = u64::from(block_size(&numbers)?);
    let blocks = u64::from(numbers.blocks.get());
    if (blocks + 1) * 8 > CLOOP_OFFSETS_BYTES {
        return Err(Error::too_large(format!("{blocks} blocks need too large a table")).at(NUMBERS + 4));
    }
    let mut description = Description::new(Format::Cloop);
    description.variant = Some("2.0".into());
    description.virtual_size = Some(virtual_size(blocks, block)?);
    description.cluster_size = Some(block);
    description.features.push("compressed".into());
    Ok(description)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ErrorKind;

    pub(crate) fn image(block: u32, blocks: u32) -> Vec<u8> {
        let mut bytes = SCRIPT.to_vec();
        bytes.resize(128, 0);
        bytes.extend(block.to_be_bytes());
        bytes.extend(blocks.to_be_bytes());
        bytes
    }

    #[test]
    fn the_size_is_blocks_times_block_size() {
        let d = describe(&image(65536, 16)).unwrap();
        assert_eq!((d.virtual_size, d.cluster_size), (Some(1 << 20), Some(65536)));
    }

    #[test]
    fn refuses_block_sizes_and_tables_that_qemu_refuses() {
        for (block, blocks, kind) in [
            (0, 1, ErrorKind::Invalid),
            (513, 1, ErrorKind::Invalid),
            ((64 << 20) + 512, 1, ErrorKind::TooLarge),
            (512, u32::MAX, ErrorKind::TooLarge),
        ] {
            assert_eq!(describe(&image(block, blocks)).unwrap_err().kind(), kind);
        }
    }
}
