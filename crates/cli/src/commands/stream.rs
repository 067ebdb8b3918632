//! `catena stream`: pull what lower layers hold up into an image.

use super::change::{ChangeArgs, parse_layer};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::target::ImageArgs;
use catena::ops::LayerChoice;
use catena::ops::stream;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The image takes in what its guest sees of the layers between it and the base,
and then stands on the base, or on nothing. No other image changes; the layers
between are no longer needed by this one. A LAYER is a number, 0 being the
active one, or a file's name.

At every instant the guest's view stays what it is, and what was interrupted
is finished by the same command.

Examples:
  catena stream tuesday.qcow2 --base base.raw
      take in monday.qcow2, stand on base.raw
  catena stream tuesday.qcow2
      take in everything, and stand alone: as 'catena flatten tuesday.qcow2'")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// The layer to stand on; none where it is not given
    #[arg(long, value_name = "LAYER", value_parser = parse_layer)]
    base: Option<LayerChoice>,
    /// Compress what is copied
    #[arg(short, long)]
    compress: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Pulls up.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = stream::Request {
        start: args.image.start(),
        base: args.base.clone(),
        moving: args.moving.moving(),
        compressed: args.compress,
        dated: None,
    };
    let plan = stream::plan(&request, &args.image.policy_to_read(args.change.is_quiet())?)?;
    args.change
        .perform_watched("streaming", &plan, |plan, observer| plan.execute(observer))
}
