//! `catena diff`: what differs, told in extents; raw copies made by qemu-img are the oracle.
use crate::chain;
use crate::common::Images;
use serde_json::{Value, json};

/// The sectors that differ between two raw files, joined.
fn expected(images: &Images, first: &str, second: &str) -> Vec<(u64, u64)> {
    let first = std::fs::read(images.file(first)).unwrap();
    let second = std::fs::read(images.file(second)).unwrap();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (at, _) in first
        .chunks(512)
        .zip(second.chunks(512))
        .enumerate()
        .filter(|(_, (a, b))| a != b)
    {
        let start = at as u64 * 512;
        match runs.last_mut() {
            Some(run) if run.0 + run.1 == start => run.1 += 512,
            _ => runs.push((start, 512)),
        }
    }
    runs
}

/// The extents of an answer, neighbours of different kinds joined.
fn told(answer: &Value) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in answer["extents"].as_array().unwrap() {
        let (start, length) = (
            extent["start"].as_u64().unwrap(),
            extent["length"].as_u64().unwrap(),
        );
        match runs.last_mut() {
            Some(run) if run.0 + run.1 == start => run.1 += length,
            _ => runs.push((start, length)),
        }
    }
    runs
}

#[test]
fn diff_tells_what_a_layer_changed_of_what_the_guest_sees() {
    let images = chain();
    // What is written again as it was is no difference.
    images.io(
        "qcow2",
        "tuesday.qcow2",
        &["write -P 1 0 64k", "write -P 5 700k 3k"],
    );
    images.img("convert -O raw monday.qcow2 monday.raw");
    images.img("convert -O raw tuesday.qcow2 tuesday.raw");
    let expected = expected(&images, "monday.raw", "tuesday.raw");
    for words in [
        &["diff", "monday.qcow2", "tuesday.qcow2", "--output", "json"][..],
        &["diff", "tuesday.qcow2", "--output", "json"],
        &["diff", "monday.raw", "tuesday.raw", "--output", "json"],
        &["diff", "monday.qcow2", "tuesday.raw", "--output", "json"],
    ] {
        let answer = images.catena(words);
        assert_eq!(answer.status, 1, "{words:?}: {answer:?}");
        let answer = answer.json();
        assert_eq!(told(&answer), expected, "{words:?}");
        assert_eq!(answer["bytes"], expected.iter().map(|run| run.1).sum::<u64>());
        assert_eq!(answer["same"], false);
    }
    let text = images.catena(&["diff", "tuesday.qcow2"]);
    assert!(text.out.contains("zero -> data"), "{text:?}");
    let quiet = images.catena(&["diff", "-q", "tuesday.qcow2"]);
    assert_eq!((quiet.status, quiet.out.as_str()), (1, ""));
    let same = images.catena(&["diff", "tuesday.qcow2", "tuesday.raw"]);
    assert_eq!((same.status, same.out.as_str()), (0, "guests see the same\n"));
    let unknown = images.catena(&["diff", "tuesday.qcow2", "missing.raw"]);
    assert_eq!(unknown.status, 2);
    let alone = images.catena(&["diff", "base.raw", "-f", "raw"]);
    assert_eq!(alone.status, 2);
    assert!(alone.err.contains("stands on no other image"), "{alone:?}");
}

#[test]
fn diff_tells_of_zeros_sizes_and_snapshots() {
    let images = Images::new();
    images.img("create -q -f qcow2 a.qcow2 4M");
    images.io("qcow2", "a.qcow2", &["write -P 7 1M 1M"]);
    images.img("snapshot -c before a.qcow2");
    images.io("qcow2", "a.qcow2", &["write -z 1M 64k", "write -P 8 1984k 64k"]);
    let answer = images.catena(&["diff", "a.qcow2", "--snapshot", "before", "--output", "json"]);
    assert_eq!(
        answer.json()["extents"],
        json!([
            {"start": 1 << 20, "length": 65536, "from": "data", "to": "zero"},
            {"start": 1984 << 10, "length": 65536, "from": "data", "to": "data"},
        ])
    );
    images.img("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 8M");
    let longer = images.catena(&["diff", "b.qcow2", "--output", "json"]);
    assert_eq!(longer.status, 1);
    let longer = longer.json();
    assert_eq!(longer["extents"], json!([]));
    assert_eq!(longer["sizes"], json!([4 << 20, 8 << 20]));
}

#[test]
fn diff_tells_from_maps_alone_what_layers_hold() {
    let images = chain();
    let held = |words: &[&str]| {
        let mut all = vec!["diff", "--allocated", "--output", "json"];
        all.extend(words);
        let answer = images.catena(&all);
        assert_eq!(answer.status, 0, "{answer:?}");
        answer.json()["extents"].clone()
    };
    let of_tuesday = json!([{"start": 3 << 20, "length": 128 << 10, "to": "data"}]);
    assert_eq!(held(&["tuesday.qcow2"]), of_tuesday);
    assert_eq!(held(&["monday.qcow2", "tuesday.qcow2"]), of_tuesday);
    let both = json!([
        {"start": 64 << 10, "length": 64 << 10, "to": "zero"},
        {"start": 1 << 20, "length": 256 << 10, "to": "data"},
        {"start": 3 << 20, "length": 128 << 10, "to": "data"},
    ]);
    assert_eq!(held(&["base.raw", "tuesday.qcow2"]), both);
    let stranger = images.catena(&["diff", "--allocated", "seen.raw", "tuesday.qcow2"]);
    assert_eq!(stranger.status, 2);
    assert!(stranger.err.contains("no layer of this chain"), "{stranger:?}");
}

#[test]
fn diff_tells_which_partitions_the_differences_are_in() {
    let images = Images::new();
    images.img("create -q -f raw base.raw 8M");
    let mut table = vec![0; 512];
    for (index, (start, sectors)) in [(2048_u32, 2048_u32), (8192, 4096)].into_iter().enumerate() {
        let entry = &mut table[446 + 16 * index..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    images.patch("base.raw", 0, &table);
    images.img("create -q -f qcow2 -b base.raw -F raw vm.qcow2");
    // One sector before the first partition, three in it, and two in the second.
    images.io(
        "qcow2",
        "vm.qcow2",
        &["write -P 1 1048064 2k", "write -P 2 5M 1k"],
    );
    let answer = images.catena(&["diff", "vm.qcow2", "--partitions", "--output", "json"]);
    let partitions = &answer.json()["partitions"];
    assert_eq!(partitions["scheme"], "mbr");
    assert_eq!(partitions["outside"], 512);
    assert_eq!(
        partitions["partitions"][0],
        json!({"number": 1, "type": "0x83", "purpose": "Linux", "name": null,
               "start": 1 << 20, "length": 1 << 20, "differs": 1536})
    );
    assert_eq!(partitions["partitions"][1]["differs"], 1024);
    let text = images.catena(&["diff", "vm.qcow2", "--files"]);
    assert!(text.out.contains("outside all of them: 512 B"), "{text:?}");
    let none = images.catena(&["diff", "vm.qcow2", "vm.qcow2", "--partitions"]);
    assert_eq!(none.status, 0);
}
