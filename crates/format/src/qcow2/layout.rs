//! How L1 and L2 entries are read: the few header fields that decide it, and what an entry can say.

use super::header::{ClusterBits, Header, Version};
use crate::error::{Error, Result};

/// Bits 9 to 55: a host offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard L2 entry: reads as zeros.
const ZERO: u64 = 1;
/// Compressed data is counted in sectors of this size.
const COMPRESSED_SECTOR: u64 = 512;
/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;

/// An entry of an L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// The entry of an L2 table at a cluster-aligned offset, which nobody shares where `copied`.
    pub fn to_table(offset: u64, copied: bool) -> Self {
        Self((offset & OFFSET_MASK) | if copied { COPIED } else { 0 })
    }

    /// Where the L2 table is, `None` where there is none. Not checked for alignment: see [`Layout::l2_offset`].
    pub fn offset(self) -> Option<u64> {
        Some(self.0 & OFFSET_MASK).filter(|offset| *offset != 0)
    }

    /// Whether the entry claims that the L2 table's refcount is one.
    pub fn copied(self) -> bool {
        self.0 & COPIED != 0
    }
}

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing: ask the backing image.
    Unallocated,
    /// Zeros, with a host cluster kept for later or without.
    Zero {
        /// The cluster that is kept.
        host: Option<u64>,
    },
    /// The guest's bytes as they are.
    Data {
        /// Offset of the cluster in the image or its data file.
        host: u64,
    },
    /// The guest's bytes, compressed.
    Compressed {
        /// Offset of the first compressed byte in the image.
        host: u64,
        /// Bytes up to the end of the last sector; the stream may end before.
        len: u32,
    },
    /// Each of the 32 subclusters has its own state.
    Subclusters {
        /// Offset of the cluster; `None` where no subcluster is allocated.
        host: Option<u64>,
        /// Bit n: subcluster n holds data.
        allocated: u32,
        /// Bit n: subcluster n reads as zeros. Never set where `allocated` is.
        zero: u32,
    },
}

/// The geometry of an image's mapping tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Cluster size.
    pub cluster_bits: ClusterBits,
    extended: bool,
    data_file: bool,
    zero_flag: bool,
}

impl Layout {
    /// The geometry a header decides.
    pub fn of(header: &Header) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            extended: header.has_extended_l2(),
            data_file: header.has_data_file(),
            zero_flag: header.version == Version::V3,
        }
    }

    /// Bytes of an L2 entry: 8, or 16 with a subcluster bitmap.
    pub fn l2_entry_size(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of an L2 table, which fills one cluster.
    pub fn l2_entries(self) -> u64 {
        self.cluster_bits.size() / self.l2_entry_size()
    }

    /// Guest bytes one L2 table maps.
    pub fn l2_coverage(self) -> u64 {
        self.l2_entries() << self.cluster_bits.get()
    }

    /// L1 entries that a disk of this size needs.
    pub fn l1_entries(self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.l2_coverage())
    }

    /// Bytes of a subcluster; a whole cluster without extended L2 entries.
    pub fn subcluster_size(self) -> u64 {
        if self.extended {
            self.cluster_bits.size() / u64::from(SUBCLUSTERS)
        } else {
            self.cluster_bits.size()
        }
    }

    /// Where the L2 table of an L1 entry is.
    pub fn l2_offset(self, entry: L1Entry) -> Result<Option<u64>> {
        match entry.offset() {
            Some(offset) if self.cluster_bits.offset_in_cluster(offset) != 0 => Err(Error::invalid(format!(
                "L2 table offset {offset:#x} is not cluster-aligned"
            ))),
            offset => Ok(offset),
        }
    }

    /// Decodes an L2 entry and, with extended L2 entries, its bitmap.
    pub fn cluster(self, entry: u64, bitmap: u64) -> Result<Cluster> {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry);
        }
        let host = entry & OFFSET_MASK;
        if self.cluster_bits.offset_in_cluster(host) != 0 {
            return Err(Error::invalid(format!(
                "data cluster offset {host:#x} is not cluster-aligned"
            )));
        }
        // Offset 0 is the header, so it means unallocated; but the first cluster of a data file is a good place.
        let host = (host != 0 || (self.data_file && entry & COPIED != 0)).then_some(host);
        if self.extended {
            return Self::subclusters(host, bitmap);
        }
        if entry & ZERO != 0 {
            if !self.zero_flag {
                return Err(Error::invalid("zero cluster entry in a version 2 image"));
            }
            return Ok(Cluster::Zero { host });
        }
        Ok(host.map_or(Cluster::Unallocated, |host| Cluster::Data { host }))
    }

    /// Whether an L2 entry claims that its host cluster's refcount is one. A compressed cluster never is written in place.
    pub fn copied(self, entry: u64) -> bool {
        entry & COPIED != 0 && entry & COMPRESSED == 0
    }

    /// The L2 entry that says this, and its bitmap, which counts only with extended L2 entries. `copied`: nobody shares the host cluster.
    ///
    /// An error where the layout has no words for it: zeros in version 2, subclusters without extended entries, a compressed cluster
    /// in an image with a data file or one that reaches too far.
    pub fn encode(self, cluster: Cluster, copied: bool) -> Result<(u64, u64)> {
        let flag = if copied { COPIED } else { 0 };
        let place = |host: Option<u64>| host.map_or(0, |host| (host & OFFSET_MASK) | flag);
        let all = u64::from(u32::MAX);
        match cluster {
            Cluster::Unallocated => Ok((0, 0)),
            Cluster::Data { host } => Ok((place(Some(host)), if self.extended { all } else { 0 })),
            Cluster::Zero { host } if self.extended => Ok((place(host), all << 32)),
            Cluster::Zero { host } if self.zero_flag => Ok((place(host) | ZERO, 0)),
            Cluster::Zero { .. } => Err(Error::unsupported("version 2 images have no zero clusters")),
            Cluster::Subclusters {
                host,
                allocated,
                zero,
            } if self.extended => Ok((place(host), u64::from(zero) << 32 | u64::from(allocated))),
            Cluster::Subclusters { .. } => Err(Error::unsupported("the image has no subclusters")),
            Cluster::Compressed { .. } if self.data_file => Err(Error::unsupported(
                "an image with a data file has no compressed clusters",
            )),
            Cluster::Compressed { host, len } => self.encode_compressed(host, len),
        }
    }

    fn encode_compressed(self, host: u64, len: u32) -> Result<(u64, u64)> {
        let offset_bits = self.compressed_offset_bits();
        let first = host / COMPRESSED_SECTOR;
        let last = host.saturating_add(u64::from(len)).saturating_sub(1) / COMPRESSED_SECTOR;
        let further = last.saturating_sub(first);
        if host >> offset_bits != 0 || further >> (62 - offset_bits) != 0 || len == 0 {
            return Err(Error::too_large(
                "a compressed cluster lies too far away or is too long",
            ));
        }
        Ok((COMPRESSED | further << offset_bits | host, 0))
    }

    /// How many bits of a compressed cluster's entry hold its offset.
    pub fn compressed_offset_bits(self) -> u32 {
        62 - (self.cluster_bits.get() - 8)
    }

    fn subclusters(host: Option<u64>, bitmap: u64) -> Result<Cluster> {
        let [z3, z2, z1, z0, a3, a2, a1, a0] = bitmap.to_be_bytes();
        let zero = u32::from_be_bytes([z3, z2, z1, z0]);
        let allocated = u32::from_be_bytes([a3, a2, a1, a0]);
        if zero & allocated != 0 || (host.is_none() && allocated != 0) {
            return Err(Error::invalid(format!(
                "invalid subcluster bitmap {bitmap:#018x}"
            )));
        }
        Ok(match (host, allocated, zero) {
            (None, _, 0) => Cluster::Unallocated,
            (host, 0, u32::MAX) => Cluster::Zero { host },
            (Some(host), u32::MAX, _) => Cluster::Data { host },
            (host, allocated, zero) => Cluster::Subclusters {
                host,
                allocated,
                zero,
            },
        })
    }

    fn compressed(self, entry: u64) -> Result<Cluster> {
        if self.data_file {
            return Err(Error::invalid(
                "compressed cluster entry in an image with a data file",
            ));
        }
        // The offset takes the low bits, the count of further sectors the bits up to 61.
        let offset_bits = self.compressed_offset_bits();
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & !(COPIED | COMPRESSED)) >> offset_bits) + 1;
        // At most 2^13 + 1 sectors, for 2 MiB clusters.
        let len = sectors * COMPRESSED_SECTOR - host % COMPRESSED_SECTOR;
        let len = u32::try_from(len).map_err(|_| Error::invalid("compressed cluster is too long"))?;
        Ok(Cluster::Compressed { host, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bits: u32, extended: bool, data_file: bool, zero_flag: bool) -> Layout {
        Layout {
            cluster_bits: ClusterBits::new(bits).unwrap(),
            extended,
            data_file,
            zero_flag,
        }
    }

    #[test]
    fn standard_entries_mean_what_the_specification_says() {
        let v3 = layout(16, false, false, true);
        assert_eq!(v3.cluster(0, 0).unwrap(), Cluster::Unallocated);
        assert_eq!(v3.cluster(1, 0).unwrap(), Cluster::Zero { host: None });
        assert_eq!(
            v3.cluster(0x5_0001, 0).unwrap(),
            Cluster::Zero { host: Some(0x5_0000) }
        );
        assert_eq!(
            v3.cluster(COPIED | 0x5_0000, 0).unwrap(),
            Cluster::Data { host: 0x5_0000 }
        );
        assert!(v3.cluster(0x5_0200, 0).is_err());
        assert!(layout(16, false, false, false).cluster(1, 0).is_err());
    }

    #[test]
    fn offset_zero_is_data_only_in_a_data_file_and_only_when_copied() {
        let data_file = layout(16, false, true, true);
        assert_eq!(data_file.cluster(COPIED, 0).unwrap(), Cluster::Data { host: 0 });
        assert_eq!(data_file.cluster(0, 0).unwrap(), Cluster::Unallocated);
        assert_eq!(
            layout(16, false, false, true).cluster(COPIED, 0).unwrap(),
            Cluster::Unallocated
        );
        assert!(data_file.cluster(COMPRESSED, 0).is_err());
    }

    #[test]
    fn compressed_entries_split_offset_and_sectors_by_cluster_size() {
        let entry = COMPRESSED | (3 << 54) | 0x1_2345;
        let Cluster::Compressed { host, len } = layout(16, false, false, true).cluster(entry, 0).unwrap()
        else {
            panic!("not compressed")
        };
        assert_eq!((host, len), (0x1_2345, 4 * 512 - 0x145));
        for bits in 9..=21 {
            assert!(layout(bits, false, false, true).cluster(!COPIED, 0).is_ok());
        }
    }

    #[test]
    fn a_subcluster_cannot_be_zero_and_allocated_nor_allocated_without_a_cluster() {
        let extended = layout(16, true, false, true);
        assert_eq!(extended.cluster(0, 0).unwrap(), Cluster::Unallocated);
        assert_eq!(
            extended.cluster(0, 0xffff_ffff << 32).unwrap(),
            Cluster::Zero { host: None }
        );
        assert_eq!(
            extended.cluster(0x1_0000, 0xffff_ffff).unwrap(),
            Cluster::Data { host: 0x1_0000 }
        );
        assert_eq!(
            extended.cluster(0x1_0000, 1 | 2 << 32).unwrap(),
            Cluster::Subclusters {
                host: Some(0x1_0000),
                allocated: 1,
                zero: 2
            }
        );
        assert!(extended.cluster(0x1_0000, 1 | 1 << 32).is_err());
        assert!(extended.cluster(0, 1).is_err());
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let offset = 0x5_0000;
        let standard = [
            Cluster::Unallocated,
            Cluster::Data { host: offset },
            Cluster::Zero { host: None },
            Cluster::Zero { host: Some(offset) },
        ];
        let subclusters = [Some(offset), None].map(|host| Cluster::Subclusters {
            host,
            allocated: if host.is_some() { 0xf0 } else { 0 },
            zero: 0x0f,
        });
        let compressed = Cluster::Compressed {
            host: 0x1_2345,
            len: 4 * 512 - 0x145,
        };
        for (layout, clusters) in [
            (layout(16, false, false, true), standard.as_slice()),
            (layout(16, true, false, true), &standard),
            (layout(16, true, false, true), &subclusters),
            (layout(16, false, false, true), &[compressed]),
            (layout(16, true, false, true), &[compressed]),
        ] {
            for cluster in clusters {
                for copied in [false, true] {
                    let (entry, bitmap) = layout.encode(*cluster, copied).unwrap();
                    assert_eq!(layout.cluster(entry, bitmap).unwrap(), *cluster);
                    let has_host = !matches!(
                        cluster,
                        Cluster::Unallocated
                            | Cluster::Compressed { .. }
                            | Cluster::Zero { host: None }
                            | Cluster::Subclusters { host: None, .. }
                    );
                    assert_eq!(layout.copied(entry), copied && has_host);
                }
            }
        }
        let data_file = layout(16, false, true, true);
        let (entry, bitmap) = data_file.encode(Cluster::Data { host: 0 }, true).unwrap();
        assert_eq!(
            data_file.cluster(entry, bitmap).unwrap(),
            Cluster::Data { host: 0 }
        );
    }

    #[test]
    fn a_layout_has_no_words_for_what_it_cannot_say() {
        let v2 = layout(16, false, false, false);
        assert!(v2.encode(Cluster::Zero { host: None }, false).is_err());
        let subclusters = Cluster::Subclusters {
            host: None,
            allocated: 0,
            zero: 1,
        };
        assert!(v2.encode(subclusters, false).is_err());
        let compressed = |host, len| Cluster::Compressed { host, len };
        assert!(v2.encode(compressed(1 << 54, 512), false).is_err());
        assert!(v2.encode(compressed(0, 257 * 512), false).is_err());
        assert!(v2.encode(compressed(0, 256 * 512), false).is_ok());
        assert!(
            layout(16, false, true, true)
                .encode(compressed(0, 512), false)
                .is_err()
        );
    }

    #[test]
    fn geometry_follows_cluster_size_and_entry_width() {
        assert_eq!(layout(16, false, false, true).l2_coverage(), 512 << 20);
        assert_eq!(layout(16, true, false, true).l2_coverage(), 256 << 20);
        assert_eq!(layout(9, false, false, true).l1_entries(1), 1);
        assert_eq!(layout(16, true, false, true).subcluster_size(), 2048);
    }
}
