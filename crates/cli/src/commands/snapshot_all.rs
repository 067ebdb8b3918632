//! `catena snapshot IMAGE…` and `--all`: an overlay over each image, or over every active image below some folders.

use super::change::ChangeArgs;
use super::forest;
use super::operation::Operation;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::text::printable;
use catena::ops::active::{self, Chosen, Request};
use catena::ops::script::interrupted;
use catena::ops::{Observer, folder_of, overlays};
use catena::{Error, ErrorKind, Policy};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct AllArgs {
    /// Make an overlay over this image
    #[arg(value_name = "IMAGE", conflicts_with_all = ["all", "domain", "connect", "disks", "output_xml"])]
    images: Vec<PathBuf>,
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
    /// Make an overlay over this file as well, which is a raw disk; may be given several times
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
    fn first(&self) -> Option<&Path> {
        let places = [&self.all, &self.images, &self.raw];
        places.into_iter().flatten().next().map(PathBuf::as_path)
    }

    /// Whether this is asked for.
    pub fn is_given(&self) -> bool {
        self.first().is_some()
    }
}

#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
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
    name: String,
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
        images: args.images.clone(),
        name,
        names: args.names.clone(),
        raw: args.raw.clone(),
    };
    let home = folder_at(args.first().unwrap_or(Path::new("")));
    let words = active::words(&request);
    let begun = interrupted(&[&home], overlays::OPERATION, &words)?;
    let manner = change.manner("taking a snapshot", policy, args.output);
    manner.perform(begun, || {
        let chosen = active::choose(&request, policy)?;
        forest::warn(&chosen.unknown);
        let overlays = overlays::plan(&chosen.overlays, (&home, &words), policy).map_err(named)?;
        Ok(Plan {
            name: request.name.clone(),
            chosen,
            overlays,
        })
    })
}

/// A folder, or that which a file lies in.
fn folder_at(place: &Path) -> PathBuf {
    match place.is_dir() {
        true => place.to_owned(),
        false => folder_of(place),
    }
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

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        self.overlays.execute(policy, observer)
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        let mut lines = self.overlays.lines();
        if self.chosen.overlays.is_empty() {
            lines.push("no image is there that nothing stands on".to_owned());
        }
        for (path, why) in &self.chosen.left_out {
            lines.push(format!("{}: left out: {why}", path.display()));
        }
        lines
            .iter()
            .try_for_each(|line| writeln!(out, "{}", printable(line)))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
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
        let report = Report {
            name: &self.name,
            overlays: self.chosen.overlays.iter().map(row).collect(),
            left_out: self.chosen.left_out.iter().map(left_out).collect(),
        };
        output::json(&report, &mut out)
    }
}
