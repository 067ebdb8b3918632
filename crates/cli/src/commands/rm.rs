//! `catena rm`: removes images, and nothing that anybody needs.

use super::change::ChangeArgs;
use super::forest;
use super::operation::Operation;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::{count, printable, size};
use catena::Policy;
use catena::ops::remove::{self, Overlays, Plan};
use catena::ops::script::{Step, interrupted};
use catena::ops::{Observer, folder_of};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena rm old.qcow2
  catena rm middle.qcow2 --merge --dry-run
  catena rm base.qcow2 --in /srv/vms --flatten --trash

Who stands on the images is looked for by headers: in their folders and those
given with --in, with everything below, in the folders beside those, in the
current folder, and where 'catena tree' saw it. An overlay elsewhere is not
found.

What is in the trash can be moved back by hand, until 'catena gc' takes it.
What is cut off is finished by the same command, or by 'catena resume'.")]
pub struct Args {
    /// The images
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Look in this folder too for images that stand on them; may be given several times
    #[arg(long = "in", value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Overlays take in first what the images hold, and stand on what those stood on
    #[arg(long)]
    merge: bool,
    /// Overlays take in first everything that they show, and stand on nothing
    #[arg(long, conflicts_with = "merge")]
    flatten: bool,
    /// Keep the images for a while, in a folder '.catena-trash' beside them
    #[arg(long)]
    trash: bool,
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
    files: usize,
    freed: u64,
    copied: u64,
    steps: &'a [Step],
}

/// Removes them.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let request = remove::Request {
        images: args.images.clone(),
        around: forest::around(&args.folders),
        overlays: match (args.merge, args.flatten) {
            (true, _) => Overlays::Merge,
            (_, true) => Overlays::Flatten,
            _ => Overlays::Refuse,
        },
        trash: args.trash,
    };
    let home = folder_of(args.images.first().map_or(Path::new(""), PathBuf::as_path));
    let words = remove::words(&request);
    let manner = args.change.manner("removing", &policy, args.output);
    manner.perform(interrupted(&[home], "rm", &words)?, || {
        let plan = remove::plan(&request, &policy)?;
        forest::warn(&plan.unknown);
        Ok(plan)
    })
}

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        Plan::execute(self, policy, observer)
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        for step in &self.script.steps {
            writeln!(out, "{}", printable(&step.to_string()))?;
        }
        let files = count(self.files as u64, "file");
        write!(out, "{files}, {} on disk", size(self.freed))?;
        match self.copied {
            0 => writeln!(out),
            copied => writeln!(out, "; {} taken in by overlays", size(copied)),
        }
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let report = Report {
            files: self.files,
            freed: self.freed,
            copied: self.copied,
            steps: &self.script.steps,
        };
        output::json(&report, &mut out)
    }
}
