//! The verbs that look at forests.

use super::chain;
use catena_storage::{LocalFile, LockMode, OpenOptions};
use serde_json::json;

#[test]
fn a_forest_is_drawn_from_its_bases_up() {
    let images = chain();
    images.img("create -q -f qcow2 -b monday.qcow2 -F qcow2 second.qcow2");
    images.img("create -q -f qcow2 -u -b gone.qcow2 -F qcow2 orphan.qcow2 1M");
    let drawn = images.catena(&["tree", ".", "--ascii", "--no-index"]);
    assert_eq!(drawn.status, 1, "{drawn:?}");
    let first: Vec<_> = drawn
        .out
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let place = |name: &str| first.iter().position(|line| line.contains(name)).unwrap();
    assert!(place("base.raw") < place("`- monday.qcow2"), "{drawn:?}");
    assert!(place("monday") < place("|- second.qcow2") && place("second") < place("`- tuesday.qcow2"));
    assert!(
        drawn.out.contains("backing image 'gone.qcow2' cannot be reached"),
        "{drawn:?}"
    );
    let told = images
        .catena(&["tree", ".", "--no-index", "--output", "json"])
        .json();
    let of = |name: &str| {
        let all = told["images"].as_array().unwrap();
        all.iter().find(|image| image["path"] == name).unwrap().clone()
    };
    assert_eq!(
        of("monday.qcow2")["overlays"],
        json!(["second.qcow2", "tuesday.qcow2"])
    );
    assert_eq!(of("tuesday.qcow2")["needed"], json!(false));
    // What looks raw and is not named is nothing but a file.
    assert!(!drawn.out.contains("seen.raw") && told["others"] == 1);
    for form in ["dot", "svg"] {
        let picture = images.catena(&["tree", ".", "--no-index", "--output", form]);
        assert!(
            picture.out.contains("tuesday.qcow2") && picture.out.contains("gone.qcow2"),
            "{form}"
        );
    }
}

#[test]
fn children_and_what_is_needed_are_listed() {
    let images = chain();
    let lines = |words: &[&str]| -> Vec<String> {
        let answer = images.catena(words);
        assert_eq!(answer.status, 0, "{answer:?}");
        answer.out.lines().map(str::to_owned).collect()
    };
    assert_eq!(lines(&["children", "base.raw"]), ["monday.qcow2"]);
    assert_eq!(
        lines(&["children", "base.raw", "--all", "--in", "."]),
        ["monday.qcow2", "tuesday.qcow2"]
    );
    let needs = lines(&["deps", "tuesday.qcow2"]);
    assert_eq!(needs[0], "tuesday.qcow2");
    assert!(
        needs[1].ends_with("monday.qcow2") && needs[2].ends_with("base.raw"),
        "{needs:?}"
    );
    std::fs::remove_file(images.path().join("base.raw")).unwrap();
    let broken = images.catena(&["deps", "tuesday.qcow2"]);
    assert_eq!(broken.status, 1);
    assert!(broken.err.contains("base.raw"), "{broken:?}");
}

#[test]
fn an_image_that_others_need_may_not_be_touched() {
    let images = chain();
    let may = |what: &str, name: &str| images.catena(&["why", "--may", what, name]).status;
    for what in ["delete", "move", "write"] {
        assert_eq!(
            (may(what, "monday.qcow2"), may(what, "tuesday.qcow2")),
            (1, 0),
            "{what}"
        );
    }
    let told = images.catena(&["why", "base.raw", "--output", "json"]).json();
    assert_eq!(told["dependents"], json!(["monday.qcow2", "tuesday.qcow2"]));
    assert_eq!(told["delete"]["may"], json!(false));
    let writing = OpenOptions::new().write(true).lock(LockMode::Write);
    let guest = LocalFile::open(images.path().join("tuesday.qcow2"), &writing).unwrap();
    assert_eq!(may("delete", "tuesday.qcow2"), 1);
    drop(guest);
    assert_eq!(may("delete", "tuesday.qcow2"), 0);
}

#[test]
fn many_overlays_are_made_or_none() {
    let images = chain();
    let fork = |words: &[&str]| images.catena(&[&["fork", "tuesday.qcow2", "-F", "qcow2"], words].concat());
    let there = |number: u32| images.path().join(format!("vm-{number:02}.qcow2")).exists();
    let ten = ["-n", "10", "--names", "vm-{number}.qcow2"];
    std::fs::write(images.path().join("vm-07.qcow2"), b"somebody's").unwrap();
    let refused = fork(&ten);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("vm-07.qcow2") && !there(1), "{refused:?}");
    std::fs::remove_file(images.path().join("vm-07.qcow2")).unwrap();
    assert_eq!(fork(&ten).status, 0);
    for number in 1..=10 {
        let name = format!("vm-{number:02}.qcow2");
        images.img(&format!("compare -f qcow2 -F qcow2 tuesday.qcow2 {name}"));
        images.img(&format!("check -q -f qcow2 {name}"));
    }
    // What QEMU makes of the same words, which gives no stamps.
    images.img("create -q -f qcow2 -b tuesday.qcow2 -F qcow2 theirs.qcow2");
    assert_eq!(fork(&["--names", "bare.qcow2", "--no-stamp"]).status, 0);
    let bytes = |name: &str| std::fs::read(images.path().join(name)).unwrap();
    assert!(bytes("bare.qcow2") == bytes("theirs.qcow2"));
    // Again, one of them gone: only that one is made. A written one is not what was asked for.
    std::fs::remove_file(images.path().join("vm-03.qcow2")).unwrap();
    let again = fork(&ten);
    assert_eq!(again.status, 0, "{again:?}");
    assert!(there(3) && again.out.contains("9 are there already"), "{again:?}");
    images.io("qcow2", "vm-05.qcow2", &["write 0 64k"]);
    assert_eq!(fork(&ten).status, 1);
    // Into another folder the base goes by its whole path.
    std::fs::create_dir(images.path().join("guests")).unwrap();
    assert_eq!(fork(&["--in", "guests"]).status, 0);
    images.img("check -q -f qcow2 guests/tuesday-1.qcow2");
    assert_eq!(fork(&["-n", "2", "--names", "same.qcow2"]).status, 1);
}
