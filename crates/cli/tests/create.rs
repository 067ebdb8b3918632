//! `catena create` and `catena relink` as a user runs them.
#![cfg(test)]

use std::path::Path;
use std::process::{Command, Output};

fn catena(dir: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_catena"))
        .current_dir(dir)
        .args(args.split_whitespace())
        .output()
        .unwrap()
}

fn done(dir: &Path, args: &str) -> String {
    let output = catena(dir, args);
    assert!(
        output.status.success(),
        "{args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty(), "{args}");
    String::from_utf8(output.stdout).unwrap()
}

fn failed(dir: &Path, args: &str) -> String {
    let output = catena(dir, args);
    assert_eq!(output.status.code(), Some(1), "{args}");
    assert!(output.stdout.is_empty(), "{args}");
    String::from_utf8(output.stderr).unwrap()
}

fn check(dir: &Path, image: &str) {
    assert!(
        Command::new("qemu-img")
            .current_dir(dir)
            .args(["check", "-q", image])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_chain_is_created_and_relinked_and_qemu_img_finds_it_sound() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(
        done(dir, "create base.raw -f raw -s 10M"),
        "base.raw: a new raw image of 10485760 bytes\n"
    );
    assert_eq!(
        done(
            dir,
            "create top.qcow2 -b base.raw -F raw -o cluster_size=4k,extended_l2=off,compression_type=zstd"
        ),
        "top.qcow2: a new qcow2 image of 10485760 bytes over 'base.raw'\n"
    );
    check(dir, "top.qcow2");
    assert_eq!(
        done(dir, "relink top.qcow2 --backing ./base.raw --backing-format raw"),
        "top.qcow2: 'base.raw' (raw) becomes './base.raw' (raw); the guest's view stays: it is the same backing image\n"
    );
    assert_eq!(
        done(dir, "relink top.qcow2 -b ./base.raw -F raw"),
        "top.qcow2: records './base.raw' (raw) already\n"
    );
    assert_eq!(done(dir, "relink -q top.qcow2 --no-backing"), "");
    check(dir, "top.qcow2");
}

#[test]
fn a_dry_run_says_what_would_be_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(done(dir, "create new.qcow2 -s 1G --dry-run").contains("a new qcow2 image of 1073741824 bytes"));
    assert!(!dir.join("new.qcow2").exists());
    done(dir, "create base.qcow2 -s 1G");
    done(dir, "create top.qcow2 -b base.qcow2 -F qcow2");
    let before = std::fs::read(dir.join("top.qcow2")).unwrap();
    assert!(done(dir, "relink top.qcow2 --no-backing --dry-run").contains("becomes no backing image"));
    assert_eq!(std::fs::read(dir.join("top.qcow2")).unwrap(), before);
}

#[test]
fn a_backing_format_is_told_but_not_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    done(dir, "create base.qcow2 -s 1M");
    let error = failed(dir, "create top.qcow2 -b base.qcow2");
    assert!(
        error.contains("backing image specified without backing format"),
        "{error}"
    );
    assert!(error.contains("--backing-format qcow2"), "{error}");
    assert!(!dir.join("top.qcow2").exists());
}

#[test]
fn what_cannot_be_done_is_said_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (args, expected) in [
        ("create x", "needs a size"),
        ("create x -s 1M -o cluster_size=3k", "power of two"),
        ("create x -s 1M -o cluster_size=4M", "unsupported cluster size"),
        (
            "create x -s 1M -o refcount_bits=8,compat=0.10",
            "needs compatibility level 1.1",
        ),
        ("create x -s 1M -o nonsense", "no option 'nonsense'"),
        ("create x -s 1M -o extended_l2=maybe", "no value of 'extended_l2'"),
        ("create x -s 1M -o data_file_raw=on", "needs a data_file"),
        ("create x -f raw -s 1M -o cluster_size=64k", "no option"),
        ("create x -b missing -F raw", "No such file"),
        ("create x -s 1E", "L1 table would exceed"),
    ] {
        let error = failed(dir, args);
        assert!(error.contains(expected), "{args}: {error}");
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "{args}");
    }
}
