//! Internal snapshots beside QEMU's, and cut off at any instant.
#![cfg(test)]

use catena_engine::qcow2::metadata::snapshot::{self, NewSnapshot};
use catena_engine::qcow2::metadata::{Amend, amend};
use catena_engine::qcow2::{CheckOptions, FindingKind, Qcow2, Repair, check, repair, shrink};
use catena_engine::{Disk, ErrorKind, GuestOffset, Image, Stack};
use catena_storage::{LocalFile, OpenOptions, Storage};
use catena_testkit::images::{self, Features, Format};
use catena_testkit::storage::{Content, Log};
use catena_testkit::{Folder, qemu};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A step in the life of an image with snapshots.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Apply(usize),
    Delete(usize),
    /// A guest write at a place that is a fraction of the disk.
    Write(u8, u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Create),
        1 => any::<usize>().prop_map(Step::Apply),
        1 => any::<usize>().prop_map(Step::Delete),
        2 => (any::<u8>(), 1..u16::MAX).prop_map(|(at, len)| Step::Write(at, len)),
    ];
    proptest::collection::vec(step, 1..7)
}

fn features() -> Features {
    Features {
        encryption: false,
        data_files: false,
        dirty: false,
        huge: false,
        ..Features::all()
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The snapshots as QEMU lists them: id, name, disk size.
fn list(image: &Path) -> Vec<(String, String)> {
    let text = qemu::img(["info", "-U", "--output=json", path(image)]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let snapshots = json["snapshots"].as_array().cloned().unwrap_or_default();
    let word = |snapshot: &serde_json::Value, name: &str| snapshot[name].as_str().unwrap().to_owned();
    snapshots
        .iter()
        .map(|snapshot| (word(snapshot, "id"), word(snapshot, "name")))
        .collect()
}

fn step(image: &Path, size: u64, step: Step, ours: bool) -> bool {
    let snapshots = list(image);
    let options = CheckOptions::default();
    let open = || LocalFile::open(image, &OpenOptions::new().write(true)).unwrap();
    match step {
        Step::Create if ours => snapshot::create(
            &open(),
            &NewSnapshot {
                name: b"taken".to_vec(),
                ..NewSnapshot::default()
            },
            &options,
        )
        .is_ok(),
        Step::Create => qemu::img(["snapshot", "-c", "taken", path(image)]).is_ok(),
        Step::Apply(_) | Step::Delete(_) if snapshots.is_empty() => true,
        Step::Apply(number) | Step::Delete(number) => {
            let index = number % snapshots.len();
            match (step, ours) {
                (Step::Apply(_), true) => snapshot::apply(&open(), index, &options).is_ok(),
                (_, true) => snapshot::delete(&open(), index, &options).is_ok(),
                (Step::Apply(_), false) => {
                    qemu::img(["snapshot", "-a", &snapshots[index].0, path(image)]).is_ok()
                }
                // QEMU deletes by name alone, and all have the same.
                (_, false) => qemu::img(["snapshot", "-d", "taken", path(image)]).is_ok(),
            }
        }
        Step::Write(at, len) => {
            let at = u64::from(at) * size / 256 / 512 * 512;
            let len = u64::from(len).min(size - at);
            let target = qemu::Target::file(image, "qcow2");
            len == 0 || qemu::io(&target, &[format!("write -P {} {at} {len}", at % 251 + 1)]).is_ok()
        }
    }
}

fn clean(image: &Path) {
    let target = qemu::Target::file(image, "qcow2");
    let check = catena_testkit::oracle::check_target(&target).unwrap();
    assert!(check.is_clean(), "{check:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("CASES").map_or(24, |n| n.parse().unwrap()), failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn snapshots_are_those_that_qemu_would_take_apply_and_delete(spec in images::images(features()), steps in steps()) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        prop_assume!(spec.size > 0);
        let (mine, theirs) = (built.top.clone(), dir.path().join("theirs.qcow2"));
        std::fs::copy(&mine, &theirs).unwrap();
        for now in steps {
            // Of several with one name QEMU deletes the first.
            let now = match now {
                Step::Delete(_) => {
                    let first = list(&mine).iter().position(|(_, name)| name == "taken");
                    let Some(first) = first else { continue };
                    Step::Delete(first)
                }
                other => other,
            };
            let done = step(&mine, spec.size, now, true);
            let done_too = step(&theirs, spec.size, now, false);
            clean(&mine);
            // QEMU refers to the state that it goes back to before it lets go of the one that it leaves: counts of two bits have no room
            // for the two snapshots, the active disk and one reference more, and it refuses what can be done.
            let full = matches!(&spec.format, Format::Qcow2(qcow2) if qcow2.refcount_order == 1) && list(&mine).len() > 1;
            if full && done && !done_too && matches!(now, Step::Apply(_)) {
                return Ok(());
            }
            prop_assert_eq!(done, done_too, "{:?}", now);
            prop_assert_eq!(list(&mine), list(&theirs));
            prop_assert!(qemu::img(["compare", "-f", "qcow2", "-F", "qcow2", path(&mine), path(&theirs)]).is_ok());
        }
        for (id, _) in list(&mine) {
            let [a, b] = ["a.raw", "b.raw"].map(|name| dir.path().join(name));
            let id = format!("snapshot.id={id}");
            for (image, raw) in [(&mine, &a), (&theirs, &b)] {
                qemu::img(["convert", "-l", &id, "-O", "raw", path(image), path(raw)]).unwrap();
            }
            prop_assert!(qemu::img(["compare", "-f", "raw", "-F", "raw", path(&a), path(&b)]).is_ok());
        }
    }
}

fn content(image: &Path) -> Content {
    Content::read_from(&LocalFile::open(image, &OpenOptions::default()).unwrap()).unwrap()
}

/// All that a guest would read: of the active disk, and of each snapshot.
fn views(storage: &Arc<dyn Storage>) -> Vec<(String, Vec<u8>)> {
    let image = Qcow2::open(Arc::clone(storage), None).unwrap();
    let read = |image: Qcow2| {
        let layer: Arc<dyn Image> = Arc::new(image);
        let disk = Stack::new([(layer, PathBuf::from("image"))]);
        let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
        disk.read_at(&mut bytes, GuestOffset(0)).unwrap();
        bytes
    };
    let mut views: Vec<_> = image
        .snapshots()
        .unwrap()
        .iter()
        .map(|snapshot| (snapshot.id.clone(), read(image.at_snapshot(snapshot))))
        .collect();
    views.push(("active".to_owned(), read(image)));
    views
}

/// Performs a change on a store that records, and holds what a cut may leave against what was before and after.
fn survives_cuts(image: &Path, change: impl Fn(&dyn Storage)) {
    let log = Log::new();
    let recording = log.recording(content(image));
    let shared = |content: Content| -> Arc<dyn Storage> { Arc::new(Log::new().recording(content)) };
    let before = views(&shared(recording.content()));
    change(&recording);
    let after = views(&shared(recording.content()));
    let (mut old, mut new) = (0, 0);
    for cut in log.cuts(7, 300) {
        let storage = shared(cut.files[0].clone());
        let report = check(&*storage, &CheckOptions::default()).unwrap();
        assert!(report.is_sound(), "{:?}: {:?}", cut.way, report.findings.first());
        let now = views(&storage);
        assert!(now == before || now == after, "{:?}", cut.way);
        old += usize::from(now == before);
        new += usize::from(now == after);
    }
    assert!(old > 0 && new > 0, "{old} old, {new} new");
    // Nothing is left to be repaired.
    assert!(check(&recording, &CheckOptions::default()).unwrap().is_clean());
}

#[test]
fn a_cut_leaves_the_image_as_it_was_or_as_it_is_to_be() {
    for options in [
        "cluster_size=4k",
        "cluster_size=64k,refcount_bits=64",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=512",
    ] {
        let dir = catena_testkit::scratch().unwrap();
        let image = dir.path().join("image.qcow2");
        qemu::img(["create", "-q", "-f", "qcow2", "-o", options, path(&image), "2M"]).unwrap();
        let target = qemu::Target::file(&image, "qcow2");
        qemu::io(
            &target,
            &["write -P 1 0 300k".to_owned(), "write -P 2 1M 100k".to_owned()],
        )
        .unwrap();
        let all = CheckOptions::default();
        let new = NewSnapshot {
            name: b"one".to_vec(),
            ..NewSnapshot::default()
        };
        survives_cuts(&image, |storage| {
            snapshot::create(storage, &new, &all).unwrap();
        });
        qemu::img(["snapshot", "-c", "two", path(&image)]).unwrap();
        qemu::io(&target, &["write -P 3 100k 1M".to_owned()]).unwrap();
        survives_cuts(&image, |storage| snapshot::apply(storage, 0, &all).unwrap());
        survives_cuts(&image, |storage| snapshot::delete(storage, 0, &all).unwrap());
        survives_cuts(&image, |storage| shrink(storage, 1 << 20, &all).unwrap());
        let wide = Amend {
            refcount_order: Some(5),
            ..Amend::default()
        };
        survives_cuts(&image, |storage| amend(storage, &wide, &all).unwrap());
    }
}

#[test]
fn a_repair_that_is_cut_off_leaves_nothing_worse() {
    for (options, rebuilds) in [
        ("cluster_size=4k", false),
        ("cluster_size=4k,refcount_bits=64", true),
    ] {
        let dir = catena_testkit::scratch().unwrap();
        let image = dir.path().join("image.qcow2");
        qemu::img(["create", "-q", "-f", "qcow2", "-o", options, path(&image), "2M"]).unwrap();
        let target = qemu::Target::file(&image, "qcow2");
        qemu::io(
            &target,
            &["write -P 1 0 300k".to_owned(), "write -P 2 1M 100k".to_owned()],
        )
        .unwrap();
        // Refcounts that are too high, one that is missing where all are written anew, and flags that are wrong.
        let mut bytes = std::fs::read(&image).unwrap();
        let be = |bytes: &[u8], at: usize| {
            usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00)
                .unwrap()
        };
        let block = be(&bytes, be(&bytes, 48));
        let width = if rebuilds { 8 } else { 2 };
        for cluster in [20, 21, 30] {
            bytes[block + (cluster + 1) * width - 1] = 3;
        }
        if rebuilds {
            bytes[block + 26 * width - 1] = 0;
        }
        let table = be(&bytes, be(&bytes, 40));
        bytes[table + 8 * 7] ^= 0x80;
        std::fs::write(&image, &bytes).unwrap();

        let log = Log::new();
        let recording = log.recording(content(&image));
        let shared = |content: Content| -> Arc<dyn Storage> { Arc::new(Log::new().recording(content)) };
        let before = views(&shared(recording.content()));
        let all = CheckOptions::default();
        let found = check(&recording, &all).unwrap();
        assert_eq!(found.needs_rebuild, rebuilds);
        let mended = repair(&recording, Repair::All, &all).unwrap();
        let rebuilt = mended
            .report
            .findings
            .iter()
            .any(|finding| finding.kind == FindingKind::Rebuilding);
        assert_eq!((mended.failed, rebuilt), (false, rebuilds));
        assert!(check(&recording, &all).unwrap().is_clean());
        for cut in log.cuts(7, 400) {
            let storage = shared(cut.files[0].clone());
            let now = check(&*storage, &all).unwrap();
            assert!(
                now.totals.corruptions <= found.totals.corruptions,
                "{:?}",
                cut.way
            );
            assert!(now.totals.leaks <= found.totals.leaks, "{:?}", cut.way);
            assert!(views(&storage) == before, "{:?}", cut.way);
        }
    }
}

#[test]
fn what_refcounts_cannot_count_is_not_begun() {
    for (bits, most) in [(1, 0), (2, 2)] {
        let folder = Folder::new();
        folder.img(&format!(
            "create -q -f qcow2 -o refcount_bits={bits} image.qcow2 1M"
        ));
        folder.io("qcow2", "image.qcow2", &["write -P 1 0 256k"]);
        let image = folder.file("image.qcow2");
        let open = || LocalFile::open(&image, &OpenOptions::new().write(true)).unwrap();
        let options = CheckOptions::default();
        for _ in 0..most {
            snapshot::create(&open(), &NewSnapshot::default(), &options).unwrap();
        }
        let before = std::fs::read(&image).unwrap();
        let error = snapshot::create(&open(), &NewSnapshot::default(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        if most > 0 {
            let narrower = Amend {
                refcount_order: Some(0),
                ..Amend::default()
            };
            let error = amend(&open(), &narrower, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge);
        }
        assert!(std::fs::read(&image).unwrap() == before);
        assert!(qemu::img(["snapshot", "-c", "more", path(&image)]).is_err());
    }
}
