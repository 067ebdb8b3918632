//! Whose journals are believed, and what becomes of files that change while a script is cut off.

use crate::lab::{Guest, StoppedAt, journals, listing, resume, shown};
use catena::ops::script::{Direction, FileId, Journal, Script, Step, interrupted};
use catena::ops::{Observer, Silent};
use catena::{ErrorKind, Policy};
use catena_testkit::Folder;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// An image, its copy, and the end of the image.
fn moving(folder: &Folder) -> Script {
    let mut script = Script::new("move", "this");
    let (from, to) = (folder.file("a.raw"), folder.file("b.raw"));
    let file = FileId::of(&from).unwrap();
    script.steps = vec![
        Step::Copy {
            from: from.clone(),
            to: to.clone(),
            file,
            records: None,
        },
        Step::Delete {
            path: from,
            file,
            kept: Some(to),
        },
    ];
    script
}

fn folder() -> Folder {
    let folder = Folder::new();
    std::fs::write(folder.file("a.raw"), vec![1; 100_000]).unwrap();
    folder
}

/// Stops the script when the copy has its name, and before the image goes.
fn left_with_a_copy() -> Folder {
    let folder = folder();
    for nth in 0.. {
        let observer = StoppedAt {
            nth,
            ..StoppedAt::default()
        };
        let stopped = moving(&folder).execute(folder.path(), &Policy::libvirt(), &observer);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
        if !journals(folder.path()).is_empty() {
            break;
        }
    }
    assert!(folder.file("b.raw").exists());
    folder
}

fn write(folder: &Folder, name: &str, byte: u8) {
    folder.patch(name, 5000, &[byte; 10]);
}

#[test]
fn a_copy_is_made_again_when_what_it_was_made_of_was_written_since() {
    let folder = left_with_a_copy();
    write(&folder, "a.raw", 7);
    let expected = shown(&folder.file("a.raw"));
    resume(folder.path(), Direction::Finish).unwrap();
    assert_eq!(listing(folder.path()), ["b.raw"]);
    assert!(shown(&folder.file("b.raw")) == expected);
}

#[test]
fn a_copy_that_was_written_itself_is_kept_and_cannot_be_taken_back() {
    let folder = left_with_a_copy();
    write(&folder, "b.raw", 7);
    let expected = shown(&folder.file("b.raw"));
    let error = resume(folder.path(), Direction::TakeBack).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(shown(&folder.file("b.raw")) == expected);
    resume(folder.path(), Direction::Finish).unwrap();
    assert_eq!(listing(folder.path()), ["b.raw"]);
    assert!(shown(&folder.file("b.raw")) == expected);
}

#[test]
fn where_both_were_written_nothing_is_done_until_one_is_gone() {
    let folder = left_with_a_copy();
    write(&folder, "a.raw", 7);
    write(&folder, "b.raw", 8);
    let kept = [shown(&folder.file("a.raw")), shown(&folder.file("b.raw"))];
    for direction in [Direction::Finish, Direction::TakeBack] {
        let error = resume(folder.path(), direction).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    assert!([shown(&folder.file("a.raw")), shown(&folder.file("b.raw"))] == kept);
    std::fs::remove_file(folder.file("b.raw")).unwrap();
    resume(folder.path(), Direction::Finish).unwrap();
    assert!(shown(&folder.file("b.raw")) == kept[0]);
    assert_eq!(listing(folder.path()), ["b.raw"]);
}

#[test]
fn a_file_that_was_replaced_meanwhile_is_not_deleted() {
    let folder = left_with_a_copy();
    std::fs::rename(folder.file("a.raw"), folder.file("was.raw")).unwrap();
    std::fs::write(folder.file("a.raw"), "new").unwrap();
    let error = resume(folder.path(), Direction::Finish).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
    assert_eq!(std::fs::read(folder.file("a.raw")).unwrap(), b"new");
}

/// Has qemu-io write what was copied, whenever it is asked whether to go on.
struct Intruder<'a> {
    folder: &'a Folder,
    tried: AtomicU32,
}

impl Observer for Intruder<'_> {
    fn progress(&self, _done: u64, _total: u64) {}

    fn cancelled(&self) -> bool {
        if self.folder.file("b.raw").exists() && self.folder.file("a.raw").exists() {
            let mut io = Command::new("qemu-io");
            io.args(["-f", "raw", "-c", "write -P 9 0 512", "a.raw"]);
            let output = io.current_dir(self.folder.path()).output().unwrap();
            assert!(!output.status.success());
            self.tried.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

#[test]
fn nobody_writes_what_was_copied_until_it_is_deleted() {
    let folder = folder();
    let observer = Intruder {
        folder: &folder,
        tried: AtomicU32::new(0),
    };
    let script = moving(&folder);
    script
        .execute(folder.path(), &Policy::libvirt(), &observer)
        .unwrap();
    assert!(observer.tried.into_inner() > 0);
    assert!(shown(&folder.file("b.raw"))[..100_000] == [1; 100_000]);
}

#[test]
fn what_somebody_writes_is_not_copied() {
    let folder = folder();
    let guest = Guest::of(&folder, "raw", "a.raw");
    let error = moving(&folder)
        .execute(folder.path(), &Policy::libvirt(), &Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{}", error.full());
    assert!(error.full().contains("qemu-io"), "{}", error.full());
    assert_eq!(listing(folder.path()), ["a.raw"]);
    drop(guest);
}

#[test]
fn only_one_of_two_scripts_about_the_same_files_goes_on() {
    let folder = left_with_a_copy();
    let again = moving(&folder).execute(folder.path(), &Policy::libvirt(), &Silent);
    let error = again.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.hint().unwrap().contains("catena resume"), "{error:?}");
    assert_eq!(journals(folder.path()).len(), 1);
    let journal = Journal::open(&journals(folder.path())[0]).unwrap();
    let error = moving(&folder)
        .execute(folder.path(), &Policy::libvirt(), &Silent)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{}", error.full());
    assert!(interrupted(&[folder.path()], "move", "this").is_err());
    // What is about other files is not kept from it.
    assert!(interrupted(&[folder.path()], "move", "that").unwrap().is_none());
    let mut other = Script::new("fork", "that");
    other.steps.push(Step::Folder {
        path: folder.file("other"),
        like: None,
    });
    other.execute(folder.path(), &Policy::libvirt(), &Silent).unwrap();
    std::fs::remove_dir(folder.file("other")).unwrap();
    drop(journal);
    assert!(interrupted(&[folder.path()], "move", "that").unwrap().is_none());
    let journal = interrupted(&[folder.path()], "move", "this").unwrap().unwrap();
    journal
        .resume(Direction::Finish, &Policy::libvirt(), &Silent)
        .unwrap();
    assert_eq!(listing(folder.path()), ["b.raw"]);
}

#[test]
fn a_journal_that_others_could_have_written_is_refused() {
    let folder = left_with_a_copy();
    let path = journals(folder.path()).remove(0);
    let refused = |path: &Path| Journal::open(path).unwrap_err().kind();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
    assert_eq!(refused(&path), ErrorKind::Refused);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let other = folder.file(".catena-link.journal");
    std::os::unix::fs::symlink(&path, &other).unwrap();
    assert_eq!(refused(&other), ErrorKind::Refused);
    std::fs::remove_file(&other).unwrap();
    std::fs::hard_link(&path, &other).unwrap();
    assert_eq!(refused(&path), ErrorKind::Refused);
    std::fs::remove_file(&other).unwrap();
    std::fs::create_dir(&other).unwrap();
    assert!(Journal::open(&other).is_err());
    assert!(Journal::open(&path).is_ok());
}

#[test]
fn a_journal_of_another_version_or_with_relative_names_is_refused() {
    let folder = left_with_a_copy();
    let path = journals(folder.path()).remove(0);
    let text = std::fs::read_to_string(&path).unwrap();
    let with = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Journal::open(&path).map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(
        with(&text.replacen("\"version\":1", "\"version\":2", 1)),
        Err(ErrorKind::Unsupported)
    );
    let whole = format!("{}/a.raw", folder.path().display());
    assert_eq!(with(&text.replace(&whole, "a.raw")), Err(ErrorKind::Corrupt));
    assert_eq!(with("nothing of the kind\n"), Err(ErrorKind::Corrupt));
    // What was cut off in the middle was never written.
    assert_eq!(with(&format!("{text}{{\"done\":")), Ok(()));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    // Cut off in its first line, nothing was done.
    assert_eq!(with(text.get(..20).unwrap()), Ok(()));
}
