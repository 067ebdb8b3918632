//! The medium is full after each number of blocks.

use std::sync::Arc;

use catena::ErrorKind;
use catena_storage::LocalFile;
use catena_testkit::storage::Medium;

use crate::cases::{CASES, Case, Shown};
use crate::lab::Lab;

/// Runs out of space after so many blocks, and goes on when there is room. `false` where it did not.
fn fill(case: &Case, lab: &Lab, shown: &Shown, free: u64) -> bool {
    let told = || format!("{} with {free} blocks free", case.name);
    lab.put_back(&[]);
    let medium = Medium::with_free(free);
    let outcome = case.run(lab, &|file| Arc::new(medium.over(Arc::new(file)).unwrap()));
    let Err(error) = outcome else {
        shown.verify_done(lab).unwrap();
        return false;
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}: {}", error.full(), told());
    // What, where, and what next.
    assert!(error.full().contains("No space left on device"), "{}", told());
    assert!(
        error.full().contains(&*lab.path("").to_string_lossy()),
        "{}",
        told()
    );
    assert!(
        error.hint().is_some_and(|hint| hint.contains("make room")),
        "{}",
        told()
    );
    let leaks = shown
        .verify(lab)
        .unwrap_or_else(|why| panic!("{why}: {}", told()));
    assert_eq!(leaks, 0, "{}", told());
    // With room for half of the rest twice as much is copied; in the end it is done.
    for more in [free / 2 + 1, 1 << 20] {
        let medium = Medium::with_free(more);
        match case.run(lab, &|file: LocalFile| {
            Arc::new(medium.over(Arc::new(file)).unwrap())
        }) {
            Ok(()) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.full()),
        }
        shown
            .verify(lab)
            .unwrap_or_else(|why| panic!("{why}: {}", told()));
    }
    let leaks = shown
        .verify_done(lab)
        .unwrap_or_else(|why| panic!("{why}: {}", told()));
    assert_eq!(leaks, 0, "{}", told());
    true
}

#[test]
fn operations_that_run_out_of_space_go_on_when_there_is_room() {
    let mut full = 0;
    for seed in 0..2 {
        for case in CASES {
            let lab = Lab::new(seed);
            let shown = Shown::by(case, &lab, &|file| Arc::new(file));
            full += (0..).take_while(|free| fill(case, &lab, &shown, *free)).count();
        }
    }
    eprintln!("there was no space {full} times");
    assert!(full > 200);
}
