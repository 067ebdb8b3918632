//! `catena fork`: many new overlays of one base.

use super::change::{self, ChangeArgs};
use super::operation::Operation;
use super::options::{NewFormat, OptionArgs};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{PolicyArgs, parse_format};
use crate::text;
use catena::ops::create::Kind;
use catena::ops::fork::{self, Plan};
use catena::ops::script::interrupted;
use catena::ops::{Observer, folder_of};
use catena::{Error, ErrorKind, Format, Policy};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What stands in a template for an overlay's number.
const NUMBER: &str = "{number}";

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena fork base.qcow2 -F qcow2
  catena fork base.qcow2 -F qcow2 -n 1000 --names 'vm-{number}.qcow2' --in vms

All of them are made, or none. Where that was cut off, the same command or
'catena resume' finishes it, which also takes it back. Overlays that are there
and that nobody has written are kept.

Numbers in names have as many digits as the largest needs. The base is
recorded by its name where it lies in the overlays' folder, else by its whole
path.")]
pub struct Args {
    /// The image that they stand on
    base: PathBuf,
    /// The base's format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format)]
    backing_format: Option<Format>,
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// The first number
    #[arg(long, value_name = "N", default_value_t = 1)]
    first: u32,
    /// Their names, with {number} where the number is to be [default: the base's name, '-' and the number]
    #[arg(long, value_name = "TEMPLATE")]
    names: Option<String>,
    /// The folder that they are made in [default: the base's]
    #[arg(long = "in", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Bytes their guests see; those of the base where not given
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size)]
    size: Option<u64>,
    #[command(flatten)]
    option: OptionArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// How to print what is made
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    /// Those that are made.
    overlays: Vec<PathBuf>,
    /// How many were there before.
    there: usize,
}

/// Makes them.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let names = names(args)?;
    let first = names.first().cloned().unwrap_or_default();
    let recorded = recorded(&args.base, &first)?;
    let backing = change::new_backing(Some(&recorded), args.backing_format, &first, &policy)?;
    let backing = backing.map(|backing| (backing.name, backing.format));
    let Kind::Qcow2(options) = args.option.read(NewFormat::Qcow2, backing)?.kind else {
        return Err(Error::new(ErrorKind::Unsupported, "only qcow2 images stand on others").into());
    };
    let request = fork::Request {
        names,
        size: args.size,
        options: *options,
    };
    let words = fork::words(&request);
    let begun = interrupted(&[folder_of(&first)], "fork", &words)?;
    let manner = args.change.manner("forking", &policy, args.output);
    manner.perform(begun, || Ok(fork::plan(&request, &policy)?))
}

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        Plan::execute(self, policy, observer)
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", text::printable(&self.to_string()))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let report = Report {
            overlays: self.missing().map(Path::to_owned).collect(),
            there: self.there(),
        };
        output::json(&report, &mut out)
    }
}

fn names(args: &Args) -> Result<Vec<PathBuf>, Error> {
    let stem = args.base.file_stem().unwrap_or_default().to_string_lossy();
    let template = args
        .names
        .clone()
        .unwrap_or_else(|| format!("{stem}-{NUMBER}.qcow2"));
    if template.contains('/') {
        return Err(
            Error::new(ErrorKind::Conflict, "a template names files, not folders")
                .with_hint("give the folder with --in"),
        );
    }
    if args.count > 1 && !template.contains(NUMBER) {
        return Err(
            Error::new(ErrorKind::Conflict, "all of them would have the same name")
                .with_hint("put {number} into the template where the number is to be"),
        );
    }
    let folder = args
        .folder
        .as_deref()
        .or(args.base.parent())
        .unwrap_or(Path::new(""));
    let last = u64::from(args.first) + u64::from(args.count) - 1;
    let digits = last.to_string().len();
    Ok((u64::from(args.first)..=last)
        .map(|number| folder.join(template.replace(NUMBER, &format!("{number:0digits$}"))))
        .collect())
}

/// The base's name as the overlays record it.
fn recorded(base: &Path, overlay: &Path) -> Result<String, Error> {
    let failed = |error| Error::from(catena_storage::Error::from_io(error, "find").with_path(base));
    let real = |path: &Path| {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        std::fs::canonicalize(path)
    };
    let same_folder = match (base.parent().map(real), overlay.parent().map(real)) {
        (Some(Ok(base)), Some(Ok(overlay))) => base == overlay,
        _ => false,
    };
    let name = match base.file_name().filter(|_| same_folder) {
        Some(name) => PathBuf::from(name),
        None => std::path::absolute(base).map_err(failed)?,
    };
    let text = name
        .into_os_string()
        .into_string()
        .map_err(|_| Error::new(ErrorKind::Unsupported, "the base's name is not UTF-8").with_path(base))?;
    // A colon before any slash would be a protocol.
    let slash = text.find('/').unwrap_or(text.len());
    Ok(match text.find(':') {
        Some(colon) if colon < slash => format!("./{text}"),
        _ => text,
    })
}
