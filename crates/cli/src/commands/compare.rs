//! `catena compare`: do two disks show their guests the same?

use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::{PolicyArgs, parse_format};
use crate::text;
use catena::open::Sharing;
use catena::ops::Input;
use catena::ops::compare::{self, Outcome};
use catena::{Format, Start};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Guests see something else.
const DIFFERENT: u8 = 1;
/// It could not be found out.
const FAILED: u8 = 2;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Formats, layers and compression make no difference, nor do zeros behind the
end of the shorter disk. Where maps show that bytes come from the same place,
they are not read.

Exit status:
  0  guests see the same
  1  they do not
  2  it could not be found out

Examples:
  catena compare vm.qcow2 backup.raw
  catena compare --strict old.qcow2 new.qcow2")]
pub struct Args {
    /// One disk
    first: PathBuf,
    /// The other
    second: PathBuf,
    /// The first one's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The second one's format; probed where it is not given
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format)]
    second_format: Option<Format>,
    /// Sizes, and what is data, zeros or nothing, must be the same as well
    #[arg(short, long)]
    strict: bool,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    first: String,
    second: String,
    strict: bool,
    same: bool,
    difference: Option<&'static str>,
    offset: Option<u64>,
    sizes: Option<[u64; 2]>,
}

/// Compares.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    Ok(match compare_both(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERENT),
        Err(error) => error.report_as(FAILED),
    })
}

fn compare_both(args: &Args) -> Result<bool, CommandError> {
    let input = |path: &Path, format| Input::Chain {
        start: Start::at(path, format),
        snapshot: None,
        sharing: if args.force_share {
            Sharing::Force
        } else {
            Sharing::Locked
        },
    };
    let request = compare::Request {
        a: input(&args.first, args.format),
        b: input(&args.second, args.second_format),
        strict: args.strict,
    };
    let progress = if args.quiet {
        Progress::quiet()
    } else {
        Progress::start("comparing")
    };
    let outcome = compare::compare(&request, &args.policy.load()?, &progress)?;
    drop(progress);
    if !args.quiet {
        let mut out = output::stdout();
        match args.output {
            Output::Human => writeln!(out, "{}", sentence(outcome))?,
            Output::Json => output::json(&report(args, outcome), &mut out)?,
        }
        out.flush()?;
    }
    Ok(outcome.is_same())
}

fn sentence(outcome: Outcome) -> String {
    let longer = |sizes: Option<(u64, u64)>| match sizes {
        None => String::new(),
        Some((a, b)) => format!(
            "; one disk has {} and the other {}",
            text::exact_size(a),
            text::exact_size(b)
        ),
    };
    match outcome {
        Outcome::Same { sizes: None } => "guests see the same".to_owned(),
        Outcome::Same { sizes } => {
            format!(
                "guests see the same, but for zeros behind the end{}",
                longer(sizes)
            )
        }
        Outcome::Content { at, sizes } => format!("the content differs at offset {at}{}", longer(sizes)),
        Outcome::Size { sizes } => format!("the sizes differ{}", longer(Some(sizes))),
        Outcome::Status { at } => format!("what is allocated differs at offset {at}"),
    }
}

fn report(args: &Args, outcome: Outcome) -> Report {
    let (difference, offset, sizes) = match outcome {
        Outcome::Same { sizes } => (None, None, sizes),
        Outcome::Content { at, sizes } => (Some("content"), Some(at.0), sizes),
        Outcome::Size { sizes } => (Some("size"), None, Some(sizes)),
        Outcome::Status { at } => (Some("allocation"), Some(at.0), None),
    };
    Report {
        first: args.first.display().to_string(),
        second: args.second.display().to_string(),
        strict: args.strict,
        same: outcome.is_same(),
        difference,
        offset,
        sizes: sizes.map(|(a, b)| [a, b]),
    }
}
