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

/// Longest backing file name in bytes, qcow2 and qcow (both specifications; QEMU `PATH_MAX` is looser).
pub const BACKING_NAME_BYTES: u32 = 1023;

/// Longest VM-state or header extension that is kept in memory: the extensions live in the first cluster.
pub const QCOW2_HEADER_AREA_BYTES: u64 = 1 << *QCOW2_CLUSTER_BITS.end();

/// Largest virtual size: the last byte must be addressable with a signed 64-bit offset (QEMU `BDRV_MAX_LENGTH`,
/// which is aligned down for the largest request alignment).
pub const VIRTUAL_SIZE: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// Most bytes of a text descriptor that are read (VMDK; QEMU `desc_size` limit is 1 MiB).
pub const DESCRIPTOR_BYTES: u64 = 1 << 20;
