//! The limits every number read from an image is held against, in one place, with their source.
//!
//! Where QEMU has a limit, ours is the same: an image that QEMU opens is never refused for its size, and one that
//! QEMU refuses gains nothing from being accepted here.

/// Smallest and largest qcow2 `cluster_bits`: 512 B to 2 MiB (QEMU `MIN_CLUSTER_BITS`, `MAX_CLUSTER_BITS`).
pub const QCOW2_CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Smallest `cluster_bits` with extended L2 entries: a subcluster is at least 512 B, so a cluster 16 KiB.
pub const QCOW2_EXTENDED_L2_MIN_CLUSTER_BITS: u32 = 14;

/// Largest active or snapshot L1 table in bytes (QEMU `QCOW_MAX_L1_SIZE`).
pub const QCOW2_L1_BYTES: u64 = 32 << 20;

/// Largest refcount table in bytes (QEMU `QCOW_MAX_REFTABLE_SIZE`).
pub const QCOW2_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// Largest `refcount_order`: 64-bit refcounts (qcow2 specification).
pub const QCOW2_REFCOUNT_ORDER: u32 = 6;

/// Most internal snapshots (QEMU `QCOW_MAX_SNAPSHOTS`).
pub const QCOW2_SNAPSHOTS: u32 = 65_536;

/// Largest snapshot table in bytes (QEMU `QCOW_MAX_SNAPSHOTS_SIZE`).
pub const QCOW2_SNAPSHOT_TABLE_BYTES: u64 = 1024 * QCOW2_SNAPSHOTS as u64;

/// Largest extra data of one snapshot entry (QEMU `QCOW_MAX_SNAPSHOT_EXTRA_DATA`).
pub const QCOW2_SNAPSHOT_EXTRA_BYTES: u32 = 1024;

/// Most persistent bitmaps (QEMU `QCOW2_MAX_BITMAPS`).
pub const QCOW2_BITMAPS: u32 = 65_535;

/// Largest bitmap directory in bytes (QEMU `QCOW2_MAX_BITMAP_DIRECTORY_SIZE`).
pub const QCOW2_BITMAP_DIRECTORY_BYTES: u64 = 1024 * QCOW2_BITMAPS as u64;

/// Longest bitmap name in bytes (QEMU `BME_MAX_NAME_SIZE`).
pub const QCOW2_BITMAP_NAME_BYTES: u16 = 1023;

/// Smallest and largest bitmap granularity bits: 512 B to 2 GiB (QEMU `BME_MIN_GRANULARITY_BITS`, `BME_MAX_…`).
pub const QCOW2_BITMAP_GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;

/// Largest persistent bitmap in bytes of bits (QEMU `BME_MAX_PHYS_SIZE`).
pub const QCOW2_BITMAP_BYTES: u64 = 512 << 20;

/// Most entries of a bitmap table (QEMU `BME_MAX_TABLE_SIZE`).
pub const QCOW2_BITMAP_TABLE_ENTRIES: u32 = 1 << 27;

/// Longest backing file name in bytes, qcow2 and qcow (both specifications; QEMU `PATH_MAX` is looser).
pub const BACKING_NAME_BYTES: u32 = 1023;

/// Longest VM-state or header extension that is kept in memory: the extensions live in the first cluster.
pub const QCOW2_HEADER_AREA_BYTES: u64 = 1 << *QCOW2_CLUSTER_BITS.end();

/// Largest virtual size: the last byte must be addressable with a signed 64-bit offset (QEMU `BDRV_MAX_LENGTH`,
/// which is aligned down for the largest request alignment).
pub const VIRTUAL_SIZE: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// Most bytes of a text descriptor that are read (VMDK; QEMU `desc_size` limit is 1 MiB).
pub const DESCRIPTOR_BYTES: u64 = 1 << 20;

/// Smallest and largest qcow `cluster_bits` (QEMU's qcow driver: 512 B to 64 KiB).
pub const QCOW_CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=16;

/// Smallest and largest two-logarithm of a qcow L2 table's entries (QEMU: a table of 512 B to 64 KiB).
pub const QCOW_L2_BITS: std::ops::RangeInclusive<u32> = 6..=13;

/// Most entries of a qcow L1 table (QEMU: its bytes fit a C `int`).
pub const QCOW_L1_ENTRIES: u64 = i32::MAX as u64 / 8;

/// Smallest and largest QED cluster in bytes (QEMU `QED_MIN_CLUSTER_SIZE`, `QED_MAX_CLUSTER_SIZE`).
pub const QED_CLUSTER_BYTES: std::ops::RangeInclusive<u32> = 4096..=64 << 20;

/// Smallest and largest QED table in clusters (QEMU `QED_MIN_TABLE_SIZE`, `QED_MAX_TABLE_SIZE`).
pub const QED_TABLE_CLUSTERS: std::ops::RangeInclusive<u32> = 1..=16;

/// Most sectors of a Parallels cluster (QEMU: a cluster and its bitmap fit a C `int`).
pub const PARALLELS_CLUSTER_SECTORS: u32 = i32::MAX as u32 / 513;

/// Smallest and largest Bochs extent in bytes (QEMU's bochs driver).
pub const BOCHS_EXTENT_BYTES: std::ops::RangeInclusive<u32> = 512..=8 << 20;

/// Most entries of a Bochs catalogue (QEMU's bochs driver).
pub const BOCHS_CATALOG_ENTRIES: u32 = 1 << 20;

/// Largest cloop block in bytes (QEMU `MAX_BLOCK_SIZE`).
pub const CLOOP_BLOCK_BYTES: u32 = 64 << 20;

/// Largest cloop offset table in bytes (QEMU's cloop driver).
pub const CLOOP_OFFSETS_BYTES: u64 = 512 << 20;

/// Most volume descriptors of an ISO 9660 or UDF image that are read (real images have fewer than ten).
pub const ISO_VOLUME_DESCRIPTORS: u64 = 64;

/// How far before the end the trailer of an Apple disk image is looked for (QEMU's dmg driver).
pub const DMG_TRAILER_SEARCH_BYTES: u64 = 1023;

/// Smallest and largest LUKS 2 header in bytes (LUKS2 specification, section 2).
pub const LUKS2_HEADER_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=4 << 20;

/// Most members of a LUKS 2 JSON object that are kept (cryptsetup `LUKS2_KEYSLOTS_MAX`, `SEGMENT_MAX` are 32).
pub const LUKS2_OBJECTS: usize = 32;

/// Largest VHD in sectors (QEMU `VHD_MAX_SECTORS`: 2040 GiB).
pub const VHD_SECTORS: u64 = 0xff00_0000;

/// Longest VHD parent locator in bytes (the longest path of Windows, 32,767 UTF-16 units).
pub const VHD_LOCATOR_BYTES: u32 = 64 << 10;

/// Most entries of a VMDK grain table (QEMU's vmdk driver; VMware writes no other number than this).
pub const VMDK_GRAIN_TABLE_ENTRIES: u32 = 512;

/// Most sectors of a VMDK grain (QEMU's vmdk driver: 1 GiB).
pub const VMDK_GRAIN_SECTORS: u64 = 0x20_0000;

/// Most regions of a VHDX (\[MS-VHDX\] 2.2.3.1).
pub const VHDX_REGIONS: u32 = 2047;

/// Most metadata items of a VHDX (\[MS-VHDX\] 2.6.1.1).
pub const VHDX_ITEMS: u16 = 2047;

/// Smallest and largest VHDX block in bytes (\[MS-VHDX\] 2.6.2.1).
pub const VHDX_BLOCK_BYTES: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;

/// Largest VHDX virtual size: 64 TiB (\[MS-VHDX\] 2.6.2.2).
pub const VHDX_VIRTUAL_SIZE: u64 = 64 << 40;

/// Longest VHDX parent locator in bytes: that of any metadata item (\[MS-VHDX\] 2.6.1.2).
pub const VHDX_LOCATOR_BYTES: u32 = 1 << 20;

/// Most entries that are read of a GPT. Systems make 128.
pub const GPT_ENTRIES: u32 = 1024;

/// Most logical partitions that are read. Linux reads 256 of a disk, each of which takes a read.
pub const MBR_LOGICAL_PARTITIONS: u32 = 128;

/// Most partitions in which identifiers of file systems are looked for.
pub const IDENTIFIED_PARTITIONS: usize = 64;
