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
