//! Refcounts: how a refcount block holds them, and what an entry of the refcount table says.
//!
//! A block fills one cluster with unsigned numbers of 1 to 64 bits. Widths below a byte fill it from its least significant bit,
//! wider ones are big-endian (qcow2 specification, "Host cluster management").

use super::header::{ClusterBits, Header};
use crate::error::{Error, Result};
use crate::limits;

/// Bits 9 to 63 of a refcount table entry: the block's offset.
const BLOCK_MASK: u64 = !0x1ff;

/// How wide the refcounts of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// Refcounts of `1 << order` bits; at most [`limits::QCOW2_REFCOUNT_ORDER`].
    pub fn new(order: u32) -> Result<Self> {
        if order <= limits::QCOW2_REFCOUNT_ORDER {
            Ok(Self { order })
        } else {
            Err(Error::invalid("refcount width exceeds 64 bits"))
        }
    }

    /// The width a header decides.
    pub fn of(header: &Header) -> Self {
        // A header that was validated has no larger one.
        Self {
            order: header.refcount_order.min(limits::QCOW2_REFCOUNT_ORDER),
        }
    }

    /// The width's power of two.
    pub fn order(self) -> u32 {
        self.order
    }

    /// Bits of a refcount: 1 to 64.
    pub fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest refcount that can be held. QEMU counts in signed 64 bits, so it is never more than that.
    pub fn max(self) -> u64 {
        match self.order {
            0..=5 => (1 << self.bits()) - 1,
            _ => i64::MAX as u64,
        }
    }

    /// How many clusters one block counts.
    pub fn entries_per_block(self, cluster_bits: ClusterBits) -> u64 {
        (cluster_bits.size() * 8) >> self.order
    }

    /// Bytes that so many refcounts take up.
    pub fn bytes_of(self, entries: u64) -> u64 {
        match self.order {
            0..=2 => entries.div_ceil(8 >> self.order),
            order => entries << (order - 3),
        }
    }

    /// The refcount at an index of a block; `None` past its end.
    pub fn get(self, block: &[u8], index: u64) -> Option<u64> {
        match self.order {
            0..=2 => {
                let (place, shift) = self.within_byte(index)?;
                Some(u64::from(block.get(place)? >> shift) & self.max())
            }
            _ => {
                let mut value = [0; 8];
                let entry = block.get(self.whole_bytes(index)?)?;
                for (to, from) in value.iter_mut().rev().zip(entry.iter().rev()) {
                    *to = *from;
                }
                Some(u64::from_be_bytes(value))
            }
        }
    }

    /// Changes the refcount at an index of a block. `None`, and nothing is changed, past the block's end and for a value that is too wide.
    #[must_use]
    pub fn set(self, block: &mut [u8], index: u64, value: u64) -> Option<()> {
        if value > self.max() {
            return None;
        }
        let bytes = value.to_be_bytes();
        match self.order {
            0..=2 => {
                let (place, shift) = self.within_byte(index)?;
                let byte = block.get_mut(place)?;
                let [.., low] = bytes;
                let [.., mask] = self.max().to_be_bytes();
                *byte = (*byte & !(mask << shift)) | (low << shift);
            }
            _ => {
                let entry = block.get_mut(self.whole_bytes(index)?)?;
                for (to, from) in entry.iter_mut().rev().zip(bytes.iter().rev()) {
                    *to = *from;
                }
            }
        }
        Some(())
    }

    /// The first index from `from` on, below `to`, whose refcount is `0`; the block's end counts as an end.
    pub fn first_free(self, block: &[u8], from: u64, to: u64) -> Option<u64> {
        let mut index = from;
        while index < to {
            // Full stretches are stepped over eight bytes at a time.
            if let Some(next) = self.full_word(block, index) {
                index = next;
                continue;
            }
            if self.get(block, index)? == 0 {
                return Some(index);
            }
            index += 1;
        }
        None
    }

    /// Where narrow refcounts at an index start a word without any zero, the index behind it.
    fn full_word(self, block: &[u8], index: u64) -> Option<u64> {
        let per_word = 64u64 >> self.order;
        if per_word < 8 || !index.is_multiple_of(per_word) {
            return None;
        }
        let start = usize::try_from(index / per_word).ok()?.checked_mul(8)?;
        let word = u64::from_ne_bytes(*block.get(start..)?.first_chunk()?);
        // Only of these two widths a word says at once that none of its refcounts is zero.
        let full = match self.order {
            0 => word == u64::MAX,
            3 => has_no_zero_byte(word),
            _ => return None,
        };
        full.then_some(index + per_word)
    }

    fn within_byte(self, index: u64) -> Option<(usize, u32)> {
        let per_byte = 8u64 >> self.order;
        let shift = u32::try_from(index % per_byte).ok()? << self.order;
        Some((usize::try_from(index / per_byte).ok()?, shift))
    }

    fn whole_bytes(self, index: u64) -> Option<std::ops::Range<usize>> {
        let width = 1usize << self.order.checked_sub(3)?;
        let start = usize::try_from(index).ok()?.checked_mul(width)?;
        Some(start..start.checked_add(width)?)
    }
}

fn has_no_zero_byte(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    word.wrapping_sub(LOW) & !word & (LOW << 7) == 0
}

/// Where the block of a refcount table entry lies: `None` where there is none, an error where it cannot be.
pub fn block_offset(entry: u64, cluster_bits: ClusterBits) -> Result<Option<u64>> {
    let offset = entry & BLOCK_MASK;
    if cluster_bits.offset_in_cluster(offset) != 0 || offset > i64::MAX as u64 {
        return Err(Error::invalid(format!(
            "refcount block offset {offset:#x} is not cluster-aligned"
        )));
    }
    Ok(Some(offset).filter(|offset| *offset != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_got_and_its_neighbours_stay() {
        for order in 0..=6 {
            let width = RefcountWidth::new(order).unwrap();
            let entries = width.entries_per_block(ClusterBits::new(9).unwrap());
            let mut block = vec![0; 512];
            for index in 0..entries {
                width
                    .set(&mut block, index, (index * 7 + 1) & width.max())
                    .unwrap();
            }
            for index in 0..entries {
                assert_eq!(width.get(&block, index), Some((index * 7 + 1) & width.max()));
            }
            assert_eq!(width.get(&block, entries), None);
            assert_eq!(width.set(&mut block, entries, 0), None);
            assert_eq!(width.bytes_of(entries), 512);
            if order < 6 {
                assert_eq!(width.set(&mut block, 0, width.max() + 1), None);
            }
        }
    }

    #[test]
    fn narrow_refcounts_start_at_the_least_significant_bit_and_wide_ones_are_big_endian() {
        let mut block = [0; 8];
        RefcountWidth::new(0).unwrap().set(&mut block, 1, 1).unwrap();
        RefcountWidth::new(2).unwrap().set(&mut block, 3, 9).unwrap();
        RefcountWidth::new(5)
            .unwrap()
            .set(&mut block, 1, 0x0102_0304)
            .unwrap();
        assert_eq!(block, [2, 0x90, 0, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_first_free_one_is_found_at_every_width() {
        for order in 0..=6 {
            let width = RefcountWidth::new(order).unwrap();
            let entries = width.entries_per_block(ClusterBits::new(9).unwrap());
            let mut block = vec![0; 512];
            for index in 0..entries {
                width.set(&mut block, index, 1).unwrap();
            }
            assert_eq!(width.first_free(&block, 0, entries), None);
            for free in [0, 1, 7, entries / 2, entries - 1] {
                width.set(&mut block, free, 0).unwrap();
                assert_eq!(width.first_free(&block, 0, entries), Some(free), "order {order}");
                assert_eq!(width.first_free(&block, free + 1, entries), None);
                width.set(&mut block, free, width.max()).unwrap();
            }
        }
    }

    #[test]
    fn a_block_that_is_not_aligned_is_an_error() {
        let bits = ClusterBits::new(16).unwrap();
        assert_eq!(block_offset(0x1ff, bits).unwrap(), None);
        assert_eq!(block_offset(0x2_0000, bits).unwrap(), Some(0x2_0000));
        assert!(block_offset(0x2_0200, bits).is_err());
        assert!(block_offset(1 << 63, bits).is_err());
    }
}
