//! Every verb that changes images, stopped with Ctrl-C and killed, at instants all over its run: what is kept shows what it did, nothing is
//! worse than leaked, and the same command again finishes.

use crate::common::Images;
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Instants of a run at which it is cut off, for each signal.
const INSTANTS: u32 = 4;

/// What is written by the verbs that make a new image.
const NEW: &str = "flat.qcow2";

/// A verb, and what is true of it.
struct Case {
    /// The command.
    words: &'static str,
    /// Images that show their guests the same at every instant, also finished. Those that are gone are none.
    shown: &'static [&'static str],
    /// The image that shows it when the verb has finished, and which is complete as soon as it is there.
    result: &'static str,
}

/// base.qcow2 <- middle.qcow2 <- top.qcow2, of small clusters so that there is much to do, and other.qcow2, which holds half of what base.qcow2 does.
fn images() -> Images {
    let images = Images::new();
    let create = "create -q -f qcow2 -o cluster_size=4k";
    images.img(&format!("{create} base.qcow2 16M"));
    images.io("qcow2", "base.qcow2", &["write -P 1 0 8M"]);
    images.img(&format!("{create} -b base.qcow2 -F qcow2 middle.qcow2"));
    images.io("qcow2", "middle.qcow2", &["write -P 2 2M 4M", "write -z 12M 1M"]);
    images.img(&format!("{create} -b middle.qcow2 -F qcow2 top.qcow2"));
    let scattered: Vec<_> = (0..200)
        .map(|n| format!("write -P 3 {} 5000", n * 70_000))
        .collect();
    let scattered: Vec<_> = scattered.iter().map(String::as_str).collect();
    images.io("qcow2", "top.qcow2", &scattered);
    images.img(&format!("{create} other.qcow2 16M"));
    images.io("qcow2", "other.qcow2", &["write -P 1 0 4M"]);
    images.img("convert -O raw top.qcow2 seen.raw");
    images
}

/// A copy of all images.
fn copy(images: &Images) -> Images {
    let copy = Images::new();
    for entry in std::fs::read_dir(images.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.file(entry.file_name().to_str().unwrap())).unwrap();
    }
    copy
}

/// Runs a command and has it stopped after a while; whether it had finished.
fn cut_off(images: &Images, words: &str, signal: Signal, after: Duration) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_catena"))
        .current_dir(images.path())
        .args(words.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    // It is not waited for yet, so its number is its own also when it has ended.
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap().success()
}

fn there<'a>(images: &Images, names: &[&'a str]) -> Vec<&'a str> {
    let names = names.iter().copied();
    names.filter(|name| images.file(name).exists()).collect()
}

/// Whether an image shows its guest what it did, as far as it is that long.
fn shows_it(images: &Images, image: &str) {
    images.img(&format!("compare -q -f raw -F qcow2 seen.raw {image}"));
}

/// Whether nothing is wrong with the images but leaks, or not even that.
fn is_sound(images: &Images, leaks: bool, when: &str) {
    for name in there(images, &["base.qcow2", "middle.qcow2", "top.qcow2", NEW]) {
        let mut check = Command::new("qemu-img");
        check.args(["check", "-q", name]).current_dir(images.path());
        let status = check.output().unwrap().status.code();
        assert!(
            status == Some(0) || leaks && status == Some(3),
            "{name} {when}: {status:?}"
        );
    }
}

/// Cuts a verb off at instants all over its run.
fn is_cut_off_anywhere(case: &Case) {
    let images = images();
    prepare(&images, case);
    let finished = copy(&images);
    let begun = Instant::now();
    let told = finished.catena(&case.words.split(' ').collect::<Vec<_>>());
    let took = begun.elapsed();
    assert_eq!(told.status, 0, "{}: {told:?}", case.words);
    shows_it(&finished, case.result);
    for (signal, leaks) in [(Signal::INT, false), (Signal::KILL, true)] {
        for instant in 0..INSTANTS {
            let after = took * (2 * instant + 1) / (2 * INSTANTS);
            let when = format!("{signal:?} {after:?} of {took:?} after '{}'", case.words);
            let images = copy(&images);
            let finished = cut_off(&images, case.words, signal, after);
            // What a repair is there for may be there until it has finished.
            is_sound(&images, leaks || case.words.starts_with("check"), &when);
            for image in there(&images, case.shown) {
                shows_it(&images, image);
            }
            // A new image has its name when it is complete; it is not written over then.
            let complete = case.result == NEW && images.file(NEW).exists();
            if !finished && !complete {
                let again = images.catena(&case.words.split(' ').collect::<Vec<_>>());
                assert_eq!(again.status, 0, "again {when}: {again:?}");
            }
            shows_it(&images, case.result);
            is_sound(&images, leaks, &when);
        }
    }
}

/// Makes what is to be repaired.
fn prepare(images: &Images, case: &Case) {
    if case.words.starts_with("check") {
        // A thousand clusters behind the last one that have a refcount. The refcount block is the third cluster.
        let clusters = std::fs::metadata(images.file("top.qcow2")).unwrap().len() / 4096;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(images.file("top.qcow2"))
            .unwrap();
        let leaks = (2048 - clusters).min(1000);
        file.set_len((clusters + leaks) * 4096).unwrap();
        let counts = [0, 1].repeat(usize::try_from(leaks).unwrap());
        images.patch("top.qcow2", 2 * 4096 + clusters * 2, &counts);
    }
}

#[test]
fn commit_is_cut_off_anywhere() {
    is_cut_off_anywhere(&Case {
        words: "commit -q top.qcow2 --base base.qcow2",
        shown: &["top.qcow2"],
        result: "top.qcow2",
    });
}

#[test]
fn a_commit_that_deletes_is_cut_off_anywhere() {
    is_cut_off_anywhere(&Case {
        words: "commit -q top.qcow2 --base base.qcow2 --delete",
        shown: &["top.qcow2"],
        result: "base.qcow2",
    });
}

#[test]
fn rebase_and_stream_are_cut_off_anywhere() {
    for words in [
        "rebase -q top.qcow2 -b other.qcow2 -F qcow2",
        "stream -q top.qcow2 --base base.qcow2",
        "flatten -q top.qcow2",
    ] {
        is_cut_off_anywhere(&Case {
            words,
            shown: &["top.qcow2"],
            result: "top.qcow2",
        });
    }
}

#[test]
fn convert_and_flatten_are_cut_off_anywhere() {
    for words in [
        "convert -q top.qcow2 flat.qcow2 -o cluster_size=4k",
        "flatten -q top.qcow2 -o flat.qcow2",
    ] {
        is_cut_off_anywhere(&Case {
            words,
            shown: &["top.qcow2"],
            result: NEW,
        });
    }
}

#[test]
fn resize_amend_and_check_are_cut_off_anywhere() {
    for words in [
        "resize -q top.qcow2 32M --preallocation full",
        "amend -q top.qcow2 -o refcount_bits=32",
        "check -q top.qcow2 -r all",
    ] {
        is_cut_off_anywhere(&Case {
            words,
            shown: &["top.qcow2"],
            result: "top.qcow2",
        });
    }
}

/// The files in a folder, but for journals.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_journal = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "journal");
    paths.filter(|path| path.is_file() && !is_journal(path)).collect()
}

#[test]
fn an_export_is_killed_anywhere() {
    let images = images();
    let words = "export -q top.qcow2 -o full.tar";
    let begun = Instant::now();
    assert_eq!(images.catena(&words.split(' ').collect::<Vec<_>>()).status, 0);
    let took = begun.elapsed();
    let whole = std::fs::read(images.file("full.tar")).unwrap();
    for instant in 0..2 * INSTANTS {
        std::fs::remove_file(images.file("full.tar")).unwrap();
        let after = took * (2 * instant + 1) / (4 * INSTANTS);
        let finished = cut_off(&images, words, Signal::KILL, after);
        if images.file("full.tar.catena-part").exists() {
            let found = images.catena(&["gc", "."]);
            assert!(found.out.contains("full.tar.catena-part"), "{found:?}");
        }
        if !finished && !images.file("full.tar").exists() {
            let again = images.catena(&words.split(' ').collect::<Vec<_>>());
            assert_eq!(again.status, 0, "again {after:?} of {took:?}: {again:?}");
        }
        assert!(
            std::fs::read(images.file("full.tar")).unwrap() == whole,
            "{after:?}"
        );
        assert!(!images.file("full.tar.catena-part").exists(), "{after:?}");
        shows_it(&images, "top.qcow2");
    }
}

#[test]
fn an_import_is_killed_anywhere() {
    let images = images();
    assert_eq!(
        images
            .catena(&["export", "-q", "top.qcow2", "-o", "full.tar"])
            .status,
        0
    );
    let words = "import -q full.tar -o restored";
    let begun = Instant::now();
    assert_eq!(images.catena(&words.split(' ').collect::<Vec<_>>()).status, 0);
    let took = begun.elapsed();
    images.run("mv", &["restored", "whole"]);
    let is_whole = |when: &str| {
        for file in files(&images.file("restored")) {
            let whole = images.file("whole").join(file.file_name().unwrap());
            let (file, whole) = (std::fs::read(file).unwrap(), std::fs::read(whole).unwrap());
            assert!(file == whole, "{when}");
        }
        files(&images.file("restored")).len() == files(&images.file("whole")).len()
    };
    for instant in 0..2 * INSTANTS {
        // The last ones are where files get their names.
        let after = took * (2 * instant + 1) / (4 * INSTANTS);
        let when = format!("{after:?} of {took:?}");
        let finished = cut_off(&images, words, Signal::KILL, after);
        let left = std::fs::read_dir(images.file("restored")).map_or(0, Iterator::count);
        if !finished && (!is_whole(&when) || left > files(&images.file("restored")).len()) {
            let again = images.catena(&words.split(' ').collect::<Vec<_>>());
            assert_eq!(again.status, 0, "again {when}: {again:?}");
        }
        assert!(is_whole(&when), "{when}");
        // Nothing else is there, what was cut off included.
        assert_eq!(
            std::fs::read_dir(images.file("restored")).unwrap().count(),
            3,
            "{when}"
        );
        shows_it(&images, "restored/top.qcow2");
        std::fs::remove_dir_all(images.file("restored")).unwrap();
    }
}
