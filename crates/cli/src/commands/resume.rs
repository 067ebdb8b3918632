//! `catena resume`: what was cut off is finished, or taken back.

use super::change::stopped;
use super::operation::Told;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::PolicyArgs;
use crate::text::printable;
use catena::ErrorKind;
use catena::ops::bundle::import::Left;
use catena::ops::script::{Direction, Journal, find};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena resume --list /srv/vms
  catena resume /srv/vms
  catena resume --undo /srv/vms

An operation on several files keeps a journal beside them until it has ended.
What was killed, or ran out of space, goes on from there; with --undo it is
taken back, as long as nothing was deleted or merged. An import that had not
read all of its bundles is taken back always. Files that have changed
meanwhile are not lost: a copy is made again where what it was made of was
written since, and where both were, nothing is done.

A journal is believed only if it belongs to you and nobody else can write it.")]
pub struct Args {
    /// Folders with journals, and journals [default: the folder '.']
    places: Vec<PathBuf>,
    /// Take back what was done
    #[arg(long)]
    undo: bool,
    /// List what was cut off, and change nothing
    #[arg(long)]
    list: bool,
    /// Say what would be done, and change nothing
    #[arg(long, conflicts_with = "list")]
    dry_run: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    policy: PolicyArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

impl Args {
    /// Where to look.
    fn folders(&self) -> impl Iterator<Item = &Path> {
        let here = self.places.is_empty().then_some(Path::new("."));
        self.places.iter().map(PathBuf::as_path).chain(here)
    }

    fn journals(&self) -> Result<Vec<PathBuf>, CommandError> {
        let mut found = Vec::new();
        for place in self.folders() {
            if place.is_dir() {
                found.extend(find(&[place])?);
            } else {
                found.push(place.to_owned());
            }
        }
        Ok(found)
    }
}

/// Goes on.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let direction = if args.undo {
        Direction::TakeBack
    } else {
        Direction::Finish
    };
    let mut all = Vec::new();
    let mut progress = None;
    for path in args.journals()? {
        let journal = match Journal::open(&path) {
            Ok(journal) => journal,
            Err(error) if args.list && error.kind() == ErrorKind::Locked => {
                all.push(Told::running(path));
                continue;
            }
            // It has ended just now.
            Err(error) if error.kind() == ErrorKind::NotFound && !args.places.contains(&path) => continue,
            Err(error) => return Err(error.into()),
        };
        let told = Told::of(&journal);
        if !args.list && !args.dry_run {
            let progress = progress.get_or_insert_with(|| match args.quiet {
                true => Progress::quiet(),
                false => Progress::start("resuming"),
            });
            journal.resume(direction, &policy, progress).map_err(stopped)?;
        }
        all.push(told);
    }
    drop(progress);
    for folder in args.folders().filter(|folder| folder.is_dir()) {
        for left in Left::find_in(folder)? {
            all.push(Told::import(&left));
            if !args.list && !args.dry_run {
                left.remove()?;
            }
        }
    }
    let mut out = output::stdout();
    match args.output {
        Output::Json => output::json(&all, &mut out)?,
        Output::Human if args.quiet => {}
        Output::Human => print(args, &all, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn print(args: &Args, all: &[Told], out: &mut impl Write) -> std::io::Result<()> {
    if all.is_empty() {
        return writeln!(out, "nothing was cut off here");
    }
    for told in all {
        let journal = printable(&told.journal.display().to_string());
        if told.running {
            writeln!(out, "{journal}: is running")?;
            continue;
        }
        let operation = printable(&told.operation);
        let steps = told.steps_in_words();
        let becomes = match (args.list || args.dry_run, args.undo) {
            (true, _) => "was cut off",
            (false, false) => "is finished",
            (false, true) => "is taken back",
        };
        if told.steps.is_empty() {
            let becomes = if args.list || args.dry_run {
                "would be"
            } else {
                "is"
            };
            writeln!(
                out,
                "{journal}: {operation} was cut off before all was read, and {becomes} taken back"
            )?;
            continue;
        }
        writeln!(
            out,
            "{journal}: {operation} {becomes}, {} of {steps} done before",
            told.done
        )?;
        if args.dry_run && args.undo {
            told.steps_back(out)?;
        } else if args.dry_run {
            told.steps_left(out)?;
        } else if args.list && !told.undo {
            writeln!(out, "  it can be finished, and not be taken back any more")?;
        }
    }
    Ok(())
}
