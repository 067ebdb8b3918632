//! `catena compare`: whether two disks show their guests the same.

use crate::error::CommandError;
use crate::output;
use crate::progress::Progress;
use crate::target::parse_format;
use catena::open::Sharing;
use catena::ops::Input;
use catena::ops::compare::{self, Outcome, Request};
use catena::{Format, Policy, Start};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The status when the disks could not be compared: neither "the same" nor "different".
const NOT_COMPARED: u8 = 2;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What both maps lead to is not read: two overlays of one base are compared by
what they hold themselves. The longer disk may go on with zeros.

Exit status:
  0  guests see the same
  1  they do not
  2  it could not be found out

Examples:
  catena compare vm.qcow2 vm.raw
  catena compare --strict a.qcow2 b.qcow2")]
pub struct Args {
    /// One image
    one: PathBuf,
    /// The other
    other: PathBuf,
    /// The first image's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The other image's format; probed where it is not given
    #[arg(short = 'F', long, value_parser = parse_format)]
    other_format: Option<Format>,
    /// Sizes, and what is data, zeros or nothing, must be the same as well
    #[arg(short, long)]
    strict: bool,
    /// What may be opened and believed because an image says so: 'libvirt', 'strict' or a policy file
    #[arg(long, default_value = "libvirt")]
    policy: String,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A sentence
    #[default]
    Human,
    /// One object
    Json,
}

/// The object.
#[derive(Debug, Serialize)]
struct Report {
    same: bool,
    /// What differs: `content`, `size` or `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<&'static str>,
    /// First guest address that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Sizes of both disks, where they are not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<[u64; 2]>,
}

/// Compares.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let outcome = match compare_both(args) {
        Ok(outcome) => outcome,
        Err(error) => return Ok(error.report_as(NOT_COMPARED)),
    };
    if !args.quiet {
        let mut out = output::stdout();
        match args.output {
            Output::Json => output::json(&report(outcome), &mut out)?,
            Output::Human => writeln!(out, "{}", sentence(outcome))?,
        }
        out.flush()?;
    }
    Ok(ExitCode::from(u8::from(!outcome.is_same())))
}

fn compare_both(args: &Args) -> Result<Outcome, CommandError> {
    let sharing = if args.force_share {
        Sharing::Force
    } else {
        Sharing::Locked
    };
    let input = |path: &PathBuf, format| Input::Chain {
        start: Start::at(path, format),
        snapshot: None,
        sharing,
    };
    let request = Request {
        a: input(&args.one, args.format),
        b: input(&args.other, args.other_format),
        strict: args.strict,
    };
    let policy = Policy::load(&args.policy)?;
    Ok(compare::compare(
        &request,
        &policy,
        &Progress::start("comparing"),
    )?)
}

fn sentence(outcome: Outcome) -> String {
    let longer = |sizes: Option<(u64, u64)>| match sizes {
        Some((a, b)) => format!(" (the disks have {a} and {b} bytes)"),
        None => String::new(),
    };
    match outcome {
        Outcome::Same { sizes: None } => "guests see the same".to_owned(),
        Outcome::Same { sizes } => format!("guests see the same, and zeros behind it{}", longer(sizes)),
        Outcome::Content { at, sizes } => {
            format!("guests see different bytes at offset {}{}", at.0, longer(sizes))
        }
        Outcome::Size { sizes } => format!("the sizes differ{}", longer(Some(sizes))),
        Outcome::Status { at } => format!("what is allocated differs at offset {}", at.0),
    }
}

fn report(outcome: Outcome) -> Report {
    let pair = |sizes: Option<(u64, u64)>| sizes.map(|(a, b)| [a, b]);
    let (differs, offset, sizes) = match outcome {
        Outcome::Same { sizes } => (None, None, pair(sizes)),
        Outcome::Content { at, sizes } => (Some("content"), Some(at.0), pair(sizes)),
        Outcome::Size { sizes } => (Some("size"), None, pair(Some(sizes))),
        Outcome::Status { at } => (Some("status"), Some(at.0), None),
    };
    Report {
        same: outcome.is_same(),
        differs,
        offset,
        sizes,
    }
}
