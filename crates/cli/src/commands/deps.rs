//! `catena deps`: the files that images need.

use super::forest::{ForestArgs, named};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::text::printable;
use catena::Forest;
use catena::forest::Search;
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena deps vm.qcow2
  tar -cf vm.tar $(catena deps vm.qcow2)

The images themselves come first, then what they name, and so on: backing
images and data files, each once.

The exit status is 1 where one of them cannot be reached; what is printed is
then not all.")]
pub struct Args {
    /// The images
    #[arg(required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    forest: ForestArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Serialize)]
struct Needs {
    files: Vec<String>,
    /// What is named and cannot be reached.
    missing: Vec<Missing>,
}

#[derive(Serialize)]
struct Missing {
    image: String,
    text: String,
    why: String,
}

/// Prints them.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut forest = args.forest.grow(&Search::below(&args.images), false)?;
    if let Some(error) = forest.errors.pop() {
        return Err(error.into());
    }
    let needs = needs(&forest, &args.images)?;
    let mut out = output::stdout();
    match args.output {
        Output::Human => {
            for file in &needs.files {
                writeln!(out, "{}", printable(file))?;
            }
        }
        Output::Json => output::json(&needs, &mut out)?,
    }
    out.flush()?;
    for missing in &needs.missing {
        let line = format!(
            "{}: '{}' cannot be reached: {}",
            missing.image, missing.text, missing.why
        );
        let _ = writeln!(anstream::stderr(), "catena: {}", printable(&line));
    }
    Ok(if needs.missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn needs(forest: &Forest, images: &[PathBuf]) -> Result<Needs, CommandError> {
    let mut seen = BTreeSet::new();
    let mut numbers = Vec::new();
    for image in images {
        let Some(number) = forest.find(image)? else {
            continue;
        };
        let needed = std::iter::once(number).chain(forest.needs(number));
        numbers.extend(needed.filter(|number| seen.insert(*number)));
    }
    let mut files = Vec::new();
    let mut missing = Vec::new();
    for number in numbers {
        let Some(image) = forest.images().get(number) else {
            continue;
        };
        let name = named(forest, &[number]).concat();
        missing.extend(image.broken().map(|(edge, error)| Missing {
            image: name.clone(),
            text: edge.text.clone(),
            why: error.to_string(),
        }));
        files.push(name);
    }
    Ok(Needs { files, missing })
}
