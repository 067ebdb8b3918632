//! Options of a new image's format (`-o key=value,…`), with qemu-img's names.

use crate::text;
use catena::ops::create::{Kind, Preallocation, Qcow2Options};
use catena::{Error, ErrorKind, Format};
use catena_format::qcow2::{Compression, Version};
use clap::ValueEnum;
use std::path::Path;

/// A format that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NewFormat {
    /// qcow2, version 3 unless told otherwise
    #[default]
    Qcow2,
    /// Raw: a sparse file
    Raw,
}

impl NewFormat {
    /// The format itself.
    pub fn format(self) -> Format {
        match self {
            Self::Qcow2 => Format::Qcow2,
            Self::Raw => Format::Raw,
        }
    }

    /// What a name says that ends in `.raw` or `.img`, where the user says nothing.
    pub fn of_name(path: &Path) -> Self {
        let ending = path.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("raw" | "img")) {
            Self::Raw
        } else {
            Self::Qcow2
        }
    }
}

/// The options, read.
#[derive(Clone, Debug)]
pub struct NewOptions {
    /// The format with what goes with it.
    pub kind: Kind,
    /// What is allocated from the start.
    pub preallocation: Preallocation,
}

/// The options that a new image's format has.
#[derive(Debug, Default, clap::Args)]
pub struct OptionArgs {
    /// Options of the new image's format, as for qemu-img
    #[arg(short, long = "option", value_name = "KEY=VALUE,…")]
    option: Vec<String>,
    /// Keep nothing of what the backing image is: nobody will notice if it changes
    #[arg(long)]
    no_stamp: bool,
}

impl OptionArgs {
    /// Reads them for an image over that backing image, the name as it is to be recorded.
    pub fn read(&self, format: NewFormat, backing: Option<(String, Format)>) -> Result<NewOptions, Error> {
        let mut preallocation = Preallocation::Off;
        let mut others = Vec::new();
        for (key, value) in split_all(&self.option) {
            match key.as_str() {
                "preallocation" => preallocation = parse_preallocation(&value)?,
                "size" | "backing_file" | "backing_fmt" => {
                    return Err(usage(&format!(
                        "'{key}' has an option of its own: --size, --backing, --backing-format"
                    )));
                }
                _ => others.push((key, value)),
            }
        }
        let kind = match format {
            NewFormat::Raw => {
                if backing.is_some() {
                    return Err(usage("a raw image has no backing image"));
                }
                if let Some((key, _)) = others.first() {
                    return Err(usage(&format!("raw images have no option '{key}'")));
                }
                Kind::Raw
            }
            NewFormat::Qcow2 => Kind::Qcow2(Box::new(Qcow2Options {
                backing,
                stamp: !self.no_stamp,
                ..qcow2_options(others)?
            })),
        };
        Ok(NewOptions { kind, preallocation })
    }
}

fn qcow2_options(list: Vec<(String, String)>) -> Result<Qcow2Options, Error> {
    let mut options = Qcow2Options::default();
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
            "compat" => options.version = parse_compat(&value)?,
            "compression_type" => {
                options.compression = match value.as_str() {
                    "zlib" => Compression::Deflate,
                    "zstd" => Compression::Zstd,
                    _ => return Err(bad_value(&key, &value)),
                }
            }
            _ => {
                return Err(usage(&format!(
                    "qcow2 images have no option '{key}' here; see --help"
                )));
            }
        }
    }
    if data_file_raw && data_file.is_none() {
        return Err(usage("data_file_raw needs a data_file"));
    }
    options.data_file = data_file.map(|name| (name, data_file_raw));
    Ok(options)
}

/// A compatibility level.
pub fn parse_compat(value: &str) -> Result<Version, Error> {
    match value {
        "0.10" | "v2" => Ok(Version::V2),
        "1.1" | "v3" => Ok(Version::V3),
        _ => Err(bad_value("compat", value)),
    }
}

/// What is allocated from the start.
pub fn parse_preallocation(value: &str) -> Result<Preallocation, Error> {
    match value {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        _ => Err(bad_value("preallocation", value)),
    }
}

/// All options of several lists.
pub fn split_all(lists: &[String]) -> impl Iterator<Item = (String, String)> {
    lists.iter().flat_map(|list| split_options(list))
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

/// A switch.
pub fn on_off(key: &str, value: &str) -> Result<bool, Error> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(bad_value(key, value)),
    }
}

/// The error for a value that an option cannot have.
pub fn bad_value(key: &str, value: &str) -> Error {
    usage(&format!("'{value}' is no value of '{key}'; see --help"))
}

/// The error for options that contradict each other or what is there.
pub fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Conflict, message.to_owned())
}
