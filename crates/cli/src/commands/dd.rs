//! `catena dd`: a part of what a chain shows, as another image.

use super::change::ChangeArgs;
use super::create::{self, NewFormat};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::progress::Progress;
use crate::target::parse_format;
use crate::text;
use catena::ops::Input;
use catena::ops::convert::{self, Publish, Request, Shared, Target};
use catena::{Error, ErrorKind, Format, Start};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Blocks are counted as dd counts them: first 'skip' of them are left out, then
'count' of them are copied.

Examples:
  catena dd vm.qcow2 boot.raw --bs 512 --count 1
  catena dd vm.qcow2 root.raw --bs 1M --skip 512 --count 20480")]
pub struct Args {
    /// The active image of the chain
    source: PathBuf,
    /// The new image, which must not exist
    target: PathBuf,
    /// The source's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The new image's format
    #[arg(short = 'O', long, value_enum, default_value = "raw")]
    to: NewFormat,
    /// Bytes of a block; k, M, G are understood
    #[arg(long, value_name = "BYTES", value_parser = text::parse_size, default_value = "512")]
    bs: u64,
    /// How many blocks to copy; all that follow where it is not given
    #[arg(long, value_name = "BLOCKS")]
    count: Option<u64>,
    /// How many blocks to leave out first
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    skip: u64,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Copies.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let bytes = |blocks: u64| {
        blocks
            .checked_mul(args.bs)
            .ok_or_else(|| Error::new(ErrorKind::TooLarge, "so many blocks have more than 2^64 bytes"))
    };
    if args.bs == 0 {
        return Err(Error::new(ErrorKind::Conflict, "a block has at least one byte").into());
    }
    let start = bytes(args.skip)?;
    let end = match args.count {
        Some(count) => start.saturating_add(bytes(count)?),
        None => u64::MAX,
    };
    let new = create::new_image(args.to, &[], None)?;
    let request = Request {
        sources: vec![Input::Part {
            of: Box::new(Input::at(Start::at(&args.source, args.format))),
            start,
            end,
        }],
        target: Target::New {
            path: args.target.clone(),
            kind: new.kind,
            size: None,
            preallocation: new.preallocation,
            publish: Publish::Complete,
        },
        shared: Shared::Compared,
        moving: args.moving.moving(),
        compressed: false,
    };
    let plan = convert::plan(&request, &args.change.policy()?)?;
    args.change
        .perform(&plan, |plan| plan.execute(&Progress::start("copying")))
}
