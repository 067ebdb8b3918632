//! `catena commit`: write what layers hold into a layer below them.

use super::change::{ChangeArgs, ChildrenArgs, parse_layer};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::target::ImageArgs;
use catena::ops::LayerChoice;
use catena::ops::commit::{self, After};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The base then shows what the committed layers did; several go in one pass. A
LAYER is a number, 0 being the active one, or a file's name.

Other overlays of what is written or deleted would show their guests something
else afterwards: those beside it, and in folders given with --look-in, are
found and refuse it by name. An overlay elsewhere is not found.

At every instant the chain shows the guest what it showed before, and what was
interrupted is finished by the same command.

Examples:
  catena commit tuesday.qcow2
      into its backing image; tuesday.qcow2 stays as an empty overlay
  catena commit tuesday.qcow2 --base base.raw --delete
      all layers down to base.raw, and delete them
  catena commit tuesday.qcow2 --top monday.qcow2 --delete
      monday.qcow2 goes, tuesday.qcow2 then stands on what was below it")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// The highest layer that is committed
    #[arg(long, value_name = "LAYER", value_parser = parse_layer, default_value = "0")]
    top: LayerChoice,
    /// The layer that is written; the one below the highest where it is not given
    #[arg(long, value_name = "LAYER", value_parser = parse_layer)]
    base: Option<LayerChoice>,
    /// Leave the committed layers as they are, instead of emptying the highest
    #[arg(long, conflicts_with = "delete")]
    keep: bool,
    /// Delete the committed layers, and put the layer above them on the base
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Commits.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.image.policy_to_read(args.change.is_quiet())?;
    let start = args.image.start();
    let request = commit::Request {
        start,
        top: args.top.clone(),
        base: args.base.clone(),
        after: match (args.keep, args.delete) {
            (true, _) => After::Keep,
            (_, true) => After::Delete,
            _ => After::Empty,
        },
        children: args.children.children(),
        moving: args.moving.moving(),
    };
    let plan = commit::plan(&request, &policy)?;
    args.change
        .perform_watched("committing", &plan, |plan, observer| plan.execute(observer))
}
