//! From the bytes of a qcow2 to those of another: check, and write what an image is said to be.
//!
//! What is sound stays sound whatever is written to it, and what was written is read back. What is not sound may be
//! refused at any point, but nothing else.
#![no_main]

use catena_engine::qcow2::{CheckOptions, Qcow2Disk, check};
use catena_engine::{Disk, GuestOffset, Unmap, WritableDisk};
use catena_format::qcow2::Header;
use catena_fuzz::{number, plant, seeds};
use catena_storage::{MemoryStorage, Storage};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

/// Bytes that say what is done: eight steps of six bytes each.
const STEPS: usize = 8;
const STEP: usize = 6;
/// Bytes of the longest write.
const LONGEST: u64 = 1 << 17;

fuzz_target!(
    init: {
        let images = seeds::qcow2::with_tables();
        plant(images.iter().enumerate().map(|(seed, (name, bytes))| {
            let steps: Vec<u8> = (0..STEPS * STEP).map(|n| (n * 37 + seed * 11) as u8).collect();
            (name.clone(), [steps, bytes.clone()].concat())
        }));
    },
    |input: &[u8]| {
        let (mut steps, image) = input.split_at(input.len().min(STEPS * STEP));
        // What cannot be a header costs no more.
        let Ok(header) = Header::read(&image.to_vec()) else {
            return;
        };
        let image = Arc::new(MemoryStorage::from(image));
        let data: Arc<dyn Storage> = Arc::new(MemoryStorage::from(&b""[..]));
        let options = CheckOptions { memory: 16 << 20, threads: 1, findings: 64, ..CheckOptions::default() };
        let Ok(before) = check(&*image, &options) else {
            return;
        };
        let Ok(disk) = Qcow2Disk::open(Arc::clone(&image) as _, header.has_data_file().then_some(data), None) else {
            return;
        };
        let mut last: Option<(u64, Vec<u8>)> = None;
        for _ in 0..STEPS {
            let (what, fraction, len) = (number(&mut steps, 1), number(&mut steps, 3), number(&mut steps, 2));
            let at = u64::try_from(u128::from(disk.size()) * u128::from(fraction) >> 24).expect("it is on the disk");
            let len = (len * 3).min(LONGEST).min(disk.size() - at);
            let range = at..at + len;
            let bytes = vec![what as u8; len as usize];
            let (place, overwritten) = (GuestOffset(at), last.as_ref().is_some_and(|(start, held)| {
                range.start < start + held.len() as u64 && *start < range.end
            }));
            let done = match what & 7 {
                0 => disk.write_zeroes(place, len, Unmap::Allow),
                1 => disk.write_zeroes(place, len, Unmap::Keep),
                2 => disk.discard(place, len),
                3 => disk.flush(),
                _ => disk.write_at(&bytes, place),
            };
            if before.is_sound() {
                match &done {
                    Ok(()) => {}
                    // An image can be sound and yet impossible to write: encrypted, or too large to grow.
                    Err(error) => assert!(error.kind() != catena_engine::ErrorKind::Corrupt, "{}", error.full()),
                }
            }
            match (done, what & 7) {
                (Ok(()), 4..) => last = Some((at, bytes)),
                (_, 3) => {}
                _ if overwritten => last = None,
                _ => {}
            }
        }
        if let Some((at, bytes)) = last {
            let mut read = vec![!0; bytes.len()];
            if disk.read_at(&mut read, GuestOffset(at)).is_ok() {
                assert!(read == bytes, "what was written at {at:#x} is not what is read");
            }
        }
        let closed = disk.close();
        if before.is_sound() && closed.is_ok() {
            let after = check(&*image, &options).expect("it was checked before");
            assert!(after.is_sound(), "{:?}", after.findings);
        }
    }
);
