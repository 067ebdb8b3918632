//! `catena import`: the layers of bundles as files again.

use super::operation::{Manner, Operation};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::{PolicyArgs, parse_format};
use crate::text;
use catena::ops::Observer;
use catena::ops::bundle::import::{self, Bundle, Imported, Request};
use catena::ops::bundle::{BundledLayer, Manifest};
use catena::{Error, ErrorKind, Format, Policy, Start};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All of a bundle is read and every digest checked before any file has its
name. No file is replaced, and nothing comes to any other folder. What fails
or is stopped leaves nothing.

Examples:
  catena import full.tar -o restored
  catena import full.tar monday.tar tuesday.tar -o restored --at monday.qcow2
  catena import tuesday.tar -o restored --onto monday.qcow2
  catena import --verify full.tar monday.tar")]
pub struct Args {
    /// A bundle with all that it needs, and then those that each stand on the one before; - for
    /// standard input
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
    /// The folder that the images come to; made where it is not there
    #[arg(short = 'o', long, value_name = "DIR", required_unless_present = "verify")]
    folder: Option<PathBuf>,
    /// The uppermost layer to restore, by its name in the bundle; all where it is not given
    #[arg(long, value_name = "LAYER", conflicts_with = "verify")]
    at: Option<String>,
    /// The image to put the layers on, where the bundle holds only what is above one. It must show
    /// what that showed
    #[arg(long, value_name = "IMAGE", conflicts_with = "verify")]
    onto: Option<PathBuf>,
    /// That image's format; probed where it is not given
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "onto")]
    onto_format: Option<Format>,
    /// Check the bundles, and write nothing
    #[arg(long, conflicts_with_all = ["folder", "onto_format"])]
    verify: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// How to print what was done
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Imports, or only checks.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let bundles = open(&args.bundles)?;
    let progress = match args.quiet {
        true => Progress::quiet(),
        false => Progress::start("checking"),
    };
    let Some(folder) = args.folder.as_ref().filter(|_| !args.verify) else {
        let manifests = import::verify(bundles, &progress)?;
        drop(progress);
        tell_checked(args, &manifests)?;
        return Ok(ExitCode::SUCCESS);
    };
    drop(progress);
    let request = Request {
        folder: folder.clone(),
        at: args.at.clone(),
        onto: args.onto.as_ref().map(|onto| Start::at(onto, args.onto_format)),
    };
    let policy = args.policy.load()?;
    let manner = Manner {
        verb: "importing",
        policy: &policy,
        dry_run: false,
        quiet: args.quiet,
        output: args.output,
    };
    let names: Vec<_> = bundles.iter().map(|bundle| bundle.name.clone()).collect();
    let begun = import::unfinished(&request, &names)?;
    manner.perform(begun, || {
        Ok(Importing {
            request,
            bundles,
            imported: None,
        })
    })
}

/// An import, and what came of it.
struct Importing {
    request: Request,
    bundles: Vec<Bundle<'static>>,
    imported: Option<Imported>,
}

impl Operation for Importing {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        let bundles = std::mem::take(&mut self.bundles);
        self.imported = Some(import::import(&self.request, bundles, policy, observer)?);
        Ok(())
    }

    fn tell(&self, _done: bool, out: &mut dyn Write) -> io::Result<()> {
        let Some(imported) = &self.imported else {
            return Ok(());
        };
        let on = imported.onto.as_ref().map(|onto| format!(", on '{onto}'"));
        let what = format!(
            "{}: {}{}",
            self.request.folder.display(),
            line(&imported.layers),
            on.unwrap_or_default()
        );
        writeln!(out, "{}", text::printable(&what))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let Some(imported) = &self.imported else {
            return Ok(());
        };
        let folder = &self.request.folder;
        let top = imported.layers.last().map(|layer| folder.join(&layer.name));
        let report = ImportReport {
            folder: folder.display().to_string(),
            layers: &imported.layers,
            top: top.map(|top| top.display().to_string()),
            onto: imported.onto.as_deref(),
            view: imported.view.as_deref(),
        };
        output::json(&report, &mut out)
    }
}

fn open(paths: &[PathBuf]) -> Result<Vec<Bundle<'static>>, Error> {
    let is_input = |path: &&PathBuf| path.as_path() == Path::new("-");
    if paths.iter().filter(is_input).count() > 1 {
        return Err(Error::new(
            ErrorKind::Conflict,
            "standard input can be only one bundle",
        ));
    }
    paths
        .iter()
        .map(|path| {
            if is_input(&path) {
                return Ok(Bundle {
                    name: "standard input".to_owned(),
                    input: Box::new(io::stdin()),
                });
            }
            let file = File::open(path)
                .map_err(|error| catena_storage::Error::from_io(error, "open").with_path(path))?;
            Ok(Bundle {
                name: path.display().to_string(),
                input: Box::new(file),
            })
        })
        .collect()
}

#[derive(Debug, Serialize)]
struct ImportReport<'a> {
    folder: String,
    layers: &'a [BundledLayer],
    top: Option<String>,
    onto: Option<&'a str>,
    view: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct CheckReport<'a> {
    bundle: String,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

fn tell_checked(args: &Args, manifests: &[Manifest]) -> Result<(), CommandError> {
    if args.quiet {
        return Ok(());
    }
    let mut out = output::stdout();
    let checked = args.bundles.iter().zip(manifests);
    match args.output {
        Output::Human => {
            for (bundle, manifest) in checked {
                let since = manifest
                    .since
                    .as_ref()
                    .map(|since| format!(", on '{}'", since.name));
                let what = format!(
                    "{}: {}{}",
                    bundle.display(),
                    line(&manifest.layers),
                    since.unwrap_or_default()
                );
                writeln!(out, "{}; every digest is right", text::printable(&what))?;
            }
        }
        Output::Json => {
            let all: Vec<_> = checked
                .map(|(bundle, manifest)| CheckReport {
                    bundle: bundle.display().to_string(),
                    manifest,
                })
                .collect();
            output::json(&all, &mut out)?;
        }
    }
    Ok(out.flush()?)
}

/// The layers as they stand on each other.
fn line(layers: &[BundledLayer]) -> String {
    let names: Vec<_> = layers.iter().map(|layer| layer.name.as_str()).collect();
    names.join(" <- ")
}
