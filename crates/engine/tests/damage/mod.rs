//! Images that QEMU made, damaged at random, and what QEMU says of them.

use catena_engine::qcow2::Report;
use catena_format::qcow2::Header;
use catena_testkit::images::Features;
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;

/// A change of eight bytes (or two, among refcounts) of metadata.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    /// Which structure.
    pub place: u8,
    /// Which of its entries.
    index: u16,
    /// How it changes.
    how: u8,
    /// With what.
    value: u64,
}

/// Up to so many changes.
pub fn damages(most: usize) -> impl Strategy<Value = Vec<Damage>> {
    let damage = (0..8u8, any::<u16>(), 0..9u8, any::<u64>()).prop_map(|(place, index, how, value)| Damage {
        place,
        index,
        how,
        value,
    });
    proptest::collection::vec(damage, 0..=most)
}

fn be64(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().unwrap()))
}

/// Damages an image; places are found as they are when their turn comes.
pub fn damage(bytes: &mut [u8], damages: &[Damage]) {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    for change in damages {
        let Ok(header) = Header::read(&bytes.to_vec()) else {
            return;
        };
        let index = u64::from(change.index);
        let size = header.cluster_bits.size();
        let entry_size = if header.has_extended_l2() { 16 } else { 8 };
        let used = |table: u64, entries: u64, step: u64| {
            let used: Vec<u64> = (0..entries.min(4096))
                .map(|n| table + n * step)
                .filter(|at| be64(bytes, *at).is_some_and(|entry| entry != 0))
                .collect();
            used.get(usize::try_from(index).unwrap() % used.len().max(1))
                .copied()
        };
        let l1 = used(header.l1_offset, header.l1_entries.into(), 8);
        let l2 = l1.and_then(|at| be64(bytes, at)).map(|entry| entry & OFFSET);
        let block = used(header.refcount_table_offset, size / 8, 8);
        let place = match change.place {
            0 => l1,
            1..=3 => l2.and_then(|l2| used(l2, size / entry_size, entry_size)),
            4 => l2.map(|l2| l2 + index % (size / 8) * 8),
            5 => block,
            6 => block
                .and_then(|at| be64(bytes, at))
                .map(|block| (block & !0x1ff) + index % 64 * 2 % size),
            _ if header.snapshot_count > 0 => Some(header.snapshots_offset + index % 10 * 4),
            _ => l1,
        };
        let Some(at) = place else { continue };
        let Some(old) = be64(bytes, at) else { continue };
        let new = match change.how {
            0 => old ^ 1 << (change.value % 64),
            1 => old ^ 1 << 63,
            2 => old.wrapping_add(size),
            3 => old | 0x200,
            4 => old ^ 1,
            5 => be64(bytes, at + entry_size).unwrap_or(0),
            6 => ((change.value % (bytes.len() as u64 / size + 2)) * size) | (1 << 63),
            7 => 0,
            _ => change.value,
        };
        let at = usize::try_from(at).unwrap();
        let width = if change.place == 6 { 2 } else { 8 };
        let end = (at + width).min(bytes.len());
        bytes[at..end].copy_from_slice(&new.to_be_bytes()[..end - at]);
    }
}

/// What `qemu-img check` says of an image: its numbers, and the lines on standard error. None where it cannot open it.
pub fn qemu_check(path: &Path, options: &[&str]) -> Option<(serde_json::Value, Vec<String>)> {
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", "--output=json"])
        .args(options)
        .arg(path)
        .output()
        .unwrap();
    let lines = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<String> = lines
        .lines()
        .filter(|line| !line.starts_with("qemu-img: Check failed"))
        .map(str::to_owned)
        .collect();
    if lines.iter().any(|line| line.contains("Could not open")) {
        return None;
    }
    serde_json::from_slice(&output.stdout)
        .ok()
        .map(|json| (json, lines))
}

/// The lines that QEMU would print for a report.
pub fn lines(report: &Report) -> Vec<String> {
    let lines = report
        .findings
        .iter()
        .filter_map(|finding| finding.qemu_line(false));
    lines
        .flat_map(|line| line.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// Where two lists of lines part: the number of the line, and what each has there.
pub fn first_difference(
    ours: &[String],
    theirs: &[String],
) -> Option<(usize, Option<String>, Option<String>)> {
    (0..ours.len().max(theirs.len()))
        .map(|n| (n, ours.get(n).cloned(), theirs.get(n).cloned()))
        .find(|(_, ours, theirs)| ours != theirs)
}

/// The numbers of a report under the names that QEMU gives them.
pub fn numbers(report: &Report) -> Vec<(&'static str, u64)> {
    vec![
        ("corruptions", report.totals.corruptions),
        ("leaks", report.totals.leaks),
        ("check-errors", report.totals.check_errors),
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.mapped.allocated),
        ("fragmented-clusters", report.mapped.fragmented),
        ("compressed-clusters", report.mapped.compressed),
    ]
}

/// What the images may be.
pub fn features() -> Features {
    Features {
        encryption: false,
        huge: false,
        ..Features::all()
    }
}
