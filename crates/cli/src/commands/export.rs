//! `catena export`: layers of a chain as one file that has all they need.

use super::change::parse_layer;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::{TargetArgs, warn_probed};
use crate::text;
use catena::ops::LayerChoice;
use catena::ops::bundle::export::{self, Exported, Request};
use catena::ops::bundle::{BundledFile, BundledLayer, Since};
use catena::{Error, ErrorKind, detect};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A bundle is a tar archive: 'tar xf' makes a chain of it that opens. 'catena
import' checks it, too. It holds the whole chain, or with --since what is
above a layer and a digest of what that layer shows; the same images make the
same bundle, byte for byte.

Examples:
  catena export vm.qcow2 -o full.tar
  catena export tuesday.qcow2 --since monday.qcow2 -o tuesday.tar --compress
  catena export vm.qcow2 -o - | ssh host catena import - -o restored")]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// The new bundle; - for standard output
    #[arg(short = 'o', long, value_name = "FILE")]
    bundle: PathBuf,
    /// Only the layers above this one: a file, or its number, 0 being the active layer
    #[arg(long, value_name = "LAYER", value_parser = parse_layer)]
    since: Option<LayerChoice>,
    /// Compress it with zstd
    #[arg(long)]
    compress: bool,
    /// Say what would be in it, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// How to print what was done
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bundle: String,
    layers: &'a [BundledLayer],
    files: &'a [BundledFile],
    since: Option<&'a Since>,
    view: Option<&'a str>,
    bytes: Option<u64>,
    digest: Option<&'a str>,
}

/// Exports.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.target.policy()?;
    if !args.quiet {
        warn_probed(&detect(&args.target.start(), &policy));
    }
    let to_output = args.bundle == Path::new("-");
    if to_output && !args.dry_run && output::is_terminal() {
        return Err(
            Error::new(ErrorKind::Conflict, "a bundle is not written to a terminal")
                .with_hint("name a file, or send it to another program")
                .into(),
        );
    }
    let request = Request {
        start: args.target.start(),
        since: args.since.clone(),
        sharing: args.target.sharing(),
        compress: args.compress,
    };
    let watched = match args.quiet {
        true => Progress::quiet(),
        false => Progress::start("hashing"),
    };
    let plan = export::plan(&request, &policy, &watched)?;
    watched.say("exporting");
    let exported = match (args.dry_run, to_output) {
        (true, _) => None,
        (false, true) => Some(plan.write(&mut io::stdout().lock(), &watched)?),
        (false, false) => Some(plan.save(&args.bundle, &watched)?),
    };
    drop(watched);
    if args.quiet || (to_output && !args.dry_run) {
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = output::stdout();
    match args.output {
        Output::Human => {
            let bundle = args.bundle.display().to_string();
            let what = format!("{bundle}: {plan}");
            writeln!(out, "{}{}", text::printable(&what), told(exported.as_ref()))?;
        }
        Output::Json => {
            let manifest = plan.manifest();
            let report = Report {
                bundle: args.bundle.display().to_string(),
                layers: &manifest.layers,
                files: &manifest.files,
                since: manifest.since.as_ref(),
                view: manifest.view.as_deref(),
                bytes: exported.as_ref().map(|exported| exported.bytes),
                digest: exported.as_ref().map(|exported| exported.digest.as_str()),
            };
            output::json(&report, &mut out)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn told(exported: Option<&Exported>) -> String {
    match exported {
        None => String::new(),
        Some(exported) => format!("; {}, blake3:{}", text::size(exported.bytes), exported.digest),
    }
}
