//! VHD: footers, dynamic headers and parent locators.
#![no_main]

use catena_format::Format;
use catena_fuzz::{look, plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(seeds::foreign::vpc().into_iter().enumerate().map(|(n, bytes)| (n.to_string(), bytes))),
    |data: &[u8]| look::both_lengths(Format::Vpc, data)
);
