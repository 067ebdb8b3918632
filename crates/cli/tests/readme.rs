//! A newcomer's first ten minutes, as the README has them: every command succeeds and says what is shown.
#![cfg(test)]

use std::path::Path;
use std::process::Command;

/// A command of a `console` block, and the lines shown behind it.
struct Step<'a> {
    command: &'a str,
    shown: Vec<&'a str>,
}

fn steps(page: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step {
                    command,
                    shown: Vec::new(),
                }),
                (None, Some(step)) => step.shown.push(line),
                (None, None) => panic!("output without a command: {line}"),
            },
            (false, _) => {}
        }
    }
    steps
}

#[test]
fn the_first_ten_minutes_go_as_they_are_told() {
    let page = include_str!("../../../README.md");
    let (_, part) = page.split_once("## The first ten minutes").unwrap();
    let (part, _) = part.split_once("## What it can do").unwrap();
    let steps = steps(part);
    assert!(steps.len() > 15);
    let folder = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_catena")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for step in steps {
        let output = Command::new("bash")
            .args(["-c", step.command])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && wrong.is_empty(),
            "{}: {said}{wrong}",
            step.command
        );
        for line in step.shown {
            assert!(said.lines().any(|told| told == line), "{}: {said}", step.command);
        }
    }
}
