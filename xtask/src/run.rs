//! Running other programs: said aloud, from the root of the workspace, with nothing to read from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Cargo, the one that runs this chore.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs `command` from the root of the workspace, its output ours.
pub fn run(command: &mut Command) -> Result<()> {
    let words = words(command);
    eprintln!("xtask: {words}");
    let start = Instant::now();
    let status = command
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("could not run {words}"))?;
    if !status.success() {
        bail!("failed ({status}): {words}");
    }
    eprintln!("xtask: done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// What `command` writes to its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let words = words(command);
    let output = command
        .current_dir(root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not run {words}"))?;
    if !output.status.success() {
        bail!("failed ({}): {words}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{words} wrote something that is not UTF-8"))
}

/// Where `program` is on `PATH`, or in the folders of root's programs, which other users' `PATH` lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn words(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
