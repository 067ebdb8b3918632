//! Catena timed beside QEMU's tools and other libraries, on the same images in the same run.
//!
//! `cargo xtask bench` builds the commands as users have them and runs this. A job has contenders, Catena first. They take turns, so that
//! a noisy machine is noisy for all, their results are compared, and then their medians.
//!
//! * [`jobs`]: what is timed, one file per family. A new job is one more entry there.
//! * [`images`]: what jobs work on, made when a job first asks for it.
//! * [`turns`]: the contenders' turns, and what is measured of each.
//! * [`report`]: the table, and [`plot`] the picture of cost against depth.
//! * [`in_process`]: the library in process, as a contender.
//! * [`once`]: one run of a command, in a process of its own, so that the kernel tells what just that run used.

mod images;
mod in_process;
mod job;
mod jobs;
mod once;
mod plot;
mod report;
mod turns;

use anyhow::{Context, Result, bail};
use catena_workload::Work;
use images::Images;
use std::path::PathBuf;
use std::process::ExitCode;
use turns::Programs;

const HELP: &str = "\
catena-bench --catena PROGRAM [OPTION...] [JOB...]

  --catena PROGRAM   the catena command that is timed
  --peers PROGRAM    the program that asks other libraries; without it only QEMU's tools are peers
  --in FOLDER        where images are made that belong on a disk (a folder that goes afterwards; default: the system's)
  --memory FOLDER    where images are made that belong in memory (/dev/shm)
  --runs N           how often each contender runs (5; fewer where a run takes many seconds)
  --mib N            how much data the images of one layer hold (512)
  --plot FILE        where the picture of cost against depth goes (nowhere)
  --list             only name the jobs
  JOB                only jobs whose name contains one of these
";

/// What to time, and where.
struct Request {
    catena: PathBuf,
    peers: Option<PathBuf>,
    folder: PathBuf,
    memory: PathBuf,
    runs: usize,
    mib: u64,
    plot: Option<PathBuf>,
    list: bool,
    names: Vec<String>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let outcome = match arguments.peek().map(String::as_str) {
        Some("once") => once::main(arguments.skip(1)),
        Some("work") => Work::parse(arguments.skip(1))
            .and_then(|work| in_process::work(&work))
            .map(|figures| figures.print()),
        _ => request(arguments).and_then(|request| request.map_or(Ok(()), |request| bench(&request))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("catena-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn request(mut arguments: impl Iterator<Item = String>) -> Result<Option<Request>> {
    let mut request = Request {
        catena: PathBuf::new(),
        peers: None,
        folder: std::env::temp_dir(),
        memory: "/dev/shm".into(),
        runs: 5,
        mib: 512,
        plot: None,
        list: false,
        names: Vec::new(),
    };
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--catena" => request.catena = std::fs::canonicalize(value()?).context("--catena")?,
            "--peers" => request.peers = Some(std::fs::canonicalize(value()?).context("--peers")?),
            "--in" => request.folder = value()?.into(),
            "--memory" => request.memory = value()?.into(),
            "--runs" => request.runs = value()?.parse().context("--runs")?,
            "--mib" => request.mib = value()?.parse().context("--mib")?,
            "--plot" => request.plot = Some(value()?.into()),
            "--list" => request.list = true,
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(None);
            }
            option if option.starts_with('-') => bail!("there is no option {option}"),
            _ => request.names.push(argument),
        }
    }
    if request.catena.as_os_str().is_empty() {
        bail!("--catena is missing");
    }
    if request.runs == 0 || request.mib == 0 {
        bail!("--runs and --mib are at least 1");
    }
    Ok(Some(request))
}

fn bench(request: &Request) -> Result<()> {
    let wanted = |name: &str| {
        request.names.is_empty() || request.names.iter().any(|part| name.contains(part.as_str()))
    };
    let jobs: Vec<_> = jobs::all(request.mib << 20)
        .into_iter()
        .filter(|job| wanted(&job.name))
        .collect();
    if jobs.is_empty() {
        bail!("no job has such a name; --list names all");
    }
    if request.list {
        for job in &jobs {
            println!("{}", job.name);
        }
        return Ok(());
    }
    let programs = Programs::new(&request.catena, request.peers.as_deref())?;
    let mut images = Images::new(&request.folder, &request.memory)?;
    let mut report = report::Report::begin(request.mib, request.runs)?;
    for job in &jobs {
        let results =
            turns::take(job, &mut images, &programs, request.runs).with_context(|| job.name.clone())?;
        report.add(job, results)?;
    }
    report.end(request.plot.as_deref())
}
