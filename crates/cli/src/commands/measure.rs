//! `catena measure`: how large a new image would become.

use super::create::{self, NewFormat};
use crate::error::CommandError;
use crate::output;
use crate::target::parse_format;
use crate::text;
use catena::open::Sharing;
use catena::ops::create::Kind as NewKind;
use catena::ops::measure::{self, Kind, Request, Sizes};
use catena::{Disk, Error, ErrorKind, Format, Policy, Start, detect};
use catena_format::qcow2::ClusterBits;
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The rules and the numbers are those of 'qemu-img measure'.

Examples:
  catena measure vm.qcow2 --to qcow2
  catena measure --size 100G -o cluster_size=128k")]
pub struct Args {
    /// The image that would be converted
    #[arg(required_unless_present = "size", conflicts_with = "size")]
    image: Option<PathBuf>,
    /// Its format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// Bytes the guest would see, where nothing is converted; k, M, G, T are understood
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size)]
    size: Option<u64>,
    /// The new image's format
    #[arg(short = 'O', long, value_enum, default_value_t)]
    to: NewFormat,
    /// Options of the format, as for 'catena create'
    #[arg(short, long = "option", value_name = "KEY=VALUE,…")]
    option: Vec<String>,
    /// Measure an internal snapshot, by id or name
    #[arg(short = 'l', long, value_name = "ID")]
    snapshot: Option<String>,
    /// What may be opened and believed because an image says so: 'libvirt', 'strict' or a policy file
    #[arg(long, default_value = "libvirt")]
    policy: String,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Lines
    #[default]
    Human,
    /// The object of qemu-img
    Json,
}

/// The object.
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
    let request = Request {
        size: args.size.unwrap_or(0),
        kind: kind(args)?,
    };
    let sizes = match &args.image {
        None => measure::measure(&request, None, None)?,
        Some(image) => {
            let chain = detect(&Start::at(image, args.format), &Policy::load(&args.policy)?);
            let sharing = if args.force_share {
                Sharing::Force
            } else {
                Sharing::Locked
            };
            let disk = match &args.snapshot {
                None => chain.open(sharing)?,
                Some(snapshot) => chain.open_snapshot(snapshot, sharing)?,
            }
            .for_walking();
            let bitmaps = match chain.active() {
                Some(active) => active.bitmaps()?,
                None => None,
            };
            measure::measure(&request, Some(&disk as &dyn Disk), bitmaps.as_deref())?
        }
    };
    print(args.output, sizes)?;
    Ok(ExitCode::SUCCESS)
}

fn kind(args: &Args) -> Result<Kind, Error> {
    let new = create::new_image(args.to, &args.option, None)?;
    let power = |value: u64| {
        let bits = value.is_power_of_two().then(|| value.trailing_zeros());
        bits.ok_or_else(|| {
            Error::new(
                ErrorKind::Conflict,
                "cluster size and refcount width are powers of two",
            )
        })
    };
    Ok(match new.kind {
        NewKind::Raw => Kind::Raw,
        NewKind::Qcow2(options) => Kind::Qcow2 {
            cluster_bits: ClusterBits::new(power(options.cluster_size)?)?,
            refcount_order: power(options.refcount_bits.into())?,
            extended_l2: options.extended_l2,
            backing: false,
            preallocation: new.preallocation,
        },
    })
}

fn print(form: Output, sizes: Sizes) -> Result<(), CommandError> {
    let mut out = output::stdout();
    match form {
        Output::Json => output::json(
            &Report {
                required: sizes.required,
                fully_allocated: sizes.fully_allocated,
                bitmaps: sizes.bitmaps,
            },
            &mut out,
        )?,
        Output::Human => {
            let line = |bytes: u64| format!("{bytes} ({})", text::size(bytes));
            writeln!(out, "required:        {}", line(sizes.required))?;
            writeln!(out, "fully allocated: {}", line(sizes.fully_allocated))?;
            if let Some(bitmaps) = sizes.bitmaps {
                writeln!(out, "bitmaps:         {}", line(bitmaps))?;
            }
        }
    }
    Ok(out.flush()?)
}
