//! `catena resize`: make a disk larger or smaller.

use super::change::{ChangeArgs, ChildrenArgs};
use super::options::parse_preallocation;
use crate::error::CommandError;
use crate::target::ImageArgs;
use crate::text;
use catena::ops::create::Preallocation;
use catena::ops::resize::{self, NewSize};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is new reads as zeros. What is cut off is gone: shrink the guest's
partitions and file systems first. Other overlays of an image that becomes
smaller, beside it and in folders given with --look-in, refuse it by name.

Examples:
  catena resize vm.qcow2 40G
  catena resize vm.qcow2 +10G
  catena resize vm.qcow2 +10G --preallocation falloc
  catena resize vm.qcow2 --shrink -- -10G")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Bytes of the disk, or with + or - before them how many more or fewer; k, M, G, T are
    /// understood
    #[arg(value_parser = parse_new_size, allow_hyphen_values = true)]
    size: NewSize,
    /// What of the new part is allocated: off, metadata, falloc or full; raw: not metadata
    #[arg(long, value_name = "HOW", value_parser = parse_preallocation, default_value = "off")]
    preallocation: Preallocation,
    /// Cut off what lies past a smaller size
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Resizes.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = resize::Request {
        start: args.image.start(),
        size: args.size,
        preallocation: args.preallocation,
        shrink: args.shrink,
        children: args.children.children(),
    };
    let plan = resize::plan(&request, &args.image.policy()?)?;
    args.change
        .perform_watched("resizing", &plan, |plan, observer| plan.execute(observer))
}

fn parse_new_size(text: &str) -> Result<NewSize, String> {
    let (kind, number): (fn(u64) -> NewSize, _) = if let Some(number) = text.strip_prefix('+') {
        (NewSize::More, number)
    } else if let Some(number) = text.strip_prefix('-') {
        (NewSize::Less, number)
    } else {
        (NewSize::To, text)
    };
    text::parse_size(number).map(kind)
}
