//! What the fuzz targets share: seeds to start from, and what must hold of every answer.
//!
//! Seeds are built, not stored: every target plants its own in the corpus before libFuzzer reads it. A check that fails
//! panics, which is how libFuzzer is told of a finding.
#![forbid(unsafe_code)]

pub mod disk;
pub mod look;
pub mod seeds;

/// Where the runner wants seeds: the target's corpus folder.
const FOLDER: &str = "CATENA_FUZZ_SEEDS";

/// Writes seeds, each a name and its bytes, where the runner wants them; nothing where it does not say.
pub fn plant(seeds: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    for (name, bytes) in seeds {
        std::fs::write(std::path::Path::new(&folder).join(format!("seed-{name}")), bytes)
            .expect("the corpus folder can be written");
    }
}

/// A little-endian number from the front of an input; what the input lacks is zero.
pub fn number(input: &mut &[u8], bytes: usize) -> u64 {
    let (now, later) = input.split_at(bytes.min(input.len()));
    *input = later;
    now.iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
