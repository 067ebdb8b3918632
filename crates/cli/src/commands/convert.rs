//! `catena convert`: write what a chain shows as another image.

use super::change::{self, ChangeArgs};
use super::moving::MovingArgs;
use super::options::{NewFormat, NewOptions, OptionArgs, usage};
use crate::error::CommandError;
use crate::target::{TargetArgs, parse_format, warn_probed};
use crate::text;
use catena::Format;
use catena::ops::convert::{self, Publish, Shared, Target};
use catena::ops::{Input, Moving, Offload, copy};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The new image is raw where its name ends in .raw or .img, else qcow2, unless
--to says so. It is written as NAME.catena-part, and has its name only when it
is complete and durable. 'catena create --help' lists the options (-o).

With --backing the new image is an overlay: both disks are compared, and what
they have in common is left out.

Examples:
  catena convert vm.qcow2 vm.raw
  catena convert vm.raw vm.qcow2 --compress -o compression_type=zstd
  catena convert vm.qcow2 before.qcow2 --snapshot before-upgrade
  catena convert copy.qcow2 thin.qcow2 --backing base.qcow2 -F qcow2
  catena convert vm.qcow2 /dev/vg/vm --to raw --existing")]
pub struct Args {
    #[command(flatten)]
    source: TargetArgs,
    /// The new image, which must not exist
    new: PathBuf,
    /// The new image's format
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<NewFormat>,
    /// Write into an image or device that exists, and replace its content
    #[arg(long, conflicts_with_all = ["backing", "backing_format", "option", "size"])]
    existing: bool,
    /// Take what the guest saw when this internal snapshot was taken, by id or name
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Compress what is written; qcow2 only
    #[arg(short, long)]
    compress: bool,
    /// Bytes of the new disk, where it is to be larger; k, M, G, T are understood
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size)]
    size: Option<u64>,
    /// Make it an overlay over this image, the name as it is to be recorded
    #[arg(short, long, value_name = "NAME")]
    backing: Option<String>,
    /// The backing image's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "backing")]
    backing_format: Option<Format>,
    /// Leave out runs of zeros of so many bytes in data; 0 writes everything
    #[arg(long, value_name = "BYTES", value_parser = text::parse_size, default_value_t = copy::SPARSE)]
    sparse: u64,
    /// Make zeros of what cannot be read, and say where, instead of failing
    #[arg(long)]
    salvage: bool,
    #[command(flatten)]
    option: OptionArgs,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Converts.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.source.policy()?;
    if !args.change.is_quiet() {
        warn_probed(&args.source.detect()?);
    }
    let format = args.to.unwrap_or_else(|| NewFormat::of_name(&args.new));
    let target = if args.existing {
        Target::Existing {
            path: args.new.clone(),
            format: args.to.map(NewFormat::format),
            is_zero: false,
        }
    } else {
        let backing = change::new_backing(args.backing.as_deref(), args.backing_format, &args.new, &policy)?;
        let backing = backing.map(|backing| (backing.name, backing.format));
        let NewOptions { kind, preallocation } = args.option.read(format, backing)?;
        Target::New {
            path: args.new.clone(),
            kind,
            size: args.size,
            preallocation,
            publish: Publish::Complete,
        }
    };
    if args.existing && args.new.symlink_metadata().is_err() {
        return Err(usage("there is no image to be written into")
            .with_path(&args.new)
            .into());
    }
    let request = convert::Request {
        sources: vec![Input::Chain {
            start: args.source.start(),
            snapshot: args.snapshot.clone(),
            sharing: args.source.sharing(),
        }],
        target,
        shared: Shared::Compared,
        moving: Moving {
            sparse: args.sparse,
            offload: match args.sparse {
                // What is to be written is not shared.
                0 => Offload::Never,
                _ => Offload::Share,
            },
            salvage: args.salvage,
            ..args.moving.moving()
        },
        compressed: args.compress,
    };
    let plan = convert::plan(&request, &policy)?;
    args.change
        .perform_watched("converting", &plan, |plan, observer| plan.execute(observer))
}
