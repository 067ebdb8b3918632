//! Our qemu-img beside the real one: the same command lines on the same images, and the same text, status, and images afterwards.
#![cfg(test)]

mod lab;

use lab::{Lab, split};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const CASES: &str = include_str!("cases.txt");

/// How many command lines run at once.
const THREADS: usize = 2;

/// Runs lines through both programs and tells of all that differ.
fn compare(lab: &Lab, lines: &[String]) {
    let next = AtomicUsize::new(0);
    let differences = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut pair = lab.pair();
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = pair.run(line);
                    if !found.is_empty() {
                        differences
                            .lock()
                            .unwrap()
                            .push(format!("qemu-img {line}\n{}", found.join("\n")));
                    }
                }
            });
        }
    });
    let differences = differences.into_inner().unwrap();
    assert!(
        differences.is_empty(),
        "{} of {} command lines differ:\n\n{}",
        differences.len(),
        lines.len(),
        differences.join("\n\n")
    );
}

#[test]
fn the_table_of_command_lines_is_answered_as_by_qemu_img() {
    let lines = || {
        CASES
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
    };
    let setup: Vec<_> = lines().filter_map(|line| line.strip_prefix("! ")).collect();
    let lab = Lab::new(&setup);
    let cases: Vec<_> = lines()
        .filter(|line| !line.starts_with('!'))
        .map(str::to_owned)
        .collect();
    compare(&lab, &cases);
}

#[test]
fn words_are_split_as_a_shell_splits_them() {
    assert_eq!(
        split(r#"a 'b "c' "d e" '' f\ g"#),
        ["a", "b \"c", "d e", "", "f g"]
    );
}

#[test]
fn help_is_there_for_every_subcommand() {
    let lab = Lab::new(&[]);
    for name in [
        "bench", "compare", "convert", "create", "dd", "info", "map", "measure", "rebase", "resize",
        "snapshot",
    ] {
        let said = lab.ours(&[name, "--help"]);
        assert!(
            said.contains(&format!("qemu-img {name} [")) || said.contains(&format!("qemu-img {name} (")),
            "{said}"
        );
    }
    assert!(
        lab.ours(&["--version"])
            .starts_with("qemu-img version 10.0.2 (catena ")
    );
    assert!(lab.ours(&["--help"]).contains("snapshot"));
}
