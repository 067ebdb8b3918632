//! The stores that go wrong do so as they say.

#![cfg(test)]

use std::collections::BTreeSet;
use std::sync::Arc;

use catena_storage::{ErrorKind, MemoryStorage, Storage};
use catena_testkit::Dice;
use catena_testkit::storage::{Content, Fault, Faults, Lasting, Log, Shared, Trouble};

const SECTOR: usize = 512;

fn bytes(content: &Content) -> Vec<u8> {
    let mut all = vec![0; content.len() as usize];
    assert_eq!(content.read(&mut all, 0), all.len());
    all
}

/// One number for each sector: its first byte, where all of its bytes are the same.
fn sectors(content: &Content) -> Vec<u8> {
    bytes(content)
        .chunks(SECTOR)
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
            sector[0]
        })
        .collect()
}

#[test]
fn a_shared_store_and_a_recording_behave_as_memory_does() {
    let log = Log::new();
    let stores: [Box<dyn Storage>; 2] = [
        Box::new(Shared::from(Content::default())),
        Box::new(log.recording(Content::default())),
    ];
    let model = MemoryStorage::new();
    let mut dice = Dice::new(1);
    for step in 0..2000 {
        let at = dice.below(40_000);
        let len = dice.below(*dice.clone().one_of(&[10, 600, 9000]));
        let data = vec![step as u8; len as usize];
        let kind = dice.below(6);
        let act = |store: &dyn Storage| match kind {
            0 | 1 => store.write_all_at(&data, at),
            2 => store.punch_hole(at, len),
            3 => store.write_zeroes(at, len),
            4 => store.allocate(at, len),
            _ => store.set_len(at),
        };
        act(&model).unwrap();
        let mut expected = vec![0; model.len().unwrap() as usize];
        model.read_at(&mut expected, 0).unwrap();
        for store in &stores {
            act(&**store).unwrap();
            assert_eq!(store.len().unwrap(), expected.len() as u64);
            let mut seen = vec![1; expected.len()];
            store.read_at(&mut seen, 0).unwrap();
            assert!(seen == expected, "step {step}");
            let again = Content::read_from(&**store).unwrap();
            assert!(bytes(&again) == expected, "spans after step {step}");
        }
        if dice.chance(5) {
            stores[1].flush().unwrap();
        }
    }
    // Without a cut, the log leads to where the store is.
    stores[1].flush().unwrap();
    let end = log.cuts(1, 100_000).last().unwrap();
    let mut expected = vec![0; model.len().unwrap() as usize];
    model.read_at(&mut expected, 0).unwrap();
    assert!(bytes(&end.files[0]) == expected);
}

#[test]
fn a_copy_does_not_see_what_is_written_later() {
    let store = Shared::from(Content::from([1; 10_000].as_slice()));
    let copy = store.content();
    store.write_all_at(&[2; 100], 4000).unwrap();
    store.punch_hole(0, 4096).unwrap();
    assert_eq!(bytes(&copy), [1; 10_000]);
}

#[test]
fn after_a_cut_each_sector_is_old_or_new_and_what_was_flushed_is_there() {
    let log = Log::new();
    let store = log.recording(Content::from([1; 4 * SECTOR].as_slice()));
    store.write_all_at(&[2; 2 * SECTOR], 0).unwrap();
    store.flush().unwrap();
    log.reached(1);
    store.write_all_at(&[3; 3 * SECTOR], SECTOR as u64).unwrap();
    let states: BTreeSet<_> = log
        .cuts(7, 10_000)
        .filter(|cut| cut.reached == Some(1))
        .map(|cut| sectors(&cut.files[0]))
        .collect();
    // Three sectors in all combinations.
    assert_eq!(states.len(), 8);
    assert!(states.iter().all(|state| state[0] == 2));
    assert!(states.contains(&vec![2, 2, 1, 1]) && states.contains(&vec![2, 3, 3, 3]));
    assert!(states.contains(&vec![2, 3, 1, 3]));
    let before: BTreeSet<_> = log
        .cuts(7, 10_000)
        .filter(|cut| cut.reached.is_none())
        .map(|cut| sectors(&cut.files[0]))
        .collect();
    assert_eq!(before.len(), 4);
}

#[test]
fn a_sector_that_was_written_twice_may_be_any_of_its_versions_but_no_mixture() {
    let log = Log::new();
    let store = log.recording(Content::from([0; SECTOR].as_slice()));
    store.write_all_at(&[1; 8], 0).unwrap();
    store.write_all_at(&[2; 8], 8).unwrap();
    let states: BTreeSet<_> = log
        .cuts(7, 1000)
        .map(|cut| {
            bytes(&cut.files[0])[..16]
                .chunks(8)
                .map(|half| half[0])
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(states, BTreeSet::from([vec![0, 0], vec![1, 0], vec![1, 2]]));
}

#[test]
fn a_flush_counts_for_its_own_store_only() {
    let log = Log::new();
    let (one, two) = (
        log.recording(Content::zeros(512)),
        log.recording(Content::zeros(512)),
    );
    one.write_all_at(&[1; SECTOR], 0).unwrap();
    two.write_all_at(&[1; SECTOR], 0).unwrap();
    one.flush().unwrap();
    log.reached(1);
    let states: BTreeSet<_> = log
        .cuts(7, 1000)
        .filter(|cut| cut.reached == Some(1))
        .map(|cut| (sectors(&cut.files[0])[0], sectors(&cut.files[1])[0]))
        .collect();
    assert_eq!(states, BTreeSet::from([(1, 0), (1, 1)]));
}

#[test]
fn lengths_and_holes_are_done_or_not() {
    let log = Log::new();
    let store = log.recording(Content::from([1; 4 * SECTOR].as_slice()));
    store.set_len(6 * SECTOR as u64).unwrap();
    store.punch_hole(0, 2 * SECTOR as u64).unwrap();
    store.flush().unwrap();
    store.set_len(SECTOR as u64).unwrap();
    let states: BTreeSet<_> = log.cuts(7, 1000).map(|cut| sectors(&cut.files[0])).collect();
    for state in [
        vec![1, 1, 1, 1],
        vec![1, 1, 1, 1, 0, 0],
        vec![0, 1, 1, 1],
        vec![1, 0, 1, 1, 0, 0],
        vec![0, 0, 1, 1, 0, 0],
        vec![0],
    ] {
        assert!(states.contains(&state), "{state:?}");
    }
}

#[test]
fn the_same_seed_makes_the_same_cuts() {
    let log = Log::new();
    let store = log.recording(Content::zeros(100_000));
    let mut dice = Dice::new(3);
    for step in 0..50 {
        store
            .write_all_at(&vec![step; dice.index(5000)], dice.below(90_000))
            .unwrap();
        if dice.chance(10) {
            store.flush().unwrap();
        }
    }
    let ways = |seed| log.cuts(seed, 500).map(|cut| cut.way).collect::<Vec<_>>();
    assert_eq!(ways(1), ways(1));
    assert_ne!(ways(1), ways(2));
    assert!(ways(1).len() > 450);
}

#[test]
fn a_hundred_thousand_cuts_take_seconds() {
    let log = Log::new();
    let store = log.recording(Content::zeros(1 << 20));
    let mut dice = Dice::new(3);
    for step in 0..1000_u32 {
        store
            .write_all_at(&vec![step as u8; dice.index(8192)], dice.below(1 << 20))
            .unwrap();
        if dice.chance(20) {
            store.flush().unwrap();
        }
    }
    assert!(log.cuts(1, 110_000).count() > 100_000);
}

#[test]
fn the_nth_change_fails_and_those_after_it_as_told() {
    let faults = Faults::new();
    let inner = Arc::new(MemoryStorage::new());
    let store = faults.over(inner.clone());
    store.write_all_at(&[1; 2048], 0).unwrap();
    faults.set(Fault {
        after: 1,
        trouble: Trouble::Full,
        lasting: Lasting::On,
    });
    store.write_all_at(&[2; 100], 0).unwrap();
    store.flush().unwrap();
    let error = store.write_all_at(&[3; 2048], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(store.set_len(5000).is_err());
    store.punch_hole(0, 10).unwrap();
    assert_eq!(faults.failed(), 2);
    let mut seen = [0; 2048];
    inner.read_at(&mut seen, 0).unwrap();
    assert_eq!((seen[1023], seen[1024]), (3, 1), "half of the write is done");
    faults.mend();
    store.write_all_at(&[3; 2048], 0).unwrap();
    faults.set(Fault {
        after: 1,
        trouble: Trouble::Broken,
        lasting: Lasting::Once,
    });
    store.write_all_at(&[2; 100], 0).unwrap();
    assert_eq!(store.flush().unwrap_err().kind(), ErrorKind::Io);
    store.flush().unwrap();
    assert_eq!((faults.failed(), faults.count()), (1, 3));
}
