//! A script of every kind of step.

use crate::lab::{self, Task, copy, journals, killed, listing, shown};
use catena::chain::Link;
use catena::ops::commit::After;
use catena::ops::script::{Direction, FileId, Recorded, Script, Step};
use catena::ops::{Observer, Silent};
use catena::{Error, ErrorKind, Policy};
use catena_testkit::Folder;
use std::path::Path;

fn records(name: &str) -> Recorded {
    Recorded {
        backing: Some(Link {
            text: name.to_owned(),
            format: Some("qcow2".to_owned()),
        }),
        data_file: None,
    }
}

/// base <- middle <- top, base <- leaf; and what else the script is about.
fn images() -> Folder {
    let folder = Folder::new();
    let create = "create -q -f qcow2 -o cluster_size=4k";
    folder.img(&format!("{create} base.qcow2 256k"));
    folder.io("qcow2", "base.qcow2", &["write -P 1 0 128k"]);
    folder.img(&format!("{create} -b base.qcow2 -F qcow2 middle.qcow2"));
    folder.io("qcow2", "middle.qcow2", &["write -P 2 64k 32k"]);
    folder.img(&format!("{create} -b middle.qcow2 -F qcow2 top.qcow2"));
    folder.io("qcow2", "top.qcow2", &["write -P 3 80k 64k"]);
    folder.img(&format!("{create} -b base.qcow2 -F qcow2 leaf.qcow2"));
    folder.io("qcow2", "leaf.qcow2", &["write -P 4 8k 8k"]);
    folder.img(&format!("{create} -b leaf.qcow2 -F qcow2 tip.qcow2"));
    folder.io("qcow2", "tip.qcow2", &["write -P 5 200k 8k"]);
    std::fs::write(folder.file("guest.xml"), "<old/>").unwrap();
    std::fs::write(folder.file("notes"), "notes").unwrap();
    std::fs::create_dir(folder.file("old")).unwrap();
    folder
}

/// What can be taken back.
fn reversible(folder: &Path) -> Vec<Step> {
    let at = |name: &str| folder.join(name);
    let file = |name: &str| FileId::of(&at(name)).unwrap();
    vec![
        Step::Folder {
            path: at("new"),
            like: Some(folder.to_owned()),
        },
        Step::Link {
            from: at("base.qcow2"),
            to: at("new/base.qcow2"),
            file: file("base.qcow2"),
        },
        Step::Copy {
            from: at("middle.qcow2"),
            to: at("new/middle.qcow2"),
            file: file("middle.qcow2"),
            records: Some(records("./base.qcow2")),
        },
        Step::Symlink {
            path: at("new/latest"),
            target: "../top.qcow2".into(),
        },
        Step::Relink {
            image: at("top.qcow2"),
            from: records("middle.qcow2"),
            to: records("new/middle.qcow2"),
        },
        Step::Replace {
            file: at("guest.xml"),
            from: "<old/>".to_owned(),
            to: "<new/>".to_owned(),
        },
        Step::Rename {
            from: at("notes"),
            to: at("new/notes"),
            file: file("notes"),
        },
    ]
}

fn every_step(folder: &Path) -> Script {
    let at = |name: &str| folder.join(name);
    let file = |name: &str| FileId::of(&at(name)).unwrap();
    let mut script = Script::new("test", "every step");
    script.steps = reversible(folder);
    script.steps.extend([
        Step::Stream {
            image: at("leaf.qcow2"),
            base: None,
            dated: None,
        },
        Step::Delete {
            path: at("middle.qcow2"),
            file: file("middle.qcow2"),
            kept: Some(at("new/middle.qcow2")),
        },
        Step::Delete {
            path: at("base.qcow2"),
            file: file("base.qcow2"),
            kept: Some(at("new/base.qcow2")),
        },
        Step::Commit {
            image: at("tip.qcow2"),
            top: at("tip.qcow2"),
            base: at("leaf.qcow2"),
            after: After::Empty,
        },
        Step::RemoveFolder { path: at("old") },
    ]);
    script
}

fn perform(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    every_step(folder).execute(folder, &Policy::libvirt(), observer)
}

#[test]
fn process() {
    lab::obey("steps::process", perform);
}

/// Whether every image shows what it did, by whichever names it has.
fn is_whole(folder: &Path, expected: &Expected, when: &str) {
    for (names, bytes) in [
        (&["top.qcow2"][..], &expected.top),
        (&["tip.qcow2"], &expected.tip),
        (&["middle.qcow2", "new/middle.qcow2"], &expected.middle),
        (&["base.qcow2", "new/base.qcow2"], &expected.base),
    ] {
        let there: Vec<_> = { names.iter() }
            .map(|name| folder.join(name))
            .filter(|path| path.exists())
            .collect();
        assert!(!there.is_empty(), "{names:?} {when}");
        for path in there {
            assert!(shown(&path) == *bytes, "{} {when}", path.display());
        }
    }
}

struct Expected {
    top: Vec<u8>,
    tip: Vec<u8>,
    middle: Vec<u8>,
    base: Vec<u8>,
}

impl Expected {
    fn of(folder: &Folder) -> Self {
        let shown = |name| shown(&folder.file(name));
        Self {
            top: shown("top.qcow2"),
            tip: shown("tip.qcow2"),
            middle: shown("middle.qcow2"),
            base: shown("base.qcow2"),
        }
    }
}

fn is_finished(folder: &Path, when: &str) {
    let expected = [
        "guest.xml",
        "leaf.qcow2",
        "new/",
        "new/base.qcow2",
        "new/latest -> ../top.qcow2",
        "new/middle.qcow2",
        "new/notes",
        "tip.qcow2",
        "top.qcow2",
    ];
    assert_eq!(listing(folder), expected, "{when}");
    assert_eq!(
        std::fs::read_to_string(folder.join("guest.xml")).unwrap(),
        "<new/>"
    );
}

#[test]
fn a_script_that_is_killed_anywhere_goes_on_to_its_end() {
    let images = images();
    let expected = Expected::of(&images);
    for nth in 0.. {
        let folder = copy(&images);
        let when = format!("killed at {nth}");
        let finished = killed("steps::process", folder.path(), Task::Perform, nth);
        is_whole(folder.path(), &expected, &when);
        // And killed once more on the way.
        if !finished && !journals(folder.path()).is_empty() {
            killed("steps::process", folder.path(), Task::Finish, nth % 7);
            is_whole(folder.path(), &expected, &when);
            lab::resume(folder.path(), Direction::Finish).unwrap();
        } else if !finished {
            // Before anything was done.
            perform(folder.path(), &Silent).unwrap();
        }
        is_whole(folder.path(), &expected, &when);
        is_finished(folder.path(), &when);
        if finished {
            assert!(nth > 30, "only {nth} points");
            return;
        }
    }
}

#[test]
fn a_script_that_is_killed_anywhere_is_taken_back_unless_that_would_lose_something() {
    let images = images();
    let expected = Expected::of(&images);
    let before = listing(images.path());
    let mut refused = 0;
    for nth in 0.. {
        let folder = copy(&images);
        let when = format!("killed at {nth}");
        if killed("steps::process", folder.path(), Task::Perform, nth) {
            break;
        }
        match lab::resume(folder.path(), Direction::TakeBack) {
            Ok(()) => {
                assert_eq!(refused, 0, "{when}");
                assert_eq!(listing(folder.path()), before, "{when}");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
                refused += 1;
            }
        }
        is_whole(folder.path(), &expected, &when);
    }
    assert!(refused > 5, "{refused}");
}

/// All that can be taken back, and then a step that fails.
fn fails_at_its_end(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let mut script = Script::new("test", "");
    script.steps = reversible(folder);
    script.steps.push(Step::Relink {
        image: folder.join("leaf.qcow2"),
        from: records("what nobody records"),
        to: records("nothing"),
    });
    script.execute(folder, &Policy::libvirt(), observer)
}

#[test]
fn taking_back_can_itself_be_killed_anywhere() {
    let images = images();
    let expected = Expected::of(&images);
    let before = listing(images.path());
    for nth in 0.. {
        let folder = copy(&images);
        let when = format!("killed at {nth}");
        let error = fails_at_its_end(folder.path(), &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
        let hint = error.hint().unwrap();
        assert!(hint.contains("catena resume --undo"), "{hint}");
        let finished = killed("steps::process", folder.path(), Task::TakeBack, nth);
        is_whole(folder.path(), &expected, &when);
        lab::resume(folder.path(), Direction::TakeBack).unwrap();
        is_whole(folder.path(), &expected, &when);
        assert_eq!(listing(folder.path()), before, "{when}");
        if finished {
            assert!(nth > 10, "only {nth} points");
            return;
        }
    }
}
