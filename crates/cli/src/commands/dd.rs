//! `catena dd`: a part of what a chain shows, as another image.

use super::change::ChangeArgs;
use super::moving::MovingArgs;
use super::options::{NewFormat, NewOptions, OptionArgs};
use crate::error::CommandError;
use crate::target::TargetArgs;
use crate::text;
use catena::ops::Input;
use catena::ops::convert::{self, Publish, Request, Shared, Target};
use catena::{Error, ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Blocks are counted as dd counts them: so many are left out with --skip, and so
many copied with --count. The new image is raw where its name ends in .raw or
.img, else qcow2, unless --to says so; it has its name when it is complete.

Examples:
  catena dd vm.qcow2 boot.raw --bs 512 --count 1
  catena dd vm.qcow2 root.raw --bs 1M --skip 512 --count 20480")]
pub struct Args {
    #[command(flatten)]
    source: TargetArgs,
    /// The new image, which must not exist
    new: PathBuf,
    /// The new image's format
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<NewFormat>,
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
    let format = args.to.unwrap_or_else(|| NewFormat::of_name(&args.new));
    let NewOptions { kind, preallocation } = OptionArgs::default().read(format, None)?;
    let request = Request {
        sources: vec![Input::Part {
            of: Box::new(Input::Chain {
                start: args.source.start(),
                snapshot: None,
                sharing: args.source.sharing(),
            }),
            start,
            end,
        }],
        target: Target::New {
            path: args.new.clone(),
            kind,
            size: None,
            preallocation,
            publish: Publish::Complete,
        },
        shared: Shared::Compared,
        moving: args.moving.moving(),
        compressed: false,
    };
    let plan = convert::plan(&request, &args.source.policy()?)?;
    args.change
        .perform_watched("copying", &plan, |plan, observer| plan.execute(observer))
}
