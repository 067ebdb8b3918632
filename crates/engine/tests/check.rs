//! The check of qcow2 images beside QEMU's, on images that QEMU made and that were damaged at random.
#![cfg(test)]

mod damage;

use catena_engine::qcow2::{CheckOptions, check};
use catena_storage::{LocalFile, MemoryStorage, OpenOptions};
use catena_testkit::images;
use damage::{damage, damages, features, first_difference, lines, numbers, qemu_check};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("CASES").map_or(96, |n| n.parse().unwrap()), failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn finds_what_qemu_finds_in_its_words_and_numbers(spec in images::images(features()), changes in damages(4)) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        let mut bytes = std::fs::read(&built.top).unwrap();
        prop_assume!(bytes.len() < 64 << 20);
        damage(&mut bytes, &changes);
        std::fs::write(&built.top, &bytes).unwrap();
        let Some((json, qemu)) = qemu_check(&built.top, &[]) else { return Ok(()) };
        let storage = LocalFile::open(&built.top, &OpenOptions::default()).unwrap();
        let report = check(&storage, &CheckOptions::default()).unwrap();
        if report.more == 0 {
            prop_assert_eq!(first_difference(&lines(&report), &qemu), None);
        }
        for (name, number) in numbers(&report) {
            prop_assert_eq!((name, number), (name, json[name].as_u64().unwrap_or(0)));
        }
        // The same in many passes, as far as their order can be the same.
        let little = CheckOptions { memory: 0, threads: 1, ..CheckOptions::default() };
        let again = check(&MemoryStorage::from(bytes), &little).unwrap();
        prop_assert_eq!(numbers(&report), numbers(&again));
    }
}
