//! From the bytes of a qcow2 to those of its guest: open, map, read.
#![no_main]

use catena_engine::{Image, Qcow2, Raw, Stack};
use catena_format::qcow2::Header;
use catena_fuzz::{disk, number, plant, seeds};
use catena_storage::{MemoryStorage, Storage};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

/// Most L1 entries that are walked over.
const SNAPSHOTS: usize = 2;

fuzz_target!(
    init: {
        let images = seeds::qcow2::with_tables();
        let control = |how: u8, backing: usize, data: usize| {
            let (backing, data) = (backing as u16, data as u16);
            [&[how, 0, 3, 0][..], &backing.to_le_bytes(), &data.to_le_bytes()].concat()
        };
        let base = images.first().expect("there is one").1.clone();
        let alone = images.iter().map(|(name, bytes)| (name.clone(), [control(0, 0, 0), bytes.clone()].concat()));
        let on_raw = images.iter().map(|(name, bytes)| {
            let parts = [control(1, 3000, 1000), vec![7; 3000], vec![9; 1000], bytes.clone()];
            (format!("{name}-on-raw"), parts.concat())
        });
        let on_qcow2 = images.iter().map(|(name, bytes)| {
            let parts = [control(2, base.len(), 1000), base.clone(), vec![9; 1000], bytes.clone()];
            (format!("{name}-on-qcow2"), parts.concat())
        });
        plant(alone.chain(on_raw).chain(on_qcow2));
    },
    |input: &[u8]| {
        let mut rest = input;
        let how = number(&mut rest, 1);
        let place = number(&mut rest, 3);
        let (backing_len, data_len) = (number(&mut rest, 2) as usize, number(&mut rest, 2) as usize);
        let (backing, rest) = rest.split_at(backing_len.min(rest.len()));
        let (data, top) = rest.split_at(data_len.min(rest.len()));

        let data: Arc<dyn Storage> = Arc::new(MemoryStorage::from(data));
        let Ok(top) = open(top, how, &data) else {
            return;
        };
        let top = Arc::new(top);
        let mut layers: Vec<Arc<dyn Image>> = vec![top.clone()];
        match how & 3 {
            1 => layers.extend(Raw::open(Arc::new(MemoryStorage::from(backing))).ok().map(|image| Arc::new(image) as _)),
            2 => layers.extend(open(backing, 0, &data).ok().map(|image| Arc::new(image) as _)),
            _ => {}
        }
        disk::look_over(&layers, place);
        for snapshot in top.snapshots().unwrap_or_default().iter().take(SNAPSHOTS) {
            disk::look_over(&[Arc::new(top.at_snapshot(snapshot)) as _], place);
        }
        let _ = Stack::new([]).with_index_bytes(0);
    }
);

fn open(bytes: &[u8], how: u64, data: &Arc<dyn Storage>) -> catena_engine::Result<Qcow2> {
    let storage = MemoryStorage::from(bytes);
    if how & 4 != 0 {
        storage.set_len(1 << 50)?;
    }
    // What cannot be a header costs no more.
    Header::read(&bytes.to_vec())?;
    Qcow2::open(Arc::new(storage), Some(Arc::clone(data)))
}
