//! `catena children`: the images that stand on one.

use super::forest::{self, RelationArgs, named};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::text::printable;
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena children base.qcow2
  catena children --all --in /srv/vms --in /backup base.qcow2

No image records its overlays: they are looked for by their headers, in the
image's folder and those given, with everything below, in the folders beside,
in the current folder, and where 'catena tree' saw them. An overlay elsewhere
is not found.")]
pub struct Args {
    #[command(flatten)]
    relation: RelationArgs,
    /// Those that stand on its overlays, too, and so on
    #[arg(long)]
    all: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Serialize)]
struct Children {
    image: String,
    children: Vec<String>,
}

/// Prints them.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let (forest, number) = args.relation.grow()?;
    forest::warn(&forest.errors);
    let children = if args.all {
        forest.dependents(number)
    } else {
        forest.images().get(number).map_or_else(Vec::new, |image| {
            image.overlays.iter().chain(&image.data_of).copied().collect()
        })
    };
    let children = named(&forest, &children);
    let mut out = output::stdout();
    match args.output {
        Output::Human => {
            for child in &children {
                writeln!(out, "{}", printable(child))?;
            }
        }
        Output::Json => {
            let image = named(&forest, &[number]).concat();
            output::json(&Children { image, children }, &mut out)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
