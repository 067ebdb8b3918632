//! Moving, renaming, and going on with what was cut off.

use super::{chain, done};
use crate::common::{Answer, Images};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

fn shows_it(images: &Images, image: &str) {
    images.img(&format!("compare -q -f raw -F qcow2 seen.raw {image}"));
}

#[test]
fn a_base_moves_with_the_overlays_and_the_domain_that_name_it() {
    let images = chain();
    std::fs::create_dir(images.file("bases")).unwrap();
    let xml = |place: &str| {
        let whole = images.path().display();
        format!(
            "<domain type='kvm'>\n  <devices>\n    <disk type='file' device='disk'>\n      \
             <source file='{whole}/tuesday.qcow2'/>\n      <target dev='vda'/>\n      \
             <backingStore type='file'><format type='raw'/><source file=\"{whole}/{place}base.raw\"/></backingStore>\n    \
             </disk>\n  </devices>\n</domain>\n"
        )
    };
    std::fs::write(images.file("guest.xml"), xml("")).unwrap();
    let words = "move base.raw bases --domain guest.xml";
    let told = done(&images, &format!("{words} --dry-run"));
    assert!(
        told.out.contains("have '") && told.out.contains("rewrite '"),
        "{told:?}"
    );
    assert!(images.file("base.raw").exists());
    let told = done(&images, words);
    assert!(told.out.contains("bases/base.raw"), "{told:?}");
    assert!(!images.file("base.raw").exists());
    assert_eq!(
        std::fs::read_to_string(images.file("guest.xml")).unwrap(),
        xml("bases/")
    );
    shows_it(&images, "tuesday.qcow2");
    let info = images.img("info --output json monday.qcow2");
    assert!(info.contains("\"bases/base.raw\""), "{info}");
    let again = images.catena(&words.split(' ').collect::<Vec<_>>());
    assert_eq!(again.status, 1);
}

#[test]
fn a_rename_stays_in_its_folder() {
    let images = chain();
    let told = done(&images, "rename monday.qcow2 mon.qcow2 --output json").json();
    let moves = told["moves"][0].as_array().unwrap();
    assert!(moves[1].as_str().unwrap().ends_with("/mon.qcow2"), "{told}");
    assert!(
        told["remarks"][0].as_str().unwrap().contains("base.raw"),
        "{told}"
    );
    shows_it(&images, "tuesday.qcow2");
    let refused = images.catena(&["rename", "mon.qcow2", "../mon.qcow2"]);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("catena move"), "{refused:?}");
}

/// A base that fits on another file system, and an image that does not; `None` where there is only one.
fn runs_out_of_space(images: &Images) -> Option<(tempfile::TempDir, Answer)> {
    let other = tempfile::tempdir_in("/dev/shm");
    let other = other
        .inspect_err(|error| catena_testkit::not_tested(format!("/dev/shm: {error}")))
        .ok()?;
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    if device(other.path()) == device(images.path()) {
        catena_testkit::not_tested("there is only one file system");
        return None;
    }
    images.img("create -q -f raw large.raw 8M");
    // The system says of what is longer than 6 MiB that it is too large.
    let script = format!(
        "trap '' XFSZ; ulimit -f 6144; exec {} move base.raw large.raw {}",
        env!("CARGO_BIN_EXE_catena"),
        other.path().display()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(images.path())
        .output()
        .unwrap();
    Some((other, Answer::of(&output)))
}

#[test]
fn a_move_without_room_loses_nothing_and_goes_on_when_there_is() {
    let images = chain();
    let Some((other, answer)) = runs_out_of_space(&images) else {
        return;
    };
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.err.contains("catena resume --undo"), "{answer:?}");
    assert!(images.file("base.raw").exists() && images.file("large.raw").exists());
    shows_it(&images, "tuesday.qcow2");
    let listed = done(&images, "resume --list --output json").json();
    assert_eq!(
        (&listed[0]["operation"], &listed[0]["undo"]),
        (&json!("move"), &json!(true))
    );
    let told = done(&images, "resume --dry-run");
    assert!(told.out.contains("copy '"), "{told:?}");
    // The same command finds what it had begun.
    let target = other.path().display().to_string();
    assert_eq!(
        images.catena(&["move", "base.raw", "large.raw", &target]).status,
        0
    );
    shows_it(&images, "tuesday.qcow2");
    assert!(other.path().join("base.raw").exists() && !images.file("base.raw").exists());
    assert!(done(&images, "resume --list").out.contains("nothing was cut off"));
}

#[test]
fn a_move_without_room_is_taken_back() {
    let images = chain();
    let Some((other, _)) = runs_out_of_space(&images) else {
        return;
    };
    let told = done(&images, "resume --undo");
    assert!(told.out.contains("is taken back"), "{told:?}");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    shows_it(&images, "tuesday.qcow2");
    assert_eq!(images.catena(&["resume"]).status, 0);
}
