//! The verbs that change an image by itself: check, resize, snapshot, bitmap.

use crate::common::Images;
use crate::{chain, done, failed, shows_the_same};
use catena::ops::{Observer, OtherChildren, Silent, check, snapshot};
use catena::{ErrorKind, Format, Policy, Start};
use std::sync::atomic::{AtomicU64, Ordering};

/// An image with a refcount too high by one, of a cluster that nobody uses.
fn leaky() -> Images {
    let images = Images::new();
    images.img("create -q -f qcow2 a.qcow2 4M");
    images.io("qcow2", "a.qcow2", &["write -P 5 0 1M"]);
    // The refcount block is the third cluster; the file gets a cluster more, with a refcount of 1.
    let clusters = std::fs::metadata(images.file("a.qcow2")).unwrap().len() / 65536;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(images.file("a.qcow2"))
        .unwrap();
    file.set_len((clusters + 1) * 65536).unwrap();
    images.patch("a.qcow2", 2 * 65536 + clusters * 2, &[0, 1]);
    images
}

#[test]
fn check_tells_by_its_status_what_is_wrong_and_repairs_it() {
    let images = leaky();
    let told = images.catena(&["check", "a.qcow2"]);
    assert_eq!(told.status, 3, "{told:?}");
    assert!(told.out.contains("1 leaked cluster"), "{told:?}");
    assert!(
        told.err.contains("catena check --repair leaks a.qcow2"),
        "{told:?}"
    );
    let dry = images.catena(&["check", "a.qcow2", "--repair", "leaks", "--dry-run"]);
    assert_eq!(dry.status, 3, "{dry:?}");
    let mended = images.catena(&["check", "a.qcow2", "--repair", "leaks"]);
    assert_eq!(mended.status, 0, "{mended:?}");
    assert!(mended.out.contains("1 leaked cluster given back"), "{mended:?}");
    images.img("check -q a.qcow2");
    let clean = images.catena(&["check", "a.qcow2", "--output", "json"]);
    let (ours, told) = (clean.json(), images.img("check --output json a.qcow2"));
    let theirs: serde_json::Value = serde_json::from_str(&told).unwrap();
    for (name, value) in theirs.as_object().unwrap() {
        assert_eq!(&ours[name], value, "{name}: {ours}");
    }
    images.img("create -q -f raw b.raw 1M");
    let raw = images.catena(&["check", "-f", "raw", "b.raw"]);
    assert_eq!(raw.status, 63, "{raw:?}");
    assert_eq!(images.catena(&["check", "missing.qcow2"]).status, 1);
}

#[test]
fn a_corrupt_image_is_mended_unless_others_stand_on_it() {
    let images = leaky();
    // A refcount of 0 of a cluster in use.
    images.patch("a.qcow2", 2 * 65536 + 5 * 2, &[0, 0]);
    let told = images.catena(&["check", "a.qcow2"]);
    assert_eq!(told.status, 2, "{told:?}");
    images.img("create -q -u -f qcow2 -b a.qcow2 -F qcow2 over.qcow2 4M");
    let refused = failed(&images, "check a.qcow2 --repair all");
    assert!(refused.err.contains("over.qcow2'"), "{refused:?}");
    let mended = done(&images, "check a.qcow2 --repair all --force");
    assert!(mended.out.contains("1 corruption mended"), "{mended:?}");
    images.img("check -q a.qcow2");
    images.io("qcow2", "a.qcow2", &["read -P 5 0 1M"]);
}

#[test]
fn a_disk_grows_and_shrinks_only_where_that_is_said() {
    let images = chain();
    done(&images, "resize tuesday.qcow2 +2M -f qcow2");
    images.io("qcow2", "tuesday.qcow2", &["read -P 0 4M 2M"]);
    images.img("check -q tuesday.qcow2");
    let refused = failed(&images, "resize tuesday.qcow2 4M");
    assert!(
        refused.err.contains("2097152 bytes at its end would be gone"),
        "{refused:?}"
    );
    done(&images, "resize tuesday.qcow2 4M --shrink");
    shows_the_same(&images, "tuesday.qcow2");
    let again = done(&images, "resize tuesday.qcow2 4M");
    assert!(again.out.contains("has 4194304 bytes already"), "{again:?}");
    let base = failed(&images, "resize base.raw -f raw --shrink -- -1M");
    assert!(base.err.contains("monday.qcow2'"), "{base:?}");
    done(&images, "resize base.raw -f raw 8M");
    assert_eq!(std::fs::metadata(images.file("base.raw")).unwrap().len(), 8 << 20);
}

#[test]
fn what_a_raw_data_file_grows_by_is_mapped() {
    let images = chain();
    images.img("create -q -f qcow2 -o data_file=d.raw,data_file_raw=on d.qcow2 2M");
    done(&images, "resize d.qcow2 +1M -f qcow2");
    images.io("raw", "d.raw", &["write -P 7 2M 64k"]);
    images.img("compare -q -f qcow2 -F raw d.qcow2 d.raw");
    images.img("check -q d.qcow2");
}

#[test]
fn snapshots_are_taken_listed_gone_back_to_and_deleted() {
    let images = chain();
    done(&images, "snapshot create tuesday.qcow2 before -f qcow2");
    failed(&images, "snapshot create tuesday.qcow2 before");
    images.io("qcow2", "tuesday.qcow2", &["write -P 9 0 2M"]);
    let list = done(&images, "snapshot list tuesday.qcow2 --output json").json();
    assert_eq!(list[0]["name"], "before");
    assert!(images.img("snapshot -l tuesday.qcow2").contains("before"));
    assert!(
        done(&images, "snapshot list tuesday.qcow2")
            .out
            .contains("before")
    );
    let missing = failed(&images, "snapshot apply tuesday.qcow2 after");
    assert!(
        missing.err.contains("there is no snapshot 'after'"),
        "{missing:?}"
    );
    let told = done(&images, "snapshot apply tuesday.qcow2 before --dry-run");
    assert!(
        told.out
            .contains("shows what it did when snapshot 1 'before' was taken"),
        "{told:?}"
    );
    done(&images, "snapshot apply tuesday.qcow2 before");
    shows_the_same(&images, "tuesday.qcow2");
    done(&images, "snapshot delete tuesday.qcow2 before");
    shows_the_same(&images, "tuesday.qcow2");
    assert_eq!(done(&images, "snapshot list tuesday.qcow2").out, "");
}

#[test]
fn bitmaps_are_added_changed_listed_and_removed() {
    let images = Images::new();
    images.img("create -q -f qcow2 a.qcow2 4M");
    done(&images, "bitmap add a.qcow2 one");
    done(&images, "bitmap add a.qcow2 two -g 32k --disabled");
    failed(&images, "bitmap add a.qcow2 two");
    images.io("qcow2", "a.qcow2", &["write -P 5 1M 128k"]);
    done(&images, "bitmap merge a.qcow2 two --from one");
    done(&images, "bitmap clear a.qcow2 one");
    done(&images, "bitmap disable a.qcow2 one");
    done(&images, "bitmap enable a.qcow2 two");
    let list = done(&images, "bitmap list a.qcow2 --output json").json();
    assert_eq!(
        list,
        serde_json::json!([
            { "name": "one", "granularity": 65536, "auto": false, "in_use": false },
            { "name": "two", "granularity": 32768, "auto": true, "in_use": false },
        ])
    );
    done(&images, "bitmap remove a.qcow2 one");
    images.img("check -q a.qcow2");
    let told = images.img("info --output json a.qcow2");
    let info: serde_json::Value = serde_json::from_str(&told).unwrap();
    let bitmaps = &info["format-specific"]["data"]["bitmaps"];
    assert_eq!(bitmaps[0]["name"], "two");
    assert_eq!(bitmaps[0]["flags"], serde_json::json!(["auto"]));
    let human = done(&images, "bitmap list a.qcow2");
    assert!(human.out.contains("records writes"), "{human:?}");
    failed(&images, "bitmap remove a.qcow2 one");
}

#[test]
fn options_are_changed_and_the_guest_sees_the_same() {
    let images = chain();
    done(&images, "amend tuesday.qcow2 -f qcow2 -o compat=0.10");
    shows_the_same(&images, "tuesday.qcow2");
    assert!(images.img("info tuesday.qcow2").contains("compat: 0.10"));
    done(&images, "amend tuesday.qcow2 -o compat=1.1,refcount_bits=64");
    shows_the_same(&images, "tuesday.qcow2");
    assert!(images.img("info tuesday.qcow2").contains("refcount bits: 64"));
    let again = done(&images, "amend tuesday.qcow2 -o refcount_bits=64");
    assert!(again.out.contains("has these options already"), "{again:?}");
    let unknown = failed(&images, "amend tuesday.qcow2 -o cluster_size=4k");
    assert!(
        unknown.err.contains("no option that can be changed"),
        "{unknown:?}"
    );
}

/// Stops at the nth time it is asked, and keeps how far it came.
struct StopAt {
    left: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
}

impl StopAt {
    fn new(left: u64) -> Self {
        let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self {
            left: left.into(),
            done,
            total,
        }
    }
}

impl Observer for StopAt {
    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
        self.done.fetch_max(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    fn cancelled(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0
    }
}

#[test]
fn a_check_tells_how_far_it_is_and_stops_when_it_shall() {
    let images = chain();
    let request = check::Request {
        start: Start::at(images.file("tuesday.qcow2"), Some(Format::Qcow2)),
        sharing: catena::open::Sharing::Locked,
        repair: None,
        children: OtherChildren::default(),
        options: catena_engine::qcow2::CheckOptions::default(),
    };
    let never = StopAt::new(u64::MAX);
    check::plan(&request, &Policy::default(), &never).unwrap();
    let (done, total) = (never.done.into_inner(), never.total.into_inner());
    assert!(done > 0 && done == total, "{done} of {total}");
    let stopped = check::plan(&request, &Policy::default(), &StopAt::new(0)).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Cancelled);
}

#[test]
fn a_snapshot_that_is_stopped_wherever_it_is_leaves_the_image_as_it_was() {
    let images = chain();
    let start = Start::at(images.file("tuesday.qcow2"), Some(Format::Qcow2));
    let request = snapshot::Request {
        start,
        action: snapshot::Action::Create {
            name: "before".to_owned(),
        },
        children: OtherChildren::default(),
    };
    let plan = || snapshot::plan(&request, &Policy::default()).unwrap();
    let mut nth = 0;
    while let Err(stopped) = plan().execute(&StopAt::new(nth)) {
        assert_eq!(stopped.kind(), ErrorKind::Cancelled, "{stopped}");
        shows_the_same(&images, "tuesday.qcow2");
        assert_eq!(images.img("snapshot -l tuesday.qcow2"), "");
        nth += 1;
    }
    assert!(nth > 2, "it was stopped {nth} times");
    assert!(images.img("snapshot -l tuesday.qcow2").contains("before"));
    plan().execute(&Silent).unwrap();
    shows_the_same(&images, "tuesday.qcow2");
}

#[test]
fn what_a_disk_grows_by_has_its_space_where_that_is_said() {
    use std::os::unix::fs::MetadataExt;
    let images = Images::new();
    images.img("create -q -f raw a.raw 1M");
    images.img("create -q -f qcow2 a.qcow2 1M");
    let blocks = |name: &str| std::fs::metadata(images.file(name)).unwrap().blocks() * 512;
    done(&images, "resize a.raw -f raw 2M --preallocation falloc");
    assert!(blocks("a.raw") >= 1 << 20);
    done(&images, "resize a.raw -f raw 3M --preallocation full");
    assert!(blocks("a.raw") >= 2 << 20);
    failed(&images, "resize a.raw -f raw 4M --preallocation metadata");
    failed(&images, "resize a.raw -f raw 1M --shrink --preallocation full");
    done(&images, "resize a.qcow2 2M --preallocation metadata");
    let before = blocks("a.qcow2");
    assert!(before < 1 << 20);
    done(&images, "resize a.qcow2 3M --preallocation falloc");
    done(&images, "resize a.qcow2 4M --preallocation full");
    assert!(blocks("a.qcow2") >= before + (2 << 20));
    images.img("check -q a.qcow2");
    images.io("qcow2", "a.qcow2", &["read -P 0 0 4M"]);
}

#[test]
fn bitmaps_need_no_backing_image_and_one_that_is_merged_from_is_only_read() {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 4M");
    images.img("bitmap --add base.qcow2 old");
    images.io("qcow2", "base.qcow2", &["write -P 5 1M 128k"]);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    done(&images, "bitmap add top.qcow2 new -f qcow2");
    let before = std::fs::read(images.file("base.qcow2")).unwrap();
    done(
        &images,
        "bitmap merge top.qcow2 new -f qcow2 --from old --from-image base.qcow2 -F qcow2",
    );
    assert_eq!(std::fs::read(images.file("base.qcow2")).unwrap(), before);
    images.img("check -q top.qcow2");
    std::fs::remove_file(images.file("base.qcow2")).unwrap();
    done(&images, "bitmap clear top.qcow2 new -f qcow2");
    done(&images, "bitmap remove top.qcow2 new -f qcow2");
}

#[test]
fn a_data_file_is_given_up_as_a_raw_image_but_does_not_become_one() {
    let images = Images::new();
    images.img("create -q -f qcow2 -o data_file=a.data,data_file_raw=on a.qcow2 1M");
    done(&images, "amend a.qcow2 -f qcow2 -o data_file_raw=off");
    assert!(images.img("info a.qcow2").contains("data file raw: false"));
    let refused = failed(&images, "amend a.qcow2 -f qcow2 -o data_file_raw=on");
    assert!(refused.err.contains("does not become a raw image"), "{refused:?}");
}

#[test]
fn qemu_img_is_in_the_help_and_its_words_reach_it_as_they_are() {
    let images = Images::new();
    assert!(done(&images, "--help").out.contains("qemu-img"));
    assert!(done(&images, "completions bash").out.contains("qemu-img"));
    assert!(done(&images, "help qemu-img").out.contains("exit status"));
    assert!(done(&images, "qemu-img --help").out.contains("qemu-img"));
    done(&images, "--color never qemu-img create -q -f qcow2 a.qcow2 1M");
    images.img("check -q a.qcow2");
}
