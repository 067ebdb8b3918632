//! `catena rebase`: put an image on another backing image, and keep what its guest sees.

use super::change::{self, ChangeArgs};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::progress::Progress;
use crate::target::parse_format;
use catena::ops::rebase::{self, Request};
use catena::ops::relink::NewBacking;
use catena::{Format, Source, Start};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What differs between the old and the new backing image is copied into the
image first, and only then the reference changes: its guest sees the same at
every instant. 'catena relink' changes the reference alone.

Examples:
  catena rebase vm.qcow2 --backing golden-2.qcow2 -F qcow2
  catena rebase vm.qcow2 --no-backing")]
pub struct Args {
    /// The image
    image: PathBuf,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The new backing image, as it is to be recorded; relative to the image
    #[arg(short, long, value_name = "NAME", required_unless_present = "no_backing")]
    backing: Option<String>,
    /// The new backing image's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "backing")]
    backing_format: Option<Format>,
    /// Put it on no backing image: it holds everything itself then
    #[arg(long, conflicts_with = "backing")]
    no_backing: bool,
    /// Compress what is copied
    #[arg(short, long)]
    compressed: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Rebases.
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
    let request = Request {
        start: Start::at(&args.image, args.format),
        backing,
        moving: args.moving.moving(),
        compressed: args.compressed,
    };
    let plan = rebase::plan(&request, &policy)?;
    args.change
        .perform(&plan, |plan| plan.execute(&Progress::start("rebasing")))
}
