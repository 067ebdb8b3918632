//! `catena stream`: pull what lower layers hold up into an image.

use super::change::ChangeArgs;
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::progress::Progress;
use crate::target::parse_format;
use catena::ops::LayerChoice;
use catena::ops::stream::{self, Request};
use catena::{Format, Start};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The layers between the image and the base are copied into the image, which
stands on the base afterwards. They stay as they are, for others may stand on
them. Stopped, the same command finishes it.

Examples:
  catena stream vm.qcow2 --base base.qcow2
  catena stream tuesday.qcow2")]
pub struct Args {
    /// The image that takes them in
    image: PathBuf,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The layer it stands on afterwards; none where it is not given
    #[arg(short, long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Compress what is copied
    #[arg(short, long)]
    compressed: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Pulls them up.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = Request {
        start: Start::at(&args.image, args.format),
        base: args.base.clone().map(LayerChoice::Path),
        moving: args.moving.moving(),
        compressed: args.compressed,
    };
    let plan = stream::plan(&request, &args.change.policy()?)?;
    args.change
        .perform(&plan, |plan| plan.execute(&Progress::start("streaming")))
}
