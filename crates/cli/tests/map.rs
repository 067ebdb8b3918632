//! `catena map` against `qemu-img map`, on images that qemu-img made.
#![cfg(test)]

mod common;

use common::Images;
use serde_json::Value;

/// The fields that qemu-img prints too, of every extent.
fn shared(map: &Value) -> Vec<Vec<Value>> {
    let fields = [
        "start",
        "length",
        "depth",
        "present",
        "zero",
        "data",
        "compressed",
        "offset",
    ];
    let extents = map.as_array().unwrap().iter();
    extents
        .map(|extent| fields.iter().map(|field| extent[*field].clone()).collect())
        .collect()
}

fn same_as_qemu(images: &Images, top: &str) {
    let ours = images.catena(&["map", "--output", "json", "-f", "qcow2", top]);
    assert_eq!((ours.status, ours.err.as_str()), (0, ""));
    let theirs: Value =
        serde_json::from_str(&images.img(&format!("map --output json -f qcow2 {top}"))).unwrap();
    assert_eq!(shared(&ours.json()), shared(&theirs), "{top}");
}

#[test]
fn json_says_what_qemu_img_says() {
    let images = Images::new();
    images.img("create -q -f qcow2 -o cluster_size=4k base.qcow2 3M");
    images.io(
        "qcow2",
        "base.qcow2",
        &[
            "write -P 1 0 100k",
            "write -c -P 2 200k 4k",
            "write -c -P 2 204k 4k",
        ],
    );
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    images.io(
        "qcow2",
        "mid.qcow2",
        &[
            "write -P 3 64k 64k",
            "write -z 1M 64k",
            "write -P 4 1152k 64k",
            "write -z 1152k 64k",
        ],
    );
    images.img("create -q -f qcow2 -o extended_l2=on -b mid.qcow2 -F qcow2 top.qcow2");
    images.io(
        "qcow2",
        "top.qcow2",
        &["write -P 5 70k 6k", "write -z 80k 4k", "write -P 6 2M 64k"],
    );
    for image in ["base.qcow2", "mid.qcow2", "top.qcow2"] {
        same_as_qemu(&images, image);
    }
    images.img("create -q -f qcow2 -o data_file=d.raw,data_file_raw=on data.qcow2 2M");
    images.io("qcow2", "data.qcow2", &["write -P 5 0 2M"]);
    same_as_qemu(&images, "data.qcow2");
}

#[test]
fn what_lies_past_the_end_of_a_shorter_layer_is_the_overlays() {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 3M");
    images.io("qcow2", "base.qcow2", &["write -P 1 0 3M"]);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 2M");
    images.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 5M");
    same_as_qemu(&images, "top.qcow2");
}

#[test]
fn the_table_names_layers_and_files_and_keeps_to_the_range_asked_for() {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 4M");
    images.io("qcow2", "base.qcow2", &["write -P 1 0 1M"]);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    images.io("qcow2", "top.qcow2", &["write -P 2 64k 64k", "write -z 2M 64k"]);
    let answer = images.catena(&["map", "-f", "qcow2", "-s", "32k", "-l", "3M", "top.qcow2"]);
    assert_eq!((answer.status, answer.err.as_str()), (0, ""));
    assert_eq!(
        answer.out,
        "   start     length  layer  kind         offset in file  file
  0x8000     32 KiB      1  data                0x58000  ./base.qcow2
 0x10000     64 KiB      0  data                0x50000  top.qcow2
 0x20000    896 KiB      1  data                0x70000  ./base.qcow2
0x100000      1 MiB      1  unallocated               -  -
0x200000     64 KiB      0  zero                      -  top.qcow2
0x210000    992 KiB      1  unallocated               -  -
"
    );
    assert!(
        images
            .catena(&["map", "top.qcow2"])
            .err
            .contains("give '-f qcow2' to be sure")
    );
}

#[test]
fn the_lengths_of_the_table_add_up() {
    let images = Images::new();
    let size = (20 << 30) + 1536;
    images.img(&format!("create -q -f qcow2 top.qcow2 {size}"));
    images.io("qcow2", "top.qcow2", &["write -P 1 1M 1088k"]);
    let answer = images.catena(&["map", "-f", "qcow2", "top.qcow2"]);
    let lengths = answer.out.lines().skip(1).map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let number: u64 = words.next().unwrap().parse().unwrap();
        number
            << match words.next().unwrap() {
                "B" => 0,
                "KiB" => 10,
                "MiB" => 20,
                unit => panic!("{unit}: {answer:?}"),
            }
    });
    assert_eq!(lengths.sum::<u64>(), size, "{}", answer.out);
    assert!(answer.out.contains("  1088 KiB  "), "{}", answer.out);
    let columns: Vec<_> = answer
        .out
        .lines()
        .map(|line| line.find("  0  "))
        .skip(1)
        .collect();
    assert!(
        columns.iter().all(|column| *column == columns[0]),
        "{}",
        answer.out
    );
}

#[test]
fn a_damaged_entry_is_shown_and_the_status_is_1() {
    use std::os::unix::fs::FileExt;
    let images = Images::new();
    images.img("create -q -f qcow2 top.qcow2 4M");
    images.io("qcow2", "top.qcow2", &["write -P 1 0 256k"]);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(images.path().join("top.qcow2"))
        .unwrap();
    // The second entry of the only L2 table, which follows header, refcounts and L1 table: an unaligned offset.
    file.write_all_at(&[0x80, 0, 0, 0, 0, 5, 2, 0], 0x40008).unwrap();
    let answer = images.catena(&["map", "-f", "qcow2", "top.qcow2"]);
    assert_eq!(answer.status, 1);
    assert!(
        answer.out.contains("0x10000     64 KiB      0  corrupt"),
        "{}",
        answer.out
    );
    assert!(
        answer
            .err
            .ends_with("hint: 'qemu-img check top.qcow2' tells all that is damaged\n"),
        "{}",
        answer.err
    );
    assert!(
        answer.err.starts_with(
            "catena: top.qcow2: the mapping of guest offset 0x10000 is damaged (at offset 0x40008)"
        ),
        "{}",
        answer.err
    );
}

#[test]
fn a_chain_that_breaks_has_no_map() {
    let images = Images::new();
    images.img("create -q -f qcow2 -u -b gone.qcow2 -F qcow2 top.qcow2 1M");
    let answer = images.catena(&["map", "-f", "qcow2", "top.qcow2"]);
    assert_eq!((answer.status, answer.out.as_str()), (1, ""));
    assert!(
        answer
            .err
            .starts_with("catena: Cannot access backing file './gone.qcow2'"),
        "{}",
        answer.err
    );
    assert!(answer.err.contains("\nhint: "), "{}", answer.err);
}
