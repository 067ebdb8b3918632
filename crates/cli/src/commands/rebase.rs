//! `catena rebase`: put an image on another backing image; what would change for its guest is copied into it first.

use super::change::{self, ChangeArgs};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::target::{ImageArgs, parse_format};
use catena::Format;
use catena::ops::relink::{self, Safety};
use catena::ops::{Silent, rebase};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Both chains are compared, first by identity and by their maps, and what
differs is copied into the image. Only when that is durable does the reference
change, so the guest's view stays what it is at every instant. What was
interrupted is finished by the same command.

With --unsafe only the reference is rewritten and nothing is compared, like
'qemu-img rebase -u': the backing image has moved, and you know that it is the
same. You answer for the guest's view then.

Examples:
  catena rebase tuesday.qcow2 --backing base.qcow2 -F qcow2
      stand on base.qcow2, and take over what the layers between hold
  catena rebase tuesday.qcow2 --backing ../base.qcow2 -F qcow2 --unsafe
      the base has moved
  catena rebase tuesday.qcow2 --no-backing
      stand alone")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// The backing image, as it is to be recorded; relative to the image
    #[arg(short, long, value_name = "NAME", required_unless_present = "no_backing")]
    backing: Option<String>,
    /// The backing image's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "backing")]
    backing_format: Option<Format>,
    /// Stand on no other image
    #[arg(long, conflicts_with_all = ["backing", "backing_format"])]
    no_backing: bool,
    /// Rewrite the reference alone, and do not compare what the guest sees: you answer for it
    #[arg(short, long = "unsafe", conflicts_with = "compress")]
    unchecked: bool,
    /// Compress what is copied
    #[arg(short, long)]
    compress: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Rebases.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.image.policy_to_read(args.change.is_quiet())?;
    let path = &args.image.image;
    let backing = change::new_backing(args.backing.as_deref(), args.backing_format, path, &policy)?;
    if args.unchecked {
        let request = relink::Request {
            image: path.clone(),
            backing,
            safety: Safety::Unsafe,
        };
        let plan = relink::plan(&request, &policy, &Silent)?;
        return args.change.perform(&plan, relink::Plan::execute);
    }
    let request = rebase::Request {
        start: args.image.start(),
        backing,
        moving: args.moving.moving(),
        compressed: args.compress,
    };
    let plan = rebase::plan(&request, &policy)?;
    args.change
        .perform_watched("rebasing", &plan, |plan, observer| plan.execute(observer))
}
