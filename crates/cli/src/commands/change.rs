//! What the verbs share that change images: options, how a plan is performed and told, and the backing image's format.

use super::forest::around;
use super::operation::Manner;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::text;
use catena::ops::relink::NewBacking;
use catena::ops::{LayerChoice, Observer, OtherChildren};
use catena::{Error, ErrorKind, Format, Policy, Reading, Reference, Source, Start, detect};
use std::convert::Infallible;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of every verb that changes something.
#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl ChangeArgs {
    /// Begins to watch, unless nobody does.
    pub fn progress(&self, verb: &'static str) -> Progress {
        if self.quiet {
            Progress::quiet()
        } else {
            Progress::start(verb)
        }
    }

    /// Whether nothing is to be changed.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether nothing but errors is printed.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// How an operation on several files is performed and told.
    pub fn manner<'a>(&self, verb: &'static str, policy: &'a Policy, output: Output) -> Manner<'a> {
        Manner {
            verb,
            policy,
            dry_run: self.dry_run,
            quiet: self.quiet,
            output,
        }
    }

    /// Performs a plan unless it is only to be told, and tells it unless nobody listens.
    pub fn perform<P: Display>(
        &self,
        plan: &P,
        execute: impl FnOnce(&P) -> catena::Result<()>,
    ) -> Result<ExitCode, CommandError> {
        if !self.dry_run {
            execute(plan).map_err(stopped)?;
        }
        if !self.quiet {
            let mut out = output::stdout();
            for line in plan.to_string().lines() {
                writeln!(out, "{}", text::printable(line))?;
            }
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The same for what takes its time.
    pub fn perform_watched<P: Display>(
        &self,
        verb: &'static str,
        plan: &P,
        execute: impl FnOnce(&P, &dyn Observer) -> catena::Result<()>,
    ) -> Result<ExitCode, CommandError> {
        self.perform(plan, |plan| execute(plan, &self.progress(verb)))
    }
}

/// What the user has who stopped a change.
pub fn stopped(error: Error) -> Error {
    if error.kind() == ErrorKind::Cancelled {
        error.with_hint("everything is consistent: run the same command again to finish")
    } else {
        error
    }
}

/// Where other overlays are looked for before what they stand on is written.
#[derive(Debug, clap::Args)]
pub struct ChildrenArgs {
    /// Look for other overlays in this folder too, not only beside what is written; may be given
    /// several times
    #[arg(long, value_name = "FOLDER")]
    look_in: Vec<PathBuf>,
    /// Go on although other overlays will show their guests something else
    #[arg(long)]
    force: bool,
}

impl ChildrenArgs {
    /// As operations take it.
    pub fn children(&self) -> OtherChildren {
        OtherChildren {
            around: around(&self.look_in),
            forced: self.force,
        }
    }
}

/// A layer of a chain, as [`LayerChoice`] has it: a number, or a path.
pub fn parse_layer(text: &str) -> Result<LayerChoice, Infallible> {
    Ok(match text.parse() {
        Ok(index) => LayerChoice::Index(index),
        Err(_) => LayerChoice::Path(text.into()),
    })
}

/// The backing image that the user names, with the format that must be given for it; `None` where none is named.
pub fn new_backing(
    name: Option<&str>,
    format: Option<Format>,
    overlay: &Path,
    policy: &Policy,
) -> Result<Option<NewBacking>, Error> {
    match (name, format) {
        (None, _) => Ok(None),
        (Some(name), Some(format)) => Ok(Some(NewBacking {
            name: name.to_owned(),
            format,
        })),
        (Some(name), None) => Err(without_format(name, &Source::file(overlay), policy)),
    }
}

/// The error for a backing image whose format the user did not give: its format is told, but not taken.
fn without_format(name: &str, overlay: &Source, policy: &Policy) -> Error {
    let error = Error::new(
        ErrorKind::Conflict,
        "backing image specified without backing format",
    );
    let found = Reference::parse(name, Reading::Catena)
        .ok()
        .and_then(|reference| {
            let start = Start {
                source: reference.resolve(overlay),
                format: None,
            };
            detect(&start, policy).active().map(|layer| layer.format)
        });
    match found {
        Some(format) => error.with_hint(format!(
            "it looks like {format}: if no guest could have written its header, add --backing-format {format}"
        )),
        None => error.with_hint("add --backing-format with the format it is in"),
    }
}
