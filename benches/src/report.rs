//! The table: medians, ratios, goals, and how noisy the machine was.

use crate::job::Job;
use crate::plot;
use crate::turns::{Medians, Outcome};
use anyhow::{Context, Result};
use std::path::Path;

/// What has been reported so far.
pub struct Report {
    points: Vec<plot::Point>,
    machine: Machine,
    at_first: Machine,
    missed: Vec<String>,
}

/// Processor time of the whole machine, and of our children, in seconds.
#[derive(Clone, Copy)]
struct Machine {
    busy: f64,
    idle: f64,
    children: f64,
}

impl Report {
    /// Prints what comes before the rows.
    pub fn begin(mib: u64, runs: usize) -> Result<Self> {
        println!(
            "{mib} MiB of data, {runs} runs of each in turn, medians; {}",
            load()?
        );
        println!();
        println!(
            "Time is that of the whole command, or in process that of one request. \"cpu\" is processor time, \"peak\" the most memory. \
             \"ratio\" is the contender's time by Catena's; \"spread\" is how far its slowest run lies above its fastest. \"others\" is how \
             busy the machine was with something else."
        );
        println!();
        println!("| job | by | time | cpu | peak | ratio | goal | spread | runs | others |");
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        let machine = Machine::now()?;
        Ok(Self {
            points: Vec::new(),
            machine,
            at_first: machine,
            missed: Vec::new(),
        })
    }

    /// Prints the rows of a job.
    pub fn add(&mut self, job: &Job, outcomes: Vec<Outcome>) -> Result<()> {
        let now = Machine::now()?;
        let others = now.others_since(&self.machine);
        self.machine = now;
        let ours = outcomes
            .first()
            .and_then(|first| first.medians.as_ref().ok())
            .map(|medians| medians.wall)
            .context("Catena was not timed")?;
        for (number, outcome) in outcomes.into_iter().enumerate() {
            let name = outcome.contender.name;
            let job_name = if number == 0 { job.name.as_str() } else { "" };
            match &outcome.medians {
                Ok(medians) => {
                    let ratio = medians.wall / ours;
                    let goal = match outcome.contender.goal {
                        Some(goal) if ratio < goal => {
                            self.missed
                                .push(format!("{}: {ratio:.2} times {name}, not {goal}", job.name));
                            format!("{goal} MISSED")
                        }
                        Some(goal) => goal.to_string(),
                        None => String::new(),
                    };
                    println!("{}", row(job_name, name, medians, ratio, &goal, others));
                    if let Some((curve, depth)) = job.point {
                        self.points.push(plot::Point {
                            curve,
                            name,
                            depth,
                            seconds: medians.wall,
                        });
                    }
                }
                Err(why) => println!("| {job_name} | {name} | failed: {} | | | | | | | |", short(why)),
            }
        }
        Ok(())
    }

    /// Prints what comes after the rows, and draws the plot.
    pub fn end(self, plot: Option<&Path>) -> Result<()> {
        println!();
        let others = Machine::now()?.others_since(&self.at_first);
        println!(
            "Afterwards: {}; all the time {:.0} % of the machine was busy with something else.",
            load()?,
            others * 100.0
        );
        if !self.missed.is_empty() {
            println!("\nGoals not reached:\n");
            for missed in &self.missed {
                println!("* {missed}");
            }
        }
        match plot {
            Some(path) if !self.points.is_empty() => {
                std::fs::write(path, plot::svg(&self.points)).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

fn row(job: &str, name: &str, medians: &Medians, ratio: f64, goal: &str, others: f64) -> String {
    format!(
        "| {job} | {name} | {} | {} | {:.1} MiB | {ratio:.2} | {goal} | {:.0} % | {} | {:.0} % |",
        time(medians.wall, medians.per_request),
        time(medians.cpu, medians.per_request),
        medians.peak_kib as f64 / 1024.0,
        medians.spread * 100.0,
        medians.runs,
        others * 100.0,
    )
}

/// Seconds as people read them; of a request with how many there are in a second.
fn time(seconds: f64, per_request: bool) -> String {
    let text = match seconds {
        0.1.. => format!("{seconds:.2} s"),
        0.001.. => format!("{:.1} ms", seconds * 1e3),
        1e-6.. => format!("{:.2} µs", seconds * 1e6),
        _ => format!("{:.0} ns", seconds * 1e9),
    };
    match 1.0 / seconds {
        rate if per_request && rate.is_finite() && rate >= 1e6 => format!("{text} ({:.2} M/s)", rate / 1e6),
        rate if per_request && rate.is_finite() && rate >= 10.0 => format!("{text} ({:.1} k/s)", rate / 1e3),
        _ => text,
    }
}

fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().replace('|', "/");
    line.rsplit(": ").next().unwrap_or_default().to_owned()
}

fn load() -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let processors = std::thread::available_parallelism()?;
    let words: Vec<_> = load.split(' ').take(3).collect();
    Ok(format!("{processors} processors, load {}", words.join(" ")))
}

impl Machine {
    fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line
            .split_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq steal; guests are counted within user.
        let idle = ticks.iter().skip(3).take(2).sum::<f64>();
        let all = ticks.iter().take(8).sum::<f64>();
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Ok(Self {
            busy: (all - idle) / 100.0,
            idle: idle / 100.0,
            children: seconds(usage.user_time()) + seconds(usage.system_time()),
        })
    }

    /// Which part of the machine something else has used.
    fn others_since(&self, earlier: &Self) -> f64 {
        let busy = self.busy - earlier.busy;
        let all = busy + self.idle - earlier.idle;
        let ours = self.children - earlier.children;
        if all > 0.0 {
            ((busy - ours) / all).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}
