//! A count for each cluster of a file, in little memory.
//!
//! Clusters are kept in chunks that exist once something in them is counted, each as narrow as its largest count allows:
//! most images need one bit for a cluster. Counting is done from many threads at once. When the counts would take more
//! memory than they may, those of the last clusters are dropped and [`Counts::end`] says where: whoever counts does so
//! again for the rest.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Clusters of a chunk.
pub(in crate::qcow2) const CHUNK: u64 = 1 << 16;
const WORD: u64 = 64;

/// Counts of the clusters of a range.
#[derive(Debug)]
pub(in crate::qcow2) struct Counts {
    first: u64,
    end: AtomicU64,
    max: u64,
    chunks: Vec<Mutex<Chunk>>,
    used: AtomicUsize,
    budget: usize,
}

/// Counts of [`CHUNK`] clusters, each `1 << order` bits wide. No words: all are zero.
#[derive(Clone, Debug, Default)]
pub(in crate::qcow2) struct Chunk {
    order: u32,
    words: Cow<'static, [u64]>,
}

/// The words of a chunk whose counts are all one. Refcounts mostly are, and then these take no memory of their own.
static ALL_ONE: [u64; (CHUNK / WORD) as usize] = [u64::MAX; (CHUNK / WORD) as usize];

/// The largest count that fits `1 << order` bits.
pub(in crate::qcow2) fn max_of_order(order: u32) -> u64 {
    u64::MAX >> (64 - (1u32 << order.min(6)))
}

/// The lowest bit of each count of a word.
fn ones(order: u32) -> u64 {
    u64::MAX / max_of_order(order)
}

/// The highest bit of each count of a word.
fn tops(order: u32) -> u64 {
    ones(order) << ((1u32 << order.min(6)) - 1)
}

/// The highest bit of each count of a word that is not zero.
fn tops_of_nonzero(word: u64, order: u32) -> u64 {
    // What has its highest bit set lends nothing to its neighbour when one is taken away.
    (word | (word | tops(order)).wrapping_sub(ones(order))) & tops(order)
}

impl Counts {
    /// Counts for clusters `first..end`, all zero, which stop at `max`. They take up about `budget` bytes at most, but
    /// always hold a chunk or two.
    pub fn new(first: u64, end: u64, max: u64, budget: usize) -> Self {
        let chunks = end.saturating_sub(first).div_ceil(CHUNK);
        Self {
            first,
            end: AtomicU64::new(end),
            max,
            chunks: (0..chunks).map(|_| Mutex::default()).collect(),
            used: AtomicUsize::new(0),
            budget,
        }
    }

    /// One past the last cluster that is counted, which may have become less.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// Whether the cluster is one of those that are counted here.
    pub fn holds(&self, cluster: u64) -> bool {
        (self.first..self.end()).contains(&cluster)
    }

    fn chunk(&self, index: u64) -> Option<MutexGuard<'_, Chunk>> {
        let chunk = self.chunks.get(usize::try_from(index).ok()?)?;
        // No count is left half made by a panic that is worth a second one.
        Some(chunk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pieces of a range of clusters that are counted here: index of the chunk, first in it, how many.
    fn pieces(&self, first: u64, count: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let end = first.saturating_add(count).min(self.end());
        let base = self.first;
        let mut at = first.max(base);
        std::iter::from_fn(move || {
            let start = at.checked_sub(base)?;
            let n = (CHUNK - start % CHUNK).min(end.saturating_sub(at));
            at += n;
            (n > 0).then_some((start / CHUNK, start % CHUNK, n))
        })
    }

    /// Counts one more reference to each cluster of a range. What is at its maximum already is told to `overflow`.
    pub fn add(&self, first: u64, count: u64, mut overflow: impl FnMut(u64)) {
        for (index, start, n) in self.pieces(first, count) {
            let Some(mut chunk) = self.chunk(index) else {
                continue;
            };
            let before = chunk.bytes();
            chunk.add(start, n, self.max, |at| {
                overflow(self.first + index * CHUNK + at);
            });
            self.grown(before, chunk);
        }
    }

    /// Takes back a reference to each cluster of a range.
    pub fn remove(&self, first: u64, count: u64) {
        for (index, start, n) in self.pieces(first, count) {
            let Some(mut chunk) = self.chunk(index) else {
                continue;
            };
            chunk.remove(start, n);
        }
    }

    /// The first run of clusters from `from` on whose counts are zero: where it starts, and its length up to `most`. It
    /// may reach to the end but not past it.
    pub fn zeros(&self, from: u64, most: u64) -> Option<(u64, u64)> {
        let (mut start, mut at, end) = (None, from.max(self.first), self.end());
        while at < end {
            let (index, within) = ((at - self.first) / CHUNK, (at - self.first) % CHUNK);
            let chunk = self.chunk(index)?;
            let limit = CHUNK.min(end - (self.first + index * CHUNK));
            if start.is_none() {
                let found = chunk.zero_from(within, limit);
                at = self.first + index * CHUNK + found.unwrap_or(limit);
                start = found.map(|_| at);
            }
            if let Some(start) = start {
                let stop = chunk.nonzero_from(at - self.first - index * CHUNK, limit);
                at = self.first + index * CHUNK + stop;
                if stop < limit || at - start >= most {
                    break;
                }
            }
        }
        start.map(|start| (start, (at - start).min(most)))
    }

    /// Sets the count of each cluster to one that has any in a chunk that begins at `start`.
    pub fn mark(&self, start: u64, chunk: &Chunk) {
        let mut at = 0;
        while at < CHUNK {
            at = chunk.nonzero_from(at, CHUNK);
            let end = chunk.zero_from(at, CHUNK).unwrap_or(CHUNK);
            self.add(start + at, end - at, |_| ());
            at = end;
        }
    }

    /// Whether any of the clusters from `first` on, which lie in one chunk, has a count.
    pub fn any(&self, first: u64, count: u64) -> bool {
        let start = first.saturating_sub(self.first);
        let chunk = self.chunk(start / CHUNK).filter(|_| first < self.end());
        chunk.is_some_and(|chunk| chunk.any(start % CHUNK, count))
    }

    /// Sets the counts of consecutive clusters, as far as they are counted here.
    pub fn set_all(&self, first: u64, values: &[u64]) {
        let skip = self.first.saturating_sub(first);
        let mut values = values
            .get(usize::try_from(skip).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        for (index, start, n) in self.pieces(first + skip, values.len() as u64) {
            let (now, rest) = values
                .split_at_checked(usize::try_from(n).unwrap_or(0))
                .unwrap_or_default();
            values = rest;
            let Some(mut chunk) = self.chunk(index) else {
                continue;
            };
            let before = chunk.bytes();
            chunk.set_all(start, now);
            self.grown(before, chunk);
        }
    }

    /// Sets the counts of consecutive clusters, as far as they are counted here, to those in these words, each `1 << order` bits wide. A
    /// chunk begins with the first count of a word.
    pub fn set_words(&self, first: u64, order: u32, words: &[u64]) {
        let per_word = WORD >> order;
        for (index, start, n) in self.pieces(first, words.len() as u64 * per_word) {
            let skip = (self.first + index * CHUNK + start).saturating_sub(first) / per_word;
            let words = words.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX));
            let Some(mut chunk) = self.chunk(index) else {
                continue;
            };
            let before = chunk.bytes();
            for (at, word) in (start..start + n).step_by(per_word as usize).zip(words) {
                chunk.set_word(at, order, *word, (start + n - at).min(per_word));
            }
            chunk.share();
            self.grown(before, chunk);
        }
    }

    /// Tells of the counts of clusters from `first` on that lie in one chunk, in runs of the same: the count, and how many.
    pub fn runs(&self, first: u64, count: u64, mut tell: impl FnMut(u64, u64)) {
        let start = first.saturating_sub(self.first);
        match self.chunk(start / CHUNK).filter(|_| first < self.end()) {
            Some(chunk) => chunk.runs(start % CHUNK, count, tell),
            None => tell(0, count),
        }
    }

    fn grown(&self, before: usize, chunk: MutexGuard<'_, Chunk>) {
        let now = chunk.bytes();
        let more = now.saturating_sub(before);
        drop(chunk);
        self.used.fetch_sub(before.saturating_sub(now), Ordering::Relaxed);
        if more > 0 && self.used.fetch_add(more, Ordering::Relaxed) + more > self.budget {
            self.drop_some();
        }
    }

    /// Gives up the last clusters, until the memory of half the budget is free.
    fn drop_some(&self) {
        let mut index = self.end().saturating_sub(self.first).div_ceil(CHUNK);
        while self.used.load(Ordering::Relaxed) > self.budget / 2 && index > 1 {
            index -= 1;
            self.end.fetch_min(self.first + index * CHUNK, Ordering::Relaxed);
            if let Some(mut chunk) = self.chunk(index) {
                self.used.fetch_sub(chunk.bytes(), Ordering::Relaxed);
                *chunk = Chunk::default();
            }
        }
    }

    /// The count of a cluster; 0 for one that is not counted here.
    pub fn get(&self, cluster: u64) -> u64 {
        self.pieces(cluster, 1)
            .next()
            .and_then(|(index, start, _)| Some(self.chunk(index)?.get(start)))
            .unwrap_or(0)
    }

    /// Whether each cluster of a range has a count of exactly one.
    pub fn all_one(&self, first: u64, count: u64) -> bool {
        self.pieces(first, count)
            .all(|(index, start, n)| self.chunk(index).is_some_and(|chunk| chunk.all_one(start, n)))
    }

    /// The clusters of a range that have a count of more than one. What is not counted here costs nothing, however long the range is.
    pub fn above_one(&self, first: u64, count: u64) -> impl Iterator<Item = u64> {
        let chunks = self.pieces(first, count).filter_map(|(index, start, n)| {
            // Where counts are a bit wide none is above one.
            let chunk = self.chunk(index).filter(|chunk| chunk.order > 0)?.clone();
            Some((self.first + index * CHUNK, start..start + n, chunk))
        });
        chunks.flat_map(|(base, mut range, chunk)| {
            std::iter::from_fn(move || range.find(|at| chunk.get(*at) > 1).map(|at| base + at))
        })
    }

    /// Whether no cluster of a range has a count of exactly one.
    pub fn none_one(&self, first: u64, count: u64) -> bool {
        self.pieces(first, count)
            .all(|(index, start, n)| self.chunk(index).is_some_and(|chunk| chunk.none_one(start, n)))
    }

    /// No count is larger than this; it may be more than the largest.
    pub fn bound(&self) -> u64 {
        let chunks = (0..self.chunks.len() as u64).filter_map(|index| self.chunk(index));
        chunks
            .filter(|chunk| !chunk.is_empty())
            .map(|chunk| max_of_order(chunk.order))
            .max()
            .unwrap_or(0)
    }

    /// The same counts, and zeros up to `end`, in as much memory as it takes.
    pub fn reaching(mut self, end: u64) -> Self {
        let chunks = end.saturating_sub(self.first).div_ceil(CHUNK);
        let chunks = usize::try_from(chunks).unwrap_or(usize::MAX);
        if chunks > self.chunks.len() {
            self.chunks.resize_with(chunks, Mutex::default);
        }
        self.end.fetch_max(end, Ordering::Relaxed);
        self.budget = usize::MAX;
        self
    }

    /// A chunk's counts, by the number of its first cluster; `None` past the end.
    pub fn snapshot(&self, first: u64) -> Option<Chunk> {
        let index = first.checked_sub(self.first)? / CHUNK;
        Some(self.chunk(index)?.clone())
    }

    /// First clusters of the chunks that are counted here.
    pub fn chunk_starts(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, end) = (self.first, self.end());
        (0..end.saturating_sub(first).div_ceil(CHUNK)).map(move |index| first + index * CHUNK)
    }
}

impl Chunk {
    fn bytes(&self) -> usize {
        match &self.words {
            Cow::Borrowed(_) => 0,
            Cow::Owned(words) => words.len() * 8,
        }
    }

    /// Gives the memory up where all counts are one.
    fn share(&mut self) {
        let may_be = self.order == 0 && self.words.last() == ALL_ONE.last() && self.bytes() > 0;
        if may_be && *self.words == ALL_ONE {
            self.words = Cow::Borrowed(&ALL_ONE);
        }
    }

    /// Whether all counts are zero, as far as that is known without looking.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn per_word(&self) -> u64 {
        WORD >> self.order
    }

    /// The count of the cluster that is `at` into the chunk.
    pub fn get(&self, at: u64) -> u64 {
        let per_word = self.per_word();
        let word = usize::try_from(at / per_word)
            .ok()
            .and_then(|word| self.words.get(word));
        let shift = (at % per_word) << self.order;
        word.map_or(0, |word| word >> shift & max_of_order(self.order))
    }

    fn set(&mut self, at: u64, value: u64) {
        if value == 0 && self.words.is_empty() {
            return;
        }
        self.widen_for(value);
        let per_word = self.per_word();
        let (order, mask) = (self.order, max_of_order(self.order));
        let shift = (at % per_word) << order;
        if let Some(word) = usize::try_from(at / per_word)
            .ok()
            .and_then(|word| self.words.to_mut().get_mut(word))
        {
            *word = *word & !(mask << shift) | value << shift;
        }
    }

    fn set_all(&mut self, start: u64, values: &[u64]) {
        let largest = values.iter().fold(0, |all, value| all | value);
        if largest == 0 && self.words.is_empty() {
            return;
        }
        self.widen_for(largest);
        if self.order == 0 && start.is_multiple_of(WORD) && (values.len() as u64).is_multiple_of(WORD) {
            let words = self
                .words
                .to_mut()
                .iter_mut()
                .skip(usize::try_from(start / WORD).unwrap_or(usize::MAX));
            for (word, bits) in words.zip(values.chunks_exact(WORD as usize)) {
                *word = bits.iter().rev().fold(0, |word, bit| word << 1 | bit);
            }
            return;
        }
        for (at, value) in (start..).zip(values) {
            self.set(at, *value);
        }
    }

    /// Sets `n` counts to those of a word of counts of another width.
    fn set_word(&mut self, at: u64, order: u32, word: u64, n: u64) {
        let word = word & (u64::MAX >> (WORD - (n << order).min(WORD)));
        if word == 0 && self.words.is_empty() {
            return;
        }
        self.widen_for(max_of_order(order));
        let per_word = self.per_word();
        if self.order > order || n < per_word {
            let count = |number: u64| word >> (number << order) & max_of_order(order);
            (0..n).for_each(|number| self.set(at + number, count(number)));
        } else if let Some(to) = usize::try_from(at / per_word)
            .ok()
            .and_then(|index| self.words.to_mut().get_mut(index))
        {
            *to = word;
        }
    }

    /// See [`Counts::runs`].
    fn runs(&self, start: u64, count: u64, mut tell: impl FnMut(u64, u64)) {
        let (per_word, end) = (self.per_word(), start + count);
        let mut at = start;
        while at < end {
            let n = (per_word - at % per_word).min(end - at);
            let (value, mask) = (self.get(at), self.mask(at, n));
            if self.word(at) & mask == (ones(self.order) * value) & mask {
                tell(value, n);
            } else {
                (at..at + n).for_each(|at| tell(self.get(at), 1));
            }
            at += n;
        }
    }

    /// Makes room for a count of `value`.
    fn widen_for(&mut self, value: u64) {
        if self.words.is_empty() {
            self.order = 0;
            self.words = vec![0; (CHUNK / WORD) as usize].into();
        }
        if value <= max_of_order(self.order) {
            return;
        }
        let mut wide = Self {
            order: (self.order + 1..=6)
                .find(|order| value <= max_of_order(*order))
                .unwrap_or(6),
            words: Cow::default(),
        };
        wide.words = vec![0; ((CHUNK << wide.order) / WORD) as usize].into();
        // A word becomes this many.
        let becomes = 1usize << (wide.order - self.order);
        let (per_word, all_one) = (self.per_word(), ones(self.order));
        for (number, word) in self.words.iter().enumerate().filter(|(_, word)| **word != 0) {
            if *word == all_one {
                let first = number * becomes;
                if let Some(words) = wide.words.to_mut().get_mut(first..first + becomes) {
                    words.fill(ones(wide.order));
                }
                continue;
            }
            let first = number as u64 * per_word;
            for at in first..first + per_word {
                let value = self.get(at);
                if value != 0 {
                    wide.set(at, value);
                }
            }
        }
        *self = wide;
    }

    fn add(&mut self, start: u64, count: u64, max: u64, mut overflow: impl FnMut(u64)) {
        self.widen_for(1);
        let end = start + count;
        let mut at = start;
        while at < end {
            // A whole word at once, where none of its counts can overflow.
            let (order, per_word) = (self.order, self.per_word());
            let n = (per_word - at % per_word).min(end - at);
            let mask = self.mask(at, n);
            if max >= max_of_order(order)
                && let Some(word) = usize::try_from(at / per_word)
                    .ok()
                    .and_then(|word| self.words.to_mut().get_mut(word))
                && *word & mask & tops(order) == 0
            {
                *word += ones(order) & mask;
                at += n;
                continue;
            }
            let value = self.get(at);
            if value >= max {
                overflow(at);
            } else {
                self.set(at, value + 1);
            }
            at += 1;
        }
    }

    /// Takes back one of each count of a range that is not zero.
    fn remove(&mut self, start: u64, count: u64) {
        let (order, per_word, end) = (self.order, self.per_word(), start + count);
        let mut at = start;
        while at < end && !self.words.is_empty() {
            let n = (per_word - at % per_word).min(end - at);
            let mask = self.mask(at, n);
            if let Some(word) = usize::try_from(at / per_word)
                .ok()
                .and_then(|word| self.words.to_mut().get_mut(word))
            {
                // One for each count that is not zero, at its lowest bit.
                let nonzero = tops_of_nonzero(*word, order) >> ((1u32 << order) - 1);
                *word -= nonzero & mask;
            }
            at += n;
        }
    }

    /// The bits of `n` counts of one word, from `at` on.
    fn mask(&self, at: u64, n: u64) -> u64 {
        let bits = (n << self.order).min(WORD);
        (u64::MAX >> (WORD - bits)) << ((at % self.per_word()) << self.order)
    }

    /// Whether `holds` of each word of a range, masked, and the mask.
    fn all_words(&self, start: u64, count: u64, holds: impl Fn(u64, u64) -> bool) -> bool {
        let (per_word, end) = (self.per_word(), start + count);
        let mut at = start;
        while at < end {
            let n = (per_word - at % per_word).min(end - at);
            let mask = self.mask(at, n);
            if !holds(self.word(at) & mask, mask) {
                return false;
            }
            at += n;
        }
        true
    }

    fn all_one(&self, start: u64, count: u64) -> bool {
        let ones = ones(self.order);
        self.all_words(start, count, |word, mask| word == ones & mask)
    }

    fn none_one(&self, start: u64, count: u64) -> bool {
        let (order, ones) = (self.order, ones(self.order));
        self.all_words(start, count, |word, mask| {
            tops_of_nonzero((word ^ ones) & mask, order) == tops(order) & mask
        })
    }

    /// Where two chunks differ, and by what: position, own count, the other's.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (u64, u64, u64)> + 'a {
        let alike = self.order == other.order;
        let step = if alike { self.per_word() } else { CHUNK };
        (0..CHUNK / step)
            .filter(move |n| !alike || self.word(n * step) != other.word(n * step))
            .flat_map(move |n| n * step..(n + 1) * step)
            .map(move |at| (at, self.get(at), other.get(at)))
            .filter(|(_, own, theirs)| own != theirs)
    }

    /// Runs of positions that have a count here and none in `now`.
    pub fn lost<'a>(&'a self, now: &'a Self) -> impl Iterator<Item = Range<u64>> + 'a {
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                at = self.nonzero_from(at, CHUNK);
                let zero = now.zero_from(at, CHUNK)?;
                if zero > at {
                    at = zero;
                    continue;
                }
                let end = now.nonzero_from(at, CHUNK);
                let end = self.zero_from(at, end).unwrap_or(end);
                let run = at..end;
                at = end;
                return Some(run);
            }
        })
    }

    /// Position of the first zero in `from..end`.
    fn zero_from(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let (per_word, word) = (self.per_word(), self.word(at));
            if tops_of_nonzero(word, self.order) == tops(self.order) {
                at = (at / per_word + 1) * per_word;
            } else if self.get(at) == 0 {
                return Some(at);
            } else {
                at += 1;
            }
        }
        None
    }

    /// Position of the first count in `from..end` that is not zero, or `end`.
    pub fn nonzero_from(&self, from: u64, end: u64) -> u64 {
        let per_word = self.per_word();
        let mut at = from;
        while at < end {
            if self.word(at) == 0 {
                at = (at / per_word + 1) * per_word;
            } else if self.get(at) == 0 {
                at += 1;
            } else {
                return at;
            }
        }
        end
    }

    /// The word that a position is in.
    fn word(&self, at: u64) -> u64 {
        let index = usize::try_from(at / self.per_word()).ok();
        index
            .and_then(|index| self.words.get(index))
            .copied()
            .unwrap_or(0)
    }

    /// Whether any count of a range is not zero.
    fn any(&self, start: u64, count: u64) -> bool {
        self.nonzero_from(start, start + count) < start + count
    }

    /// Position of the last count before `end` that is not zero.
    pub fn last_before(&self, end: u64) -> Option<u64> {
        let per_word = self.per_word();
        let words = usize::try_from(end.div_ceil(per_word)).unwrap_or(usize::MAX);
        let words = self.words.get(..words.min(self.words.len())).unwrap_or_default();
        let in_use = words.iter().enumerate().rev().filter(|(_, word)| **word != 0);
        in_use
            .map(|(word, _)| word as u64)
            .flat_map(|word| (word * per_word..(word + 1) * per_word).rev())
            .find(|at| *at < end && self.get(*at) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_whatever_their_width() {
        let counts = Counts::new(10, 200_000, u64::MAX, usize::MAX);
        counts.add(100, 70_000, |_| ());
        counts.add(150, 1, |_| ());
        assert_eq!((counts.get(99), counts.get(100), counts.get(150)), (0, 1, 2));
        assert_eq!((counts.get(70_099), counts.get(70_100)), (1, 0));
        counts.set_all(151, &[70_000]);
        counts.set_all(152, &[u64::MAX]);
        assert_eq!(
            (counts.get(151), counts.get(152), counts.get(153)),
            (70_000, u64::MAX, 1)
        );
        assert!(counts.all_one(153, 60_000));
        assert!(!counts.all_one(152, 2));
        assert_eq!(counts.snapshot(10).unwrap().last_before(CHUNK), Some(CHUNK - 1));
        assert_eq!(counts.snapshot(10).unwrap().last_before(90), None);
    }

    #[test]
    fn whole_words_are_counted_as_one_by_one() {
        let dice = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        for most in [1, 3, 15, 255, 65_535, u64::MAX] {
            let counts = Counts::new(0, 2000, most, usize::MAX);
            let mut model = vec![0u64; 2000];
            for step in 0..400 {
                let (first, n) = (dice(step) % 1900, dice(step + 1000) % 100 + 1);
                let range = usize::try_from(first).unwrap()..usize::try_from(first + n).unwrap();
                if step % 7 == 3 {
                    model[range.start] = dice(step) & most;
                    counts.set_all(first, &[dice(step) & most]);
                } else if step % 3 == 0 {
                    model[range]
                        .iter_mut()
                        .for_each(|count| *count = count.saturating_sub(1));
                    counts.remove(first, n);
                } else {
                    model[range]
                        .iter_mut()
                        .for_each(|count| *count = count.saturating_add(1).min(most));
                    counts.add(first, n, |_| ());
                }
                let (first, n) = (dice(step + 2000) % 1900, dice(step + 3000) % 100 + 1);
                let part = &model[usize::try_from(first).unwrap()..usize::try_from(first + n).unwrap()];
                assert_eq!(counts.all_one(first, n), part.iter().all(|count| *count == 1));
                assert_eq!(counts.none_one(first, n), part.iter().all(|count| *count != 1));
                // As long as the ranges of hostile headers are.
                for n in [n, u64::MAX >> 9, u64::MAX] {
                    let end = first.saturating_add(n);
                    let above = (first..end).zip(model.iter().skip(usize::try_from(first).unwrap()));
                    let above = above.filter(|(_, count)| **count > 1).map(|(at, _)| at);
                    assert!(counts.above_one(first, n).eq(above), "{first} {n}");
                }
            }
            assert!((0u64..).zip(&model).all(|(at, count)| counts.get(at) == *count));
            assert!(counts.bound() >= *model.iter().max().unwrap());
            let empty = Counts::new(0, 2000, most, usize::MAX).reaching(3000);
            let (before, now) = (counts.snapshot(0).unwrap(), empty.snapshot(0).unwrap());
            let lost: u64 = before.lost(&now).map(|run| run.end - run.start).sum();
            assert_eq!(lost, model.iter().filter(|count| **count > 0).count() as u64);
            assert_eq!(before.differences(&now).count() as u64, lost);
            assert_eq!(before.lost(&before).count(), 0);
        }
    }

    #[test]
    fn runs_of_zeros_are_found_across_words_and_chunks() {
        let counts = Counts::new(0, 3 * CHUNK, u64::MAX, usize::MAX);
        counts.add(0, 100, |_| ());
        counts.add(110, CHUNK, |_| ());
        assert_eq!(counts.zeros(0, 1000), Some((100, 10)));
        assert_eq!(counts.zeros(0, 4), Some((100, 4)));
        assert_eq!(counts.zeros(110, u64::MAX), Some((CHUNK + 110, 2 * CHUNK - 110)));
        counts.remove(110, 1);
        assert_eq!(counts.zeros(105, 1000), Some((105, 6)));
        counts.add(0, 3 * CHUNK, |_| ());
        assert_eq!(counts.zeros(0, 1), None);
    }

    #[test]
    fn a_count_stops_at_its_maximum_and_says_so() {
        let counts = Counts::new(0, 100, 1, usize::MAX);
        let mut over = Vec::new();
        counts.add(0, 10, |cluster| over.push(cluster));
        counts.add(5, 10, |cluster| over.push(cluster));
        assert_eq!(over, [5, 6, 7, 8, 9]);
        assert_eq!(counts.get(7), 1);
    }

    #[test]
    fn what_takes_too_much_memory_is_dropped_from_the_end() {
        let counts = Counts::new(0, CHUNK * 8, u64::MAX, 4 * 8192);
        counts.add(0, CHUNK * 8, |_| ());
        assert!(counts.end() >= CHUNK && counts.end() <= CHUNK * 4);
        assert_eq!(counts.get(CHUNK - 1), 1);
        assert_eq!(counts.get(counts.end()), 0);
        counts.add(counts.end(), 1, |_| ());
        assert_eq!(counts.get(counts.end()), 0);
    }

    #[test]
    fn setting_many_at_once_is_the_same_as_one_by_one() {
        let values: Vec<u64> = (0..640).map(|n| n % 2).collect();
        let counts = Counts::new(64, 1000, u64::MAX, usize::MAX);
        counts.set_all(0, &values);
        assert!((64..640).all(|cluster| counts.get(cluster) == cluster % 2));
        let bits = Counts::new(64, 1000, u64::MAX, usize::MAX);
        bits.set_words(0, 0, &[0xaaaa_aaaa_aaaa_aaaa; 20]);
        assert!((64..1000).all(|cluster| bits.get(cluster) == cluster % 2));
        assert_eq!(bits.get(1001), 0);
        bits.set_all(100, &[7]);
        bits.set_words(64, 0, &[u64::MAX]);
        assert!(bits.all_one(64, 64));
        let pairs = Counts::new(0, 1000, u64::MAX, usize::MAX);
        pairs.set_words(0, 1, &[0xe4e4_e4e4_e4e4_e4e4; 4]);
        assert!((0..128).all(|cluster| pairs.get(cluster) == cluster % 4));
        let (mut all, mut seen) = (Vec::new(), 0);
        pairs.runs(10, 500, |value, n| {
            all.extend(std::iter::repeat_n(value, usize::try_from(n).unwrap()));
            seen += 1;
        });
        assert!(
            (10..510)
                .zip(&all)
                .all(|(cluster, value)| pairs.get(cluster) == *value)
        );
        assert!(all.len() == 500 && seen < 200);
        counts.set_all(100, &[7, 8, 9]);
        assert_eq!([counts.get(99), counts.get(101), counts.get(103)], [1, 8, 1]);
    }

    #[test]
    fn a_chunk_of_ones_takes_no_memory_and_changes_like_any_other() {
        let words = usize::try_from(CHUNK / WORD).unwrap();
        let of_ones = || {
            let counts = Counts::new(0, 2 * CHUNK, u64::MAX, usize::MAX);
            // The last of them comes before others.
            for half in [words / 2..words, 0..words / 2] {
                let first = half.start as u64 * WORD;
                counts.set_words(first, 0, &vec![u64::MAX; half.len()]);
            }
            assert_eq!(counts.used.load(Ordering::Relaxed), 0);
            assert!(counts.all_one(0, CHUNK) && counts.none_one(CHUNK, CHUNK));
            counts
        };
        let counts = of_ones();
        counts.add(70, 1, |_| ());
        assert_eq!(
            [69, 70, 71, CHUNK - 1].map(|cluster| counts.get(cluster)),
            [1, 2, 1, 1]
        );
        let counts = of_ones();
        counts.remove(0, 65);
        assert_eq!([0, 64, 65].map(|cluster| counts.get(cluster)), [0, 0, 1]);
        assert_eq!(counts.zeros(0, 100), Some((0, 65)));
        let counts = of_ones();
        counts.set_all(3, &[0, 9]);
        assert_eq!([2, 3, 4, 5].map(|cluster| counts.get(cluster)), [1, 0, 9, 1]);
        assert!(of_ones().all_one(0, CHUNK));
    }
}
