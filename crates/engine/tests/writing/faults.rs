//! Stores that are full or broken: what is left, and how it goes on.

use super::lab::{Action, PLAIN, Shape, assert_same, make};
use catena_engine::qcow2::{CheckOptions, Qcow2Disk, Report, check};
use catena_engine::{Disk, ErrorKind, GuestOffset, Qcow2, Stack};
use catena_storage::Storage;
use catena_testkit::dice::Dice;
use catena_testkit::storage::{Content, Fault, Faults, Lasting, Shared, Trouble};
use std::collections::HashMap;
use std::sync::Arc;

const SIZE: u64 = 160 << 10;
const ACTIONS: usize = 60;

fn shapes() -> Vec<Shape> {
    let small = Shape {
        size: SIZE,
        cluster_bits: 12,
        ..PLAIN
    };
    vec![
        small.clone(),
        Shape {
            name: "smallest clusters",
            cluster_bits: 9,
            refcount_order: 6,
            ..small.clone()
        },
        Shape {
            name: "subclusters",
            cluster_bits: 14,
            extended: true,
            ..small
        },
    ]
}

fn empty(shape: &Shape) -> Content {
    let shared = Shared::from(Content::zeros(0));
    make(&shape.options(), &shared);
    shared.content()
}

fn examine(storage: &dyn Storage) -> Report {
    check(storage, &CheckOptions::default()).unwrap()
}

fn read(storage: Arc<Shared>) -> Vec<u8> {
    let image = Arc::new(Qcow2::open(storage, None).unwrap());
    let stack = Stack::new([(image as _, "image".into())]);
    let mut bytes = vec![0; SIZE as usize];
    stack.read_at(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

/// Where an action failed each byte is what it was or what it was to be.
fn believe(disk: &Qcow2Disk, action: &Action, model: &mut [u8]) {
    let range = action.range();
    let mut now = vec![0; range.len()];
    disk.read_at(&mut now, GuestOffset(range.start as u64)).unwrap();
    let mut then = model.to_vec();
    match action {
        Action::Write(_, bytes) | Action::Compress(_, bytes) => then[range.clone()].copy_from_slice(bytes),
        _ => then[range.clone()].fill(0),
    }
    for (at, now) in range.zip(now) {
        assert!(
            now == model[at] || now == then[at],
            "{action:?} made {at:#x} something else"
        );
        model[at] = now;
    }
}

/// Runs a history until nothing fails any more, with the fault later each time.
fn over_all_faults(shape: &Shape, trouble: Trouble, run: impl Fn(Arc<Shared>, &Faults, &str)) {
    let image = empty(shape);
    for (lasting, step) in [(Lasting::Once, 3), (Lasting::On, 11)] {
        let mut after = 0;
        loop {
            let store = Arc::new(Shared::from(image.clone()));
            let faults = Faults::new();
            faults.set(Fault {
                after,
                trouble,
                lasting,
            });
            run(
                Arc::clone(&store),
                &faults,
                &format!("{} {trouble:?} {lasting:?} after {after}", shape.name),
            );
            if faults.failed() == 0 {
                break;
            }
            after += step;
        }
        assert!(after > 25, "there was much that could fail: {after}");
    }
}

#[test]
fn a_full_medium_loses_nothing_and_writing_goes_on_when_there_is_space() {
    for shape in shapes() {
        over_all_faults(&shape, Trouble::Full, |store, faults, when| {
            let failing = Arc::new(faults.over(store.clone()));
            let disk = Qcow2Disk::open(failing, None, None).unwrap();
            let mut dice = Dice::new(5);
            let mut model = vec![0; SIZE as usize];
            let mut failures = 0;
            for _ in 0..ACTIONS {
                let action = Action::draw(&disk.header(), 0..SIZE, &mut dice);
                match action.perform(&disk) {
                    Ok(()) => action.note(&disk, &mut model),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoSpace, "{when}: {error}");
                        believe(&disk, &action, &mut model);
                        failures += 1;
                        if failures == 6 {
                            faults.mend();
                        }
                    }
                }
            }
            faults.mend();
            disk.close().unwrap();
            let report = examine(&*store);
            assert!(report.is_clean(), "{when}: {:?}", report.findings);
            assert_same(&read(store), &model, when);
        });
    }
}

#[test]
fn after_an_error_nothing_is_written_and_what_was_flushed_is_there() {
    for shape in shapes() {
        over_all_faults(&shape, Trouble::Broken, |store, faults, when| {
            let failing = Arc::new(faults.over(store.clone()));
            let disk = Qcow2Disk::open(failing, None, None).unwrap();
            let mut dice = Dice::new(5);
            let mut model = vec![0; SIZE as usize];
            // What was flushed, and what was written since.
            let mut flushed = model.clone();
            let mut since: HashMap<usize, Vec<u8>> = HashMap::new();
            let mut failed = false;
            for _ in 0..ACTIONS {
                let action = Action::draw(&disk.header(), 0..SIZE, &mut dice);
                let done = action.perform(&disk);
                if failed {
                    // Where there is nothing to write there is nothing to refuse.
                    if matches!(action, Action::Write(..)) {
                        assert!(done.is_err(), "{when}");
                    }
                    continue;
                }
                failed = done.is_err();
                if failed {
                    believe_either(&action, &mut since);
                    continue;
                }
                action.note(&disk, &mut model);
                for at in action.range() {
                    since.entry(at).or_default().push(model[at]);
                }
                if matches!(action, Action::Flush) {
                    since.clear();
                    flushed.copy_from_slice(&model);
                }
            }
            drop(disk);
            let report = examine(&*store);
            assert!(report.is_sound(), "{when}: {:?}", report.findings);
            let now = read(store);
            if now == flushed {
                return;
            }
            for (at, byte) in now.iter().enumerate().filter(|(at, byte)| flushed[*at] != **byte) {
                let later = since.get(&at).is_some_and(|later| later.contains(byte));
                assert!(later, "{when}: {at:#x} is {byte:#x}");
            }
        });
    }
}

fn believe_either(action: &Action, since: &mut HashMap<usize, Vec<u8>>) {
    for (n, at) in action.range().enumerate() {
        since.entry(at).or_default().push(match action {
            Action::Write(_, bytes) | Action::Compress(_, bytes) => bytes[n],
            _ => 0,
        });
    }
}
