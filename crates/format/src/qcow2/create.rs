//! The bytes of a new, empty image.

use super::extension::{Extension, FeatureName};
use super::feature::{Autoclear, Compatible, Incompatible};
use super::header::{BackingName, ClusterBits, Compression, CryptMethod, Header, Version};
use super::layout::Layout;
use super::stamp::Stamp;
use crate::error::{Error, Result};
use crate::limits;

/// Sectors of the guest's disk; a new disk is a whole number of them, as with QEMU.
const SECTOR: u64 = 512;

/// Images with larger clusters than this get a table of feature names.
const FEATURE_NAMES_ABOVE: u64 = 4096;

/// What to create. Defaults are those of `qemu-img create -f qcow2`.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes the guest sees; rounded up to whole sectors.
    pub virtual_size: u64,
    /// Format version.
    pub version: Version,
    /// Cluster size.
    pub cluster_bits: ClusterBits,
    /// Refcounts are `1 << refcount_order` bits wide.
    pub refcount_order: u32,
    /// Whether refcount updates may be postponed.
    pub lazy_refcounts: bool,
    /// Whether L2 entries carry subcluster bitmaps.
    pub extended_l2: bool,
    /// Type of compressed clusters.
    pub compression: Compression,
    /// Name and format word of the backing image.
    pub backing: Option<(Vec<u8>, Vec<u8>)>,
    /// What the image shall know of its backing image.
    pub stamp: Option<Stamp>,
    /// Name of the external data file, and whether it must stay valid as a raw image.
    pub data_file: Option<(Vec<u8>, bool)>,
}

impl CreateOptions {
    /// The defaults, for a disk of so many bytes.
    pub fn new(virtual_size: u64) -> Result<Self> {
        Ok(Self {
            virtual_size,
            version: Version::V3,
            cluster_bits: ClusterBits::new(16)?,
            refcount_order: 4,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Deflate,
            backing: None,
            stamp: None,
            data_file: None,
        })
    }
}

/// A new image as writes into an empty file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// The header that the writes contain.
    pub header: Header,
    /// Offset and bytes of each write; everything else is zeros. The header comes last, so that a file cut off
    /// before is no qcow2 image at all.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Length of the file.
    pub len: u64,
}

impl NewImage {
    /// Lays out a new image: header, refcount table, refcount blocks, L1 table, in QEMU's order.
    pub fn lay_out(options: &CreateOptions) -> Result<Self> {
        check(options)?;
        let cluster_bits = options.cluster_bits;
        let mut header = empty_header(options)?;
        let layout = Layout::of(&header);
        let l1_entries = layout.l1_entries(header.virtual_size);
        if l1_entries * 8 > limits::QCOW2_L1_BYTES {
            return Err(Error::too_large(
                "the disk is too large for this cluster size: its L1 table would exceed 32 MiB",
            ));
        }
        header.l1_entries = u32::try_from(l1_entries).map_err(|_| Error::too_large("L1 table too large"))?;
        let l1_clusters = cluster_bits.clusters(l1_entries * 8);

        let refcounts_per_block = (cluster_bits.size() * 8) >> options.refcount_order;
        let (mut blocks, mut table_clusters) = (1, 1);
        // Both grow with the total they count; at most 32 MiB of L1 table bounds it, so this settles in a few turns.
        let total = loop {
            let total = 1 + table_clusters + blocks + l1_clusters;
            let need_blocks = total.div_ceil(refcounts_per_block);
            let need_table = cluster_bits.clusters(need_blocks * 8);
            if (need_blocks, need_table) == (blocks, table_clusters) {
                break total;
            }
            (blocks, table_clusters) = (need_blocks.max(blocks), need_table.max(table_clusters));
        };
        let size = cluster_bits.size();
        let blocks_offset = (1 + table_clusters) * size;
        header.refcount_table_offset = size;
        header.refcount_table_clusters =
            u32::try_from(table_clusters).map_err(|_| Error::too_large("refcount table too large"))?;
        let l1_offset = blocks_offset + blocks * size;
        header.l1_offset = if l1_entries > 0 { l1_offset } else { 0 };

        let table = (0..blocks)
            .flat_map(|block| (blocks_offset + block * size).to_be_bytes())
            .collect();
        let refcounts = refcounts_of_one(total, options.refcount_order);
        let writes = vec![(blocks_offset, refcounts), (size, table), (0, header.encode()?)];
        Ok(Self {
            header,
            writes,
            len: l1_offset + l1_entries * 8,
        })
    }
}

fn check(options: &CreateOptions) -> Result<()> {
    if options.virtual_size > limits::VIRTUAL_SIZE - SECTOR {
        return Err(Error::too_large("the disk is too large"));
    }
    if options.refcount_order > limits::QCOW2_REFCOUNT_ORDER {
        return Err(Error::invalid(
            "refcount width must be a power of two and may not exceed 64 bits",
        ));
    }
    if options.version == Version::V2 {
        let needs_v3 = [
            (options.refcount_order != 4, "a refcount width other than 16 bits"),
            (options.lazy_refcounts, "lazy refcounts"),
            (options.extended_l2, "extended L2 entries"),
            (options.compression != Compression::Deflate, "zstd compression"),
            (options.data_file.is_some(), "an external data file"),
        ];
        if let Some((_, what)) = needs_v3.into_iter().find(|(on, _)| *on) {
            return Err(Error::invalid(format!("{what} needs compatibility level 1.1")));
        }
    }
    if options.extended_l2 && options.cluster_bits.get() < limits::QCOW2_EXTENDED_L2_MIN_CLUSTER_BITS {
        return Err(Error::invalid(
            "extended L2 entries need clusters of at least 16 KiB",
        ));
    }
    if options.backing.is_some() && options.data_file.as_ref().is_some_and(|(_, raw)| *raw) {
        return Err(Error::invalid(
            "a backing file and a raw data file cannot be used at the same time",
        ));
    }
    let name_len = options.backing.as_ref().map_or(1, |(name, _)| name.len());
    if name_len == 0 || name_len > limits::BACKING_NAME_BYTES as usize {
        return Err(Error::invalid("a backing file name has 1 to 1023 bytes"));
    }
    Ok(())
}

/// A header with no tables yet.
fn empty_header(options: &CreateOptions) -> Result<Header> {
    let mut extensions = Vec::new();
    // libvirt finds the backing format only where it comes first.
    if let Some((_, format)) = options.backing.as_ref().filter(|(_, format)| !format.is_empty()) {
        extensions.push(Extension::BackingFormat(format.clone()));
    }
    if let Some((name, _)) = &options.data_file {
        extensions.push(Extension::DataFile(name.clone()));
    }
    let mut incompatible = Incompatible::empty();
    incompatible.set(Incompatible::DATA_FILE, options.data_file.is_some());
    incompatible.set(
        Incompatible::COMPRESSION,
        options.compression != Compression::Deflate,
    );
    incompatible.set(Incompatible::EXTENDED_L2, options.extended_l2);
    let mut compatible = Compatible::empty();
    compatible.set(Compatible::LAZY_REFCOUNTS, options.lazy_refcounts);
    let mut autoclear = Autoclear::empty();
    autoclear.set(
        Autoclear::RAW_EXTERNAL_DATA,
        options.data_file.as_ref().is_some_and(|(_, raw)| *raw),
    );
    let mut header = Header {
        version: options.version,
        cluster_bits: options.cluster_bits,
        virtual_size: options.virtual_size.next_multiple_of(SECTOR),
        crypt: CryptMethod::None,
        l1_offset: 0,
        l1_entries: 0,
        refcount_table_offset: 0,
        refcount_table_clusters: 0,
        refcount_order: options.refcount_order,
        snapshots_offset: 0,
        snapshot_count: 0,
        incompatible,
        compatible,
        autoclear,
        compression: options.compression,
        header_length: match options.version {
            Version::V2 => 72,
            Version::V3 => 112,
        },
        backing: options.backing.as_ref().map(|(name, _)| BackingName {
            offset: 0,
            name: name.clone(),
        }),
        extensions,
        unknown_fields: Vec::new(),
    };
    // The feature names are a courtesy that leaves little room in a small first cluster: QEMU does without there.
    if options.version == Version::V3 && options.cluster_bits.size() > FEATURE_NAMES_ABOVE {
        header
            .extensions
            .push(Extension::FeatureNames(FeatureName::all()));
    }
    header.set_stamp(options.stamp.clone());
    // The name goes right behind the extensions.
    let end = header.encode()?.len();
    if let Some(backing) = &mut header.backing {
        backing.offset = (end - backing.name.len()) as u64;
    }
    Ok(header)
}

/// Refcount blocks in which the first `count` clusters have a refcount of one, as far as they are not zeros.
fn refcounts_of_one(count: u64, order: u32) -> Vec<u8> {
    match order {
        // Widths below a byte fill it from its least significant bit.
        0..=2 => {
            let per_byte = 8 >> order;
            let mut bytes = vec![0u8; usize::try_from(count.div_ceil(per_byte)).unwrap_or_default()];
            let mut left = count;
            for byte in &mut bytes {
                for i in 0..left.min(per_byte) {
                    *byte |= 1 << (i << order);
                }
                left = left.saturating_sub(per_byte);
            }
            bytes
        }
        _ => {
            let width = 1usize << (order - 3);
            let mut one = vec![0u8; width];
            if let Some(last) = one.last_mut() {
                *last = 1;
            }
            one.repeat(usize::try_from(count).unwrap_or_default())
        }
    }
}
