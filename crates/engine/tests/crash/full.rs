//! The medium fills up while an image is written: what was written before stays, and is found again.

use std::sync::Arc;

use catena_engine::qcow2::check::check;
use catena_engine::{Disk, ErrorKind, GuestOffset, Qcow2Disk, WritableDisk};
use catena_testkit::storage::{Medium, Shared};

use crate::history::{check_options, look, sound};
use crate::layouts::{self, Layout, Start, pattern, stack};

/// Bytes of a write.
const PART: u64 = 16 << 10;

/// Writes a disk, each part that is so many behind the last, over a medium with so many free blocks; makes room when it is full.
fn fill(layout: Layout, free: u64, stride: u64) -> bool {
    let Start {
        image,
        data_file,
        backing,
    } = layout.start();
    let told = format!("{}, {free} blocks free, stride {stride}", layout.name);
    let image = Arc::new(Shared::from(image));
    let data_file = data_file.map(|content| Arc::new(Shared::from(content)));
    let medium = Medium::with_free(free);
    let store = Arc::new(medium.over(Arc::clone(&image) as _).unwrap());
    let data_store = data_file
        .clone()
        .map(|file| Arc::new(medium.over(file).unwrap()) as _);
    let below = backing
        .clone()
        .map(|image| Arc::new(stack([image])) as Arc<dyn Disk>);
    let open = || Qcow2Disk::open(store.clone(), data_store.clone(), below.clone()).unwrap();
    let files = || {
        let data = data_file.iter().map(|file| file.content());
        std::iter::once(image.content()).chain(data).collect::<Vec<_>>()
    };
    let mut expected = look(&files(), backing.as_ref()).unwrap().disk;
    let parts = layout.size.div_ceil(PART);
    let order: Vec<u64> = (0..stride)
        .flat_map(|first| (first..parts).step_by(stride as usize))
        .collect();
    let mut disk = open();
    let mut was_full = false;
    for part in order {
        let offset = part * PART;
        let bytes = pattern(1 + part, offset, PART.min(layout.size - offset));
        let range = offset as usize..offset as usize + bytes.len();
        if let Err(error) = disk.write_at(&bytes, GuestOffset(offset)) {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}: {told}");
            was_full = true;
            // All that was written can be made durable, and found by whoever opens the image next.
            disk.close().unwrap_or_else(|error| panic!("{error}: {told}"));
            let store = Shared::from(files()[0].clone());
            sound(&store).unwrap_or_else(|why| panic!("{why}: {told}"));
            let leaks = check(&store, &check_options()).unwrap().totals.leaks;
            assert!(layout.leaked > 0 || leaks == 0, "{leaks} leaks: {told}");
            let seen = look(&files(), backing.as_ref()).unwrap().disk;
            for at in (0..expected.len()).step_by(512) {
                let sector = at..(at + 512).min(expected.len());
                let old = seen[sector.clone()] == expected[sector.clone()];
                let new = || {
                    range.contains(&at) && seen[sector.clone()] == bytes[at - range.start..][..sector.len()]
                };
                assert!(old || new(), "sector {at:#x} is lost: {told}");
            }
            // Space is back.
            medium.add(1 << 20);
            disk = open();
            disk.write_at(&bytes, GuestOffset(offset)).unwrap();
        }
        expected[range].copy_from_slice(&bytes);
    }
    disk.close().unwrap();
    let seen = look(&files(), backing.as_ref()).unwrap().disk;
    assert!(seen == expected, "{told}");
    was_full
}

#[test]
fn what_was_written_before_the_medium_was_full_stays() {
    let layouts = [
        layouts::SMALLEST,
        layouts::SMALL,
        layouts::EXTENDED,
        layouts::DATA_FILES,
        layouts::USED,
        layouts::DEFAULT,
    ];
    let mut full = 0;
    for layout in layouts.concat() {
        // Up to where all of it fits, from front to back and in leaps.
        full += (0..)
            .take_while(|free| fill(layout, *free, 1 + free % 2 * 2))
            .count();
    }
    eprintln!("the medium was full {full} times");
    assert!(full > 500);
}
