//! `catena check --chain`: each layer by itself, and what they amount to.

use crate::common::Images;
use crate::{chain, done};

/// Gives a refcount to a cluster behind the last one, of which nobody knows.
fn leak(images: &Images, image: &str) {
    let clusters = std::fs::metadata(images.file(image))
        .unwrap()
        .len()
        .div_ceil(65536);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(images.file(image))
        .unwrap();
    file.set_len((clusters + 1) * 65536).unwrap();
    images.patch(image, 2 * 65536 + clusters * 2, &[0, 1]);
}

#[test]
fn each_layer_of_a_chain_is_checked_and_the_worst_is_the_status() {
    let images = chain();
    let clean = done(&images, "check --chain tuesday.qcow2");
    assert!(clean.out.contains("   1  "), "{clean:?}");
    assert!(
        clean.out.contains("raw images have nothing to check"),
        "{clean:?}"
    );
    assert!(clean.out.contains("3 layers: nothing is wrong"), "{clean:?}");

    leak(&images, "monday.qcow2");
    leak(&images, "tuesday.qcow2");
    let told = images.catena(&["check", "--chain", "tuesday.qcow2"]);
    assert_eq!(told.status, 3, "{told:?}");
    assert!(told.out.contains("3 layers: 2 leaked clusters"), "{told:?}");
    assert!(
        told.err
            .contains("catena check --chain --repair leaks tuesday.qcow2"),
        "{told:?}"
    );
    let json = images.catena(&["check", "--chain", "tuesday.qcow2", "--output", "json"]);
    assert_eq!(json.status, 3);
    let json = json.json();
    assert_eq!(json["leaks"], 2);
    assert_eq!(json["layers"][1]["report"]["leaks"], 1);
    assert!(json["layers"][2]["report"].is_null());

    done(&images, "check --chain tuesday.qcow2 -r leaks");
    for image in ["monday.qcow2", "tuesday.qcow2"] {
        images.img(&format!("check -q {image}"));
    }
    images.img("compare -q seen.raw tuesday.qcow2");
    assert_eq!(
        images
            .catena(&["check", "--chain", "base.raw", "-f", "raw"])
            .status,
        63
    );
}

#[test]
fn a_layer_on_which_others_stand_is_not_mended_and_the_others_are() {
    let images = chain();
    leak(&images, "tuesday.qcow2");
    // A refcount of 0 of a cluster in use.
    images.patch("monday.qcow2", 2 * 65536 + 5 * 2, &[0, 0]);
    images.img("create -q -u -f qcow2 -b monday.qcow2 -F qcow2 other.qcow2 4M");
    let refused = images.catena(&["check", "--chain", "tuesday.qcow2", "-r", "all"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("other.qcow2"), "{refused:?}");
    images.img("check -q tuesday.qcow2");
    done(&images, "check --chain tuesday.qcow2 -r all --force");
    images.img("check -q monday.qcow2");
    images.img("compare -q seen.raw tuesday.qcow2");
}

#[test]
fn a_chain_that_breaks_is_checked_as_far_as_it_goes() {
    let images = chain();
    std::fs::remove_file(images.file("base.raw")).unwrap();
    let told = images.catena(&["check", "--chain", "tuesday.qcow2"]);
    assert_eq!(told.status, 1, "{told:?}");
    assert!(told.out.contains("2 layers: nothing is wrong"), "{told:?}");
    assert!(told.err.contains("base.raw"), "{told:?}");
}
