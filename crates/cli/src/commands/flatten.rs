//! `catena flatten`: make an image hold everything that its guest sees, in place or as a new file.

use super::change::ChangeArgs;
use super::moving::MovingArgs;
use super::options::{NewFormat, NewOptions, OptionArgs};
use crate::error::CommandError;
use crate::target::ImageArgs;
use catena::ops::convert::{self, Publish, Shared, Target};
use catena::ops::{Input, stream};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without -o the image itself takes in what the layers below it hold, as with
'catena stream'. With -o the chain stays as it is, and a new image is written:
raw where its name ends in .raw or .img, else qcow2. It has its name only when
it is complete.

Examples:
  catena flatten tuesday.qcow2
  catena flatten tuesday.qcow2 -o flat.qcow2
  catena flatten tuesday.qcow2 -o flat.raw")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Write a new image, and leave the chain as it is
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compress what is copied
    #[arg(short, long)]
    compress: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Flattens.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.image.policy_to_read(args.change.is_quiet())?;
    let start = args.image.start();
    let Some(output) = &args.output else {
        let request = stream::Request {
            start,
            base: None,
            moving: args.moving.moving(),
            compressed: args.compress,
            dated: None,
        };
        let plan = stream::plan(&request, &policy)?;
        return args
            .change
            .perform_watched("flattening", &plan, |plan, observer| plan.execute(observer));
    };
    let NewOptions { kind, preallocation } = OptionArgs::default().read(NewFormat::of_name(output), None)?;
    let request = convert::Request {
        sources: vec![Input::at(start)],
        target: Target::New {
            path: output.clone(),
            kind,
            size: None,
            preallocation,
            publish: Publish::Complete,
        },
        shared: Shared::Compared,
        moving: args.moving.moving(),
        compressed: args.compress,
    };
    let plan = convert::plan(&request, &policy)?;
    args.change
        .perform_watched("flattening", &plan, |plan, observer| plan.execute(observer))
}
