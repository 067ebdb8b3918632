//! `catena bitmap`: persistent bitmaps of an image.

use super::change::ChangeArgs;
use super::info::ShownBitmap;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{ImageArgs, parse_format};
use crate::text;
use catena::ops::bitmap::{self, Action, Request};
use catena::{Format, Start};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A bitmap remembers which parts of the disk have been written since it was
added or cleared: what the next incremental backup has to copy.

Examples:
  catena bitmap add vm.qcow2 since-sunday
  catena bitmap list vm.qcow2
  catena bitmap merge vm.qcow2 since-sunday --from since-monday
  catena bitmap clear vm.qcow2 since-sunday
  catena bitmap remove vm.qcow2 since-sunday")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List them
    List(List),
    /// Add one that has nothing marked
    Add(Add),
    /// Remove one
    Remove(One),
    /// Clear all marks of one
    Clear(One),
    /// Make one record what is written
    Enable(One),
    /// Make one no longer record what is written
    Disable(One),
    /// Mark in one what is marked in another
    Merge(Merge),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    image: ImageArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct One {
    #[command(flatten)]
    image: ImageArgs,
    /// The bitmap
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    one: One,
    /// Bytes that are marked together, a power of two; k and M are understood
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size)]
    granularity: Option<u64>,
    /// Do not record what is written until it is enabled
    #[arg(long)]
    disabled: bool,
}

#[derive(Debug, clap::Args)]
struct Merge {
    #[command(flatten)]
    one: One,
    /// The other bitmap
    #[arg(long, value_name = "BITMAP")]
    from: String,
    /// The image that has the other bitmap; the same where it is not given
    #[arg(long, value_name = "FILE")]
    from_image: Option<PathBuf>,
    /// That image's format; probed where it is not given
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "from_image")]
    from_format: Option<Format>,
}

/// Does it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    match &args.what {
        What::List(list) => print(list),
        What::Add(add) => change(
            &add.one,
            Action::Add {
                granularity: add.granularity,
                enabled: !add.disabled,
            },
        ),
        What::Remove(one) => change(one, Action::Remove),
        What::Clear(one) => change(one, Action::Clear),
        What::Enable(one) => change(one, Action::Enable),
        What::Disable(one) => change(one, Action::Disable),
        What::Merge(merge) => change(
            &merge.one,
            Action::Merge {
                from: merge.from.clone(),
                image: merge
                    .from_image
                    .as_ref()
                    .map(|path| Start::at(path, merge.from_format)),
            },
        ),
    }
}

fn change(one: &One, action: Action) -> Result<ExitCode, CommandError> {
    let request = Request {
        start: one.image.start(),
        name: one.name.clone(),
        actions: vec![action],
    };
    let plan = bitmap::plan(&request, &one.image.policy()?)?;
    one.change.perform(&plan, bitmap::Plan::execute)
}

fn print(list: &List) -> Result<ExitCode, CommandError> {
    let there = bitmap::list(&list.image.start(), &list.image.policy()?)?;
    let there: Vec<_> = there.into_iter().map(ShownBitmap::from).collect();
    let mut out = output::stdout();
    match list.output {
        Output::Json => output::json(&there, &mut out)?,
        Output::Human if there.is_empty() => {}
        Output::Human => rows(&there, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn rows(bitmaps: &[ShownBitmap], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>11}  {:<20}  name", "granularity", "state")?;
    for bitmap in bitmaps {
        let state = match (bitmap.in_use, bitmap.auto) {
            (true, _) => "not to be believed",
            (false, true) => "records writes",
            (false, false) => "disabled",
        };
        writeln!(
            out,
            "{:>11}  {state:<20}  {}",
            text::exact_size(bitmap.granularity),
            text::printable(&bitmap.name)
        )?;
    }
    Ok(())
}
