//! `catena why`: may an image be deleted, moved or written, and who would suffer?

use super::forest::{self, RelationArgs, named};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::text::{count, printable, size};
use anstyle::{AnsiColor, Style};
use catena::Forest;
use catena::forest::{Image, Sizes};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

const YES: Style = AnsiColor::Green.on_default().bold();
const NO: Style = AnsiColor::Red.on_default().bold();
const QUIET: Style = Style::new().dimmed();
/// Images that a sentence names.
const NAMED: usize = 8;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena why base.qcow2
  catena why --in /srv/vms --may delete base.qcow2 && rm base.qcow2

Who stands on the image is looked for by headers, in its folder and those
given, with everything below, in the folders beside, in the current folder,
and where 'catena tree' saw it. An overlay elsewhere is not found.

With --may, the exit status says whether it may be done: 0 or 1.")]
pub struct Args {
    #[command(flatten)]
    relation: RelationArgs,
    /// Answer with the exit status whether this may be done
    #[arg(long, value_enum, value_name = "WHAT")]
    may: Option<What>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Delete,
    Move,
    Write,
}

#[derive(Debug, Serialize)]
struct Verdicts {
    image: String,
    /// All that need it, directly or not.
    dependents: Vec<String>,
    users: Vec<String>,
    delete: Verdict,
    #[serde(rename = "move")]
    relocate: Verdict,
    write: Verdict,
}

/// Whether something may be done, and what speaks against it or should be known.
#[derive(Debug, Serialize)]
struct Verdict {
    may: bool,
    because: Vec<String>,
}

/// Says it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let (forest, number) = args.relation.grow()?;
    forest::warn(&forest.errors);
    let verdicts = Verdicts::of(&forest, number)?;
    let mut out = output::stdout();
    match args.output {
        Output::Human => verdicts.print(&mut out)?,
        Output::Json => output::json(&verdicts, &mut out)?,
    }
    out.flush()?;
    let asked = args.may.map(|what| match what {
        What::Delete => &verdicts.delete,
        What::Move => &verdicts.relocate,
        What::Write => &verdicts.write,
    });
    Ok(match asked {
        Some(verdict) if !verdict.may => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

impl Verdicts {
    fn of(forest: &Forest, number: usize) -> Result<Self, CommandError> {
        let images = forest.images();
        let Some(image) = images.get(number) else {
            return Err(catena::Error::new(catena::ErrorKind::NotFound, "the image has gone").into());
        };
        let all = forest.dependents(number);
        let direct: Vec<_> = image.overlays.iter().chain(&image.data_of).copied().collect();
        let users = catena_storage::holders(image.path()).unwrap_or_default();
        let users: Vec<_> = users.iter().map(ToString::to_string).collect();
        let used = users
            .iter()
            .map(|user| format!("{user} has it open"))
            .collect::<Vec<_>>();
        let needed = |sentence: &str| {
            (!all.is_empty()).then(|| {
                let further = all.len() - direct.len();
                let further = if further > 0 {
                    format!(", and {further} more on those")
                } else {
                    String::new()
                };
                format!(
                    "{} on it: {}{further}; {sentence}",
                    stand(direct.len()),
                    list(forest, &direct)
                )
            })
        };
        let sizes = Sizes::of(forest).get(number).copied().unwrap_or_default();
        let mut delete: Vec<_> = needed("they would lose what it holds")
            .into_iter()
            .chain(used.clone())
            .collect();
        let may_delete = delete.is_empty();
        if may_delete {
            delete.push(format!("{} would be free", size(sizes.own)));
            if sizes.exclusive > sizes.own {
                let below = size(sizes.exclusive - sizes.own);
                delete.push(format!("then nothing needs {below} below it any more"));
            }
        }
        let mut relocate: Vec<_> = needed("they would not find it until they are relinked")
            .into_iter()
            .collect();
        relocate.extend(used.clone());
        let may_move = relocate.is_empty();
        relocate.extend(own_names(image));
        let write: Vec<_> = needed("they would show their guests something else")
            .into_iter()
            .chain(used)
            .collect();
        Ok(Self {
            image: image.path().display().to_string(),
            dependents: named(forest, &all),
            users,
            delete: Verdict {
                may: may_delete,
                because: delete,
            },
            relocate: Verdict {
                may: may_move,
                because: relocate,
            },
            write: Verdict {
                may: write.is_empty(),
                because: write,
            },
        })
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "{}", printable(&self.image))?;
        for (what, verdict) in [
            ("delete", &self.delete),
            ("move", &self.relocate),
            ("write", &self.write),
        ] {
            let (style, word) = if verdict.may { (YES, "yes") } else { (NO, "no") };
            writeln!(out, "  may I {what} it? {style}{word}{style:#}")?;
            for reason in &verdict.because {
                writeln!(out, "    {}", printable(reason))?;
            }
        }
        writeln!(
            out,
            "{QUIET}as far as the folders that were searched tell{QUIET:#}"
        )
    }
}

/// Names that the image itself records and that mean something else from another folder.
fn own_names(image: &Image) -> Vec<String> {
    [("backing image", &image.backing), ("data file", &image.data_file)]
        .into_iter()
        .filter_map(|(what, edge)| {
            let edge = edge.as_ref()?;
            let relative = edge.image().is_some() && !edge.text.starts_with('/') && !edge.text.contains(':');
            relative.then(|| {
                format!(
                    "it names its {what} relative to its own folder: '{}'; elsewhere, that must be rewritten",
                    edge.text
                )
            })
        })
        .collect()
}

fn stand(number: usize) -> String {
    let verb = if number == 1 { "stands" } else { "stand" };
    format!("{} {verb}", count(number as u64, "image"))
}

fn list(forest: &Forest, numbers: &[usize]) -> String {
    let names = named(forest, numbers);
    let mut shown: Vec<_> = names.iter().take(NAMED).map(|name| format!("'{name}'")).collect();
    if names.len() > NAMED {
        shown.push(format!("{} more", names.len() - NAMED));
    }
    shown.join(", ")
}
