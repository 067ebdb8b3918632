//! `catena tour` as a newcomer runs it: it goes well, shows the same view again and again, and leaves nothing.
#![cfg(test)]

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A folder for temporary files that other users can come to.
fn temporary() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn tour(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_catena"));
    command.arg("tour").env("TMPDIR", folder).env("COLUMNS", "80");
    command
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn mends_every_fault_and_shows_the_guest_the_same() {
    let folder = temporary();
    let output = tour(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let sums: Vec<_> = text.lines().filter(|line| line.starts_with("blake3:")).collect();
    assert_eq!(sums.len(), 5, "{text}");
    assert_eq!(BTreeSet::from_iter(sums).len(), 1, "{text}");
    assert!(is_empty(folder.path()));
}

#[test]
fn every_screen_of_it_fits_a_small_terminal() {
    const COLUMNS: usize = 80;
    // With --pause there is an empty line and one to wait on besides.
    const ROWS: usize = 24 - 2;
    let folder = temporary();
    let output = tour(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let is_title = |line: &str| line.as_bytes().get(1..4) == Some(b"/7 ".as_slice());
    let mut screens: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        if is_title(line) {
            screens.push(Vec::new());
        }
        if let Some(screen) = screens.last_mut() {
            screen.push(line);
        }
    }
    assert_eq!(screens.len(), 11);
    for mut screen in screens {
        while screen.pop_if(|line| line.is_empty()).is_some() {}
        let rows: usize = screen
            .iter()
            .map(|line| line.chars().count().div_ceil(COLUMNS).max(1))
            .sum();
        assert!(rows <= ROWS, "{rows} rows:\n{}", screen.join("\n"));
    }
}

#[test]
fn leaves_nothing_when_it_is_stopped() {
    let folder = temporary();
    // A pipe too small for all it says, and nobody reads: it cannot come to its end.
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut child = tour(folder.path()).stdout(Stdio::from(writer)).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while is_empty(folder.path()) {
        assert!(Instant::now() < patience);
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(is_empty(folder.path()));
    drop(reader);
}
