//! One job timed with both programs in turn.

use crate::images::Images;
use crate::jobs::Job;
use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Medians of a program's runs.
pub struct Figures {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// How far the slowest run lies above the fastest, as a part of the median.
    pub spread: f64,
}

/// Times a job, ours and theirs alternating, after one run of each that does not count.
pub fn take_turns(job: &Job, images: &Images, catena: &Path, runs: usize) -> Result<(Figures, Figures)> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let catena = once(job, images, Command::new(catena).arg("qemu-img"))?;
        let qemu = once(job, images, &mut Command::new("qemu-img"))?;
        if run > 0 {
            ours.push(catena);
            theirs.push(qemu);
        }
    }
    Ok((figures(ours)?, figures(theirs)?))
}

/// Seconds on the clock and of processor time for one run.
fn once(job: &Job, images: &Images, program: &mut Command) -> Result<(f64, f64)> {
    images.make_ready(job.fresh)?;
    let before = processor_seconds()?;
    let start = Instant::now();
    program
        .args(job.words.split(' '))
        .current_dir(images.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = program.status().with_context(|| format!("{program:?}"))?;
    let wall = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{program:?} failed: {status}");
    }
    Ok((wall, processor_seconds()? - before))
}

/// Processor time of all children so far.
fn processor_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn figures(runs: Vec<(f64, f64)>) -> Result<Figures> {
    let (wall, cpu): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
    let (wall, cpu) = (sorted(wall), sorted(cpu));
    let (first, last) = wall.first().zip(wall.last()).context("no runs")?;
    let median = |values: &[f64]| values[values.len() / 2];
    Ok(Figures {
        wall: median(&wall),
        cpu: median(&cpu),
        spread: (last - first) / median(&wall),
    })
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}
