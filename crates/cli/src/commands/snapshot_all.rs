//! `catena snapshot --all`: an overlay over every active image below some folders.

use super::change::ChangeArgs;
use super::forest;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::text::printable;
use catena::ops::active::{self, Chosen, Request};
use catena::ops::overlays;
use catena::{Error, ErrorKind, Policy};
use serde::Serialize;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct AllArgs {
    /// Make an overlay over every image below this folder on which nothing stands; may be given several times
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["domain", "connect", "disks", "output_xml"]
    )]
    all: Vec<PathBuf>,
    /// What the overlays are called: {stem} is an image's name without its suffix, {file} all of it, {name} the snapshot's
    #[arg(long, value_name = "TEMPLATE", default_value = active::NAMES, conflicts_with = "domain")]
    names: String,
    /// A file below the folders that is a raw disk; may be given several times
    #[arg(long, value_name = "FILE", conflicts_with = "domain")]
    raw: Vec<PathBuf>,
    /// How to print what is made
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        conflicts_with = "domain"
    )]
    output: Output,
}

impl AllArgs {
    /// Whether this is asked for.
    pub fn is_given(&self) -> bool {
        !self.all.is_empty()
    }
}

#[derive(Serialize)]
struct Report {
    name: String,
    overlays: Vec<Row>,
    left_out: Vec<LeftOut>,
}

#[derive(Serialize)]
struct Row {
    path: String,
    base: String,
    format: String,
    /// Whether it was there before.
    there: bool,
}

#[derive(Serialize)]
struct LeftOut {
    path: String,
    why: String,
}

/// Overlays, decided.
struct Plan {
    chosen: Chosen,
    overlays: overlays::Plan,
}

/// Makes them.
pub fn run(
    args: &AllArgs,
    name: String,
    policy: &Policy,
    change: &ChangeArgs,
) -> Result<ExitCode, CommandError> {
    let request = Request {
        folders: args.all.clone(),
        name,
        names: args.names.clone(),
        raw: args.raw.clone(),
    };
    let chosen = active::choose(&request, policy)?;
    forest::warn(&chosen.unknown);
    let overlays = overlays::plan(&chosen.overlays, policy).map_err(named)?;
    let plan = Plan { chosen, overlays };
    let perform = |plan: &Plan| plan.overlays.execute(&change.progress("taking a snapshot"));
    if args.output == Output::Human {
        return change.perform(&plan, perform);
    }
    let report = plan.report(request.name);
    if !change.is_dry_run() {
        perform(&plan).map_err(super::change::stopped)?;
    }
    let mut out = output::stdout();
    output::json(&report, &mut out)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// A name that is taken is not that of anything to be removed.
fn named(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Conflict => {
            error.with_hint("give the snapshot another name with --name, or other names to its overlays with --names '{file}.{name}.qcow2'")
        }
        _ => error,
    }
}

impl Plan {
    fn report(&self, name: String) -> Report {
        let missing: Vec<_> = self.overlays.missing().collect();
        let shown = |path: &Path| path.display().to_string();
        let row = |overlay: &overlays::Overlay| Row {
            path: shown(overlay.path()),
            base: shown(overlay.base()),
            format: overlay.format().to_string(),
            there: !missing.contains(&overlay.path()),
        };
        let left_out = |(path, why): &(PathBuf, String)| LeftOut {
            path: shown(path),
            why: why.clone(),
        };
        Report {
            name,
            overlays: self.chosen.overlays.iter().map(row).collect(),
            left_out: self.chosen.left_out.iter().map(left_out).collect(),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![self.overlays.to_string()];
        if self.chosen.overlays.is_empty() {
            lines = vec!["no image is there that nothing stands on".to_owned()];
        }
        for (path, why) in &self.chosen.left_out {
            lines.push(format!("{}: left out: {}", path.display(), printable(why)));
        }
        f.write_str(&lines.join("\n"))
    }
}
