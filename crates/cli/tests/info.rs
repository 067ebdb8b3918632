//! `catena info` against `qemu-img info`, on images that qemu-img made.
#![cfg(test)]

mod common;

use common::Images;
use serde_json::{Value, json};

/// What qemu-img says of an image, and what we say.
fn both(images: &Images, image: &str) -> (Value, Value) {
    let theirs = serde_json::from_str(&images.img(&format!("info --output json {image}"))).unwrap();
    let ours = images.catena(&["info", "--output", "json", image]);
    assert_eq!((ours.status, ours.err.as_str()), (0, ""));
    (theirs, ours.json())
}

#[test]
fn qcow2_says_what_qemu_img_says() {
    let images = Images::new();
    images.img("create -q -f raw base.raw 8M");
    images.img("create -q -f qcow2 -o extended_l2=on,compression_type=zstd,refcount_bits=8,cluster_size=128k,lazy_refcounts=on -b base.raw -F raw top.qcow2 9M");
    images.io("qcow2", "top.qcow2", &["write -P 1 0 1M"]);
    images.img("snapshot -c before top.qcow2");
    images.img("snapshot -c after top.qcow2");
    images.img("bitmap --add -g 32k top.qcow2 b0");
    let (theirs, ours) = both(&images, "top.qcow2");
    let specific = &theirs["format-specific"]["data"];
    assert_eq!(ours["format"], theirs["format"]);
    assert_eq!(ours["virtual_size"], theirs["virtual-size"]);
    assert_eq!(ours["cluster_size"], theirs["cluster-size"]);
    assert_eq!(ours["allocated"], theirs["actual-size"]);
    assert_eq!(ours["backing"]["text"], theirs["backing-filename"]);
    assert_eq!(ours["backing"]["format"], theirs["backing-filename-format"]);
    let header = &ours["qcow2"];
    assert_eq!(header["compat"], specific["compat"]);
    assert_eq!(header["compression"], specific["compression-type"]);
    assert_eq!(header["refcount_bits"], specific["refcount-bits"]);
    assert_eq!(
        header["compatible"],
        json!([{"bit": 0, "name": "lazy refcounts", "known": true}])
    );
    let snapshots: Vec<_> = header["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|own| [&own["id"], &own["name"], &own["date"]])
        .collect();
    let expected: Vec<_> = theirs["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|own| [&own["id"], &own["name"], &own["date-sec"]])
        .collect();
    assert_eq!(snapshots, expected);
    assert_eq!(
        header["bitmaps"],
        json!([{"name": "b0", "granularity": 32768, "auto": true, "in_use": false}])
    );
    assert_eq!(header["errors"], json!([]));
}

#[test]
fn nothing_that_the_image_names_is_opened() {
    let images = Images::new();
    images.img("create -q -f qcow2 -u -b /etc/passwd -F raw stranger.qcow2 1M");
    images.img("create -q -f qcow2 -o data_file=d.raw data.qcow2 1M");
    for (image, named) in [("stranger.qcow2", "passwd"), ("data.qcow2", "d.raw")] {
        let json = images.catena(&["info", "--output", "json", image]).json();
        let text = json["backing"]["text"]
            .as_str()
            .or(json["data_file"]["text"].as_str());
        assert!(text.unwrap().ends_with(named), "{json}");
    }
    // A name that cannot be opened without waiting for ever: a pipe.
    images.run("mkfifo", &["pipe"]);
    images.img("create -q -f qcow2 -u -b pipe -F raw waits.qcow2 1M");
    assert_eq!(images.catena(&["info", "waits.qcow2"]).status, 0);
}

#[test]
fn other_formats_tell_what_they_have() {
    let images = Images::new();
    for (format, word) in [
        ("vmdk", "vmdk"),
        ("vpc", "vpc"),
        ("vhdx", "vhdx"),
        ("vdi", "vdi"),
        ("qed", "qed"),
        ("raw", "raw"),
    ] {
        let name = format!("image.{format}");
        images.img(&format!("create -q -f {format} {name} 8M"));
        let answer = images.catena(&["info", "-f", format, &name]);
        assert_eq!((answer.status, answer.err.as_str()), (0, ""));
        assert!(
            answer.out.contains(&format!("  format          {word}")),
            "{}",
            answer.out
        );
        assert!(answer.out.contains("  virtual size    8"), "{}", answer.out);
    }
}

#[test]
fn text_shows_unknown_extensions_and_bits() {
    use std::os::unix::fs::FileExt;
    let images = Images::new();
    images.img("create -q -f qcow2 -b . -u -F raw top.qcow2 1M");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(images.path().join("top.qcow2"))
        .unwrap();
    // The backing format extension becomes one that nobody knows, and an autoclear bit that nobody knows is set.
    file.write_all_at(&[0x12, 0x34, 0x56, 0x78], 112).unwrap();
    file.write_all_at(&[0x80], 88).unwrap();
    let answer = images.catena(&["info", "top.qcow2"]);
    assert_eq!(answer.status, 0);
    assert!(
        answer
            .out
            .contains("  0x12345678  unknown         3 bytes: 726177\n"),
        "{}",
        answer.out
    );
    assert!(
        answer
            .out
            .contains("  autoclear       not named (bit 63, unknown here)\n"),
        "{}",
        answer.out
    );
    assert!(
        answer.out.contains("  format          not recorded\n"),
        "{}",
        answer.out
    );
}

#[test]
fn an_image_that_cannot_be_read_is_an_error_with_a_hint() {
    let images = Images::new();
    std::fs::write(images.path().join("not.qcow2"), [0; 4096]).unwrap();
    let answer = images.catena(&["info", "-f", "qcow2", "not.qcow2"]);
    assert_eq!((answer.status, answer.out.as_str()), (1, ""));
    assert!(answer.err.starts_with("catena: not.qcow2: "), "{}", answer.err);
    assert!(
        answer
            .err
            .contains("hint: you gave the format qcow2, but it looks raw"),
        "{}",
        answer.err
    );
}
