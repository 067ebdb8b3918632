//! Overlays that are made together, killed at every point: all of them are there in the end, or none, and what somebody wrote meanwhile stays.

use crate::lab::{self, StoppedAt, Task, copy, journals, killed, listing, resume, shown};
use catena::ops::create::Qcow2Options;
use catena::ops::overlays::{self, Overlay};
use catena::ops::script::{Direction, interrupted};
use catena::ops::{Observer, Silent, fork};
use catena::{Error, ErrorKind, Format, Policy};
use catena_testkit::Folder;
use std::path::Path;

/// base.qcow2 <- top.qcow2, a raw disk, and a text that names them.
fn images() -> Folder {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 base.qcow2 256k");
    folder.io("qcow2", "base.qcow2", &["write -P 1 0 128k"]);
    folder.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    folder.io("qcow2", "top.qcow2", &["write -P 2 64k 64k"]);
    std::fs::write(folder.file("disk.raw"), vec![3; 128 << 10]).unwrap();
    std::fs::write(folder.file("guest.xml"), "before").unwrap();
    folder
}

fn forked(folder: &Path) -> fork::Request {
    fork::Request {
        names: (1..=3).map(|n| folder.join(format!("vm-{n}.qcow2"))).collect(),
        size: None,
        options: Qcow2Options {
            backing: Some(("top.qcow2".to_owned(), Format::Qcow2)),
            ..Qcow2Options::default()
        },
    }
}

/// The command, which finds what it had begun.
fn fork(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let (request, policy) = (forked(folder), Policy::libvirt());
    match interrupted(&[folder], "fork", &fork::words(&request))? {
        Some(journal) => journal.resume(Direction::Finish, &policy, observer),
        None => fork::plan(&request, &policy)?.execute(&policy, observer),
    }
}

/// The same of a snapshot of both disks, and then a text that names it.
fn snapshot(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let policy = Policy::libvirt();
    if let Some(journal) = interrupted(&[folder], overlays::OPERATION, "this")? {
        return journal.resume(Direction::Finish, &policy, observer);
    }
    let wanted = [
        Overlay::beside("top.new", folder.join("top.qcow2"), Format::Qcow2)?,
        Overlay::beside("disk.new", folder.join("disk.raw"), Format::Raw)?,
    ];
    let mut plan = overlays::plan(&wanted, (folder, "this"), &policy)?;
    if std::fs::read_to_string(folder.join("guest.xml")).unwrap() == "before" {
        plan.replace(&folder.join("guest.xml"), "before", "after");
    }
    plan.execute(&policy, observer)
}

#[test]
fn process_that_forks() {
    lab::obey("overlays::process_that_forks", fork);
}

#[test]
fn process_that_takes_a_snapshot() {
    lab::obey("overlays::process_that_takes_a_snapshot", snapshot);
}

/// The overlays, and what each shows.
fn overlays_of(images: &Folder, made: &[(&'static str, &str)]) -> Vec<(&'static str, Vec<u8>)> {
    let view = |(name, base): &(&'static str, &str)| (*name, shown(&images.file(base)));
    made.iter().map(view).collect()
}

fn is_killed_anywhere(
    process: &str,
    perform: lab::Operation,
    made: &[(&'static str, &str)],
    text: [&str; 2],
    points: u32,
) {
    let images = images();
    let expected = overlays_of(&images, made);
    let finished = copy(&images);
    perform(finished.path(), &Silent).unwrap();
    let finished = listing(finished.path());
    let mut taken_back = 0;
    for nth in 0.. {
        let when = format!("killed at {nth}");
        let folder = copy(&images);
        let path = folder.path();
        let before = listing(path);
        let ended = killed(process, path, Task::Perform, nth);
        let is_whole = |when: &str| {
            for (name, view) in { expected.iter() }.filter(|(name, _)| path.join(name).exists()) {
                assert!(shown(&path.join(name)) == *view, "{name} {when}");
                folder.img(&format!("check -q {name}"));
            }
            let said = std::fs::read_to_string(path.join("guest.xml")).unwrap();
            assert!(text.contains(&said.as_str()), "{when}");
            // What the text names is there.
            let named = { expected.iter() }.all(|(name, _)| path.join(name).exists());
            assert!(said == "before" || named, "{when}");
        };
        is_whole(&when);
        if !ended && nth % 3 == 1 {
            killed(process, path, Task::TakeBack, nth % 7);
            is_whole(&when);
            resume(path, Direction::TakeBack).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
            assert_eq!(listing(path), before, "{when}");
            assert_eq!(std::fs::read_to_string(path.join("guest.xml")).unwrap(), "before");
            taken_back += 1;
        }
        if nth % 3 == 0 {
            resume(path, Direction::Finish).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        }
        killed(process, path, Task::Perform, nth % 5);
        is_whole(&when);
        perform(path, &Silent).unwrap_or_else(|error| panic!("{when}: {}", error.full()));
        is_whole(&when);
        assert_eq!(listing(path), finished, "{when}");
        if ended {
            assert!(
                nth > points && taken_back > 3,
                "{nth} points, {taken_back} taken back"
            );
            return;
        }
    }
}

#[test]
fn a_fork_is_killed_anywhere() {
    let made = ["vm-1.qcow2", "vm-2.qcow2", "vm-3.qcow2"].map(|name| (name, "top.qcow2"));
    is_killed_anywhere("overlays::process_that_forks", fork, &made, ["before"; 2], 8);
}

#[test]
fn a_snapshot_of_several_disks_is_killed_anywhere() {
    let made = [("top.new", "top.qcow2"), ("disk.new", "disk.raw")];
    is_killed_anywhere(
        "overlays::process_that_takes_a_snapshot",
        snapshot,
        &made,
        ["before", "after"],
        9,
    );
}

/// Kills a fork when some of the overlays have their names.
fn cut_off_among_names() -> Folder {
    let images = images();
    let cut_off = |nth| {
        let folder = copy(&images);
        assert!(!killed(
            "overlays::process_that_forks",
            folder.path(),
            Task::Perform,
            nth
        ));
        let some = folder.file("vm-2.qcow2").exists() && !folder.file("vm-3.qcow2").exists();
        some.then_some(folder)
    };
    (0..).find_map(cut_off).unwrap()
}

#[test]
fn what_a_guest_has_written_is_not_taken_back() {
    let folder = cut_off_among_names();
    folder.io("qcow2", "vm-2.qcow2", &["write -P 9 0 4k"]);
    let written = shown(&folder.file("vm-2.qcow2"));
    let refused = resume(folder.path(), Direction::TakeBack).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{}", refused.full());
    assert!(folder.file("vm-1.qcow2").exists());
    resume(folder.path(), Direction::Finish).unwrap();
    assert!(shown(&folder.file("vm-2.qcow2")) == written);
    assert!(folder.file("vm-3.qcow2").exists() && journals(folder.path()).is_empty());
}

#[test]
fn what_somebody_else_gave_a_name_is_not_taken_for_an_overlay() {
    let folder = cut_off_among_names();
    std::fs::copy(folder.file("vm-1.qcow2"), folder.file("vm-3.qcow2")).unwrap();
    let refused = resume(folder.path(), Direction::Finish).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{}", refused.full());
    resume(folder.path(), Direction::TakeBack).unwrap();
    assert!(folder.file("vm-3.qcow2").exists() && !folder.file("vm-1.qcow2").exists());
    assert!(journals(folder.path()).is_empty());
}

#[test]
fn a_base_that_was_written_since_stops_it_and_it_is_taken_back() {
    let folder = cut_off_among_names();
    folder.io("qcow2", "top.qcow2", &["write -P 9 0 4k"]);
    let refused = resume(folder.path(), Direction::Finish).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BaseChanged, "{}", refused.full());
    assert!(refused.hint().unwrap().contains("--undo"), "{}", refused.full());
    resume(folder.path(), Direction::TakeBack).unwrap();
    assert!(!folder.file("vm-1.qcow2").exists());
    fork(folder.path(), &Silent).unwrap();
    assert!(shown(&folder.file("vm-1.qcow2")) == shown(&folder.file("top.qcow2")));
}

#[test]
fn what_is_stopped_leaves_none() {
    let images = images();
    for (perform, points) in [(fork as lab::Operation, 8), (snapshot, 9)] {
        for nth in 0.. {
            let folder = copy(&images);
            let before = listing(folder.path());
            let observer = StoppedAt {
                nth,
                ..StoppedAt::default()
            };
            match perform(folder.path(), &observer) {
                Ok(()) => {
                    assert!(nth > points, "{nth}");
                    break;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled, "{nth}: {}", error.full()),
            }
            let left = listing(folder.path());
            // When all is done but the journal's end, it stays done.
            assert!(
                left == before || !journals(folder.path()).is_empty(),
                "{nth}: {left:?}"
            );
        }
    }
}
