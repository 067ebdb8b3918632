//! `catena heal`: find what images have lost, and have them record where it is.

use super::forest;
use super::operation::{Manner, Operation};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::PolicyArgs;
use crate::text::printable;
use catena::ops::Observer;
use catena::ops::heal::{self, By, Candidate, Evidence, Missing, Need, Plan, Request};
use catena::{Error, Policy};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit status where something is missing that was not to be mended.
const MISSING: u8 = 3;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Images that were moved or renamed leave overlays that lead nowhere. Each
missing backing image or data file is looked for below the folders, and --yes
has it recorded where it is found

  by its stamp       it has the fingerprint of the overlay's stamp, or had it
                     and says that it was rewritten and shows what it did
  by another's       it has that of the stamp of another overlay that lacks
  stamp              the same file
  by its name and    it has the name, the format, a size that fits, and what
  content            the overlay copied from its base beside what was written

One that has the name, the format and a size that fits, and nothing more to
show for it, may be it, and is taken only with --by-name. Where several could
be it, they are told with what speaks for each, and none is taken: that is for
you to decide, and for 'catena rebase --unsafe' to record.

An older state of the same disk agrees with an overlay nearly as well as the
right one; so what was written after the overlay was is never taken for its
content. What was recorded relative to the image stays so. An image that is in
use is told of and not written; running it again finds what is left.

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
    evidence: Vec<Weighed>,
    users: Vec<String>,
    mended: bool,
    error: Option<String>,
}

/// What speaks for a file, and against.
#[derive(Serialize)]
struct Weighed {
    path: String,
    name: bool,
    stamp: Option<bool>,
    compared: Option<u64>,
    agreeing: Option<u64>,
    identifiers: Vec<Identifier>,
    written_later: bool,
}

#[derive(Serialize)]
struct Identifier {
    of: &'static str,
    same: bool,
}

impl Weighed {
    fn of(path: &Path, evidence: &Evidence) -> Self {
        let content = evidence.content.as_ref();
        let identifiers = content.map_or(&[][..], |content| &content.identifiers);
        Self {
            path: path.display().to_string(),
            name: evidence.name,
            stamp: evidence.stamp,
            compared: content.map(|content| content.compared),
            agreeing: content.map(|content| content.agreeing),
            identifiers: { identifiers.iter() }
                .map(|(of, same)| Identifier { of, same: *same })
                .collect(),
            written_later: evidence.written_later,
        }
    }
}

impl Shown {
    fn of(missing: &Missing, outcome: Option<&catena::Result<()>>) -> Self {
        let shown = |path: &PathBuf| path.display().to_string();
        let weighed = |one: &Candidate| Weighed::of(&one.path, &one.evidence);
        Self {
            image: shown(&missing.image),
            need: match missing.need {
                Need::Backing => "backing",
                Need::DataFile => "data_file",
            },
            recorded: missing.recorded.clone(),
            found: missing.found.as_ref().map(|found| shown(&found.path)),
            by: missing.found.as_ref().map(|found| match found.by {
                By::Stamp => "stamp",
                By::Lineage => "lineage",
                By::Sibling => "sibling",
                By::NameAndContent => "name_and_content",
                By::Name => "name",
            }),
            records: missing.change.as_ref().map(|change| change.records(missing.need)),
            candidates: missing.candidates.iter().map(|one| shown(&one.path)).collect(),
            evidence: { missing.found.iter() }
                .map(|found| Weighed::of(&found.path, &found.evidence))
                .chain(missing.candidates.iter().map(weighed))
                .collect(),
            users: missing.users.clone(),
            mended: matches!(outcome, Some(Ok(()))),
            error: { outcome.and_then(|outcome| outcome.as_ref().err()) }.map(Error::full),
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
    let manner = Manner {
        verb: "mending",
        policy: &policy,
        dry_run: !args.yes,
        quiet: false,
        output: args.output,
    };
    let begun = manner.finish_first(heal::unfinished(&request)?)?;
    manner.perform(begun, || {
        let plan = heal::plan(&request, &policy, &Progress::quiet())?;
        forest::warn(&plan.errors);
        let outcomes = plan.missing().iter().map(|_| None).collect();
        Ok(Healing {
            plan,
            by_name: args.by_name,
            outcomes,
        })
    })
}

/// What is missing, and what became of each.
struct Healing {
    plan: Plan,
    by_name: bool,
    outcomes: Vec<Option<catena::Result<()>>>,
}

impl Healing {
    fn shown(&self) -> Vec<Shown> {
        { self.plan.missing().iter().zip(&self.outcomes) }
            .map(|(missing, outcome)| Shown::of(missing, outcome.as_ref()))
            .collect()
    }
}

impl Operation for Healing {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        self.outcomes = self.plan.execute(policy, observer)?;
        Ok(())
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        let shown = self.shown();
        for (missing, shown) in self.plan.missing().iter().zip(&shown) {
            let what = match (&shown.error, shown.mended) {
                (Some(error), _) => format!("; not mended: {error}"),
                (None, true) => "; mended".to_owned(),
                (None, false) if shown.by == Some("name") && !self.by_name => {
                    "; --by-name takes it".to_owned()
                }
                (None, false) => String::new(),
            };
            writeln!(out, "{}", printable(&format!("{missing}{what}")))?;
        }
        if shown.is_empty() {
            writeln!(out, "nothing is missing")?;
        }
        Ok(())
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        output::json(
            &Answer {
                missing: self.shown(),
            },
            &mut out,
        )
    }

    fn status(&self, done: bool) -> ExitCode {
        match done {
            _ if self.shown().iter().all(|one| one.mended) => ExitCode::SUCCESS,
            true => ExitCode::FAILURE,
            false => ExitCode::from(MISSING),
        }
    }
}
