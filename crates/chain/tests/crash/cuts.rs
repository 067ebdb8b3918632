//! Cuts at every point of an operation.

use std::path::PathBuf;
use std::sync::Arc;

use catena_storage::LocalFile;
use catena_testkit::storage::Content;

use crate::cases::{CASES, Case, Shown};
use crate::lab::{Lab, Taped};

/// Cuts of an operation.
const CUTS: usize = 60;
/// Cuts in all, at least.
const ALL_CUTS: usize = 1500;

/// How many cuts there are to be, and the first seed.
fn effort() -> (usize, u64) {
    match std::env::var("CATENA_CRASH_CUTS") {
        // An operation costs a hundred times what a write does.
        Ok(cuts) => (cuts.parse::<usize>().unwrap().div_ceil(50), 1 << 32),
        Err(_) => (ALL_CUTS, 0),
    }
}

fn cut(case: &Case, seed: u64) -> usize {
    let lab = Lab::new(seed);
    let taped = Taped::default();
    let shown = Shown::by(case, &lab, &|file| taped.over(file));
    let (log, after) = taped.end();
    let paths: Vec<PathBuf> = after.into_iter().map(|(path, _)| path).collect();
    let mut cuts = 0;
    for cut in log.cuts(seed, CUTS) {
        let told = || format!("{}, seed {seed}, {:?}", case.name, cut.way);
        let files: Vec<(PathBuf, Content)> = paths.iter().cloned().zip(cut.files.iter().cloned()).collect();
        lab.put_back(&files);
        shown
            .verify(&lab)
            .unwrap_or_else(|why| panic!("{why}: {}", told()));
        case.run(&lab, &|file: LocalFile| Arc::new(file))
            .unwrap_or_else(|error| panic!("again: {}: {}", error.full(), told()));
        shown
            .verify_done(&lab)
            .unwrap_or_else(|why| panic!("again: {why}: {}", told()));
        cuts += 1;
    }
    cuts
}

#[test]
fn operations_survive_cuts_and_are_finished_by_the_same_again() {
    let (wanted, mut seed) = effort();
    let mut cuts = 0;
    while cuts < wanted {
        cuts += CASES.iter().map(|case| cut(case, seed)).sum::<usize>();
        seed += 1;
    }
    eprintln!("{cuts} cuts of operations");
}

/// Layers are deleted one by one, and the chain is whole all the time.
#[test]
fn a_commit_that_was_stopped_between_deletions_is_finished_by_the_same_again() {
    for name in [
        "two layers from the middle are committed, and deleted",
        "three layers are committed, and deleted",
    ] {
        for seed in 0..4 {
            let case = CASES.iter().find(|case| case.name == name).unwrap();
            let lab = Lab::new(seed);
            let taped = Taped::default();
            let shown = Shown::by(case, &lab, &|file| taped.over(file));
            let (_, after) = taped.end();
            let written = |names: &[&str]| {
                let paths = names.iter().map(|name| lab.path(name)).collect::<Vec<_>>();
                { after.iter() }
                    .filter(|(path, _)| paths.contains(path))
                    .cloned()
                    .collect::<Vec<_>>()
            };
            let all = ["base", "a", "b", "c"];
            let gone: Vec<_> = all.iter().filter(|name| !lab.is_there(name)).copied().collect();
            assert!(gone.len() > 1);
            // The layer above is put on the base, then the layer goes; so far so many are gone.
            for (count, is_put) in (0..gone.len()).flat_map(|count| [(count, false), (count, true)]) {
                let put = count + usize::from(is_put);
                // Before the base was written, the stamp of the lowest layer was suspended.
                let lowest = ["base", "a"];
                let above: Vec<_> = ["b", "c"].into_iter().take(put).chain(lowest).collect();
                lab.put_back(&written(&above));
                for name in &gone[..count] {
                    std::fs::remove_file(lab.path(name)).unwrap();
                }
                let told = |why: String| panic!("{name}, {count} gone, {is_put}: {why}");
                shown.verify(&lab).unwrap_or_else(&told);
                case.run(&lab, &|file: LocalFile| Arc::new(file))
                    .unwrap_or_else(|error| panic!("{name}, {count} gone, {is_put}: {}", error.full()));
                shown.verify_done(&lab).unwrap_or_else(&told);
                // One whose chain has let go of it already has no name any more by which it could be found.
                let orphan = (is_put && count + 1 < gone.len()).then(|| gone[count]);
                let left: Vec<_> = gone.iter().filter(|name| lab.is_there(name)).collect();
                assert!(left.iter().all(|name| orphan == Some(**name)), "{name}: {left:?}");
            }
        }
    }
}
