//! Telling clusters that nothing makes shorter from their bytes: what is compressed, encrypted or random already. To try all the same takes
//! longer than for any other cluster, and ends with nothing.

/// Words are looked for of which one begins at every such number of bytes: a repetition of this and seven bytes more holds one.
const STEP: usize = 32;
/// As many words are remembered as reach back further than deflate looks.
const WORDS_BITS: u32 = 12;
/// Repeated words from which on repetitions may be worth something. Random bytes have none.
const REPEATED: usize = 4;
/// Bytes that mostly show that a cluster is not noise.
const SAMPLE: usize = 4096;

/// Whether all bytes are about as frequent, so that no code is shorter than the bytes themselves, and nothing repeats.
pub(super) fn is_noise(cluster: &[u8]) -> bool {
    // The sum is chi squared: about 255 for random bytes, with a deviation of 23. A code saves a bit for each 1.4 of it, and takes some
    // 80 bytes to be described.
    cluster.len() >= SAMPLE
        && cluster.get(..SAMPLE).is_some_and(|sample| is_flat(sample, 400))
        && is_flat(cluster, 800)
        && !repeats(cluster)
}

/// Whether the sum over all bytes of how far each is from being as frequent as all others, squared, by how frequent that is, is at most that.
fn is_flat(bytes: &[u8], most: u64) -> bool {
    let mut counts = [0_u64; 256];
    for byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let len = bytes.len() as u64;
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    256 * squares <= len * (len + most)
}

fn repeats(bytes: &[u8]) -> bool {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut words = [0_u64; 1 << WORDS_BITS];
    let mut repeated = 0;
    for (at, word) in bytes.windows(size_of::<u64>()).enumerate() {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        let place = usize::try_from(word.wrapping_mul(ODD) >> (u64::BITS - WORDS_BITS)).unwrap_or_default();
        if let Some(known) = words.get_mut(place) {
            if *known == word {
                repeated += 1;
                if repeated == REPEATED {
                    return true;
                }
            }
            if at % STEP == 0 {
                *known = word;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::is_noise;
    use catena_testkit::Dice;

    #[test]
    fn only_what_nothing_makes_shorter_is_noise() {
        let mut dice = Dice::new(7);
        for size in [4096, 65536, 1 << 20, 2 << 20] {
            let mut bytes = vec![0; size];
            bytes.iter_mut().for_each(|byte| *byte = dice.below(256) as u8);
            assert!(is_noise(&bytes), "{size}");
            // The same kibibyte comes again, at an odd place.
            let mut again = bytes.clone();
            again.copy_within(100..1124, size - 1500);
            assert_eq!(
                is_noise(&again),
                size > 128 << 10,
                "{size}: what is far behind is forgotten"
            );
            again.copy_within(size - 3001..size - 2001, size - 1500);
            assert!(!is_noise(&again), "{size}");
            // One byte in sixteen is another than it was.
            for byte in bytes.iter_mut().step_by(16) {
                *byte = b'e';
            }
            assert!(!is_noise(&bytes), "{size}");
            bytes.fill(0);
            assert!(!is_noise(&bytes), "{size}");
            bytes
                .iter_mut()
                .for_each(|byte| *byte = b"the quick fox"[dice.below(13) as usize]);
            assert!(!is_noise(&bytes), "{size}");
        }
        // Too little to tell.
        assert!(!is_noise(&[]));
        assert!(!is_noise(&[7; 512]));
    }
}
