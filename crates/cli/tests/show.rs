//! `catena show` on chains that qemu-img made.
#![cfg(test)]

mod common;

use common::Images;
use serde_json::json;

/// Three layers with something of everything.
fn chain() -> Images {
    let images = Images::new();
    images.img("create -q -f raw base.raw 64M");
    images.io("raw", "base.raw", &["write -P 1 0 3M"]);
    images.img("create -q -f qcow2 -b base.raw -F raw mid.qcow2");
    images.io("qcow2", "mid.qcow2", &["write -P 2 2M 7M", "write -z 30M 1M"]);
    images.img("snapshot -c before mid.qcow2");
    images.img("bitmap --add mid.qcow2 b0");
    images.img("create -q -f qcow2 -o extended_l2=on,compression_type=zstd -b mid.qcow2 -F qcow2 top.qcow2");
    images.io(
        "qcow2",
        "top.qcow2",
        &["write -P 2 1M 1M", "write -c -P 3 10M 128k"],
    );
    images
}

/// Makes the backing format extension, which QEMU writes first, one that nobody knows.
fn forget_format(images: &Images, image: &str) {
    use std::os::unix::fs::FileExt;
    let path = images.path().join(image);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0x12, 0x34, 0x56, 0x78], 112).unwrap();
}

/// How much a file takes up on its disk is for its file system to say.
fn without_allocation(text: &str) -> String {
    let line = |line: &str| match line
        .strip_suffix(" on disk")
        .and_then(|line| line.rsplit_once(" · "))
    {
        Some((rest, _)) => format!("{rest} · … on disk\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn draws_the_chain_with_what_each_layer_holds() {
    let answer = chain().catena(&["show", "-f", "qcow2", "top.qcow2"]);
    assert_eq!((answer.status, answer.err.as_str()), (0, ""));
    assert_eq!(
        without_allocation(&answer.out),
        "\
64 MiB disk · 3 layers · 9.1 MiB of data

◉  top.qcow2                                ██▌                    1.1 MiB   12%
│  qcow2 (as given) · 64 MiB · … on disk
│  extended l2 · zstd
│
●  mid.qcow2                                ███████████████▍         7 MiB   77%
│  qcow2 (recorded) · 64 MiB · … on disk
│  1 snapshot · 1 bitmap
│
●  base.raw                                 ██▎                      1 MiB   11%
│  raw (recorded) · 64 MiB · … on disk
│
╵  end: the last layer needs no other image
"
    );
}

#[test]
fn says_that_a_format_was_probed_and_draws_in_ascii() {
    let answer = chain().catena(&["show", "--ascii", "top.qcow2"]);
    assert!(answer.out.is_ascii(), "{}", answer.out);
    assert!(
        answer.out.contains("qcow2 (probed: give '-f qcow2' to be sure)"),
        "{}",
        answer.out
    );
}

#[test]
fn a_broken_chain_is_shown_as_far_as_it_goes_with_the_cure() {
    let images = chain();
    forget_format(&images, "top.qcow2");
    let answer = images.catena(&["show", "-f", "qcow2", "top.qcow2"]);
    assert_eq!(answer.status, 1);
    assert!(answer.out.contains("◉  top.qcow2"), "{}", answer.out);
    let (_, end) = answer.out.split_once("✗  mid.qcow2\n").unwrap();
    assert!(
        end.contains("format of backing image 'mid.qcow2' of image 'top.qcow2' was not specified"),
        "{end}"
    );
    assert!(
        end.contains("catena relink top.qcow2 --backing mid.qcow2 --backing-format qcow2"),
        "{end}"
    );
    let json = images.catena(&["show", "--output", "json", "top.qcow2"]).json();
    assert_eq!(json["end"]["kind"], "broken");
    assert_eq!(json["end"]["error"]["kind"], "format_unknown");
    assert_eq!(json["end"]["probed_format"], "qcow2");
    assert_eq!(json["layers"][0]["contributes"]["data"], 1_179_648);
}

#[test]
fn json_has_the_facts() {
    let images = chain();
    let answer = images.catena(&["show", "--output", "json", "top.qcow2"]);
    assert_eq!(answer.status, 0);
    let json = answer.json();
    assert_eq!(json["depth"], 3);
    assert_eq!(json["virtual_size"], 64 << 20);
    assert_eq!(json["end"], json!({"kind": "terminated"}));
    let [top, mid, base] = json["layers"].as_array().unwrap().as_slice() else {
        panic!("{json}");
    };
    assert_eq!(top["consent"], "user_argument");
    assert_eq!(top["features"], json!(["extended l2", "zstd"]));
    assert_eq!(mid["recorded"], json!({"text": "mid.qcow2", "format": "qcow2"}));
    assert_eq!((&mid["snapshots"], &mid["bitmaps"]), (&json!(1), &json!(1)));
    assert_eq!(
        mid["contributes"],
        json!({"data": 7 << 20, "zero": 1 << 20, "corrupt": 0})
    );
    assert_eq!(base["origin"], "recorded");
    // What qemu-img's own map says of the layers.
    let map: serde_json::Value = serde_json::from_str(&images.img("map --output json top.qcow2")).unwrap();
    for (depth, layer) in [top, mid, base].into_iter().enumerate() {
        let extents = map.as_array().unwrap().iter();
        let own = extents.filter(|extent| extent["depth"] == depth && extent["data"] == true);
        let data: u64 = own.map(|extent| extent["length"].as_u64().unwrap()).sum();
        assert_eq!(layer["contributes"]["data"], data, "layer {depth}");
    }
    let disk = std::fs::metadata(images.path().join("mid.qcow2")).unwrap();
    assert_eq!(mid["file_size"], disk.len());
}

#[test]
fn a_missing_data_file_is_said_and_the_rest_is_shown() {
    let images = Images::new();
    images.img("create -q -f qcow2 -o data_file=d.raw,data_file_raw=on top.qcow2 16M");
    std::fs::remove_file(images.path().join("d.raw")).unwrap();
    let answer = images.catena(&["show", "-f", "qcow2", "top.qcow2"]);
    assert!(
        answer.out.contains("data in d.raw (raw) · not open"),
        "{}",
        answer.out
    );
    assert!(answer.out.contains("✖ the data file"), "{}", answer.out);
    assert_eq!(answer.status, 1);
    let answer = images.catena(&["show", "-f", "qcow2", "--ascii", "top.qcow2"]);
    assert!(answer.out.contains("|  x the data file"), "{}", answer.out);
    let answer = images.catena(&["show", "-f", "qcow2", "--output", "json", "top.qcow2"]);
    assert_eq!(
        (answer.status, &answer.json()["end"]["kind"]),
        (1, &json!("terminated"))
    );
}

#[test]
fn a_damaged_mapping_is_an_error_and_a_doubt_is_none() {
    use std::os::unix::fs::FileExt;
    let images = Images::new();
    images.img("create -q -f qcow2 top.qcow2 4M");
    images.io("qcow2", "top.qcow2", &["write -P 1 0 256k"]);
    let path = images.path().join("top.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // The incompatible feature that says that refcounts may be wrong.
    file.write_all_at(&[1], 79).unwrap();
    let answer = images.catena(&["show", "-f", "qcow2", "top.qcow2"]);
    assert!(answer.out.contains("│  ▲ "), "{}", answer.out);
    assert_eq!(answer.status, 0);
    // The second entry of the only L2 table, which follows header, refcounts and L1 table: an unaligned offset.
    file.write_all_at(&[0x80, 0, 0, 0, 0, 5, 2, 0], 0x40008).unwrap();
    let answer = images.catena(&["show", "-f", "qcow2", "top.qcow2"]);
    assert!(
        answer.out.contains("│  ✖ the mapping of 64 KiB is damaged"),
        "{}",
        answer.out
    );
    assert_eq!(answer.status, 1);
}

#[test]
fn an_open_end_says_why() {
    let images = Images::new();
    images.img("create -q -f qcow2 -u -b nbd://h.test/x -F raw top.qcow2 1G");
    let answer = images.catena(&["show", "-f", "qcow2", "top.qcow2"]);
    assert_eq!(answer.status, 0);
    assert!(
        answer
            .out
            .contains("┆  open end: the last layer is not on this host"),
        "{}",
        answer.out
    );
}

#[test]
fn pictures_and_graphs_quote_what_images_name() {
    let images = Images::new();
    images.img("create -q -f raw base\"<&>.raw 1M");
    images.img("create -q -f qcow2 -b base\"<&>.raw -F raw top.qcow2");
    let dot = images.catena(&["show", "--output", "dot", "top.qcow2"]).out;
    assert!(
        dot.contains(r#"l1 [label="base\"<&>.raw\nraw (recorded), 1 MiB"#),
        "{dot}"
    );
    let svg = images.catena(&["show", "--output", "svg", "top.qcow2"]).out;
    assert!(svg.contains(">base&quot;&lt;&amp;&gt;.raw</text>"), "{svg}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let images = chain();
    let script = format!(
        "{} show top.qcow2 | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_catena")
    );
    let said = images.run("bash", &["-c", &script]);
    assert_eq!(said, "0\n");
}

#[test]
fn what_layers_hold_is_counted_when_asked_where_tables_are_large() {
    use std::os::unix::fs::FileExt;
    let images = Images::new();
    images.img("create -q -f qcow2 -o cluster_size=2M vast.qcow2 65T");
    images.io("qcow2", "vast.qcow2", &["write 0 2M"]);
    // One table of 2 MiB for each 512 GiB; that all are the same one makes no difference to how much is read.
    let path = images.path().join("vast.qcow2");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut place = [0; 8];
    file.read_exact_at(&mut place, 40).unwrap();
    let l1 = u64::from_be_bytes(place);
    file.read_exact_at(&mut place, l1).unwrap();
    file.write_all_at(&place.repeat(130), l1).unwrap();
    drop(file);

    let show = ["show", "-f", "qcow2", "vast.qcow2"];
    let answer = images.catena(&show);
    assert_eq!(answer.status, 0, "{}", answer.err);
    let said = "not counted: the layers' tables are larger than 256 MiB;\n--count counts all the same\n";
    assert!(answer.out.contains(said), "{}", answer.out);
    let json = images
        .catena(&[&show, ["--output", "json"].as_slice()].concat())
        .json();
    assert_eq!(json["contributions_error"]["kind"], "too_large");
    assert!(json["data"].is_null() && json["layers"][0]["contributes"].is_null());
    let json = images
        .catena(&[&show, ["--count", "--output", "json"].as_slice()].concat())
        .json();
    assert_eq!(json["data"], 130 * (2 << 20));
}
