//! Imports that are killed at every point: what has its name is whole, and all files get theirs, or none.

use crate::lab::{self, Task, copy, journals, killed, listing, resume, shown};
use catena::open::Sharing;
use catena::ops::bundle::export;
use catena::ops::bundle::import::{self, Bundle, Request};
use catena::ops::script::Direction;
use catena::ops::{Observer, Silent};
use catena::{Error, ErrorKind, Policy, Start};
use catena_testkit::Folder;
use std::fs::File;
use std::path::Path;

const PROCESS: &str = "imports::process_that_imports";
const NAMES: [&str; 3] = ["base.raw", "monday.qcow2", "tuesday.qcow2"];

/// full.tar, the bundle of base.raw <- monday.qcow2 <- tuesday.qcow2, and a folder for what comes of it.
fn bundle() -> (Folder, Vec<u8>) {
    let chain = Folder::new();
    std::fs::write(chain.file("base.raw"), vec![1; 256 << 10]).unwrap();
    for (name, base, format) in [(NAMES[1], NAMES[0], "raw"), (NAMES[2], NAMES[1], "qcow2")] {
        chain.img(&format!("create -q -f qcow2 -b {base} -F {format} {name}"));
        chain.io("qcow2", name, &["write -P 2 64k 64k"]);
    }
    let request = export::Request {
        start: Start::at(chain.file(NAMES[2]), None),
        since: None,
        sharing: Sharing::Locked,
        compress: false,
    };
    let folder = Folder::new();
    let plan = export::plan(&request, &Policy::libvirt(), &Silent).unwrap();
    plan.save(&folder.file("full.tar"), &Silent).unwrap();
    std::fs::create_dir(folder.file("restored")).unwrap();
    (folder, shown(&chain.file(NAMES[2])))
}

fn perform(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let policy = Policy::libvirt();
    let request = Request {
        folder: folder.join("restored"),
        at: None,
        onto: None,
    };
    if let Some(journal) = import::unfinished(&request, &["full".to_owned()])? {
        return journal.resume(Direction::Finish, &policy, observer);
    }
    let bundle = Bundle {
        name: "full".to_owned(),
        input: Box::new(File::open(folder.join("full.tar")).unwrap()),
    };
    import::import(&request, vec![bundle], &policy, observer).map(drop)
}

#[test]
fn process_that_imports() {
    lab::obey(PROCESS, perform);
}

#[test]
fn an_import_is_killed_anywhere() {
    let (images, seen) = bundle();
    let mut left = [0; 2];
    for nth in 0.. {
        let when = format!("killed at {nth}");
        let folder = copy(&images);
        let restored = folder.file("restored");
        let ended = killed(PROCESS, folder.path(), Task::Perform, nth);
        if !journals(&restored).is_empty() {
            left[nth as usize % 2] += 1;
            match nth % 2 {
                0 => resume(&restored, Direction::Finish).unwrap(),
                _ => {
                    killed(PROCESS, folder.path(), Task::TakeBack, nth % 3);
                    resume(&restored, Direction::TakeBack).unwrap();
                    assert_eq!(listing(&restored), [""; 0], "{when}");
                }
            }
        }
        if listing(&restored) != NAMES {
            killed(PROCESS, folder.path(), Task::Perform, nth % 5);
            perform(folder.path(), &Silent).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        }
        assert_eq!(listing(&restored), NAMES, "{when}");
        assert!(shown(&restored.join(NAMES[2])) == seen, "{when}");
        if ended {
            assert!(nth > 9 && left[0] > 1 && left[1] > 1, "{nth} points, {left:?}");
            return;
        }
    }
}

#[test]
fn what_a_guest_has_written_is_not_taken_back() {
    let (images, _) = bundle();
    let cut_off = |nth| {
        let folder = copy(&images);
        assert!(!killed(PROCESS, folder.path(), Task::Perform, nth));
        folder.file("restored/tuesday.qcow2").exists().then_some(folder)
    };
    let folder = (0..).find_map(cut_off).unwrap();
    let restored = folder.file("restored");
    folder.io("qcow2", "restored/tuesday.qcow2", &["write -P 9 0 4k"]);
    let written = shown(&restored.join(NAMES[2]));
    let refused = resume(&restored, Direction::TakeBack).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{}", refused.full());
    resume(&restored, Direction::Finish).unwrap();
    assert_eq!(listing(&restored), NAMES);
    assert!(shown(&restored.join(NAMES[2])) == written);
}
