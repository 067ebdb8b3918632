//! The repair of qcow2 images beside QEMU's, on images that QEMU made and that were damaged at random.
#![cfg(test)]

mod damage;

use catena_engine::qcow2::{CheckOptions, Finding, FindingKind, Repair, check, repair};
use catena_storage::{LocalFile, OpenOptions};
use catena_testkit::images::{self, Op};
use damage::{damage, damages, features, first_difference, lines, numbers, qemu_check};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("CASES").map_or(48, |n| n.parse().unwrap()), failure_persistence: None, max_shrink_iters: 40, ..ProptestConfig::default() })]

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
