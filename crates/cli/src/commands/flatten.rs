//! `catena flatten`: make one image of a chain.

use super::change::ChangeArgs;
use super::create::{self, NewFormat};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::progress::Progress;
use crate::target::parse_format;
use catena::ops::Input;
use catena::ops::convert::{self, Publish, Shared, Target};
use catena::ops::stream;
use catena::{Format, Start};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena flatten vm.qcow2
      the image takes in all that lies below it, and stands on nothing then
  catena flatten vm.qcow2 -o flat.qcow2
      a new image; the chain stays as it is")]
pub struct Args {
    /// The active image of the chain
    image: PathBuf,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// Make a new qcow2 image, and leave the chain as it is
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compress what is copied
    #[arg(short, long)]
    compressed: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Flattens.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.change.policy()?;
    let start = Start::at(&args.image, args.format);
    let moving = args.moving.moving();
    match &args.output {
        None => {
            let request = stream::Request {
                start,
                base: None,
                moving,
                compressed: args.compressed,
            };
            let plan = stream::plan(&request, &policy)?;
            args.change
                .perform(&plan, |plan| plan.execute(&Progress::start("flattening")))
        }
        Some(path) => {
            let new = create::new_image(NewFormat::Qcow2, &[], None)?;
            let request = convert::Request {
                sources: vec![Input::at(start)],
                target: Target::New {
                    path: path.clone(),
                    kind: new.kind,
                    size: None,
                    preallocation: new.preallocation,
                    publish: Publish::Complete,
                },
                shared: Shared::Compared,
                moving,
                compressed: args.compressed,
            };
            let plan = convert::plan(&request, &policy)?;
            args.change
                .perform(&plan, |plan| plan.execute(&Progress::start("flattening")))
        }
    }
}
