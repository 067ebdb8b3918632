//! A dirty bitmap in memory: one bit for each stretch of the guest's disk.
//!
//! Sparse: stretches of clear bits cost nothing and stretches of set ones next to nothing, so a bitmap costs what is
//! scattered in it. Bits past the end of the disk are never set.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// Bits that are kept or not kept as a whole: those of the smallest cluster.
const CHUNK: u64 = 4096;
const WORDS: usize = 64;
const WORD: u64 = 64;
const CHUNK_BYTES: usize = 512;

/// The dirty stretches of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    size: u64,
    granularity_bits: u32,
    /// By chunk number. What is not here is clear.
    chunks: BTreeMap<u64, Chunk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    /// All of them are set; the last chunk of a disk may be so too, whose last bits do not count.
    Ones,
    /// Bit n is bit `n % 64` of word `n / 64`.
    Words(Box<[u64; WORDS]>),
}

impl Chunk {
    fn words(&self) -> [u64; WORDS] {
        match self {
            Self::Ones => [u64::MAX; WORDS],
            Self::Words(words) => **words,
        }
    }

    fn of(words: [u64; WORDS]) -> Option<Self> {
        if words == [0; WORDS] {
            None
        } else if words == [u64::MAX; WORDS] {
            Some(Self::Ones)
        } else {
            Some(Self::Words(Box::new(words)))
        }
    }
}

impl Bits {
    /// No dirty stretch, for a disk of so many bytes. The granularity is in bytes, a power of two; others are rounded up.
    pub fn new(size: u64, granularity: u64) -> Self {
        let granularity_bits = granularity
            .checked_next_power_of_two()
            .map_or(63, u64::trailing_zeros);
        Self {
            size,
            granularity_bits,
            chunks: BTreeMap::new(),
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes one bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// How many bits there are.
    pub fn count(&self) -> u64 {
        self.size.div_ceil(self.granularity())
    }

    /// Whether no stretch is dirty.
    pub fn is_clear(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Makes every stretch that a range touches dirty. What of it is past the end of the disk is ignored.
    pub fn set(&mut self, range: Range<u64>) {
        let end = range.end.min(self.size);
        if range.start < end {
            let first = range.start >> self.granularity_bits;
            let last = (end - 1) >> self.granularity_bits;
            self.set_bits(first, last + 1);
        }
    }

    /// Makes the whole disk dirty.
    pub fn set_all(&mut self) {
        self.set_bits(0, self.count());
    }

    /// Makes no stretch dirty.
    pub fn clear_all(&mut self) {
        self.chunks.clear();
    }

    /// Whether the stretch that holds an address is dirty.
    pub fn is_set(&self, address: u64) -> bool {
        address < self.size && self.bit(address >> self.granularity_bits)
    }

    fn bit(&self, bit: u64) -> bool {
        match self.chunks.get(&(bit / CHUNK)) {
            None => false,
            Some(Chunk::Ones) => true,
            Some(Chunk::Words(words)) => usize::try_from(bit % CHUNK / WORD)
                .ok()
                .and_then(|index| words.get(index))
                .is_some_and(|word| word >> (bit % WORD) & 1 == 1),
        }
    }

    fn set_bits(&mut self, first: u64, end: u64) {
        let mut at = first;
        while at < end {
            let number = at / CHUNK;
            let start = number * CHUNK;
            let stop = end.min(start + CHUNK);
            // The bits behind those of the disk do not count, and a chunk that is full costs less.
            let full = at == start && (stop == start + CHUNK || stop == self.count());
            if full {
                self.chunks.insert(number, Chunk::Ones);
            } else {
                self.set_in_chunk(number, at - start..stop - start);
            }
            at = stop;
        }
    }

    fn set_in_chunk(&mut self, number: u64, bits: Range<u64>) {
        let chunk = self
            .chunks
            .entry(number)
            .or_insert_with(|| Chunk::Words(Box::new([0; WORDS])));
        let Chunk::Words(words) = chunk else { return };
        for (start, word) in (0u64..).step_by(64).zip(words.iter_mut()) {
            let from = bits.start.max(start);
            let to = bits.end.min(start + WORD);
            if from < to {
                *word |= (u64::MAX >> (WORD - (to - from))) << (from - start);
            }
        }
        if **words == [u64::MAX; WORDS] {
            *chunk = Chunk::Ones;
        }
    }

    /// The dirty stretches as guest ranges, in order, joined; the last ends with the disk at most.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            let end = self.next(first, false).unwrap_or_else(|| self.count());
            at = end;
            Some(first << self.granularity_bits..(end << self.granularity_bits).min(self.size))
        })
    }

    /// The first bit from there on that is set, or clear; none where the disk ends before.
    fn next(&self, from: u64, set: bool) -> Option<u64> {
        let mut at = from;
        while at < self.count() {
            let number = at / CHUNK;
            let end = (number + 1) * CHUNK;
            match self.chunks.get(&number) {
                None if !set => return Some(at),
                None => at = self.chunks.range(number..).next()?.0 * CHUNK,
                Some(Chunk::Ones) if set => return Some(at),
                Some(Chunk::Ones) => at = end,
                Some(Chunk::Words(words)) => {
                    let found = (at % CHUNK / WORD..)
                        .zip(words.iter().skip(usize::try_from(at % CHUNK / WORD).ok()?))
                        .find_map(|(index, word)| {
                            let start = number * CHUNK + index * WORD;
                            let seen = if set { *word } else { !*word };
                            let rest = seen & (u64::MAX << at.saturating_sub(start));
                            (rest != 0).then(|| start + u64::from(rest.trailing_zeros()))
                        });
                    match found {
                        Some(bit) => return Some(bit).filter(|bit| *bit < self.count()),
                        None => at = end,
                    }
                }
            }
        }
        None
    }

    /// Dirty bytes, by whole stretches.
    pub fn dirty_bytes(&self) -> u64 {
        self.ranges().map(|range| range.end - range.start).sum()
    }

    /// Makes dirty what is dirty there, whatever its granularity.
    pub fn merge(&mut self, other: &Self) {
        if other.granularity_bits != self.granularity_bits {
            for range in other.ranges() {
                self.set(range);
            }
            return;
        }
        for (number, theirs) in &other.chunks {
            if number * CHUNK >= self.count() {
                break;
            }
            match self.chunks.entry(*number) {
                Entry::Vacant(entry) => {
                    entry.insert(theirs.clone());
                }
                Entry::Occupied(mut entry) => {
                    let mut words = entry.get().words();
                    for (to, from) in words.iter_mut().zip(theirs.words()) {
                        *to |= from;
                    }
                    if let Some(chunk) = Chunk::of(words) {
                        entry.insert(chunk);
                    }
                }
            }
        }
        self.trim();
    }

    /// Another size of the disk: what is cut off is forgotten, what is new is clean.
    pub fn resize(&mut self, size: u64) {
        // Bits behind the end may not come back.
        self.trim_chunk(self.count());
        self.size = size;
        self.trim();
    }

    /// Clears what lies past the end.
    fn trim(&mut self) {
        let count = self.count();
        drop(self.chunks.split_off(&count.div_ceil(CHUNK)));
        self.trim_chunk(count);
    }

    /// Clears the bits of a chunk from there on, so that they may become bits of the disk.
    fn trim_chunk(&mut self, count: u64) {
        let number = count / CHUNK;
        let keep = count % CHUNK;
        let Some(chunk) = self.chunks.get(&number) else {
            return;
        };
        let mut words = chunk.words();
        for (start, word) in (0u64..).step_by(64).zip(words.iter_mut()) {
            if keep <= start {
                *word = 0;
            } else if keep - start < WORD {
                *word &= u64::MAX >> (WORD - (keep - start));
            }
        }
        match Chunk::of(words) {
            Some(chunk) => self.chunks.insert(number, chunk),
            None => self.chunks.remove(&number),
        };
    }

    /// Which clusters of bits are not all clear, in order.
    pub fn clusters(&self, cluster_size: u64) -> Vec<u64> {
        let per_cluster = (cluster_size * 8 / CHUNK).max(1);
        let mut clusters: Vec<u64> = self.chunks.keys().map(|number| number / per_cluster).collect();
        clusters.dedup();
        clusters
    }

    /// A cluster of bits as it is on disk. Bits behind those of the disk are clear.
    pub fn cluster(&self, index: u64, cluster_size: u64) -> Vec<u8> {
        let per_cluster = cluster_size * 8 / CHUNK;
        let first = index.saturating_mul(per_cluster);
        let mut bytes = Vec::new();
        for (number, chunk) in self.chunks.range(first..first.saturating_add(per_cluster)) {
            let start = usize::try_from(number - first).unwrap_or_default() * CHUNK_BYTES;
            bytes.resize(start, 0);
            let left = self.count().saturating_sub(number * CHUNK);
            for (at, word) in (0u64..).step_by(64).zip(chunk.words()) {
                let word = match left.saturating_sub(at) {
                    0 => 0,
                    bits @ 1..WORD => word & (u64::MAX >> (WORD - bits)),
                    _ => word,
                };
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes.resize(usize::try_from(cluster_size).unwrap_or_default(), 0);
        bytes
    }

    /// Takes over a cluster of bits as it is on disk; bits behind those of the disk are ignored.
    pub fn load_cluster(&mut self, index: u64, bytes: &[u8]) {
        let first = index.saturating_mul(bytes.len() as u64 * 8 / CHUNK);
        for (number, chunk) in (first..).zip(bytes.chunks(CHUNK_BYTES)) {
            let mut words = [0; WORDS];
            for (word, raw) in words.iter_mut().zip(chunk.chunks_exact(8)) {
                *word = raw.try_into().map_or(0, u64::from_le_bytes);
            }
            match Chunk::of(words) {
                Some(chunk) if number * CHUNK < self.count() => self.chunks.insert(number, chunk),
                _ => self.chunks.remove(&number),
            };
        }
        self.trim();
    }

    /// Makes a cluster of bits dirty as a whole.
    pub fn set_cluster(&mut self, index: u64, cluster_size: u64) {
        let bits = cluster_size.saturating_mul(8);
        let first = index.saturating_mul(bits);
        let end = first.saturating_add(bits).min(self.count());
        if first < end {
            self.set_bits(first, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_testkit::Dice;

    const GRANULARITY: u64 = 512;

    /// The plainest bitmap there can be.
    fn model(bits: &Bits) -> Vec<bool> {
        (0..bits.count())
            .map(|bit| bits.is_set(bit * bits.granularity()))
            .collect()
    }

    fn ranges(bits: &Bits) -> Vec<Range<u64>> {
        bits.ranges().collect()
    }

    #[test]
    fn every_stretch_that_is_touched_becomes_dirty() {
        let mut bits = Bits::new(10_000, 1000);
        assert_eq!((bits.granularity(), bits.count()), (1024, 10));
        bits.set(1023..1025);
        bits.set(9999..50_000);
        bits.set(5000..5000);
        assert_eq!(ranges(&bits), [0..2048, 9216..10_000]);
        assert_eq!(bits.dirty_bytes(), 2048 + 784);
        assert!(bits.is_set(2047) && !bits.is_set(2048) && !bits.is_set(10_000));
    }

    #[test]
    fn behaves_as_a_list_of_bits_does() {
        let mut dice = Dice::new(5);
        let mut bits = Bits::new(GRANULARITY * 20_000, GRANULARITY);
        let mut expected = vec![false; 20_000];
        for _ in 0..300 {
            match dice.below(8) {
                0 => {
                    let count = dice.index(30_000);
                    bits.resize(count as u64 * GRANULARITY);
                    expected.resize(count, false);
                }
                1 => {
                    let mut other = Bits::new(bits.size(), GRANULARITY << dice.below(3));
                    let start = dice.below(bits.size().max(1));
                    other.set(start..start + dice.below(4_000_000));
                    bits.merge(&other);
                    for (bit, to) in expected.iter_mut().enumerate() {
                        *to |= other.is_set(bit as u64 * GRANULARITY);
                    }
                }
                2 => {
                    let size = *dice.one_of(&[512, 4096]);
                    let mut again = Bits::new(bits.size(), GRANULARITY);
                    for cluster in bits.clusters(size) {
                        let bytes = bits.cluster(cluster, size);
                        assert_eq!(bytes.len() as u64, size);
                        again.load_cluster(cluster, &bytes);
                    }
                    assert_eq!(model(&again), expected);
                    bits = again;
                }
                _ => {
                    let from = dice.index(expected.len().max(1));
                    let len = dice.index(*dice.clone().one_of(&[3, 200, 9000]));
                    bits.set(from as u64 * GRANULARITY..(from + len) as u64 * GRANULARITY);
                    expected
                        .iter_mut()
                        .skip(from)
                        .take(len)
                        .for_each(|bit| *bit = true);
                }
            }
            assert_eq!(model(&bits), expected);
            let mut listed = vec![false; expected.len()];
            for range in bits.ranges() {
                assert!(range.start < range.end);
                for bit in range.start / GRANULARITY..range.end.div_ceil(GRANULARITY) {
                    listed[bit as usize] = true;
                }
            }
            assert_eq!(listed, expected);
        }
    }

    #[test]
    fn a_huge_bitmap_costs_what_is_scattered_in_it() {
        let mut bits = Bits::new(64 << 40, 1 << 16);
        bits.set(1 << 45..(1 << 45) + 1);
        assert_eq!(bits.clusters(1 << 16), [(1 << 45) >> 35]);
        assert_eq!(ranges(&bits).len(), 1);
        bits.set_all();
        assert_eq!(bits.dirty_bytes(), 64 << 40);
        bits.clear_all();
        assert!(bits.is_clear());
    }

    #[test]
    fn bits_behind_the_disk_are_not_stored() {
        let mut bits = Bits::new(GRANULARITY * 10, GRANULARITY);
        bits.set_all();
        let bytes = bits.cluster(0, 512);
        assert_eq!(bytes[..3], [0xff, 0x03, 0]);
        let mut all = Bits::new(GRANULARITY * 10, GRANULARITY);
        all.load_cluster(0, &[0xff; 512]);
        assert_eq!(ranges(&all), ranges(&bits));
        all.resize(GRANULARITY * 20);
        assert_eq!(ranges(&all), ranges(&bits));
        assert_eq!(all.dirty_bytes(), GRANULARITY * 10);
    }
}
