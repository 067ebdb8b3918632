//! `catena relink`: rewrite what an overlay records about its backing image, and nothing else.

use super::change::{self, ChangeArgs};
use crate::error::CommandError;
use crate::target::parse_format;
use catena::ops::Silent;
use catena::ops::relink::{self, NewBacking, Safety};
use catena::{Format, Source};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Like 'qemu-img rebase -u', only the reference is rewritten. Unlike it, what
would change the guest's view is refused: first by identity (is it the same
file, in the same format?), then by the maps of both chains, and where those
do not settle it, by their content. The change is safe at every instant, also
when the machine loses power.

Examples:
  catena relink monday.qcow2 --backing base.qcow2 --backing-format qcow2
      record a missing format
  catena relink monday.qcow2 --backing ../base.qcow2 -F qcow2 --unsafe
      the base has moved, and you know that it is the same
  catena relink flat.qcow2 --no-backing
      the image holds everything itself")]
pub struct Args {
    /// The overlay
    image: PathBuf,
    /// The backing image, as it is to be recorded; relative to the overlay
    #[arg(short, long, value_name = "NAME", required_unless_present = "no_backing")]
    backing: Option<String>,
    /// The backing image's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "backing")]
    backing_format: Option<Format>,
    /// Record no backing image
    #[arg(long, conflicts_with = "backing")]
    no_backing: bool,
    /// Do not compare what the guest sees: you answer for it
    #[arg(short, long = "unsafe")]
    unchecked: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Rewrites the reference.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.change.policy()?;
    let backing = match (&args.backing, args.backing_format) {
        (None, _) => None,
        (Some(name), Some(format)) => Some(NewBacking {
            name: name.clone(),
            format,
        }),
        (Some(name), None) => {
            return Err(change::without_format(name, &Source::file(&args.image), &policy).into());
        }
    };
    let safety = if args.unchecked {
        Safety::Unsafe
    } else {
        Safety::Checked
    };
    let request = relink::Request {
        image: args.image.clone(),
        backing,
        safety,
    };
    let plan = relink::plan(&request, &policy, &Silent)?;
    args.change.perform(&plan, relink::Plan::execute)
}
