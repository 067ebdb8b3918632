//! `catena create`: a new image, alone or over a backing image.

use super::change::{self, ChangeArgs};
use super::options::{NewFormat, NewOptions, OptionArgs};
use crate::error::CommandError;
use crate::target::{PolicyArgs, parse_format};
use crate::text;
use catena::Format;
use catena::ops::create::{self, Kind};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Options of qcow2 (-o), with qemu-img's names and defaults:
  cluster_size=64k        512 to 2M
  compat=1.1              0.10 or v2, 1.1 or v3
  refcount_bits=16        1 to 64
  lazy_refcounts=off
  extended_l2=off
  compression_type=zlib   zlib or zstd
  data_file=NAME          created with the image; recorded as given, and
                          relative to the image
  data_file_raw=off
  preallocation=off       off, metadata, falloc or full; raw: not metadata

A relative backing name is recorded as it is and is relative to the new image,
not to the current folder.

Examples:
  catena create disk.qcow2 --size 20G
  catena create monday.qcow2 --backing base.qcow2 --backing-format qcow2
  catena create big.qcow2 --size 1T -o cluster_size=128k,extended_l2=on")]
pub struct Args {
    /// The new file, which must not exist
    name: PathBuf,
    /// Bytes the guest sees; k, M, G, T are understood. Those of the backing image where not given
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size)]
    size: Option<u64>,
    /// The new image's format
    #[arg(short, long, value_enum, default_value_t)]
    format: NewFormat,
    /// The backing image, as it is to be recorded
    #[arg(short, long, value_name = "NAME")]
    backing: Option<String>,
    /// The backing image's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "backing")]
    backing_format: Option<Format>,
    /// Do not look at the backing image, which need not exist; the size must be given then
    #[arg(short, long, requires_all = ["backing", "backing_format", "size"])]
    unsafe_backing: bool,
    #[command(flatten)]
    option: OptionArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Creates the image.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let backing = change::new_backing(args.backing.as_deref(), args.backing_format, &args.name, &policy)?;
    let backing = backing.map(|backing| (backing.name, backing.format));
    let NewOptions {
        mut kind,
        preallocation,
    } = args.option.read(args.format, backing)?;
    if let Kind::Qcow2(options) = &mut kind {
        options.unchecked_backing = args.unsafe_backing;
    }
    let request = create::Request {
        path: args.name.clone(),
        existing: create::Existing::Refuse,
        preallocation,
        size: args.size,
        kind,
    };
    let plan = create::plan(&request, &policy)?;
    args.change.perform(&plan, create::Plan::execute)
}
