//! Headers of several images that change together, killed at every point: what images record when they are healed, and their stamps.

use crate::lab::{self, Task, copy, journals, killed, resume, shown};
use catena::ops::heal;
use catena::ops::script::{Direction, Recorded};
use catena::ops::stamp::{self, Action};
use catena::ops::{Observer, Silent};
use catena::{Error, Format, Policy, Stamped, Start};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use catena_testkit::Folder;
use std::path::{Path, PathBuf};

const OVERLAYS: [&str; 3] = ["vms/one.qcow2", "vms/two.qcow2", "vms/with.qcow2"];

/// vms/one, two and with.qcow2, which has a data file, over base.qcow2, which is with the data file in bases/ where nobody looks.
fn moved() -> (Folder, Vec<Vec<u8>>) {
    let folder = Folder::new();
    for name in ["vms", "bases"] {
        std::fs::create_dir(folder.file(name)).unwrap();
    }
    folder.img("create -q -f qcow2 vms/base.qcow2 256k");
    folder.io("qcow2", "vms/base.qcow2", &["write -P 1 0 128k"]);
    for name in ["one", "two"] {
        folder.img(&format!(
            "create -q -f qcow2 -b base.qcow2 -F qcow2 vms/{name}.qcow2"
        ));
        folder.io("qcow2", &format!("vms/{name}.qcow2"), &["write -P 2 64k 64k"]);
    }
    folder.img("create -q -f qcow2 -o data_file=vms/held.raw vms/with.qcow2 256k");
    folder.img("rebase -u -f qcow2 -F qcow2 -b base.qcow2 vms/with.qcow2");
    folder.img("amend -f qcow2 -o data_file=held.raw vms/with.qcow2");
    let views = OVERLAYS.iter().map(|name| shown(&folder.file(name))).collect();
    for name in ["base.qcow2", "held.raw"] {
        let [from, to] = ["vms", "bases"].map(|place| folder.file(place).join(name));
        std::fs::rename(from, to).unwrap();
    }
    (folder, views)
}

fn heal(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let policy = Policy::libvirt();
    let request = heal::Request {
        places: vec![folder.join("vms")],
        search: vec![folder.join("bases")],
        by_name: true,
    };
    if let Some(journal) = heal::unfinished(&request)? {
        journal.resume(Direction::Finish, &policy, observer)?;
    }
    let outcomes = heal::plan(&request, &policy, &Silent)?.execute(&policy, observer)?;
    outcomes
        .into_iter()
        .flatten()
        .collect::<Result<Vec<()>, _>>()
        .map(drop)
}

#[test]
fn process_that_heals() {
    lab::obey("headers::process_that_heals", heal);
}

fn recorded(folder: &Path, name: &str) -> Recorded {
    let file = LocalFile::open(folder.join(name), &OpenOptions::new().lock(LockMode::None)).unwrap();
    Recorded::read(&file).unwrap()
}

#[test]
fn healing_is_killed_anywhere() {
    const PROCESS: &str = "headers::process_that_heals";
    let (images, views) = moved();
    let all = |folder: &Path| OVERLAYS.map(|name| recorded(folder, name));
    let before = all(images.path());
    let finished = copy(&images);
    heal(finished.path(), &Silent).unwrap();
    let after = all(finished.path());
    let mut left = 0;
    for nth in 0.. {
        let when = format!("killed at {nth}");
        let folder = copy(&images);
        let (path, vms) = (folder.path(), folder.file("vms"));
        let ended = killed(PROCESS, path, Task::Perform, nth);
        left += journals(&vms).len();
        for (name, view) in OVERLAYS.iter().zip(&views) {
            let number = OVERLAYS.iter().position(|other| other == name).unwrap();
            if recorded(path, name) == after[number] {
                assert!(shown(&folder.file(name)) == *view, "{name} {when}");
            }
        }
        if nth % 3 == 1 && !journals(&vms).is_empty() {
            resume(&vms, Direction::TakeBack).unwrap();
            assert_eq!(all(path), before, "{when}");
        }
        if nth % 3 == 2 && !journals(&vms).is_empty() {
            resume(&vms, Direction::Finish).unwrap();
            assert_eq!(all(path), after, "{when}");
        }
        heal(path, &Silent).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        assert_eq!(all(path), after, "{when}");
        assert!(journals(&vms).is_empty(), "{when}");
        for (name, view) in OVERLAYS.iter().zip(&views) {
            assert!(shown(&folder.file(name)) == *view, "{name} {when}");
        }
        if ended {
            assert!(nth > 6 && left > 4, "{nth} points, {left} journals");
            return;
        }
    }
}

const CHAIN: [&str; 3] = ["a.qcow2", "b.qcow2", "c.qcow2"];

/// base.qcow2 <- a <- b <- c, none of which has a stamp.
fn unstamped() -> Folder {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 base.qcow2 256k");
    folder.io("qcow2", "base.qcow2", &["write -P 1 0 128k"]);
    let mut below = "base.qcow2";
    for name in CHAIN {
        folder.img(&format!("create -q -f qcow2 -b {below} -F qcow2 {name}"));
        folder.io("qcow2", name, &["write -P 2 64k 64k"]);
        below = name;
    }
    folder
}

fn stamped(folder: &Path) -> Vec<Stamped> {
    let start = Start::at(folder.join("c.qcow2"), Some(Format::Qcow2));
    let (_, overlays) = stamp::look(&start, true, &Policy::libvirt()).unwrap();
    overlays.into_iter().map(|overlay| overlay.stamped).collect()
}

fn change_stamps(folder: &Path, action: Action, observer: &dyn Observer) -> Result<(), Error> {
    let policy = Policy::libvirt();
    let image = |name: &str| -> PathBuf { folder.join(name) };
    let request = stamp::Request {
        images: vec![
            Start::at(image("c.qcow2"), None),
            Start::at(image("b.qcow2"), None),
        ],
        chain: true,
        action,
    };
    match stamp::unfinished(&request)? {
        Some(journal) => journal.resume(Direction::Finish, &policy, observer),
        None => stamp::plan(&request, &policy)?.execute(&policy, observer),
    }
}

fn give(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    change_stamps(folder, Action::Give { full: true }, observer)
}

fn remove(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    change_stamps(folder, Action::Remove, observer)
}

#[test]
fn process_that_gives_stamps() {
    lab::obey("headers::process_that_gives_stamps", give);
}

#[test]
fn process_that_removes_stamps() {
    lab::obey("headers::process_that_removes_stamps", remove);
}

fn stamps_are_killed_anywhere(process: &str, images: &Folder, perform: lab::Operation, to: [bool; 2]) {
    let views = CHAIN.map(|name| shown(&images.file(name)));
    let is = |folder: &Path, has: bool, when: &str| {
        for stamped in stamped(folder) {
            let known = matches!(stamped, Stamped::Same | Stamped::Touched);
            assert!(
                known == has && (known || stamped == Stamped::Not),
                "{stamped:?} {when}"
            );
        }
    };
    let [before, after] = to;
    for nth in 0.. {
        let when = format!("{process} killed at {nth}");
        let folder = copy(images);
        let path = folder.path();
        let ended = killed(process, path, Task::Perform, nth);
        let is_whole = || {
            for (name, view) in CHAIN.iter().zip(&views) {
                assert!(shown(&path.join(name)) == *view, "{name} {when}");
            }
        };
        is_whole();
        if nth % 3 == 1 && !journals(path).is_empty() {
            resume(path, Direction::TakeBack).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
            is(path, before, &when);
            is_whole();
        }
        if nth % 3 == 2 {
            resume(path, Direction::Finish).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        }
        perform(path, &Silent).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        is(path, after, &when);
        is_whole();
        assert!(journals(path).is_empty());
        if ended {
            assert!(nth > 6, "{nth} points");
            return;
        }
    }
}

#[test]
fn stamping_is_killed_anywhere() {
    let images = unstamped();
    stamps_are_killed_anywhere("headers::process_that_gives_stamps", &images, give, [false, true]);
    give(images.path(), &Silent).unwrap();
    stamps_are_killed_anywhere(
        "headers::process_that_removes_stamps",
        &images,
        remove,
        [true, false],
    );
}

#[test]
fn one_header_alone_has_no_journal() {
    let images = unstamped();
    let request = stamp::Request {
        images: vec![Start::at(images.file("a.qcow2"), None)],
        chain: false,
        action: Action::Give { full: false },
    };
    let policy = Policy::libvirt();
    let plan = stamp::plan(&request, &policy).unwrap();
    let folder = std::fs::metadata(images.path()).unwrap().modified().unwrap();
    plan.execute(&policy, &Silent).unwrap();
    assert_eq!(
        std::fs::metadata(images.path()).unwrap().modified().unwrap(),
        folder
    );
    assert_eq!(stamped(images.path())[2], Stamped::Same);
}
