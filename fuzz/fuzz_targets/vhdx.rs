//! VHDX: the input's sections are put where they belong and sealed with their checksums.
#![no_main]

use catena_format::Format;
use catena_fuzz::{look, plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(seeds::foreign::vhdx().into_iter().enumerate().map(|(n, bytes)| (n.to_string(), bytes))),
    |data: &[u8]| {
        let image = seeds::foreign::vhdx_image(data);
        look::as_format(Format::Vhdx, &look::Image::new(&image));
        look::as_format(Format::Vhdx, &look::Image::new(data));
    }
);
