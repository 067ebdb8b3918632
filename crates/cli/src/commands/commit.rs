//! `catena commit`: write what layers hold into a layer below them.

use super::change::ChangeArgs;
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::progress::Progress;
use crate::target::parse_format;
use catena::ops::commit::{self, After, Request};
use catena::ops::{LayerChoice, OtherChildren};
use catena::{Format, Start};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What the committed layers show stays the same at every instant, also when this
is stopped or the power fails; the same command then finishes it. The base and
what lies between show something else afterwards, so other overlays that stand
on them, in the base's folder or in those given, refuse it.

Examples:
  catena commit monday.qcow2
      into its backing image; monday.qcow2 is empty afterwards
  catena commit vm.qcow2 --top tuesday.qcow2 --base base.qcow2 --delete
      tuesday.qcow2 and all between go into base.qcow2 and are deleted, and
      what stood on tuesday.qcow2 stands on base.qcow2
  catena commit vm.qcow2 --base base.qcow2 --keep --search /srv/images")]
pub struct Args {
    /// The active image of the chain
    image: PathBuf,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The highest layer to commit; the active image where it is not given
    #[arg(long, value_name = "FILE")]
    top: Option<PathBuf>,
    /// The layer to write to; the one below the highest where it is not given
    #[arg(short, long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Leave the committed layers as they are
    #[arg(short, long)]
    keep: bool,
    /// Delete the committed layers, and put what stood on them on the base
    #[arg(short, long, conflicts_with = "keep")]
    delete: bool,
    /// Look for other overlays in this folder too; may be given several times
    #[arg(long, value_name = "FOLDER")]
    search: Vec<PathBuf>,
    /// Commit although other overlays show something else then: you answer for it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Commits.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let after = if args.keep {
        After::Keep
    } else if args.delete {
        After::Delete
    } else {
        After::Empty
    };
    let request = Request {
        start: Start::at(&args.image, args.format),
        top: match &args.top {
            Some(path) => LayerChoice::Path(path.clone()),
            None => LayerChoice::Index(0),
        },
        base: args.base.clone().map(LayerChoice::Path),
        after,
        children: OtherChildren {
            folders: args.search.clone(),
            forced: args.force,
        },
        moving: args.moving.moving(),
    };
    let plan = commit::plan(&request, &args.change.policy()?)?;
    args.change
        .perform(&plan, |plan| plan.execute(&Progress::start("committing")))
}
