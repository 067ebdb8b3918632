//! VMDK: sparse extents, ESX extents and descriptors.
#![no_main]

use catena_format::{Format, vmdk};
use catena_fuzz::{look, plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(seeds::foreign::vmdk().into_iter().enumerate().map(|(n, bytes)| (n.to_string(), bytes))),
    |data: &[u8]| {
        look::both_lengths(Format::Vmdk, data);
        if let Ok(Some(descriptor)) = vmdk::descriptor(&data.to_vec()) {
            // A line of an extent has at least its access, size and kind.
            assert!(descriptor.extents.len() <= data.len() / 6);
        }
    }
);
