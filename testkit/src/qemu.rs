//! Running QEMU's tools.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How an image is named to QEMU's tools, with what else they need to open it.
#[derive(Clone, Debug)]
pub struct Target {
    /// A path, or `json:{…}` where a path does not say enough.
    pub name: String,
    /// What to give with `-f`; none where the name says it.
    pub format: Option<&'static str>,
    /// `--object …` definitions: the secrets of encrypted layers.
    pub objects: Vec<String>,
}

impl Target {
    /// The file at `path`, in `format`.
    pub fn file(path: &Path, format: &'static str) -> Self {
        Self {
            name: path.display().to_string(),
            format: Some(format),
            objects: Vec::new(),
        }
    }

    /// The arguments that come before the name: `--object`s, then `-f`.
    pub fn options(&self) -> Vec<&str> {
        let objects = self
            .objects
            .iter()
            .flat_map(|object| ["--object", object.as_str()]);
        let format = self.format.iter().flat_map(|format| ["-f", *format]);
        objects.chain(format).collect()
    }
}

/// Runs `qemu-img` with these arguments; what it wrote to standard output.
///
/// # Errors
/// If it cannot be run or fails; the error has what it said.
pub fn img<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    let output = run(&mut command)?;
    if !output.status.success() {
        bail!("{}", failure(&command, &output));
    }
    Ok(stdout(&output))
}

/// As [`img`], for verbs whose exit status is part of their answer; where there is no answer, what went wrong.
///
/// # Errors
/// If it cannot be run, or says nothing on standard output.
pub fn img_whatever_status<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    let output = run(&mut command)?;
    if output.stdout.is_empty() {
        bail!("{}", failure(&command, &output));
    }
    Ok(stdout(&output))
}

/// Runs `qemu-img VERB` on an image, with these arguments between the image's options and its name.
///
/// # Errors
/// As for [`img`].
pub fn img_on(verb: &str, target: &Target, arguments: &[&str]) -> Result<String> {
    let mut words = vec![verb];
    words.extend(target.options());
    words.extend(arguments);
    words.push(&target.name);
    img(words)
}

/// Runs `qemu-io` commands on an image, all in one process; what it wrote to standard output.
///
/// Discards are passed on, and nothing is synced to disk: no test survives a power cut. QEMU refuses to write a cluster
/// compressed (`write -c`) where it would overwrite one; that is no failure here, and changes nothing in the image.
///
/// # Errors
/// If it cannot be run, or if any of the commands fails.
pub fn io(target: &Target, commands: &[String]) -> Result<String> {
    if commands.is_empty() {
        return Ok(String::new());
    }
    let mut command = io_command(target, commands);
    let output = run(&mut command)?;
    if output.status.code().is_none_or(|code| code > 1) || !all_done(commands, &output) {
        bail!("{}", failure(&command, &output));
    }
    Ok(stdout(&output))
}

/// As [`io`], and then the process dies as if killed, after flushing what was written: an image with lazy reference
/// counts stays marked dirty.
///
/// # Errors
/// If it cannot be run, or if any of the commands fails.
pub fn io_then_die(target: &Target, commands: &[String]) -> Result<()> {
    let mut all = commands.to_vec();
    all.extend(["flush".to_owned(), "sigraise 9".to_owned()]);
    let mut command = io_command(target, &all);
    let output = run(&mut command)?;
    if output.status.code().is_some() || !all_done(commands, &output) {
        bail!("{}", failure(&command, &output));
    }
    Ok(())
}

/// Whether qemu-io, which goes on after a failure, did all it was told but compressed writes over what was there. It
/// reports each failure in a line of its own.
fn all_done(commands: &[String], output: &Output) -> bool {
    let failures: Vec<_> = lines([&output.stdout, &output.stderr])
        .filter(|line| line.contains("failed") || line.starts_with("qemu-io: "))
        .collect();
    let compressed = commands
        .iter()
        .filter(|command| command.starts_with("write -c "))
        .count();
    let refused = failures
        .iter()
        .filter(|line| *line == "write failed: Input/output error")
        .count();
    refused == failures.len() && refused <= compressed
}

/// The version of `qemu-img`, such as `10.0.2`.
///
/// # Errors
/// If it cannot be run or says no version.
pub fn version() -> Result<String> {
    let text = img(["--version"])?;
    let version = text
        .split_whitespace()
        .nth(2)
        .context("qemu-img says no version")?;
    Ok(version.to_owned())
}

fn io_command(target: &Target, commands: &[String]) -> Command {
    let mut command = Command::new("qemu-io");
    command
        .args(["-d", "unmap", "-t", "unsafe"])
        .args(target.options())
        .arg(&target.name);
    for line in commands {
        command.args(["-c", line]);
    }
    command
}

fn run(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("could not run {command:?}"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lines of both streams, one stream after the other.
fn lines(streams: [&Vec<u8>; 2]) -> impl Iterator<Item = String> {
    streams.into_iter().flat_map(|bytes| {
        String::from_utf8_lossy(bytes)
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    })
}

fn failure(command: &Command, output: &Output) -> String {
    let said: Vec<_> = lines([&output.stderr, &output.stdout])
        .filter(|line| !line.starts_with("wrote ") && !line.contains(" ops; "))
        .collect();
    format!("{command:?} failed ({}): {}", output.status, said.join("; "))
}
