//! The verbs that move bytes, as a user runs them.
#![cfg(test)]

mod common;

use common::Images;

/// A raw base under two overlays.
fn chain() -> Images {
    let images = Images::new();
    images.img("create -q -f raw base.raw 8M");
    images.io("raw", "base.raw", &["write -P 9 0 1M"]);
    images.img("create -q -f qcow2 -b base.raw -F raw one.qcow2");
    images.io("qcow2", "one.qcow2", &["write -P 1 512k 1M"]);
    images.img("create -q -f qcow2 -b one.qcow2 -F qcow2 two.qcow2");
    images.io("qcow2", "two.qcow2", &["write -P 2 4M 64k"]);
    images
}

#[test]
fn converts_and_compares() {
    let images = chain();
    let dry = images.catena(&["convert", "two.qcow2", "flat.raw", "--to", "raw", "--dry-run"]);
    assert_eq!(
        dry.out,
        "flat.raw: a new raw image of 8388608 bytes with the content of 'two.qcow2'; 1638400 bytes to copy\n"
    );
    assert!(!images.file("flat.raw").exists());
    let done = images.catena(&["convert", "two.qcow2", "flat.raw", "--to", "raw"]);
    assert_eq!((done.status, &*done.err, done.out), (0, "", dry.out));
    images.img("compare -q two.qcow2 flat.raw");
    let same = images.catena(&["compare", "two.qcow2", "flat.raw"]);
    assert_eq!((same.status, &*same.out), (0, "guests see the same\n"));
    let differs = images.catena(&["compare", "one.qcow2", "flat.raw", "--output", "json"]);
    assert_eq!(differs.status, 1);
    assert_eq!(
        differs.json(),
        serde_json::json!({ "same": false, "differs": "content", "offset": 4 << 20 })
    );
    let failed = images.catena(&["compare", "one.qcow2", "missing.raw"]);
    assert_eq!((failed.status, &*failed.out), (2, ""));
    let again = images.catena(&["convert", "two.qcow2", "flat.raw", "--to", "raw"]);
    assert_eq!(again.status, 1);
    assert!(again.err.contains("it exists"), "{again:?}");
}

#[test]
fn blocks_are_copied_as_dd_counts_them() {
    let images = chain();
    let done = images.catena(&[
        "dd",
        "two.qcow2",
        "part.raw",
        "--bs",
        "64k",
        "--skip",
        "7",
        "--count",
        "2",
        "-q",
    ]);
    assert_eq!((done.status, &*done.out, &*done.err), (0, "", ""));
    let bytes = std::fs::read(images.file("part.raw")).unwrap();
    assert!(bytes == [vec![9; 64 << 10], vec![1; 64 << 10]].concat());
}

#[test]
fn commits_into_a_base_unless_others_stand_on_it() {
    let images = chain();
    images.img("convert -O raw two.qcow2 expected.raw");
    images.img("create -q -f qcow2 -b base.raw -F raw other.qcow2");
    let words = ["commit", "two.qcow2", "--base", "base.raw", "--delete"];
    let refused = images.catena(&words);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("'./other.qcow2'"), "{refused:?}");
    std::fs::remove_file(images.file("other.qcow2")).unwrap();
    let done = images.catena(&words);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(!images.file("one.qcow2").exists() && !images.file("two.qcow2").exists());
    images.img("compare -q -f raw -F raw expected.raw base.raw");
}

#[test]
fn measures_what_qemu_img_measures() {
    let images = chain();
    let ours = images
        .catena(&["measure", "two.qcow2", "--output", "json"])
        .json();
    let theirs = images.img("measure -O qcow2 --output=json two.qcow2");
    let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    assert_eq!(ours, theirs);
    let size = images.catena(&["measure", "--size", "1G", "--to", "raw"]);
    assert_eq!(
        size.out,
        "required:        1073741824 (1 GiB)\nfully allocated: 1073741824 (1 GiB)\n"
    );
}

#[test]
fn requests_are_timed() {
    let images = chain();
    let bench = images.catena(&[
        "bench",
        "two.qcow2",
        "-f",
        "qcow2",
        "--count",
        "100",
        "--output",
        "json",
    ]);
    assert_eq!(bench.json()["requests"], 100);
    let write = [
        "bench",
        "base.raw",
        "-f",
        "raw",
        "--count",
        "16",
        "--bytes",
        "64k",
        "--write",
        "--pattern",
        "5",
    ];
    assert_eq!(images.catena(&write).status, 0);
    images.io("raw", "base.raw", &["read -P 5 0 1M"]);
}
