//! `catena heal`: find what images have lost, and have them record where it is.

use crate::error::CommandError;
use crate::output;
use crate::progress::Progress;
use crate::target::PolicyArgs;
use crate::text::printable;
use catena::ops::heal::{self, By, Missing, Need, Request};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status where something is missing that was not to be mended.
const MISSING: u8 = 3;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Images that were moved or renamed leave overlays that lead nowhere. Each
missing backing image or data file is looked for below the folders: one that
has the fingerprint of the overlay's stamp is certainly it; one of the same
name and format, and of a size that fits, may be it, and is taken only with
--by-name. Where several could be it, they are told, and none is taken.

What was recorded relative to the image stays so. An image that is in use is
not written; running it again finds what is left.

Exit status:
  0  nothing is missing, or not any more
  1  something is missing still, or it could not be done
  2  the command line is wrong
  3  something is missing, and --yes was not given

Examples:
  catena heal /srv/vms --in /srv/bases
      what is missing, and where it is
  catena heal /srv/vms --in /srv/bases --yes")]
pub struct Args {
    /// Folders whose images are to be whole, with everything below them
    #[arg(required = true, value_name = "DIR")]
    places: Vec<PathBuf>,
    /// Look in this folder too; may be given several times
    #[arg(long = "in", value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Do it; else it is only said
    #[arg(short, long, conflicts_with = "dry_run")]
    yes: bool,
    /// Take what has the name, the format and a size that fits: you answer for its content
    #[arg(long)]
    by_name: bool,
    /// Change nothing: the same as without --yes
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each
    #[default]
    Human,
    /// An object, as docs/json.md describes it
    Json,
}

#[derive(Serialize)]
struct Answer {
    missing: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    image: String,
    need: &'static str,
    recorded: String,
    found: Option<String>,
    by: Option<&'static str>,
    records: Option<String>,
    candidates: Vec<String>,
    mended: bool,
    error: Option<String>,
}

impl Shown {
    fn of(missing: &Missing, outcome: Option<catena::Result<()>>) -> Self {
        let shown = |path: &PathBuf| path.display().to_string();
        Self {
            image: shown(&missing.image),
            need: match missing.need {
                Need::Backing => "backing",
                Need::DataFile => "data_file",
            },
            recorded: missing.recorded.clone(),
            found: missing.found.as_ref().map(|(path, _)| shown(path)),
            by: missing.found.as_ref().map(|(_, by)| match by {
                By::Stamp => "stamp",
                By::Name => "name",
            }),
            records: missing.change.as_ref().map(|change| change.records(missing.need)),
            candidates: missing.candidates.iter().map(shown).collect(),
            mended: matches!(outcome, Some(Ok(()))),
            error: outcome.and_then(Result::err).map(|error| error.full()),
        }
    }
}

/// Finds, and mends if asked.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let request = Request {
        places: args.places.clone(),
        search: args.search.clone(),
        by_name: args.by_name,
    };
    let plan = heal::plan(&request, &policy, &Progress::quiet())?;
    for error in &plan.errors {
        let _ = writeln!(
            anstream::stderr(),
            "catena: {error}; what lies there is not known"
        );
    }
    let outcomes = if args.yes {
        plan.execute()
    } else {
        plan.missing().iter().map(|_| None).collect()
    };
    let shown: Vec<_> = { plan.missing().iter().zip(outcomes) }
        .map(|(missing, outcome)| Shown::of(missing, outcome))
        .collect();
    let status = match () {
        () if shown.iter().all(|one| one.mended) => ExitCode::SUCCESS,
        () if args.yes => ExitCode::FAILURE,
        () => ExitCode::from(MISSING),
    };
    let mut out = output::stdout();
    match args.output {
        Output::Human => {
            for (missing, shown) in plan.missing().iter().zip(&shown) {
                let what = match (&shown.error, shown.mended) {
                    (Some(error), _) => format!("; not mended: {error}"),
                    (None, true) => "; mended".to_owned(),
                    (None, false) if shown.by == Some("name") && !args.by_name => {
                        "; --by-name takes it".to_owned()
                    }
                    (None, false) => String::new(),
                };
                writeln!(out, "{}", printable(&format!("{missing}{what}")))?;
            }
            if shown.is_empty() {
                writeln!(out, "nothing is missing")?;
            }
        }
        Output::Json => output::json(&Answer { missing: shown }, &mut out)?,
    }
    out.flush()?;
    Ok(status)
}
