//! A command that changes files, run to be cut off.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::record::{RECORDED, Recording};
use super::strace::CHANGING;
use super::tree::Tree;

/// Has strace stop the program at nothing but the calls that are asked for.
const QUICK: &str = "--seccomp-bpf";

/// A program with its arguments, in a folder.
#[derive(Debug)]
pub struct Operation {
    program: PathBuf,
    folder: PathBuf,
    arguments: Vec<String>,
    /// For what is kept from run to run, which is nothing here, and for what strace writes.
    scratch: TempDir,
}

/// What happens to a system call that would change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed where it begins.
    Killed,
    /// There is no space left (`ENOSPC`).
    NoSpace,
    /// The medium is broken (`EIO`).
    Broken,
}

/// A system call by its name, and which one of a thread: each thread counts its own, from 1 on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    call: String,
    number: usize,
}

/// What came of a run with a fault.
#[derive(Debug)]
pub struct Struck {
    /// Whether it made so many calls that one was struck.
    pub hit: bool,
    /// Its exit status, and what it wrote.
    pub output: Output,
}

impl Operation {
    /// What is to be run; each run begins with an empty cache.
    ///
    /// # Errors
    /// Where nothing may be traced: there is no strace, or the system forbids it.
    pub fn new(program: &Path, folder: &Path, arguments: &[&str]) -> Result<Self> {
        check_tracing()?;
        Ok(Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            scratch: crate::scratch()?,
        })
    }

    /// Runs it with a fault at one of its changing calls.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub fn strike(&self, fault: Fault, point: &Point) -> Result<Struck> {
        let how = match fault {
            Fault::Killed => "signal=SIGKILL",
            Fault::NoSpace => "error=ENOSPC",
            Fault::Broken => "error=EIO",
        };
        let Point { call, number } = point;
        let inject = format!("inject={call}:{how}:when={number}");
        let trace = format!("trace={call}");
        let mut options = vec!["-e", &trace, "-e", &inject];
        if fault != Fault::Killed {
            // Quicker; but strace 6.1 then gives no signals.
            options.push(QUICK);
        }
        let (output, log) = self.traced(&options)?;
        let hit = match fault {
            Fault::Killed => output.status.signal() == Some(9),
            _ => log.contains("(INJECTED)"),
        };
        Ok(Struck { hit, output })
    }

    /// The changing calls of a run to its end, those that make files among them.
    ///
    /// # Errors
    /// Where it cannot be run, or fails.
    pub fn points(&self) -> Result<Vec<Point>> {
        let (output, log) = self.traced(&[QUICK, "-e", &format!("trace=openat,{CHANGING}")])?;
        self.check(&output)?;
        let mut made: HashMap<(&str, &str), usize> = HashMap::new();
        let mut points = Vec::new();
        for line in log.lines().filter(|line| !line.contains("<... ")) {
            let (thread, rest) = line.split_once(' ').context("a line without a thread")?;
            let Some((call, arguments)) = rest.trim_start().split_once('(') else {
                continue;
            };
            let number = made.entry((thread, call)).or_insert(0);
            *number += 1;
            let point = Point {
                call: call.to_owned(),
                number: *number,
            };
            if (call != "openat" || arguments.contains("O_CREAT")) && !points.contains(&point) {
                points.push(point);
            }
        }
        Ok(points)
    }

    /// Runs it to its end, in folders that are what is given, and records what it does to them.
    ///
    /// # Errors
    /// Where it fails, or does something that is not understood: what was recorded, done again, must make the folders what they are.
    pub fn record(&self, start: &Tree) -> Result<Recording> {
        let trace = format!("trace={RECORDED}");
        let (output, log) = self.traced(&[QUICK, "-y", "-v", "-xx", "-s", "100000000", "-e", &trace])?;
        self.check(&output)?;
        Recording::new(start, &self.folder, &log)
    }

    fn check(&self, output: &Output) -> Result<()> {
        if !output.status.success() {
            bail!(
                "{:?}: {}",
                self.arguments,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Runs it under strace; what it said, and the log.
    fn traced(&self, options: &[&str]) -> Result<(Output, String)> {
        let log = self.scratch.path().join("log");
        let cache = self.scratch.path().join("cache");
        for (folder, file) in [(&cache, false), (&log, true)] {
            if folder.exists() {
                if file {
                    std::fs::remove_file(folder)
                } else {
                    std::fs::remove_dir_all(folder)
                }?;
            }
        }
        let output = Command::new("strace")
            .args(["-f", "-qq", "-e", "signal=none", "-o"])
            .arg(&log)
            .args(options)
            .arg("--")
            .arg(&self.program)
            .args(&self.arguments)
            .current_dir(&self.folder)
            .env("LC_ALL", "C.UTF-8")
            .env("XDG_CACHE_HOME", &cache)
            .stdin(Stdio::null())
            .output()
            .context("strace")?;
        let log = std::fs::read(&log).context("the log of strace")?;
        Ok((output, String::from_utf8(log)?))
    }
}

/// Whether anything may be traced here.
fn check_tracing() -> Result<()> {
    static TRACED: OnceLock<Option<String>> = OnceLock::new();
    let why_not = TRACED.get_or_init(|| {
        let options = [
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-o",
            "/dev/null",
            "-e",
            "trace=write",
            "true",
        ];
        match Command::new("strace").args(options).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(error.to_string()),
        }
    });
    match why_not {
        None => Ok(()),
        Some(why) => bail!("this machine lets nothing be traced, and so nothing be cut off: strace: {why}"),
    }
}
