//! Our qemu-img beside the real one: the same command lines on the same images, and the same text, status, and images afterwards.
#![cfg(test)]

mod generated;
mod lab;

use generated::Dice;
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
fn drawn_questions_are_answered_as_by_qemu_img() {
    let lab = Lab::new(&[]);
    let names = generated::images(24, 7, &lab.images());
    let mut dice = Dice::new(1);
    let lines: Vec<_> = (0..900).map(|_| generated::question(&mut dice, &names)).collect();
    compare(&lab, &lines);
}

#[test]
fn drawn_copies_and_changes_are_those_of_qemu_img() {
    let lab = Lab::new(&[]);
    let names = generated::images(16, 9, &lab.images());
    let mut dice = Dice::new(2);
    let lines: Vec<_> = (0..600).map(|_| generated::copy(&mut dice, &names)).collect();
    compare(&lab, &lines);
}

#[test]
fn drawn_new_images_are_those_of_qemu_img() {
    let lab = Lab::new(&[]);
    let mut dice = Dice::new(3);
    let lines: Vec<_> = (0..900).map(|_| generated::creation(&mut dice)).collect();
    compare(&lab, &lines);
}

#[test]
fn damaged_headers_are_refused_in_the_words_of_qemu_img() {
    let lines = CASES.lines().filter_map(|line| line.strip_prefix("! "));
    let mut setup: Vec<_> = lines.map(str::to_owned).collect();
    let mut dice = Dice::new(4);
    let mut cases = Vec::new();
    for number in 0..250 {
        let (command, name) = generated::damage(&mut dice, number);
        setup.push(command);
        cases.push(format!("info -f qcow2 {name}"));
        cases.push(format!("map -f qcow2 {name}"));
    }
    let setup: Vec<_> = setup.iter().map(String::as_str).collect();
    compare(&Lab::new(&setup), &cases);
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
