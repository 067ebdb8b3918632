//! One run of a command, in a process of its own: what the kernel says of that process's children is then said of just this run.

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A run that takes longer is ended.
pub const LONGEST: Duration = Duration::from_secs(240);

/// What a run of a command used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// The most memory of one of its processes, in KiB.
    pub peak_kib: u64,
}

/// `once OUTPUT PROGRAM WORD...`: runs the program, its output going to a file, and prints what it used.
pub fn main(mut words: impl Iterator<Item = String>) -> Result<()> {
    let output = words.next().context("no file for the output")?;
    let mut command = Command::new(words.next().context("no program")?);
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(File::create(output)?);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    let (done, end) = mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        let timed_out = end.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout);
        if timed_out {
            let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
        }
        timed_out
    });
    let status = child.wait()?;
    let wall = start.elapsed().as_secs_f64();
    let _ = done.send(());
    if guard.join().is_ok_and(|timed_out| timed_out) {
        bail!("ended after {} s", LONGEST.as_secs());
    }
    if !status.success() {
        bail!("{status}");
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
    println!("used {wall} {cpu} {}", usage.max_rss());
    Ok(())
}

/// Runs a command through `once`, and gives what it used and printed.
pub fn run(program: &Path, words: &[String], folder: &Path) -> Result<(Used, String)> {
    let printed = folder.join(".printed");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("once").arg(&printed).arg(program).args(words);
    let output = command
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "{} {}: {}",
            program.display(),
            words.join(" "),
            said.lines().last().unwrap_or_default()
        );
    }
    let used = String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(parse)
        .context("no figures")?;
    let text = std::fs::read(&printed)?;
    Ok((used, String::from_utf8_lossy(&text).into_owned()))
}

fn parse(line: &str) -> Option<Used> {
    let mut words = line.strip_prefix("used ")?.split(' ');
    Some(Used {
        wall: words.next()?.parse().ok()?,
        cpu: words.next()?.parse().ok()?,
        peak_kib: words.next()?.parse().ok()?,
    })
}
