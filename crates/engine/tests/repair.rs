//! The repair of qcow2 images beside QEMU's, on images that QEMU made and that were damaged at random.
#![cfg(test)]

mod damage;

use catena_engine::Qcow2Disk;
use catena_engine::qcow2::metadata::snapshot::{self, NewSnapshot};
use catena_engine::qcow2::metadata::{Amend, amend};
use catena_engine::qcow2::{CheckOptions, Finding, FindingKind, Repair, check, repair, shrink};
use catena_format::qcow2::Header;
use catena_storage::{LocalFile, OpenOptions};
use catena_testkit::Folder;
use catena_testkit::images::{self, Features, Op};
use damage::{damage, damages, features, first_difference, lines, numbers, qemu_check};
use proptest::prelude::*;
use std::sync::Arc;

#[test]
fn a_snapshot_without_a_usable_table_is_told_of_and_left_alone() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 image.qcow2 1M");
    folder.io("qcow2", "image.qcow2", &["write -P 1 0 256k"]);
    folder.img("snapshot -c one image.qcow2");
    folder.io("qcow2", "image.qcow2", &["write -P 2 0 128k"]);
    let image = folder.file("image.qcow2");
    let whole = std::fs::read(&image).unwrap();
    let table = usize::try_from(Header::read(&whole).unwrap().snapshots_offset).unwrap();
    let offset = u64::from_be_bytes(whole[table..table + 8].try_into().unwrap());
    let options = CheckOptions::default();
    for (at, change) in [
        (table, (offset | 0x200).to_be_bytes()),
        (table, (1u64 << 40).to_be_bytes()),
        (table + 8, [0x7f, 0xff, 0xff, 0xff, 0, 1, 0, 3]),
    ] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&change);
        std::fs::write(&image, &bytes).unwrap();
        let open = || Arc::new(LocalFile::open(&image, &OpenOptions::new().write(true)).unwrap());
        let report = check(&*open(), &options).unwrap();
        let (_, said) = qemu_check(&image, &[]).unwrap();
        assert_eq!(first_difference(&lines(&report), &said), None);
        assert!(report.totals.corruptions > 0);
        let change = Amend {
            refcount_order: Some(6),
            ..Amend::default()
        };
        assert!(snapshot::create(&*open(), &NewSnapshot::default(), &options).is_err());
        assert!(snapshot::apply(&*open(), 0, &options).is_err());
        assert!(snapshot::delete(&*open(), 0, &options).is_err());
        assert!(amend(&*open(), &change, &options).is_err());
        assert!(shrink(&*open(), 1 << 19, &options).is_err());
        assert!(
            std::fs::read(&image).unwrap() == bytes,
            "a refusal changes nothing"
        );
        repair(&*open(), Repair::All, &options).unwrap();
        let mended = std::fs::read(&image).unwrap();
        let header = Header::read(&mended).unwrap();
        let kept = usize::try_from(header.snapshots_offset).unwrap();
        assert_eq!(header.snapshot_count, 1);
        assert_eq!(mended[kept..kept + 40], bytes[table..table + 40]);
        // What the snapshot holds may be found again by whoever knows better than its entry.
        let offset = usize::try_from(offset).unwrap();
        assert_eq!(mended[offset..offset + 16], whole[offset..offset + 16]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("CASES").map_or(48, |n| n.parse().unwrap()), failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_dirty_image_is_mended_whole_when_it_is_opened_or_refused_as_it_is(
        spec in images::images(Features { data_files: false, ..features() }),
        changes in damages(4),
    ) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        let mut bytes = std::fs::read(&built.top).unwrap();
        prop_assume!(bytes.len() < 16 << 20 && bytes[7] == 3);
        damage(&mut bytes, &changes);
        // The last byte of the incompatible features: dirty.
        bytes[79] |= 1;
        std::fs::write(&built.top, &bytes).unwrap();
        let open = || Arc::new(LocalFile::open(&built.top, &OpenOptions::new().write(true)).unwrap());
        match Qcow2Disk::open(open(), None, None) {
            Ok(disk) => {
                disk.close().unwrap();
                let report = check(&*open(), &CheckOptions::default()).unwrap();
                prop_assert_eq!((report.totals.corruptions, report.totals.check_errors), (0, 0));
            }
            Err(_) => prop_assert!(std::fs::read(&built.top).unwrap() == bytes),
        }
    }

    #[test]
    fn mends_what_qemu_mends_and_says_so_in_its_words(
        spec in images::images(features()),
        changes in damages(3),
        everything in any::<bool>(),
    ) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        let mut bytes = std::fs::read(&built.top).unwrap();
        prop_assume!(bytes.len() < 16 << 20);
        damage(&mut bytes, &changes);
        std::fs::write(&built.top, &bytes).unwrap();
        let theirs = dir.path().join("theirs.qcow2");
        std::fs::copy(&built.top, &theirs).unwrap();
        let options = CheckOptions::default();
        prop_assume!(qemu_check(&built.top, &[]).is_some());
        let (what, word) = if everything { (Repair::All, "all") } else { (Repair::Leaks, "leaks") };
        let storage = LocalFile::open(&built.top, &OpenOptions::new().write(true)).unwrap();
        let before = check(&storage, &options).unwrap();
        let mended = repair(&storage, what, &options).unwrap();
        let after = check(&storage, &options).unwrap();
        drop(storage);
        // With leaks alone, a flag may come to be missing where a refcount has become one: QEMU counts that, too.
        // And a table that does not begin with a cluster is left to itself, whatever its flags.
        let astray = changes.iter().any(|change| matches!(change.place, 0 | 7));
        if everything && !before.needs_rebuild && !astray {
            prop_assert!(after.totals.corruptions <= before.totals.corruptions);
        }
        if !mended.failed {
            prop_assert_eq!(after.totals.corruptions, mended.report.totals.corruptions);
            prop_assert_eq!(after.totals.leaks, mended.report.totals.leaks);
        }
        let now = qemu_check(&built.top, &[]);
        prop_assert!(now.is_some());
        let (json, said) = now.unwrap();
        if after.more > 0 {
            return Ok(());
        }
        prop_assert_eq!(first_difference(&lines(&after), &said), None);
        for (name, number) in numbers(&after) {
            prop_assert_eq!((name, number), (name, json[name].as_u64().unwrap_or(0)));
        }
        let outside = |report: &catena_engine::qcow2::Report| {
            report.findings.iter().any(|finding| matches!(finding.kind, FindingKind::RefcountBlockOutside { .. }))
        };
        // There QEMU makes the file longer until the block is within. And where there are bitmaps, it marks them as in use
        // before it has read the snapshots, and writes a header without them.
        let loses_snapshots = spec.ops.contains(&Op::Snapshot)
            && spec.ops.iter().any(|op| matches!(op, Op::Bitmap { .. }));
        // An L1 entry that leads to data makes anything look like a table, and QEMU mends it as if it were (`astray`).
        // Where it writes refcounts anew, it may do so over what the damaged ones no longer tell it of, and so it may where
        // something lies over metadata.
        let overflows = |finding: &Finding| matches!(finding.kind, FindingKind::RefcountOverflow { .. });
        let overlaps = before.totals.beyond_qemu + after.totals.beyond_qemu > 0 || before.findings.iter().any(overflows);
        let lost_track = before.needs_rebuild && changes.iter().any(|change| change.place != 6);
        if mended.failed || outside(&mended.report) || loses_snapshots || astray || overlaps || lost_track {
            return Ok(());
        }
        let Some((json, said)) = qemu_check(&theirs, &["-r", word]) else { return Ok(()) };
        let totals = mended.report.totals;
        for (name, number) in [("corruptions-fixed", totals.corruptions_fixed), ("leaks-fixed", totals.leaks_fixed)] {
            prop_assert_eq!((name, number), (name, json[name].as_u64().unwrap_or(0)));
        }
        let ours = mended.report.findings.iter().filter_map(|finding| finding.qemu_line(true));
        let mut ours: Vec<String> = ours.flat_map(|line| line.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        if totals.corruptions_fixed + totals.leaks_fixed > 0 {
            // QEMU checks again, and says what is left.
            ours.extend(lines(&after));
        }
        prop_assert_eq!(first_difference(&ours, &said), None);
    }
}
