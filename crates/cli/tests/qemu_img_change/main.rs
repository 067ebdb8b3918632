//! Subcommands of our qemu-img that look after or change an image that exists, beside the real one's: the same command lines on the
//! same images, and the same text, status, and images afterwards.
#![cfg(test)]

#[path = "../qemu_img_differential/lab.rs"]
mod lab;

use lab::Lab;

/// Runs a table: lines with `!` make the images, all others are command lines. Commands of one line separated by `;;` follow each
/// other on the same images; everything is put back after each line.
fn table(text: &str) {
    let lines = || {
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
    };
    let setup: Vec<_> = lines().filter_map(|line| line.strip_prefix("! ")).collect();
    let lab = Lab::new(&setup);
    let mut pair = lab.pair();
    let cases: Vec<_> = lines().filter(|line| !line.starts_with('!')).collect();
    let mut differences = Vec::new();
    for line in &cases {
        let found = pair.run(line);
        if !found.is_empty() {
            differences.push(format!("qemu-img {line}\n{}", found.join("\n")));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {} command lines differ:\n\n{}",
        differences.len(),
        cases.len(),
        differences.join("\n\n")
    );
}

#[test]
fn bitmaps_are_changed_as_by_qemu_img() {
    table(include_str!("bitmap.txt"));
}

#[test]
fn damage_is_found_as_by_qemu_img() {
    table(include_str!("check.txt"));
}

#[test]
fn snapshots_are_taken_applied_and_deleted_as_by_qemu_img() {
    table(include_str!("snapshot.txt"));
}

#[test]
fn images_are_committed_as_by_qemu_img() {
    table(include_str!("commit.txt"));
}

#[test]
fn images_are_amended_as_by_qemu_img() {
    table(include_str!("amend.txt"));
}

#[test]
fn help_is_there_for_each_of_them() {
    let lab = Lab::new(&[]);
    for name in ["amend", "bitmap", "check", "commit", "snapshot"] {
        assert!(lab.ours(&[name, "--help"]).contains("FILENAME"), "{name}");
    }
}
