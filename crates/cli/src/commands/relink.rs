//! `catena relink`: rewrite what an overlay records about its backing image, if the guest's view stays what it is.

use super::change::{self, ChangeArgs};
use crate::error::CommandError;
use crate::target::{PolicyArgs, parse_format};
use catena::Format;
use catena::ops::relink::{self, Safety};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Only the reference is rewritten, and only if the guest's view stays what it
is: that is settled by identity (is it the same file, in the same format?),
then by the maps of both chains, and where those do not settle it, by their
content. The change is safe at every instant, also when the machine loses
power.

Where something would change, 'catena rebase' copies it into the overlay
first; 'catena rebase --unsafe' compares nothing, like 'qemu-img rebase -u'.

Examples:
  catena relink monday.qcow2 --backing base.qcow2 --backing-format qcow2
      record a missing format
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
    #[arg(long, conflicts_with_all = ["backing", "backing_format"])]
    no_backing: bool,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Rewrites the reference.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let backing = change::new_backing(args.backing.as_deref(), args.backing_format, &args.image, &policy)?;
    let request = relink::Request {
        image: args.image.clone(),
        backing,
        safety: Safety::Checked,
    };
    let plan = relink::plan(&request, &policy, &args.change.progress("comparing"))?;
    args.change.perform(&plan, relink::Plan::execute)
}
