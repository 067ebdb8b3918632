//! `catena gc`: finds what housekeeping left, and what nothing needs.

use super::change::ChangeArgs;
use super::forest;
use super::operation::{Manner, Operation};
use crate::domain;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::{self, count, printable, size};
use catena::ops::Observer;
use catena::ops::gc::{self, Plan, Why};
use catena::{Error, ErrorKind, Policy, Source};
use catena_virt::Place;
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena gc /srv/vms
  catena gc /srv/vms --kept-for 30d --yes
  catena gc /srv/vms --domain vm1.xml --domain vm2.xml --unneeded --yes

Found are parts of files that an operation left when it was cut off, files of
imports that were, and what 'catena rm --trash' removed and was kept for long
enough. Where the images or domains are named that are in use, so are images
that none of them needs.

Nothing is deleted without --yes, and images that nothing needs only with
--unneeded as well.")]
pub struct Args {
    /// The folders, with everything below
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// How long what was removed is kept in the trash
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = text::parse_age)]
    kept_for: Duration,
    /// An image that is in use; may be given several times
    #[arg(long, value_name = "IMAGE")]
    used: Vec<PathBuf>,
    /// A file of libvirt's XML whose images are in use; may be given several times
    #[arg(long, value_name = "FILE")]
    domain: Vec<PathBuf>,
    /// The libvirt that is asked where the volumes are that domains name
    #[arg(long, value_name = "URI", requires = "domain")]
    connect: Option<String>,
    /// Delete what was found
    #[arg(long)]
    yes: bool,
    /// Also the images that nothing in use needs
    #[arg(long)]
    unneeded: bool,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    found: Vec<Row>,
    /// Operations that were cut off.
    journals: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    path: String,
    why: &'static str,
    allocated: u64,
    deleted: bool,
}

/// Looks, and deletes.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let mut used = args.used.clone();
    for file in &args.domain {
        used.extend(images_of(file, args.connect.as_deref())?);
    }
    if args.unneeded && used.is_empty() {
        return Err(Error::new(
            ErrorKind::Conflict,
            "what nothing needs is not known unless it is said what is in use",
        )
        .with_hint("name the images with --used, or the domains with --domain")
        .into());
    }
    let request = gc::Request {
        folders: args.folders.clone(),
        kept_for: args.kept_for,
        used,
        index: forest::around(&[]).index,
    };
    let yes = args.yes && !args.change.is_dry_run();
    let mut reasons = Vec::new();
    if yes {
        reasons.extend([Why::Part, Why::Trash]);
        reasons.extend(args.unneeded.then_some(Why::Unneeded));
    }
    let manner = Manner {
        dry_run: !yes,
        ..args.change.manner("deleting", &policy, args.output)
    };
    let begun = match yes {
        true => gc::unfinished(&request, &reasons)?,
        false => None,
    };
    manner.perform(begun, || {
        let plan = gc::plan(&request, &policy)?;
        forest::warn(&plan.unknown);
        Ok(Deletion { plan, reasons })
    })
}

/// What was found, and for which reasons it goes.
struct Deletion {
    plan: Plan,
    reasons: Vec<Why>,
}

/// The files that a document names. A disk of which that is not known stops it: its image could be any.
fn images_of(file: &Path, connect: Option<&str>) -> Result<Vec<PathBuf>, CommandError> {
    let document = domain::read_with_volumes(file, connect)?;
    let layers = document.disks.iter().flat_map(|disk| &disk.layers);
    let layers = layers.flat_map(|layer| std::iter::once(layer).chain(layer.data_store.as_deref()));
    let mut images = Vec::new();
    for layer in layers {
        let unknown = match &layer.place {
            Place::Volume {
                pool,
                volume,
                found: None,
                ..
            } => format!("where the volume '{volume}' of the pool '{pool}' is, libvirt alone knows"),
            Place::VhostUser { path } => {
                format!(
                    "which image is behind the socket '{}' is not known",
                    path.display()
                )
            }
            _ => {
                images.extend(layer.source().and_then(Source::path).map(Path::to_owned));
                continue;
            }
        };
        return Err(Error::new(ErrorKind::Conflict, unknown)
            .with_path(file)
            .with_hint("--connect says which libvirt to ask; or name the domain's images with --used")
            .into());
    }
    Ok(images)
}

impl Operation for Deletion {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        self.plan.execute(&self.reasons, policy, observer)
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        for found in &self.plan.found {
            let verb = if self.reasons.contains(&found.why) {
                "deleted "
            } else {
                ""
            };
            let (path, size) = (printable(&shown(&found.path)), size(found.allocated));
            writeln!(out, "{verb}{path}: {size}; {}", found.why)?;
        }
        for journal in &self.plan.journals {
            let path = printable(&shown(journal));
            writeln!(out, "{path}: an operation was cut off; 'catena resume' goes on")?;
        }
        let all: u64 = self.plan.found.iter().map(|found| found.allocated).sum();
        let files = count(self.plan.found.len() as u64, "file");
        writeln!(out, "{files}, {} on disk", size(all))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let found = self.plan.found.iter().map(|found| Row {
            path: shown(&found.path),
            why: match found.why {
                Why::Part => "part",
                Why::Trash => "trash",
                Why::Unneeded => "unneeded",
            },
            allocated: found.allocated,
            deleted: self.reasons.contains(&found.why),
        });
        let report = Report {
            found: found.collect(),
            journals: self.plan.journals.iter().map(|path| shown(path)).collect(),
        };
        output::json(&report, &mut out)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
