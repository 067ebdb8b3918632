//! Maps whose keys are numbers: places of an image, which are looked up several times for each small write.
//!
//! The standard library's maps take keys of any kind from anybody, and spend more on a number than all else that a look-up does. Here it is
//! one multiplication, from a start that nobody knows beforehand.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map by numbers, or by several of them.
pub(crate) type Numbers<K, V> = HashMap<K, V, Seed>;

/// An odd number with no pattern in its bits: the fraction of the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where each hash of a map starts.
#[derive(Clone, Debug)]
pub(crate) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(MULTIPLIER))
    }
}

impl BuildHasher for Seed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Numbers multiplied into one, both halves of each product.
#[derive(Debug)]
pub(crate) struct Folded(u64);

impl Hasher for Folded {
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(MULTIPLIER);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_in_a_row_or_far_apart_seldom_meet() {
        let seed = Seed::default();
        for step in [1, 16, 512, 1 << 16, 1 << 40] {
            let low: HashSet<u64> = (0..4096u64).map(|n| seed.hash_one(n * step) % 4096).collect();
            let high: HashSet<u64> = (0..4096u64).map(|n| seed.hash_one((n * step, n)) >> 52).collect();
            // As many as with any other numbers, about: 4096 * (1 - 1 / e).
            assert!(
                low.len() > 1400 && high.len() > 1400,
                "{step}: {} {}",
                low.len(),
                high.len()
            );
        }
    }
}
