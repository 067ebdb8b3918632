//! `catena hash` against the raw image that qemu-img makes.
#![cfg(test)]

mod common;

use common::Images;

fn chain() -> Images {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 37M");
    images.io(
        "qcow2",
        "base.qcow2",
        &["write -P 1 0 3M", "write -c -P 2 20M 64k"],
    );
    images.img("snapshot -c before base.qcow2");
    images.io("qcow2", "base.qcow2", &["write -P 7 1M 1M"]);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 40M");
    images.io(
        "qcow2",
        "top.qcow2",
        &["write -P 3 2M 100k", "write -z 20M 4k", "write -P 9 39M 1M"],
    );
    images
}

/// What sha256sum says of the raw image that qemu-img makes.
fn expected(images: &Images, convert: &str) -> String {
    images.img(&format!("convert -O raw {convert} expected.raw"));
    let line = images.run("sha256sum", &["expected.raw"]);
    format!("sha256:{}\n", line.split_whitespace().next().unwrap())
}

#[test]
fn the_digest_is_that_of_the_raw_image() {
    let images = chain();
    let sha256 = |args: &[&str]| {
        let answer = images.catena(&[&["hash", "--algorithm", "sha256", "-f", "qcow2"], args].concat());
        assert_eq!((answer.status, answer.err.as_str()), (0, ""));
        answer.out
    };
    assert_eq!(sha256(&["top.qcow2"]), expected(&images, "top.qcow2"));
    let base = expected(&images, "base.qcow2");
    assert_eq!(sha256(&["base.qcow2"]), base);
    assert_eq!(sha256(&["--layer", "1", "top.qcow2"]), base);
    assert_eq!(
        sha256(&["--snapshot", "before", "base.qcow2"]),
        expected(&images, "-l snapshot.name=before base.qcow2")
    );
    let both = images.catena(&["hash", "--algorithm", "blake3,sha256", "-f", "qcow2", "top.qcow2"]);
    assert_eq!(both.out.lines().count(), 2);
    assert!(both.out.starts_with("blake3:"), "{}", both.out);
}

#[test]
fn the_chain_makes_no_difference() {
    let images = chain();
    let digest = |image: &str| images.catena(&["hash", image]).out;
    let whole = digest("top.qcow2");
    assert_eq!(whole.len(), "blake3:".len() + 64 + 1);
    images.img("convert -c -O qcow2 top.qcow2 flat.qcow2");
    images.img("convert -O raw top.qcow2 flat.raw");
    assert_eq!(digest("flat.qcow2"), whole);
    assert_eq!(digest("flat.raw"), whole);
}

#[test]
fn json_tells_how_much_was_read() {
    let json = chain().catena(&["hash", "--output", "json", "top.qcow2"]).json();
    assert_eq!(json["size"], 40 << 20);
    assert!(json["read"].as_u64().unwrap() < 8 << 20, "{json}");
    assert_eq!(json["sha256"], serde_json::Value::Null);
}

#[test]
fn a_layer_or_snapshot_that_is_not_there_is_an_error() {
    let images = chain();
    let answer = images.catena(&["hash", "-f", "qcow2", "--layer", "2", "top.qcow2"]);
    assert_eq!(
        (answer.status, answer.err.as_str()),
        (
            1,
            "catena: there is no layer 2\nhint: the layers are 0 to 1, 0 being the active one\n"
        )
    );
    let answer = images.catena(&["hash", "-f", "qcow2", "--snapshot", "gone", "top.qcow2"]);
    assert_eq!(answer.status, 1);
    assert!(
        answer
            .err
            .contains("there is no snapshot 'gone'\nhint: the image has no snapshots"),
        "{}",
        answer.err
    );
    for name in ["1st", "2nd", "3rd", "4", "5", "6", "7", "8", "9th"] {
        images.run(
            "qemu-img",
            &["snapshot", "-c", &format!("{name}\u{1b}[31m"), "top.qcow2"],
        );
    }
    let answer = images.catena(&["hash", "-f", "qcow2", "--snapshot", "gone", "top.qcow2"]);
    assert!(
        answer
            .err
            .contains("the snapshots are '1st\u{fffd}[31m' (id 1), '2nd"),
        "{}",
        answer.err
    );
    assert!(answer.err.ends_with("(id 8) and 1 more\n"), "{}", answer.err);
}

#[test]
fn an_encrypted_layer_is_an_error_also_where_nothing_is_allocated() {
    let images = Images::new();
    std::fs::write(images.path().join("PASSPHRASE"), "x").unwrap();
    let create = |options: &str| images.img(&format!("create -q --object secret,id=s,data=x {options}"));
    let luks = "-f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    images.img("create -q -f qcow2 base.qcow2 1M");
    images.io("qcow2", "base.qcow2", &["write -P 1 0 64k"]);
    create(&format!("{luks} -b base.qcow2 -F qcow2 mid,1.qcow2"));
    images.img("create -q -f qcow2 -u -b mid,1.qcow2 -F qcow2 top.qcow2 1M");
    create("-f luks -o key-secret=s,iter-time=10 disk.luks 1M");
    let refused = |args: &[&str], name: &str| {
        let answer = images.catena(&[&["hash"], args].concat());
        assert_eq!((answer.status, answer.out.as_str()), (1, ""));
        let says = format!(
            "{name}: the data is encrypted, and reading encrypted images is not supported
"
        );
        let (_, hint) = answer
            .err
            .split_once(&says)
            .unwrap_or_else(|| panic!("{answer:?}"));
        let (_, command) = hint.trim_end().split_once("can be read: ").unwrap();
        images.run("sh", &["-c", command]);
        images.catena(&["hash", "-f", "qcow2", "NEW.qcow2"]).out
    };
    let base = images.catena(&["hash", "-f", "qcow2", "--layer", "2", "top.qcow2"]);
    assert_eq!((base.status, base.err.as_str()), (0, ""));
    assert_eq!(refused(&["-f", "qcow2", "top.qcow2"], "mid,1.qcow2"), base.out);
    assert_eq!(refused(&["-f", "qcow2", "mid,1.qcow2"], "mid,1.qcow2"), base.out);
    refused(&["-f", "luks", "disk.luks"], "disk.luks");
    let answer = images.catena(&["hash", "-f", "qcow2", "--snapshot", "gone", "mid,1.qcow2"]);
    assert!(answer.err.contains("the data is encrypted"), "{}", answer.err);
}

#[test]
fn ctrl_c_ends_it_with_130() {
    let images = Images::new();
    // Nothing but zeros, yet far too many of them to be through with when the signal comes.
    images.img("create -q -f qcow2 -o cluster_size=2M top.qcow2 1P");
    let script = format!(
        "{} hash -f qcow2 top.qcow2 & sleep 0.5; kill -INT $!; wait $!; echo $?",
        env!("CARGO_BIN_EXE_catena")
    );
    // In the background a shell ignores the signal for its children, unless it is told to control jobs.
    assert_eq!(images.run("bash", &["-m", "-c", &script]), "130\n");
}
