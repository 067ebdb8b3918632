//! The verbs that only ask, beside qemu-img's.

use crate::common::Images;

#[test]
fn compare_tells_same_different_and_unknown_by_its_status() {
    let images = Images::new();
    images.img("create -q -f raw a.raw 1M");
    images.io("raw", "a.raw", &["write -P 7 64k 64k"]);
    images.img("convert -O qcow2 a.raw a.qcow2");
    images.img("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 2M");
    let same = images.catena(&["compare", "a.raw", "a.qcow2"]);
    assert_eq!((same.status, same.out.as_str()), (0, "guests see the same\n"));
    let longer = images.catena(&["compare", "a.raw", "b.qcow2", "--output", "json"]);
    assert_eq!(longer.status, 0, "{longer:?}");
    assert_eq!(longer.json()["sizes"], serde_json::json!([1 << 20, 2 << 20]));
    let strictly = images.catena(&["compare", "--strict", "a.raw", "b.qcow2", "--output", "json"]);
    assert_eq!(strictly.status, 1);
    assert_eq!(strictly.json()["difference"], "size");
    images.io("qcow2", "b.qcow2", &["write -P 8 66048 512"]);
    let different = images.catena(&["compare", "a.raw", "b.qcow2", "--output", "json"]);
    assert_eq!(different.status, 1);
    assert_eq!(different.json()["offset"], 66048);
    let quiet = images.catena(&["compare", "-q", "a.raw", "b.qcow2"]);
    assert_eq!((quiet.status, quiet.out.as_str()), (1, ""));
    let unknown = images.catena(&["compare", "a.raw", "missing.raw"]);
    assert_eq!(unknown.status, 2);
    assert!(unknown.err.contains("missing.raw"), "{unknown:?}");
}

#[test]
fn measure_says_what_qemu_img_says() {
    let images = Images::new();
    images.img("create -q -f qcow2 a.qcow2 64M");
    images.io("qcow2", "a.qcow2", &["write -P 7 1M 200k", "write -P 7 60M 1"]);
    images.img("bitmap --add -g 64k a.qcow2 b");
    for (ours, theirs) in [
        ("a.qcow2", "-O qcow2 a.qcow2"),
        ("a.qcow2 --to raw", "-O raw a.qcow2"),
        (
            "a.qcow2 -o cluster_size=4k",
            "-O qcow2 -o cluster_size=4k a.qcow2",
        ),
        ("--size 20G", "-O qcow2 --size 20G"),
        (
            "--size 1G -o preallocation=full,refcount_bits=1",
            "-O qcow2 -o preallocation=full,refcount_bits=1 --size 1G",
        ),
    ] {
        let words: Vec<_> = ["measure", "--output", "json"]
            .into_iter()
            .chain(ours.split(' '))
            .collect();
        let answer = images.catena(&words);
        assert_eq!(answer.status, 0, "{ours}: {answer:?}");
        let told = images.img(&format!("measure --output json {theirs}"));
        let expected: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(answer.json(), expected, "{ours}");
    }
    let human = images.catena(&["measure", "--size", "64M", "--to", "raw"]);
    assert!(
        human.out.contains("required         64 MiB (67108864 bytes)"),
        "{human:?}"
    );
}
