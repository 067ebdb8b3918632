//! `catena measure`: how large would a new image become?

use super::options::{NewFormat, NewOptions, OptionArgs, usage};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{PolicyArgs, parse_format, warn_probed};
use crate::text;
use catena::open::Sharing;
use catena::ops::create::Kind as NewKind;
use catena::ops::measure::{self, Kind, Sizes};
use catena::{Disk, Format, Stack, Start, detect};
use catena_format::qcow2::{Bitmap, ClusterBits};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Tells how large the file would be that 'catena convert' or 'catena create'
makes: no less than is needed, by qemu-img's rules. Maps alone are read.
'catena create --help' lists the options (-o).

Examples:
  catena measure vm.qcow2 --to raw
  catena measure vm.raw -o cluster_size=2M
  catena measure --size 20G")]
pub struct Args {
    /// The disk that would be converted
    #[arg(required_unless_present = "size")]
    image: Option<PathBuf>,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format, requires = "image")]
    format: Option<Format>,
    /// Bytes of an empty disk instead; k, M, G, T are understood
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size, conflicts_with_all = ["image", "format", "snapshot"])]
    size: Option<u64>,
    /// The new image's format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    to: NewFormat,
    /// The disk as it was when this internal snapshot was taken, by id or name
    #[arg(long, value_name = "SNAPSHOT", requires = "image")]
    snapshot: Option<String>,
    #[command(flatten)]
    option: OptionArgs,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    required: u64,
    fully_allocated: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bitmaps: Option<u64>,
}

/// Measures.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = measure::Request {
        size: args.size.unwrap_or_default(),
        kind: kind(args)?,
    };
    let opened = open(args)?;
    let sizes = match &opened {
        None => measure::measure(&request, None, None)?,
        Some(opened) => measure::measure(
            &request,
            Some(&opened.disk as &dyn Disk),
            opened.bitmaps.as_deref(),
        )?,
    };
    print(args, sizes)?;
    Ok(ExitCode::SUCCESS)
}

fn kind(args: &Args) -> Result<Kind, CommandError> {
    let NewOptions { kind, preallocation } = args.option.read(args.to, None)?;
    match kind {
        NewKind::Raw => Ok(Kind::Raw),
        NewKind::Qcow2(options) => {
            let power = |value: u64| {
                let bits = value.is_power_of_two().then(|| value.trailing_zeros());
                bits.ok_or_else(|| usage(&format!("{value} is no power of two")))
            };
            Ok(Kind::Qcow2 {
                cluster_bits: ClusterBits::new(power(options.cluster_size)?)?,
                refcount_order: power(options.refcount_bits.into())?,
                extended_l2: options.extended_l2,
                backing: false,
                preallocation,
            })
        }
    }
}

/// What would be converted.
struct Opened {
    disk: Stack,
    /// Those of its active image.
    bitmaps: Option<Vec<Bitmap>>,
}

fn open(args: &Args) -> Result<Option<Opened>, CommandError> {
    let Some(image) = &args.image else {
        return Ok(None);
    };
    let chain = detect(&Start::at(image, args.format), &args.policy.load()?);
    if args.output == Output::Human {
        warn_probed(&chain);
    }
    let sharing = if args.force_share {
        Sharing::Force
    } else {
        Sharing::Locked
    };
    let disk = match &args.snapshot {
        Some(snapshot) => chain.open_snapshot(snapshot, sharing)?,
        None => chain.open(sharing)?,
    };
    let bitmaps = match chain.active() {
        Some(active) => active.bitmaps()?,
        None => None,
    };
    Ok(Some(Opened {
        disk: disk.for_walking(),
        bitmaps,
    }))
}

fn print(args: &Args, sizes: Sizes) -> Result<(), CommandError> {
    let mut out = output::stdout();
    match args.output {
        Output::Json => output::json(
            &Report {
                required: sizes.required,
                fully_allocated: sizes.fully_allocated,
                bitmaps: sizes.bitmaps,
            },
            &mut out,
        )?,
        Output::Human => {
            writeln!(out, "required         {}", bytes(sizes.required))?;
            writeln!(out, "fully allocated  {}", bytes(sizes.fully_allocated))?;
            if let Some(bitmaps) = sizes.bitmaps {
                writeln!(out, "bitmaps          {}", bytes(bitmaps))?;
            }
        }
    }
    Ok(out.flush()?)
}

fn bytes(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", text::size(bytes))
}
