//! `catena convert`: what a chain shows, as another image.

use super::change::{self, ChangeArgs};
use super::create::{self, NewFormat};
use super::moving::MovingArgs;
use crate::error::CommandError;
use crate::progress::Progress;
use crate::target::parse_format;
use crate::text;
use catena::open::Sharing;
use catena::ops::convert::{self, Publish, Request, Shared, Target};
use catena::ops::create::Kind;
use catena::ops::{Input, Moving};
use catena::{Error, ErrorKind, Format, Source, Start};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The new image appears under its name only when it is complete and durable.
Over a backing image only what differs from it is written.

Examples:
  catena convert vm.qcow2 vm.raw --to raw
  catena convert vm.qcow2 small.qcow2 --compressed -o compression_type=zstd
  catena convert vm.qcow2 monday.qcow2 --backing base.qcow2 -F qcow2
  catena convert vm.qcow2 /dev/vg/disk --existing --to raw")]
pub struct Args {
    /// The images to convert, one behind the other, and last the new image
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "TARGET"])]
    images: Vec<PathBuf>,
    /// The sources' format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The new image's format
    #[arg(short = 'O', long, value_enum, default_value_t)]
    to: NewFormat,
    /// Convert an internal snapshot of the source, by id or name
    #[arg(short = 'l', long, value_name = "ID")]
    snapshot: Option<String>,
    /// The backing image of the new one, as it is to be recorded
    #[arg(short, long, value_name = "NAME")]
    backing: Option<String>,
    /// The backing image's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "backing")]
    backing_format: Option<Format>,
    /// Compress the data
    #[arg(short, long)]
    compressed: bool,
    /// Options of the format, as for 'catena create'
    #[arg(short, long = "option", value_name = "KEY=VALUE,…")]
    option: Vec<String>,
    /// Write into an image or device that exists
    #[arg(short = 'n', long, conflicts_with_all = ["backing", "option"])]
    existing: bool,
    /// The image that exists reads as zeros everywhere: you answer for it
    #[arg(long, requires = "existing")]
    target_is_zero: bool,
    /// The shortest run of zeros that is left out, in bytes; 0 to write everything
    #[arg(short = 'S', long, value_name = "BYTES", value_parser = text::parse_size, default_value = "4k")]
    sparse: u64,
    /// Make zeros of what cannot be read, and say where
    #[arg(long)]
    salvage: bool,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    moving: MovingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Converts.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.change.policy()?;
    let (target, sources) = args
        .images
        .split_last()
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "name a source and a target"))?;
    let sharing = if args.force_share {
        Sharing::Force
    } else {
        Sharing::Locked
    };
    let inputs = sources.iter().map(|path| Input::Chain {
        start: Start::at(path, args.format),
        snapshot: args.snapshot.clone(),
        sharing,
    });
    let target = if args.existing {
        Target::Existing {
            path: target.clone(),
            // Raw must be said: whatever lies on the medium could look like another format.
            format: (args.to == NewFormat::Raw).then_some(Format::Raw),
            is_zero: args.target_is_zero,
        }
    } else {
        let backing = match (&args.backing, args.backing_format) {
            (None, _) => None,
            (Some(name), Some(format)) => Some((name.clone(), format)),
            (Some(name), None) => {
                return Err(change::without_format(name, &Source::file(target), &policy).into());
            }
        };
        let new = create::new_image(args.to, &args.option, backing)?;
        Target::New {
            path: target.clone(),
            kind: new.kind,
            size: None,
            preallocation: new.preallocation,
            publish: Publish::Complete,
        }
    };
    if args.compressed && matches!(&target, Target::New { kind: Kind::Raw, .. }) {
        return Err(Error::new(ErrorKind::Conflict, "raw images cannot be compressed").into());
    }
    let request = Request {
        sources: inputs.collect(),
        target,
        shared: Shared::Compared,
        moving: Moving {
            sparse: args.sparse,
            salvage: args.salvage,
            ..args.moving.moving()
        },
        compressed: args.compressed,
    };
    let plan = convert::plan(&request, &policy)?;
    args.change
        .perform(&plan, |plan| plan.execute(&Progress::start("converting")))
}
