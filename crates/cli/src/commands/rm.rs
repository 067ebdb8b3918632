//! `catena rm`: removes images, and nothing that anybody needs.

use super::change::{self, ChangeArgs};
use super::forest::{self, folder_of};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::{count, printable, size};
use catena::ops::remove::{self, Overlays, Plan};
use catena::ops::script::Step;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena rm old.qcow2
  catena rm middle.qcow2 --merge --dry-run
  catena rm base.qcow2 --in /srv/vms --flatten --trash

Who stands on the images is looked for by headers, in their folders and those
given with --in, with everything below. An overlay elsewhere is not found.

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
        folders: args.folders.clone(),
        overlays: match (args.merge, args.flatten) {
            (true, _) => Overlays::Merge,
            (_, true) => Overlays::Flatten,
            _ => Overlays::Refuse,
        },
        trash: args.trash,
    };
    let home = folder_of(args.images.first().map_or(Path::new(""), PathBuf::as_path));
    let words = remove::words(&request);
    let finished = args
        .change
        .finish_cut_off("removing", &home, ("rm", &words), &policy)?;
    if let Some(status) = finished {
        return Ok(status);
    }
    let plan = remove::plan(&request, &policy)?;
    forest::warn(&plan.unknown);
    if !args.change.is_dry_run() {
        let progress = args.change.progress("removing");
        plan.execute(&policy, &progress).map_err(change::stopped)?;
    }
    if !args.change.is_quiet() {
        print(&plan, args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(plan: &Plan, form: Output) -> Result<(), CommandError> {
    let mut out = output::stdout();
    match form {
        Output::Json => output::json(
            &Report {
                files: plan.files,
                freed: plan.freed,
                copied: plan.copied,
                steps: &plan.script.steps,
            },
            &mut out,
        )?,
        Output::Human => {
            for step in &plan.script.steps {
                writeln!(out, "{}", printable(&step.to_string()))?;
            }
            let files = count(plan.files as u64, "file");
            write!(out, "{files}, {} on disk", size(plan.freed))?;
            match plan.copied {
                0 => writeln!(out)?,
                copied => writeln!(out, "; {} taken in by overlays", size(copied))?,
            }
        }
    }
    Ok(out.flush()?)
}
