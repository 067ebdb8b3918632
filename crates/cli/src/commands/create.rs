//! `catena create`: a new image, alone or over a backing image.

use super::change::{self, ChangeArgs};
use crate::error::CommandError;
use crate::target::parse_format;
use crate::text;
use catena::ops::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use catena::{Error, ErrorKind, Format, Source};
use catena_format::qcow2::{Compression, Version};
use clap::ValueEnum;
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
  preallocation=off       metadata, falloc or full

Options of raw:
  preallocation=off       falloc or full

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
    /// Options of the format, as for qemu-img
    #[arg(short, long = "option", value_name = "KEY=VALUE,…")]
    option: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A format that images are made in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NewFormat {
    /// qcow2, version 3 unless told otherwise
    #[default]
    Qcow2,
    /// Raw: a sparse file
    Raw,
}

/// What of a new image the command line says.
pub struct NewImage {
    /// Its format and options.
    pub kind: Kind,
    /// What is allocated from the start.
    pub preallocation: Preallocation,
}

/// Creates the image.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.change.policy()?;
    let backing = match (&args.backing, args.backing_format) {
        (None, _) => None,
        (Some(name), Some(format)) => Some((name.clone(), format)),
        (Some(name), None) => {
            return Err(change::without_format(name, &Source::file(&args.name), &policy).into());
        }
    };
    let mut new = new_image(args.format, &args.option, backing)?;
    if let Kind::Qcow2(options) = &mut new.kind {
        options.unchecked_backing = args.unsafe_backing;
    }
    let request = create::Request {
        path: args.name.clone(),
        existing: Existing::Refuse,
        size: args.size,
        kind: new.kind,
        preallocation: new.preallocation,
    };
    let plan = create::plan(&request, &policy)?;
    args.change.perform(&plan, create::Plan::execute)
}

/// Reads the options (`-o`) of a new image.
pub fn new_image(
    format: NewFormat,
    lists: &[String],
    backing: Option<(String, Format)>,
) -> Result<NewImage, Error> {
    let options = lists.iter().flat_map(|list| split_options(list));
    match format {
        NewFormat::Raw if backing.is_some() => Err(usage("a raw image has no backing image")),
        NewFormat::Raw => {
            let mut preallocation = Preallocation::Off;
            for (key, value) in options {
                match key.as_str() {
                    "preallocation" => preallocation = preallocation_of(&key, &value)?,
                    _ => return Err(usage(&format!("raw images have no option '{key}'"))),
                }
            }
            Ok(NewImage {
                kind: Kind::Raw,
                preallocation,
            })
        }
        NewFormat::Qcow2 => qcow2_options(options, backing),
    }
}

fn qcow2_options(
    list: impl Iterator<Item = (String, String)>,
    backing: Option<(String, Format)>,
) -> Result<NewImage, Error> {
    let mut options = Qcow2Options {
        backing,
        ..Qcow2Options::default()
    };
    let mut preallocation = Preallocation::Off;
    let mut data_file_raw = false;
    let mut data_file = None;
    for (key, value) in list {
        match key.as_str() {
            "cluster_size" => {
                options.cluster_size = text::parse_size(&value).map_err(|error| usage(&error))?
            }
            "refcount_bits" => options.refcount_bits = value.parse().map_err(|_| bad_value(&key, &value))?,
            "lazy_refcounts" => options.lazy_refcounts = on_off(&key, &value)?,
            "extended_l2" => options.extended_l2 = on_off(&key, &value)?,
            "data_file_raw" => data_file_raw = on_off(&key, &value)?,
            "data_file" => data_file = Some(value),
            "compat" => {
                options.version = match value.as_str() {
                    "0.10" | "v2" => Version::V2,
                    "1.1" | "v3" => Version::V3,
                    _ => return Err(bad_value(&key, &value)),
                }
            }
            "compression_type" => {
                options.compression = match value.as_str() {
                    "zlib" => Compression::Deflate,
                    "zstd" => Compression::Zstd,
                    _ => return Err(bad_value(&key, &value)),
                }
            }
            "preallocation" => preallocation = preallocation_of(&key, &value)?,
            "size" | "backing_file" | "backing_fmt" => {
                return Err(usage(&format!(
                    "'{key}' has an option of its own: --size, --backing, --backing-format"
                )));
            }
            _ => {
                return Err(usage(&format!(
                    "qcow2 images have no option '{key}' here; see 'catena create --help'"
                )));
            }
        }
    }
    if data_file_raw && data_file.is_none() {
        return Err(usage("data_file_raw needs a data_file"));
    }
    options.data_file = data_file.map(|name| (name, data_file_raw));
    Ok(NewImage {
        kind: Kind::Qcow2(Box::new(options)),
        preallocation,
    })
}

fn preallocation_of(key: &str, value: &str) -> Result<Preallocation, Error> {
    Ok(match value {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => return Err(bad_value(key, value)),
    })
}

/// Splits `key=value,key=value` as qemu-img does: a comma in a value is written twice, a bare key is `on`.
fn split_options(list: &str) -> Vec<(String, String)> {
    const COMMA: &str = "\u{0}";
    list.replace(",,", COMMA)
        .split(',')
        .filter(|option| !option.is_empty())
        .map(|option| {
            let (key, value) = option.split_once('=').unwrap_or((option, "on"));
            (key.to_owned(), value.replace(COMMA, ","))
        })
        .collect()
}

fn on_off(key: &str, value: &str) -> Result<bool, Error> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(bad_value(key, value)),
    }
}

fn bad_value(key: &str, value: &str) -> Error {
    usage(&format!(
        "'{value}' is no value of '{key}'; see 'catena create --help'"
    ))
}

fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Conflict, message.to_owned())
}
