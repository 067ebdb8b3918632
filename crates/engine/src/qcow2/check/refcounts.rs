//! The refcounts on disk.

use super::counts::{Counts, max_of_order};
use super::roots::Endless;
use crate::error::Result;
use catena_format::qcow2::{ClusterBits, Header};
use catena_storage::Storage;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bits of a refcount table entry that are an offset.
const OFFSET_MASK: u64 = !0x1ff;

/// The refcount table of an image, and the refcounts of a range of clusters.
#[derive(Debug)]
pub(in crate::qcow2) struct Refcounts {
    /// The refcount table as it is on disk.
    pub table: Vec<u64>,
    /// The refcounts that are held.
    pub counts: Counts,
    all: u64,
    cluster_bits: ClusterBits,
    order: u32,
}

/// A refcount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Refcount {
    /// This many.
    Is(u64),
    /// Its block cannot be read.
    Unreadable,
}

/// Clusters whose refcounts one refcount block holds.
pub(in crate::qcow2) fn per_block(cluster_bits: ClusterBits, order: u32) -> u64 {
    (cluster_bits.size() * 8) >> order
}

/// Reads the refcount table, whose length the header has bounded.
pub(in crate::qcow2) fn read_table(storage: &dyn Storage, header: &Header) -> Result<Vec<u64>> {
    let len = u64::from(header.refcount_table_clusters) * header.cluster_bits.size();
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    Endless(storage).fill(&mut bytes, header.refcount_table_offset)?;
    Ok(bytes.chunks_exact(8).map(be64).collect())
}

impl Refcounts {
    /// Reads the refcounts of clusters `first..end`, or of as many from `first` on as fit `budget` bytes. The image has
    /// `all` clusters that some range holds.
    pub fn read(
        storage: &dyn Storage,
        header: &Header,
        table: Vec<u64>,
        (first, end, all): (u64, u64, u64),
        budget: usize,
        threads: usize,
    ) -> Result<Self> {
        let this = Self {
            table,
            counts: Counts::new(first, end, u64::MAX, budget),
            all,
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
        };
        let per_block = this.per_block();
        let next = AtomicUsize::new(usize::try_from(first / per_block).unwrap_or(usize::MAX));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads)
                .map(|_| scope.spawn(|| this.load(storage, &next)))
                .collect();
            let mine = this.load(storage, &next);
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or(Ok(())))
                .fold(mine, Result::and)
        })?;
        Ok(this)
    }

    /// Loads blocks, one after the other, as `next` gives them out.
    fn load(&self, storage: &dyn Storage, next: &AtomicUsize) -> Result<()> {
        let size = usize::try_from(self.cluster_bits.size()).unwrap_or_default();
        let (mut block, mut values) = (vec![0; size], Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let first = (index as u64).saturating_mul(self.per_block());
            let Some(entry) = self.table.get(index).filter(|_| first < self.counts.end()) else {
                return Ok(());
            };
            if let Some(offset) = self.readable_block(*entry) {
                Endless(storage).fill(&mut block, offset)?;
                if let Some((order, words)) = pack(&block, self.order) {
                    self.counts.set_words(first, order, &words);
                } else {
                    decode(&block, self.order, &mut values);
                    self.counts.set_all(first, &values);
                }
            }
        }
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.cluster_bits.size()
    }

    /// Clusters one block covers.
    pub fn per_block(&self) -> u64 {
        per_block(self.cluster_bits, self.order)
    }

    /// Where the block of a table entry is; `None` where there is none or it cannot be read.
    fn readable_block(&self, entry: u64) -> Option<u64> {
        let offset = entry & OFFSET_MASK;
        (offset != 0 && self.is_readable(offset)).then_some(offset)
    }

    fn is_readable(&self, offset: u64) -> bool {
        self.cluster_bits.offset_in_cluster(offset) == 0
            && offset <= i64::MAX as u64 - self.cluster_bits.size()
    }

    /// The refcount of a cluster; `None` where this range is not the one to tell. Those of clusters that no range holds
    /// are read from disk, one by one, by the first range.
    pub fn get(&self, storage: &dyn Storage, cluster: u64) -> Result<Option<Refcount>> {
        if cluster < self.all && !self.counts.holds(cluster) || cluster >= self.all && !self.counts.holds(0) {
            return Ok(None);
        }
        if self.unreadable_block_of(cluster).is_some() {
            return Ok(Some(Refcount::Unreadable));
        }
        if cluster < self.all {
            return Ok(Some(Refcount::Is(self.counts.get(cluster))));
        }
        let index = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
        let Some(offset) = self
            .table
            .get(index)
            .and_then(|entry| self.readable_block(*entry))
        else {
            return Ok(Some(Refcount::Is(0)));
        };
        let bit = (cluster % self.per_block()) << self.order;
        let mut bytes = [0; 8];
        let width = (1usize << self.order).div_ceil(8);
        let raw = bytes.get_mut(8 - width..).unwrap_or_default();
        Endless(storage).fill(raw, offset + bit / 8)?;
        let value = u64::from_be_bytes(bytes) >> (bit % 8);
        Ok(Some(Refcount::Is(value & max_of_order(self.order))))
    }

    /// The table index of the block of a cluster, where there is a block that cannot be read.
    pub fn unreadable_block_of(&self, cluster: u64) -> Option<u64> {
        let index = cluster / self.per_block();
        let entry = self.table.get(usize::try_from(index).ok()?)?;
        let offset = entry & OFFSET_MASK;
        (offset != 0 && !self.is_readable(offset)).then_some(index)
    }

    /// Whether every block there is can be read.
    pub fn all_readable(&self) -> bool {
        self.table
            .iter()
            .all(|entry| self.is_readable(entry & OFFSET_MASK))
    }

    /// The offset bits of a table entry.
    pub fn block_offset(&self, index: u64) -> u64 {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.table.get(index));
        entry.map_or(0, |entry| entry & OFFSET_MASK)
    }
}

/// The refcounts of a block of the width that nearly all images have, in words of counts of `1 << order` bits; where that is enough.
fn pack(block: &[u8], order: u32) -> Option<(u32, Vec<u64>)> {
    /// Bytes of the refcounts that a word of single bits holds.
    const GROUP: usize = 128;
    let refcounts = block.as_chunks::<2>().0;
    let all = refcounts
        .iter()
        .fold(0, |all, raw| all | u16::from_be_bytes(*raw));
    let narrow = (0..=1).find(|narrow| u64::from(all) <= max_of_order(*narrow))?;
    if order != 4 {
        return None;
    }
    let mut words = Vec::with_capacity(refcounts.len() << narrow >> 6);
    for group in refcounts.chunks_exact((GROUP / 2) >> narrow) {
        let is_uniform = group.iter().zip(group.iter().skip(1)).all(|(a, b)| a == b);
        let ones = u64::MAX / max_of_order(narrow);
        words.push(match group.first().filter(|_| is_uniform) {
            Some(raw) => u64::from(u16::from_be_bytes(*raw)) * ones,
            None => group.iter().rev().fold(0, |word, raw| {
                word << (1 << narrow) | u64::from(u16::from_be_bytes(*raw))
            }),
        });
    }
    Some((narrow, words))
}

/// The refcounts of a block, each `1 << order` bits wide. Widths below a byte fill it from its least significant bit.
fn decode(block: &[u8], order: u32, values: &mut Vec<u64>) {
    values.clear();
    match order {
        0..=2 => {
            let (width, mask) = (1 << order, max_of_order(order));
            for byte in block {
                values.extend(
                    (0..8)
                        .step_by(width)
                        .map(|shift| u64::from(*byte) >> shift & mask),
                );
            }
        }
        3 => values.extend(block.iter().map(|byte| u64::from(*byte))),
        4 => values.extend(
            block
                .as_chunks()
                .0
                .iter()
                .map(|raw| u64::from(u16::from_be_bytes(*raw))),
        ),
        5 => values.extend(
            block
                .as_chunks()
                .0
                .iter()
                .map(|raw| u64::from(u32::from_be_bytes(*raw))),
        ),
        _ => values.extend(block.as_chunks().0.iter().map(|raw| u64::from_be_bytes(*raw))),
    }
}

/// The block that holds these refcounts.
pub(in crate::qcow2) fn encode(values: &[u64], order: u32) -> Vec<u8> {
    match order {
        0..=2 => {
            let per_byte = 8usize >> order;
            let byte = |values: &[u64]| {
                let byte = values
                    .iter()
                    .rev()
                    .fold(0, |byte, value| byte << (1 << order) | value);
                u8::try_from(byte).unwrap_or(u8::MAX)
            };
            values.chunks(per_byte).map(byte).collect()
        }
        3 => values.iter().map(|value| *value as u8).collect(),
        4 => values
            .iter()
            .flat_map(|value| (*value as u16).to_be_bytes())
            .collect(),
        5 => values
            .iter()
            .flat_map(|value| (*value as u32).to_be_bytes())
            .collect(),
        _ => values.iter().flat_map(|value| value.to_be_bytes()).collect(),
    }
}

/// A big-endian number; 0 for fewer than 8 bytes.
pub(in crate::qcow2) fn be64(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reads_back_whatever_the_width() {
        for order in 0..=6 {
            let values: Vec<u64> = (0..64).map(|n| n & max_of_order(order)).collect();
            let mut read = Vec::new();
            decode(&encode(&values, order), order, &mut read);
            assert_eq!(read, values, "{order}");
            for most in [1, 3] {
                let mut counts: Vec<u64> = (0..1 << 10).map(|n| (n * 7 / 5) & most).collect();
                counts[256..512].fill(most);
                let packed = pack(&encode(&counts, order), order);
                assert_eq!(packed.is_some(), order == 4);
                if let Some((narrow, words)) = packed {
                    assert_eq!(max_of_order(narrow), most);
                    let held = Counts::new(0, 1 << 10, most, usize::MAX);
                    held.set_words(0, narrow, &words);
                    assert!((0u64..).zip(&counts).all(|(at, count)| held.get(at) == *count));
                }
            }
            assert_eq!(pack(&encode(&[4; 1 << 10], order), order), None);
        }
    }
}
