//! Every store behaves the same, whatever is done to it.

#![cfg(test)]

use catena_storage::{ErrorKind, LocalFile, MemoryStorage, OpenOptions, SpanKind, Storage};
use proptest::prelude::*;
use std::io::{IoSlice, IoSliceMut};

/// Beyond a few pages and blocks nothing new can happen.
const ROOM: u64 = 200_000;

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, len: usize, byte: u8 },
    WriteVectored { at: u64, lens: Vec<usize>, byte: u8 },
    Punch { at: u64, len: u64 },
    SetLen { len: u64 },
    Read { at: u64, len: usize, shift: usize },
    ReadVectored { at: u64, lens: Vec<usize> },
    Flush,
}

fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..ROOM,
        (0..ROOM / 512).prop_map(|n| n * 512),
        (0..ROOM / 4096).prop_map(|n| n * 4096)
    ]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..600_usize,
        0..70_000_usize,
        (0..16_usize).prop_map(|n| n * 4096)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let lens = || prop::collection::vec(length(), 0..5);
    prop_oneof![
        4 => (place(), length(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write { at, len, byte }),
        2 => (place(), lens(), any::<u8>()).prop_map(|(at, lens, byte)| Step::WriteVectored { at, lens, byte }),
        3 => (place(), length()).prop_map(|(at, len)| Step::Punch { at, len: len as u64 }),
        1 => place().prop_map(|len| Step::SetLen { len }),
        2 => (place(), length(), 0..3_usize).prop_map(|(at, len, shift)| Step::Read { at, len, shift }),
        1 => (place(), lens()).prop_map(|(at, lens)| Step::ReadVectored { at, lens }),
        1 => Just(Step::Flush),
    ]
}

/// The plainest store there can be.
#[derive(Default)]
struct Model(Vec<u8>);

impl Model {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        let end = at as usize + bytes.len();
        if !bytes.is_empty() {
            self.0.resize(self.0.len().max(end), 0);
            self.0[at as usize..end].copy_from_slice(bytes);
        }
    }

    fn read(&self, at: u64, len: usize) -> &[u8] {
        let start = self.0.len().min(at as usize);
        &self.0[start..self.0.len().min(start + len)]
    }
}

/// Bytes that differ from place to place, so that a shifted copy shows.
fn pattern(len: usize, byte: u8) -> Vec<u8> {
    (0..len).map(|n| byte.wrapping_add((n % 255) as u8)).collect()
}

fn take(store: &dyn Storage, model: &mut Model, step: &Step) {
    match step {
        Step::Write { at, len, byte } => {
            let bytes = pattern(*len, *byte);
            store.write_all_at(&bytes, *at).unwrap();
            model.write(*at, &bytes);
        }
        Step::WriteVectored { at, lens, byte } => {
            let bufs: Vec<Vec<u8>> = lens.iter().map(|len| pattern(*len, *byte)).collect();
            let slices: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
            store.write_all_vectored_at(&slices, *at).unwrap();
            model.write(*at, &bufs.concat());
        }
        Step::Punch { at, len } => {
            store.punch_hole(*at, *len).unwrap();
            let end = model.0.len().min((at + len) as usize);
            if let Some(range) = model.0.get_mut(*at as usize..end) {
                range.fill(0);
            }
        }
        Step::SetLen { len } => {
            store.set_len(*len).unwrap();
            model.0.resize(*len as usize, 0);
        }
        Step::Read { at, len, shift } => {
            let mut buf = vec![0xee; len + shift];
            let n = store.read_at(&mut buf[*shift..], *at).unwrap();
            assert!(&buf[*shift..][..n] == model.read(*at, *len));
            assert!(
                buf[shift + n..].iter().all(|byte| *byte == 0xee || *byte == 0),
                "put more into the buffer than it read"
            );
        }
        Step::ReadVectored { at, lens } => {
            let mut bufs: Vec<Vec<u8>> = lens.iter().map(|len| vec![0; *len]).collect();
            let mut slices: Vec<IoSliceMut<'_>> = bufs.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            let n = store.read_vectored_at(&mut slices, *at).unwrap();
            assert!(&bufs.concat()[..n] == model.read(*at, lens.iter().sum()));
        }
        Step::Flush => store.flush().unwrap(),
    }
    assert_eq!(store.len().unwrap(), model.0.len() as u64);
}

fn check_all(store: &dyn Storage, model: &Model) {
    let len = model.0.len();
    let mut bytes = vec![0xee; len + 1];
    assert_eq!(store.read_at(&mut bytes, 0).unwrap(), len);
    assert!(bytes[..len] == model.0);
    let mut at = 0;
    while let Some(span) = store.span_at(at).unwrap() {
        assert_eq!(span.offset, at);
        assert!(span.len > 0);
        if span.kind == SpanKind::Hole {
            let range = &model.0[at as usize..(at + span.len) as usize];
            assert!(range.iter().all(|byte| *byte == 0), "data called a hole");
        }
        at += span.len;
    }
    assert_eq!(at, len as u64);
}

fn run(store: &dyn Storage, steps: &[Step]) -> Model {
    let mut model = Model::default();
    for step in steps {
        take(store, &mut model, step);
    }
    check_all(store, &model);
    model
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_and_files_hold_what_they_were_told(steps in steps()) {
        run(&MemoryStorage::new(), &steps);
        let folder = tempfile::tempdir().unwrap();
        let file = LocalFile::create(folder.path().join("image"), &OpenOptions::new()).unwrap();
        run(&file, &steps);
        let memory = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        run(&LocalFile::from_file(memory.into(), "memory").unwrap(), &steps);
    }

    #[test]
    fn past_the_page_cache_files_hold_the_same(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        match LocalFile::create(&path, &OpenOptions::new().direct(true)) {
            Ok(file) => {
                let model = run(&file, &steps);
                prop_assert!(std::fs::read(&path).unwrap() == model.0);
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => catena_testkit::not_tested(error),
            Err(error) => panic!("{error}"),
        }
    }
}
