//! The formats without a target of their own, and every guess at what an image is.
#![no_main]

use catena_format::Format;
use catena_fuzz::{look, plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        let mut images = seeds::foreign::others();
        images.push((Format::Qcow2, seeds::qcow2::empty(9, 1 << 20, |_| ()).1));
        images.extend(seeds::foreign::vpc().into_iter().map(|bytes| (Format::Vpc, bytes)));
        plant(images.into_iter().enumerate().map(|(n, (format, bytes))| (format!("{n}-{format}"), bytes)));
    },
    |data: &[u8]| {
        for len in [0, 1 << 50] {
            let image = look::Image::with_len(data, len);
            for format in look::guess(&image) {
                look::as_format(format, &image);
            }
            for format in Format::ALL {
                look::as_format(format, &image);
            }
        }
    }
);
