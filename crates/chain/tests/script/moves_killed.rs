//! Moves that are killed at every point: the old place and the new one lead to chains that work, and the same command finishes.

use crate::lab::{self, Task, copy, journals, killed, listing, shown};
use catena::forest::Around;
use catena::ops::relocate::{self, Destination, Request};
use catena::ops::script::Direction;
use catena::ops::{Observer, Silent};
use catena::{Error, ErrorKind, Policy};
use catena_testkit::Folder;
use std::path::Path;

/// here/: base <- middle <- top, whose reference is absolute and which has a data file; base <- side, which stays.
fn images() -> Folder {
    let folder = Folder::new();
    for name in ["here", "there"] {
        std::fs::create_dir(folder.file(name)).unwrap();
    }
    let create = "create -q -f qcow2 -o cluster_size=4k";
    folder.img(&format!("{create} here/base.qcow2 64k"));
    folder.io("qcow2", "here/base.qcow2", &["write -P 1 0 32k"]);
    folder.img(&format!("{create} -b base.qcow2 -F qcow2 here/middle.qcow2"));
    folder.io("qcow2", "here/middle.qcow2", &["write -P 2 16k 8k"]);
    folder.img(&format!("{create} -b middle.qcow2 -F qcow2 here/top.qcow2"));
    folder.io("qcow2", "here/top.qcow2", &["write -P 3 20k 16k"]);
    folder.img(&format!("{create} -b here/base.qcow2 -F qcow2 side.qcow2"));
    folder.io("qcow2", "side.qcow2", &["write -P 4 0 8k"]);
    folder.img(&format!("{create} -b ../side.qcow2 -F qcow2 here/over.qcow2"));
    folder.io("qcow2", "here/over.qcow2", &["write -P 5 40k 8k"]);
    std::fs::write(folder.file("guest.xml"), "here").unwrap();
    folder
}

const MOVED: [&str; 4] = ["base.qcow2", "middle.qcow2", "top.qcow2", "over.qcow2"];

fn request(folder: &Path) -> Request {
    Request {
        sources: MOVED.iter().map(|name| folder.join("here").join(name)).collect(),
        destination: Destination::Place(folder.join("there")),
        chain: false,
        around: Around {
            folders: vec![folder.to_owned()],
            ..Around::default()
        },
    }
}

/// The command, which finds what it had begun.
fn perform(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let (request, policy) = (request(folder), Policy::libvirt());
    if let Some(journal) = relocate::unfinished(&request)? {
        return journal.resume(Direction::Finish, &policy, observer);
    }
    let mut plan = relocate::plan(&request, &policy)?;
    plan.replace(&folder.join("guest.xml"), "here".into(), "there".into())?;
    plan.execute(&policy, observer)
}

#[test]
fn process() {
    lab::obey("moves_killed::process", perform);
}

/// A copy whose top image has an absolute reference, and whose place to go is on another file system if told.
fn prepared(images: &Folder, other: Option<&Path>) -> Folder {
    let folder = copy(images);
    let base = folder.file("here/middle.qcow2");
    folder.img(&format!(
        "rebase -u -f qcow2 -F qcow2 -b {} here/top.qcow2",
        base.display()
    ));
    if let Some(other) = other {
        std::fs::remove_dir(folder.file("there")).unwrap();
        let _ = std::fs::remove_dir_all(other);
        std::fs::create_dir(other).unwrap();
        std::os::unix::fs::symlink(other, folder.file("there")).unwrap();
    }
    folder
}

fn is_whole(folder: &Path, expected: &[Vec<u8>], when: &str) {
    for (name, bytes) in MOVED.iter().zip(expected) {
        let places = [folder.join("here").join(name), folder.join("there").join(name)];
        let there: Vec<_> = places.iter().filter(|path| path.exists()).collect();
        assert!(!there.is_empty(), "{name} {when}");
        for path in there {
            assert!(shown(path) == *bytes, "{} {when}", path.display());
        }
    }
    assert!(
        shown(&folder.join("side.qcow2")) == expected[MOVED.len()],
        "{when}"
    );
}

fn is_killed_anywhere(other: Option<&Path>) {
    let images = images();
    let names = MOVED.iter().map(|name| format!("here/{name}"));
    let names = names.chain(["side.qcow2".to_owned()]);
    let expected: Vec<_> = names.map(|name| shown(&images.file(&name))).collect();
    let mut taken_back = [0; 2];
    for nth in 0.. {
        let folder = prepared(&images, other);
        let path = folder.path();
        let before = listing(path);
        let when = format!("killed at {nth}");
        let finished = killed("moves_killed::process", path, Task::Perform, nth);
        is_whole(path, &expected, &when);
        if nth % 2 == 1 && !finished {
            match lab::resume(&path.join("here"), Direction::TakeBack) {
                Ok(()) => {
                    assert_eq!(listing(path), before, "{when}");
                    taken_back[0] += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
                    taken_back[1] += 1;
                }
            }
            is_whole(path, &expected, &when);
        }
        if !finished {
            killed("moves_killed::process", path, Task::Perform, nth % 9);
            is_whole(path, &expected, &when);
        }
        if path.join("here/base.qcow2").exists() || !journals(&path.join("here")).is_empty() {
            perform(path, &Silent).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        }
        is_whole(path, &expected, &when);
        assert!(journals(&path.join("here")).is_empty());
        assert_eq!(listing(&path.join("here")), Vec::<String>::new(), "{when}");
        assert_eq!(std::fs::read_to_string(path.join("guest.xml")).unwrap(), "there");
        if finished {
            assert!(nth > 20, "only {nth} points");
            assert!(taken_back[0] > 5 && taken_back[1] > 2, "{taken_back:?}");
            return;
        }
    }
}

#[test]
fn within_a_file_system() {
    is_killed_anywhere(None);
}

#[test]
fn to_another_file_system() {
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    is_killed_anywhere(Some(&other.path().join("there")));
}
