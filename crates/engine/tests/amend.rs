//! Amending and shrinking beside QEMU's.
#![cfg(test)]

use catena_engine::qcow2::metadata::{Amend, amend};
use catena_engine::qcow2::{CheckOptions, check, shrink};
use catena_engine::{GuestOffset, Qcow2Disk, WritableDisk};
use catena_format::qcow2::{Header, Version};
use catena_storage::{LocalFile, OpenOptions};
use catena_testkit::images::{self, Features, Op};
use catena_testkit::{Folder, qemu};
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn features() -> Features {
    Features {
        encryption: false,
        data_files: false,
        huge: false,
        dirty: false,
        raw: false,
        ..Features::all()
    }
}

/// How the first internal snapshots look, compared.
fn same_snapshots(a: &Path, b: &Path) -> bool {
    let raw = [a, b].map(|image| {
        let raw = image.with_extension("raw");
        qemu::img([
            "convert",
            "-l",
            "snapshot.id=1",
            "-O",
            "raw",
            path(image),
            path(&raw),
        ])
        .unwrap();
        raw
    });
    qemu::img(["compare", "-f", "raw", "-F", "raw", path(&raw[0]), path(&raw[1])]).is_ok()
}

/// As many refcounts in a block as QEMU can be asked to give another width: it goes over each of a block's several times, and
/// takes most of a second for so many. A block of 2 MiB of single bits holds 512 times as many.
const MOST_IN_A_BLOCK: u64 = 1 << 15;

/// Whether QEMU makes the change, too; none where it does not come to an end soon.
fn qemu_amends(image: &Path, words: &str) -> Option<bool> {
    let output = Command::new("timeout")
        .args([
            "--signal=KILL",
            "10",
            "qemu-img",
            "amend",
            "-f",
            "qcow2",
            "-o",
            words,
        ])
        .arg(image)
        .output()
        .unwrap();
    output
        .status
        .code()
        .filter(|code| *code <= 1)
        .map(|code| code == 0)
}

/// What an image is now, as QEMU has it.
fn info(image: &Path) -> serde_json::Value {
    let text = qemu::img(["info", "--output=json", path(image)]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let data = &json["format-specific"]["data"];
    let mut data = data.clone();
    if let Some(data) = data.as_object_mut() {
        // QEMU keeps them in a version that has none, and believes none of them.
        data.remove("bitmaps");
    }
    serde_json::json!([data, json["virtual-size"]])
}

fn same_views(mine: &Path, theirs: &Path) -> bool {
    qemu::img(["compare", "-f", "qcow2", "-F", "qcow2", path(mine), path(theirs)]).is_ok()
}

fn clean(image: &Path) -> bool {
    let target = qemu::Target::file(image, "qcow2");
    catena_testkit::oracle::check_target(&target).unwrap().is_clean()
}

fn change() -> impl Strategy<Value = Amend> {
    let order = prop_oneof![Just(None), (0..=6u32).prop_map(Some)];
    let version = prop_oneof![Just(None), Just(Some(Version::V2)), Just(Some(Version::V3))];
    let lazy = prop_oneof![Just(None), any::<bool>().prop_map(Some)];
    (order, version, lazy).prop_map(|(refcount_order, version, lazy_refcounts)| Amend {
        refcount_order,
        version,
        lazy_refcounts,
        ..Amend::default()
    })
}

fn words(change: &Amend) -> String {
    let mut words = Vec::new();
    if let Some(version) = change.version {
        words.push(format!("compat={}", version.compat()));
    }
    if let Some(order) = change.refcount_order {
        words.push(format!("refcount_bits={}", 1u32 << order));
    }
    if let Some(lazy) = change.lazy_refcounts {
        words.push(format!("lazy_refcounts={}", if lazy { "on" } else { "off" }));
    }
    words.join(",")
}

#[test]
fn zeros_that_version_2_has_no_word_for_stay_sound_when_they_are_written() {
    let folder = Folder::new();
    folder.img("create -q -f raw base.raw 1M");
    folder.img("create -q -f qcow2 -b base.raw -F raw image.qcow2");
    folder.io("qcow2", "image.qcow2", &["write -z 0 256k"]);
    let image = folder.file("image.qcow2");
    let open = || Arc::new(LocalFile::open(&image, &OpenOptions::new().write(true)).unwrap());
    let change = Amend {
        version: Some(Version::V2),
        ..Amend::default()
    };
    amend(&*open(), &change, &CheckOptions::default()).unwrap();
    for cluster in 0..4 {
        assert!(clean(&image), "{cluster} clusters written");
        let disk = Qcow2Disk::open(open(), None, None).unwrap();
        disk.write_at(&[1; 1 << 16], GuestOffset(cluster << 16)).unwrap();
        disk.close().unwrap();
    }
    assert!(clean(&image));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("CASES").map_or(24, |n| n.parse().unwrap()), failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn options_change_as_qemu_changes_them(chain in images::chains(features(), 1..=2), changes in proptest::collection::vec(change(), 1..3)) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        let snapshots = chain.layers[0].image.ops.contains(&Op::Snapshot);
        let (mine, theirs) = (built.top.clone(), built.top.with_file_name("theirs.qcow2"));
        std::fs::copy(&mine, &theirs).unwrap();
        let before = built.top.with_file_name("before.qcow2");
        for change in changes.iter().filter(|change| **change != Amend::default()) {
            let words = words(change);
            std::fs::copy(&mine, &before).unwrap();
            let header = Header::read(&std::fs::read(&mine).unwrap()).unwrap();
            let in_a_block = (header.cluster_bits.size() * 8) >> header.refcount_order;
            let other_width = change.refcount_order.is_some_and(|order| order != header.refcount_order);
            let expected = (!other_width || in_a_block <= MOST_IN_A_BLOCK).then(|| qemu_amends(&theirs, &words)).flatten();
            let storage = LocalFile::open(&mine, &OpenOptions::new().write(true)).unwrap();
            let done = amend(&storage, change, &CheckOptions::default());
            drop(storage);
            prop_assert!(clean(&mine), "{}", words);
            prop_assert!(same_views(&mine, &before), "{}", words);
            if snapshots {
                prop_assert!(same_snapshots(&mine, &before), "{}", words);
            }
            let Some(expected) = expected else {
                // From here on it is what we made of it that both change.
                std::fs::copy(&mine, &theirs).unwrap();
                continue;
            };
            prop_assert_eq!(done.is_ok(), expected, "{}: {:?}", words, done);
            if done.is_err() {
                // QEMU may have done a part of it.
                return Ok(());
            }
            prop_assert_eq!(info(&mine), info(&theirs), "{}", words);
        }
    }

    #[test]
    fn a_disk_is_shrunk_as_qemu_shrinks_it(spec in images::images(Features { bitmaps: false, ..features() }), part in 0..=256u64) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        let (mine, theirs) = (built.top.clone(), built.top.with_file_name("theirs.qcow2"));
        std::fs::copy(&mine, &theirs).unwrap();
        let size = (spec.size * part / 256 / 512 * 512).max(512).min(spec.size);
        prop_assume!(size > 0);
        let expected = qemu::img(["resize", "--shrink", "-f", "qcow2", path(&theirs), &size.to_string()]);
        let storage = LocalFile::open(&mine, &OpenOptions::new().write(true)).unwrap();
        let done = shrink(&storage, size, &CheckOptions::default());
        prop_assert!(check(&storage, &CheckOptions::default()).unwrap().is_clean());
        drop(storage);
        prop_assert_eq!(done.is_ok(), expected.is_ok(), "{:?} {:?}", done, expected);
        prop_assert!(clean(&mine));
        prop_assert!(same_views(&mine, &theirs));
        // What is grown again is not what was there before.
        for image in [&mine, &theirs] {
            qemu::img(["resize", "-q", "-f", "qcow2", path(image), &spec.size.to_string()]).ok();
        }
        prop_assert!(same_views(&mine, &theirs));
    }
}
