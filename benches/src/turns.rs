//! The contenders' turns at a job: what each run used, and whether all did the same.

use crate::images::{Folder, Images};
use crate::job::{Contender, Job, Program, Same};
use crate::once::{self, Used};
use anyhow::{Context, Result, bail, ensure};
use catena_workload::Figures;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Seconds that the runs of one contender may take together, about; one whose runs are long has fewer.
const SECONDS: f64 = 30.0;

/// Where the programs are.
pub struct Programs {
    catena: PathBuf,
    peers: Option<PathBuf>,
    own: PathBuf,
}

/// What the runs of a contender came to.
pub struct Outcome {
    /// Who.
    pub contender: Contender,
    /// What was measured; the reason, where it could not do the job.
    pub medians: std::result::Result<Medians, String>,
}

/// Medians of a contender's runs.
#[derive(Clone, Copy, Debug)]
pub struct Medians {
    /// Seconds on the clock: of the whole command, or in process of one request.
    pub wall: f64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// How far the slowest run lies above the fastest, as a part of the median.
    pub spread: f64,
    /// The most memory, in KiB.
    pub peak_kib: u64,
    /// How many runs counted.
    pub runs: usize,
    /// Whether it was in process, where time is that of one request.
    pub per_request: bool,
}

impl Programs {
    /// Finds this program beside those that it is told of.
    pub fn new(catena: &Path, peers: Option<&Path>) -> Result<Self> {
        Ok(Self {
            catena: catena.to_owned(),
            peers: peers.map(Path::to_owned),
            own: std::env::current_exe()?,
        })
    }

    /// The program of a contender and its words; `None` where there is no such program here.
    fn command(&self, contender: &Contender) -> Option<(PathBuf, Vec<String>)> {
        let (program, first) = match contender.program {
            Program::Catena => (self.catena.clone(), None),
            Program::CatenaImg => (self.catena.clone(), Some("qemu-img")),
            Program::CatenaWork => (self.own.clone(), Some("work")),
            Program::PeerWork => (self.peers.clone()?, None),
            Program::Tool(name) => (name.into(), None),
        };
        let first = first.map(str::to_owned);
        Some((
            program,
            first.into_iter().chain(contender.words.iter().cloned()).collect(),
        ))
    }
}

/// One contender's runs.
struct Turns<'a> {
    contender: &'a Contender,
    command: (PathBuf, Vec<String>),
    whole: bool,
    runs: Vec<(Used, bool)>,
    most: usize,
    failed: Option<String>,
}

/// Times a job, its contenders taking turns, after one run of each that only counts where it took long.
pub fn take(job: &Job, images: &mut Images, programs: &Programs, runs: usize) -> Result<Vec<Outcome>> {
    let folder = images.folder(job)?;
    let mut turns: Vec<_> = job
        .contenders
        .iter()
        .filter_map(|contender| {
            Some(Turns {
                contender,
                command: programs.command(contender)?,
                whole: job.whole,
                runs: Vec::new(),
                most: runs,
                failed: None,
            })
        })
        .collect();
    for name in &job.warm {
        std::io::copy(&mut File::open(folder.path().join(name))?, &mut std::io::sink())?;
    }
    let mut right = None;
    for (number, turn) in turns.iter_mut().enumerate() {
        match turn.first(job, folder) {
            Ok(result) if right.is_none() => right = Some(result),
            Ok(result) => agree(job, folder, right.as_ref(), &result)
                .with_context(|| format!("{} does not do what Catena does", turn.contender.name))?,
            // A peer that cannot do it loses; Catena must.
            Err(error) if number > 0 => turn.failed = Some(format!("{error:#}")),
            Err(error) => return Err(error),
        }
    }
    clean(folder)?;
    touch_free_memory();
    for number in 0..runs {
        // Each round begins with another: what the first finds in the caches of the disk, and of a host, is not what the last finds.
        let begins = number % turns.len().max(1);
        let (last, first) = turns.split_at_mut(begins);
        for turn in first.iter_mut().chain(last) {
            if turn.failed.is_none() && number < turn.most {
                turn.run(job, folder)?;
            }
        }
    }
    turns.into_iter().map(Turns::outcome).collect()
}

/// Uses a part of the memory that is free, and gives it back. In a virtual machine whose host has yet to find such memory, or has taken it back,
/// each new page takes microseconds: whoever comes first would pay for all.
fn touch_free_memory() {
    const MOST: usize = 4 << 30;
    const PAGE: usize = 4096;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemFree:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<usize>().ok()
    });
    let bytes = (free.unwrap_or_default() / 2).saturating_mul(1024).min(MOST);
    let mut memory = vec![0_u8; bytes];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

impl Turns<'_> {
    /// The run that shows that it works, and what came of it.
    fn first(&mut self, job: &Job, folder: &Folder) -> Result<Made> {
        let (used, printed) = self.go(job, folder)?;
        if used.wall * self.most as f64 > SECONDS {
            // Such a run does not depend on what is in which cache, and is too good to be thrown away.
            self.most = (SECONDS / used.wall) as usize;
            self.count(used, &printed);
        }
        Ok(match job.same {
            Same::Success => Made::Nothing,
            Same::Output => Made::Printed(printed),
            Same::Digest => Made::Digest(
                Figures::parse(&printed)
                    .with_context(|| format!("{} printed no figures", self.contender.name))?
                    .digest,
            ),
            Same::Image(name) | Same::Bytes(name) => {
                let kept = format!(".{}-{}", self.contender.name, name);
                folder.keep(name, &kept)?;
                Made::File(kept)
            }
        })
    }

    fn go(&self, job: &Job, folder: &Folder) -> Result<(Used, String)> {
        folder.make_ready(&job.fresh)?;
        let (program, words) = &self.command;
        once::run(program, words, folder.path())
    }

    fn run(&mut self, job: &Job, folder: &Folder) -> Result<()> {
        let (used, printed) = self.go(job, folder)?;
        self.count(used, &printed);
        Ok(())
    }

    fn count(&mut self, used: Used, printed: &str) {
        self.runs
            .push(match Figures::parse(printed).filter(|_| !self.whole) {
                Some(figures) => {
                    let ops = figures.ops.max(1) as f64;
                    let used = Used {
                        wall: figures.seconds / ops,
                        cpu: figures.cpu / ops,
                        peak_kib: figures.peak_kib,
                    };
                    (used, true)
                }
                None => (used, false),
            });
    }

    fn outcome(self) -> Result<Outcome> {
        let contender = self.contender.clone();
        if let Some(failed) = self.failed {
            return Ok(Outcome {
                contender,
                medians: Err(failed),
            });
        }
        let sorted = |of: fn(&Used) -> f64| {
            let mut values: Vec<f64> = self.runs.iter().map(|(used, _)| of(used)).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let (wall, cpu) = (sorted(|used| used.wall), sorted(|used| used.cpu));
        let (first, last) = wall.first().zip(wall.last()).context("no runs")?;
        let median = |values: &[f64]| values[values.len() / 2];
        Ok(Outcome {
            medians: Ok(Medians {
                wall: median(&wall),
                cpu: median(&cpu),
                spread: (last - first) / median(&wall),
                peak_kib: self
                    .runs
                    .iter()
                    .map(|(used, _)| used.peak_kib)
                    .max()
                    .unwrap_or_default(),
                runs: self.runs.len(),
                per_request: self.runs.iter().all(|(_, in_process)| *in_process),
            }),
            contender,
        })
    }
}

/// What came of a contender's first run, as far as it must be the same for all.
#[derive(PartialEq)]
enum Made {
    Nothing,
    Printed(String),
    Digest(u64),
    File(String),
}

fn agree(job: &Job, folder: &Folder, right: Option<&Made>, made: &Made) -> Result<()> {
    match (job.same, right, made) {
        (Same::Image(_), Some(Made::File(right)), Made::File(made)) => folder.compare(right, made),
        (Same::Bytes(_), Some(Made::File(right)), Made::File(made)) => folder.run("cmp", &[right, made]),
        (_, Some(right), made) => {
            ensure!(right == made, "the results differ");
            Ok(())
        }
        (_, None, _) => bail!("Catena did nothing to compare with"),
    }
}

fn clean(folder: &Folder) -> Result<()> {
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
