//! `catena prune`: lets points in time leave a chain.

use super::change::ChangeArgs;
use super::forest;
use super::operation::Operation;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::{self, count, printable, size};
use anstyle::{AnsiColor, Style};
use catena::ops::keep::Keep;
use catena::ops::prune::{self, Fate, Plan, Point};
use catena::ops::script::{Step, interrupted};
use catena::ops::{Observer, folder_of};
use catena::{Error, ErrorKind, Policy};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const GOES: Style = AnsiColor::Red.on_default();
const STAYS: Style = AnsiColor::Green.on_default();

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena prune vm.qcow2 --keep-last 7 --dry-run
  catena prune vm.qcow2 --keep-daily 7 --keep-weekly 4 --keep-monthly 12
  catena prune vm.qcow2 --keep-within 30d --base

Each layer below the active one is a point in time: what the disk was when its
file was written last. Rules take points from the newest back, and a point is
kept if any rule takes it. The active image is kept always, and so is what
other images stand on.

What the layers hold that go is pulled up into the layer above, in one pass.
With --base the base may go too: then the oldest point that is kept becomes
the base, by whichever way moves fewer bytes.")]
pub struct Args {
    /// The active image of the chain
    image: PathBuf,
    /// Keep so many of the newest points
    #[arg(long, value_name = "N", default_value_t)]
    keep_last: usize,
    /// Keep all points that are not older than this: 36h, 30d, 8w, 6mo, 1y
    #[arg(long, value_name = "TIME", value_parser = text::parse_age)]
    keep_within: Option<Duration>,
    /// Keep the newest point of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t)]
    keep_hourly: usize,
    /// The same for days
    #[arg(long, value_name = "N", default_value_t)]
    keep_daily: usize,
    /// The same for weeks
    #[arg(long, value_name = "N", default_value_t)]
    keep_weekly: usize,
    /// The same for months
    #[arg(long, value_name = "N", default_value_t)]
    keep_monthly: usize,
    /// The same for years
    #[arg(long, value_name = "N", default_value_t)]
    keep_yearly: usize,
    /// The base may go as well
    #[arg(long)]
    base: bool,
    /// Look in this folder too for images that stand on the layers; may be given several times
    #[arg(long = "in", value_name = "DIR")]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// How to print what is done
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Serialize)]
struct Report<'a> {
    layers: Vec<Row>,
    freed: u64,
    copied: u64,
    steps: &'a [Step],
}

#[derive(Serialize)]
struct Row {
    path: String,
    time: String,
    allocated: u64,
    kept: bool,
    why: String,
}

/// Prunes the chain.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let request = prune::Request {
        image: args.image.clone(),
        keep: Keep {
            last: args.keep_last,
            within: args.keep_within,
            hourly: args.keep_hourly,
            daily: args.keep_daily,
            weekly: args.keep_weekly,
            monthly: args.keep_monthly,
            yearly: args.keep_yearly,
        },
        base: args.base,
        around: forest::around(&args.folders),
        zone: TimeZone::system(),
        now: Timestamp::now(),
    };
    if request.keep.is_nothing() {
        return Err(
            Error::new(ErrorKind::Conflict, "nothing is said about what to keep")
                .with_hint("begin with --keep-last and a number, and --dry-run")
                .into(),
        );
    }
    let words = prune::words(&request);
    let home = folder_of(&args.image);
    let manner = args.change.manner("pruning", &policy, args.output);
    manner.perform(interrupted(&[home], "prune", &words)?, || {
        let plan = prune::plan(&request, &policy)?;
        forest::warn(&plan.unknown);
        Ok(plan)
    })
}

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        Plan::execute(self, policy, observer)
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        let stays = |point: &Point| point.fate != Fate::Goes;
        writeln!(out, "before")?;
        for point in &self.points {
            let style = if stays(point) { STAYS } else { GOES };
            let row = row(point);
            writeln!(
                out,
                "  {}  {}  {}  {style}{}{style:#}",
                row.time,
                printable(&name(&point.path)),
                size(point.allocated),
                row.why
            )?;
        }
        writeln!(out, "after")?;
        for point in self.points.iter().filter(|point| stays(point)) {
            writeln!(out, "  {}  {}", row(point).time, printable(&name(&point.path)))?;
        }
        let going = self.points.iter().filter(|point| !stays(point)).count();
        let layers = count(going as u64, "layer");
        let (copied, freed) = (size(self.copied), size(self.freed()));
        writeln!(out, "{layers} of {freed} on disk; {copied} moved")
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let report = Report {
            layers: self.points.iter().map(row).collect(),
            freed: self.freed(),
            copied: self.copied,
            steps: &self.script.steps,
        };
        output::json(&report, &mut out)
    }
}

fn row(point: &Point) -> Row {
    let time = point.time.to_zoned(TimeZone::system());
    Row {
        path: point.path.display().to_string(),
        time: time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        allocated: point.allocated,
        kept: point.fate != Fate::Goes,
        why: point.fate.to_string(),
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
