//! LUKS headers, alone and inside another image.
#![no_main]

use catena_format::Format;
use catena_format::luks::LuksHeader;
use catena_fuzz::{look, plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(seeds::foreign::luks().into_iter().enumerate().map(|(n, bytes)| (n.to_string(), bytes))),
    |data: &[u8]| {
        look::both_lengths(Format::Luks, data);
        let _ = LuksHeader::parse(&data.to_vec(), 4096);
        let _ = LuksHeader::parse(&data.to_vec(), u64::MAX - 1);
    }
);
