//! Catena timed beside QEMU's tools, on the same images in the same run.
//!
//! `cargo xtask bench` builds the command as users have it and runs this. Each job is one command line that both
//! understand. The two take turns, so that a noisy machine is noisy for both, and the medians are compared.

mod images;
mod jobs;
mod measure;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
catena-bench --catena PROGRAM [--in FOLDER] [--runs N] [--mib N] [JOB...]

  --catena PROGRAM   the catena command that is timed
  --in FOLDER        where the images are made (a folder that goes afterwards; default: the system's)
  --runs N           how often each job runs with each program (5)
  --mib N            how much data the images hold (512)
  JOB                only jobs whose name contains one of these
";

/// What to time, and where.
struct Request {
    catena: PathBuf,
    folder: PathBuf,
    runs: usize,
    mib: u64,
    names: Vec<String>,
}

fn main() -> ExitCode {
    match request(std::env::args().skip(1))
        .and_then(|request| request.map_or(Ok(()), |request| bench(&request)))
    {
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
        folder: std::env::temp_dir(),
        runs: 5,
        mib: 512,
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
            "--in" => request.folder = value()?.into(),
            "--runs" => request.runs = value()?.parse().context("--runs")?,
            "--mib" => request.mib = value()?.parse().context("--mib")?,
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
    Ok(Some(request))
}

fn bench(request: &Request) -> Result<()> {
    let dir = tempfile::tempdir_in(&request.folder).context("a folder for the images")?;
    let images = images::Images::make(dir.path(), request.mib << 20)?;
    println!(
        "{} MiB of data, {} runs of each in turn, medians; load {}",
        request.mib,
        request.runs,
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    println!();
    println!("| job | catena | cpu | qemu-img | cpu | qemu-img / catena | spread |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let wanted =
        |name: &str| request.names.is_empty() || request.names.iter().any(|part| name.contains(part));
    for job in jobs::all().iter().filter(|job| wanted(job.name)) {
        let (ours, theirs) = measure::take_turns(job, &images, &request.catena, request.runs)
            .with_context(|| job.name.to_owned())?;
        println!(
            "| {} | {:.3} s | {:.3} s | {:.3} s | {:.3} s | {:.2} | {:.0} %, {:.0} % |",
            job.name,
            ours.wall,
            ours.cpu,
            theirs.wall,
            theirs.cpu,
            theirs.wall / ours.wall,
            ours.spread * 100.0,
            theirs.spread * 100.0,
        );
    }
    println!();
    println!(
        "load afterwards {}",
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    Ok(())
}
