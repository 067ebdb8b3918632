//! The Nth change fails, for every N.

use std::sync::Arc;

use catena_engine::ErrorKind;
use catena_testkit::storage::{Content, Fault, Faults, Lasting, Shared, Trouble};

use crate::history::{History, Request, look, sound};
use crate::layouts::{self, Layout};
use crate::model::Seen;

/// Steps of a history.
const STEPS: u64 = 25;
/// Changes of a whole image that are tried on each layout.
const CHANGES: usize = 6;
/// Steps that are tried while there is no space.
const STEPS_WITHOUT_SPACE: u64 = 3;

fn begin(layout: Layout, seed: u64, faults: &Faults) -> History {
    let mut history = History::begin_behind(layout, seed, |store| Arc::new(faults.over(store)));
    history.disk();
    history
}

/// How many changes a history makes that could fail so.
fn changes(layout: Layout, seed: u64, trouble: Trouble) -> usize {
    let faults = Faults::new();
    let mut history = begin(layout, seed, &faults);
    faults.set(Fault {
        after: usize::MAX,
        trouble,
        lasting: Lasting::Once,
    });
    for _ in 0..STEPS {
        history.begin_step();
        let request = history.draw();
        history.take(&request).unwrap();
        history.changed(&request);
        history.end_step();
    }
    history.close();
    faults.count()
}

fn sound_with(files: &[Content], told: &str) {
    if let Err(why) = sound(&Shared::from(files[0].clone())) {
        panic!("{why}: {told}");
    }
}

/// The range a request is about, and what it is to hold.
fn aim(history: &History, request: &Request) -> Option<(u64, Vec<u8>)> {
    match request {
        Request::Discard { offset, len } => Some((*offset, vec![0; *len as usize])),
        _ => history.written(request),
    }
}

fn broken(layouts: &[Layout], lasting: Lasting) {
    let mut runs = 0;
    for (layout, seed) in layouts.iter().zip(1..) {
        for after in 0..changes(*layout, seed, Trouble::Broken) {
            let faults = Faults::new();
            let mut history = begin(*layout, seed, &faults);
            faults.set(Fault {
                after,
                trouble: Trouble::Broken,
                lasting,
            });
            let mut failed = false;
            for _ in 0..STEPS {
                history.begin_step();
                let request = history.draw();
                history.note(&format!("{request:?}, change {after} fails"));
                match history.take(&request) {
                    Ok(()) => {
                        history.changed(&request);
                        history.end_step();
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Io, "{error}: {}", history.told());
                        if let Some((offset, bytes)) = aim(&history, &request) {
                            history.model.change(history.step, offset, &bytes);
                        }
                        failed = true;
                        break;
                    }
                }
            }
            let told = history.told();
            if failed {
                // Nothing is written any more, though the store could.
                faults.mend();
                let before = history.log.len();
                for request in [
                    Request::Write { offset: 0, len: 1 },
                    Request::Discard {
                        offset: 0,
                        len: layout.size,
                    },
                    Request::Flush,
                ] {
                    assert!(history.take(&request).is_err(), "not poisoned: {told}");
                }
                assert_eq!(history.log.len(), before, "{told}");
            }
            history.abandon();
            // What is in the files is one of the states that a cut may leave.
            let files = history.files();
            sound_with(&files, &told);
            let seen: Seen = look(&files, history.backing()).unwrap();
            let reached = if failed { history.step - 1 } else { history.step };
            if let Err(why) = history.model.check(&seen, reached) {
                panic!("{why}: {told}");
            }
            runs += 1;
        }
    }
    eprintln!("{runs} changes failed");
    assert!(runs > 100);
}

fn full(layouts: &[Layout], lasting: Lasting) {
    let mut runs = 0;
    for (layout, seed) in layouts.iter().zip(1..) {
        for after in 0..changes(*layout, seed, Trouble::Full) {
            let faults = Faults::new();
            let mut history = begin(*layout, seed, &faults);
            faults.set(Fault {
                after,
                trouble: Trouble::Full,
                lasting,
            });
            let mut without_space = 0;
            for _ in 0..STEPS {
                history.begin_step();
                let request = history.draw();
                history.note(&format!("{request:?}, change {after} finds no space"));
                match history.take(&request) {
                    Ok(()) => history.changed(&request),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}: {}", history.told());
                        assert!(faults.failed() > 0);
                        if let Some((offset, bytes)) = aim(&history, &request) {
                            history.settled(offset, bytes.len() as u64, &bytes);
                        }
                        without_space += 1;
                        if without_space >= STEPS_WITHOUT_SPACE {
                            faults.mend();
                            // The same again, which works now.
                            history.take(&request).unwrap();
                            history.changed(&request);
                        }
                    }
                }
                history.end_step();
            }
            faults.mend();
            history.begin_step();
            history.close();
            history.end_step();
            history.check_now();
            let told = history.told();
            sound_with(&history.files(), &told);
            runs += 1;
        }
    }
    eprintln!("{runs} changes found no space");
    assert!(runs > 100);
}

/// Changes of a whole image, each with every change of its store failing in turn.
fn whole(layouts: &[Layout], trouble: Trouble) {
    let mut runs = 0;
    for (layout, seed) in layouts.iter().zip(1..) {
        let mut history = History::begin(*layout, seed);
        history.go(STEPS);
        let files = history.files();
        for _ in 0..CHANGES {
            let change = history.draw_change();
            let told = format!("{change:?} with {trouble:?} after {}", history.told());
            for after in 0.. {
                let store = Arc::new(Shared::from(files[0].clone()));
                let faults = Faults::new();
                faults.set(Fault {
                    after,
                    trouble,
                    lasting: Lasting::On,
                });
                let outcome = history.make(&change, &faults.over(Arc::clone(&store) as _));
                if faults.failed() == 0 {
                    break;
                }
                let mut left = vec![store.content()];
                left.extend(files.iter().skip(1).cloned());
                sound_with(&left, &told);
                let seen = look(&left, history.backing()).unwrap();
                let (live, snapshots) = history.after(&change);
                let is_new = seen.disk == live && seen.snapshots == snapshots;
                let is_old = seen.disk == history.model.live && seen.snapshots == *history.model.snapshots();
                assert!(is_new || (is_old && outcome.is_err()), "change {after} of {told}");
                runs += 1;
            }
        }
    }
    eprintln!("{runs} changes failed");
    assert!(runs > 100);
}

fn all() -> Vec<Layout> {
    [
        layouts::SMALLEST,
        layouts::SMALL,
        layouts::EXTENDED,
        layouts::DATA_FILES,
        layouts::USED,
    ]
    .concat()
}

#[test]
fn a_change_that_fails_poisons_the_disk_and_harms_nothing() {
    broken(&all(), Lasting::Once);
}

#[test]
fn a_disk_that_breaks_harms_nothing() {
    broken(&all(), Lasting::On);
}

#[test]
fn a_moment_without_space_loses_nothing() {
    full(&all(), Lasting::Once);
}

#[test]
fn nothing_is_lost_while_there_is_no_space() {
    full(&all(), Lasting::On);
}

#[test]
fn a_whole_image_on_a_disk_that_breaks_is_the_old_one_or_the_new_one() {
    whole(&all(), Trouble::Broken);
}

#[test]
fn a_whole_image_without_space_is_the_old_one_or_the_new_one() {
    whole(&all(), Trouble::Full);
}
