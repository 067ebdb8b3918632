//! The fields of the on-disk structures, in the specification's words. All are big-endian.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The bytes both versions have.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct HeaderV2 {
    /// `QFI\xfb`.
    pub magic: [u8; 4],
    /// 2 or 3.
    pub version: U32,
    /// Offset of the backing file name, 0 without one.
    pub backing_file_offset: U64,
    /// Length of the name in bytes.
    pub backing_file_size: U32,
    /// Bits of an offset within a cluster.
    pub cluster_bits: U32,
    /// Virtual disk size in bytes.
    pub size: U64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: U32,
    /// Entries of the active L1 table.
    pub l1_size: U32,
    /// Offset of the active L1 table.
    pub l1_table_offset: U64,
    /// Offset of the refcount table.
    pub refcount_table_offset: U64,
    /// Clusters the refcount table occupies.
    pub refcount_table_clusters: U32,
    /// Internal snapshots.
    pub nb_snapshots: U32,
    /// Offset of the snapshot table.
    pub snapshots_offset: U64,
}

/// The bytes version 3 adds, without the compression type, which old writers lack.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct HeaderV3Tail {
    /// See [`super::Incompatible`].
    pub incompatible_features: U64,
    /// See [`super::Compatible`].
    pub compatible_features: U64,
    /// See [`super::Autoclear`].
    pub autoclear_features: U64,
    /// Refcounts are `1 << refcount_order` bits wide.
    pub refcount_order: U32,
    /// Length of the header in bytes.
    pub header_length: U32,
}

/// The start of a header extension.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct ExtensionHeader {
    /// Extension type; 0 ends the area.
    pub kind: U32,
    /// Length of the data without its padding to 8 bytes.
    pub length: U32,
}

/// An entry of the feature name table.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    /// Bit number.
    pub bit: u8,
    /// Name, padded with zeros.
    pub name: [u8; 46],
}

/// The bitmaps extension.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct BitmapsExtension {
    /// Number of bitmaps.
    pub nb_bitmaps: U32,
    /// Zero.
    pub reserved: U32,
    /// Size of the bitmap directory in bytes.
    pub bitmap_directory_size: U64,
    /// Offset of the bitmap directory.
    pub bitmap_directory_offset: U64,
}

/// Catena's stamp.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct Stamp {
    /// 1.
    pub version: U32,
    /// Bit 0: `view` is there.
    pub flags: U32,
    /// Bytes of the base's disk.
    pub virtual_size: U64,
    /// Bytes of its files.
    pub file_length: U64,
    /// Their last modification in nanoseconds since 1970, or 0.
    pub modified: U64,
    /// When the stamp was taken, in seconds since 1970.
    pub taken: U64,
    /// Of the recorded name and format.
    pub reference: [u8; 8],
    /// Of the base's format and geometry.
    pub layout: [u8; 16],
    /// Of its mapping tables.
    pub tables: [u8; 16],
    /// Of samples of its data.
    pub content: [u8; 16],
    /// Of all that it shows, or zeros.
    pub view: [u8; 32],
}

/// An entry of the bitmap directory, before its extra data and name.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct BitmapEntry {
    /// Offset of the bitmap table.
    pub bitmap_table_offset: U64,
    /// Entries of the bitmap table.
    pub bitmap_table_size: U32,
    /// Bit 0 in use, 1 auto, 2 extra data compatible.
    pub flags: U32,
    /// 1: dirty tracking bitmap.
    pub kind: u8,
    /// Bytes per bit, as a power of two.
    pub granularity_bits: u8,
    /// Length of the name.
    pub name_size: U16,
    /// Length of the extra data.
    pub extra_data_size: U32,
}

/// An entry of the snapshot table, before its extra data, id and name.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct SnapshotEntry {
    /// Offset of the snapshot's L1 table.
    pub l1_table_offset: U64,
    /// Entries of the snapshot's L1 table.
    pub l1_size: U32,
    /// Length of the unique id string.
    pub id_str_size: U16,
    /// Length of the name.
    pub name_size: U16,
    /// Time of the snapshot, seconds since the epoch.
    pub date_sec: U32,
    /// Nanoseconds of the time.
    pub date_nsec: U32,
    /// Time the guest had been running, in nanoseconds.
    pub vm_clock_nsec: U64,
    /// Bytes of VM state (32-bit field, superseded by the extra data).
    pub vm_state_size: U32,
    /// Length of the extra data.
    pub extra_data_size: U32,
}
