//! `catena stamp`: have overlays know what they stand on, and hold them against it.

use super::change::ChangeArgs;
use super::operation::Operation;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{PolicyArgs, parse_format};
use crate::text::printable;
use catena::ops::Observer;
use catena::ops::stamp::{self, Action, Overlay, Plan, Request};
use catena::{Format, Policy, Stamped, Start};
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status of a check that found nothing worse than doubts.
const DOUBTS: u8 = 3;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A stamp is a header extension of the overlay's, which QEMU carries along: the
length and time of the backing image's file, and a fingerprint of its tables
and of samples of its content. Every verb that reads through the overlay holds
the backing image against it, and refuses one that is another. Overlays that
Catena makes have a stamp unless it is told --no-stamp.

A fingerprint is of samples: with --full everything that the backing image
shows is digested too, and --check --full compares that.

Exit status of --check:
  0  every backing image is what it was, or no stamp says anything else
  1  a backing image is not what it was, or it could not be done
  2  the command line is wrong
  3  a stamp is of another image than is recorded now, or cannot be compared

Examples:
  catena stamp monday.qcow2
  catena stamp --chain --check tuesday.qcow2
  catena stamp --accept-base monday.qcow2
      the base was changed, and what the guest sees is right")]
pub struct Args {
    /// The overlays
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// The overlays' format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// Digest all that the backing image shows, too
    #[arg(long, conflicts_with = "remove")]
    full: bool,
    /// The overlays below as well, down to the base
    #[arg(long)]
    chain: bool,
    /// Take the stamps away
    #[arg(long)]
    remove: bool,
    /// Say what the stamps tell, and change nothing
    #[arg(long, conflicts_with_all = ["remove", "dry_run"])]
    check: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Serialize)]
struct Answer {
    overlays: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    overlay: String,
    base: String,
    stamped: &'static str,
    detail: Option<String>,
    taken: Option<u64>,
    full: bool,
    view: Option<bool>,
    written: bool,
}

impl Shown {
    fn of(overlay: &Overlay, view: Option<bool>) -> Self {
        let (stamped, detail) = words(&overlay.stamped);
        let stamp = overlay.stamp.as_ref();
        Self {
            overlay: overlay.name.clone(),
            base: overlay.base.clone(),
            stamped,
            detail,
            taken: stamp.map(|stamp| stamp.taken),
            full: stamp.is_some_and(|stamp| stamp.view.is_some()),
            view,
            written: overlay.written,
        }
    }

    fn sentence(&self) -> String {
        let detail = self.detail.as_deref().unwrap_or_default();
        let said = match self.stamped {
            "same" => "is what it was".to_owned(),
            "touched" => "was touched, and is what it was by its fingerprint".to_owned(),
            "other_reference" => "is another image than the stamp is of".to_owned(),
            "emptied" => format!("is not what it was ({detail}), but the overlay holds nothing"),
            "changed" => format!("is not what it was: {detail}"),
            "unknown" => format!("cannot be compared: {detail}"),
            _ => "is not known: there is no stamp".to_owned(),
        };
        let view = match self.view {
            Some(true) => "; all that it shows is the same",
            Some(false) => "; what it shows is not the same",
            None => "",
        };
        format!("{}: '{}' {said}{view}", self.overlay, self.base)
    }
}

/// What a stamp says, as JSON has it, and what differs or why it is not known.
pub fn words(stamped: &Stamped) -> (&'static str, Option<String>) {
    match stamped {
        Stamped::Not => ("not", None),
        Stamped::Same => ("same", None),
        Stamped::Touched => ("touched", None),
        Stamped::OtherReference => ("other_reference", None),
        Stamped::Emptied(differences) => ("emptied", Some(differences.to_string())),
        Stamped::Changed(differences) => ("changed", Some(differences.to_string())),
        Stamped::Unknown(why) => ("unknown", Some(why.clone())),
    }
}

/// Stamps, or checks.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    if args.check {
        return check(args, &policy, &args.change.progress("digesting"));
    }
    let starts = args.images.iter().map(|image| Start::at(image, args.format));
    let request = Request {
        images: starts.collect(),
        chain: args.chain,
        action: match args.remove {
            true => Action::Remove,
            false => Action::Give { full: args.full },
        },
    };
    let manner = args.change.manner("digesting", &policy, args.output);
    let begun = stamp::unfinished(&request)?;
    manner.perform(begun, || Ok(stamp::plan(&request, &policy)?))
}

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        Plan::execute(self, policy, observer)
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        let lines = self.to_string();
        { lines.lines() }.try_for_each(|line| writeln!(out, "{}", printable(line)))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let overlays = { self.overlays().iter() }.map(|overlay| Shown::of(overlay, None));
        let overlays = overlays.collect();
        output::json(&Answer { overlays }, &mut out)
    }
}

fn check(args: &Args, policy: &Policy, observer: &dyn Observer) -> Result<ExitCode, CommandError> {
    let mut shown = Vec::new();
    for image in &args.images {
        let (chain, overlays) = stamp::look(&Start::at(image, args.format), args.chain, policy)?;
        for overlay in &overlays {
            let view = match args.full {
                true => stamp::compare_view(&chain, overlay, observer)?,
                false => None,
            };
            shown.push(Shown::of(overlay, view));
        }
    }
    if args.output == Output::Human && !args.change.is_quiet() {
        let mut out = output::stdout();
        for overlay in &shown {
            writeln!(out, "{}", printable(&overlay.sentence()))?;
        }
        out.flush()?;
    }
    let is_wrong = |overlay: &Shown| match overlay.view {
        Some(same) => !same,
        None => overlay.stamped == "changed",
    };
    let status = match () {
        () if shown.iter().any(is_wrong) => ExitCode::FAILURE,
        () if shown
            .iter()
            .any(|overlay| matches!(overlay.stamped, "other_reference" | "unknown")) =>
        {
            ExitCode::from(DOUBTS)
        }
        () => ExitCode::SUCCESS,
    };
    if args.output == Output::Json && !args.change.is_quiet() {
        let mut out = output::stdout();
        output::json(&Answer { overlays: shown }, &mut out)?;
        out.flush()?;
    }
    Ok(status)
}
