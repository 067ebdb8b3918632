//! `catena show`: the chain, drawn.

pub mod domain;
mod dot;
mod model;
mod svg;
mod tree;

use crate::domain::Version;
use crate::error::CommandError;
use crate::output::{self, Drawing};
use crate::target::{PolicyArgs, parse_format};
use catena::{Format, Start, detect};
use model::Shown;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tree::Look;

/// A chain of more layers than this is drawn without its middle.
const MOST_LAYERS: usize = 40;
/// Layers that remain above and below the middle then.
const ENDS: usize = 8;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena show vm.qcow2
  catena show --output svg vm.qcow2 > chain.svg
  catena show --output json vm.qcow2 | jq '.layers[].contributes.data'
  catena show --domain vm.xml --disk vda
  catena show --domain vm --connect qemu:///system

Beside each layer stands how much of the data that the guest sees is in it.
Only metadata is read, and nothing is locked: the chain of a running guest can
be shown. Where the layers' mapping tables are larger than 256 MiB, which
takes a deep chain or disks of terabytes, that is counted with --count alone.

With --domain, XML and headers are combined as libvirt combines them: layers
that the XML gives are believed, the rest is looked for below the last one,
and an empty <backingStore/> ends the chain. Where the XML and the headers
disagree, that is an error or warning under the layer. A <volume> of a storage
pool is shown like a disk.

Under a layer stands what is wrong with it; 'catena doctor' looks closer.

A chain that breaks is shown as far as it goes. The exit status is 1 where it
breaks or anything else is marked as an error.")]
pub struct Args {
    /// The active image of the chain: a file or block device
    #[arg(required_unless_present = "domain")]
    target: Option<PathBuf>,
    /// The active image's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format, conflicts_with = "domain")]
    format: Option<Format>,
    /// Show the chains of a domain's disks: a file of XML ('-' is standard input), or a domain that libvirt knows
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "target")]
    domain: Option<String>,
    /// Show this disk of the domain alone, by its target
    #[arg(long, conflicts_with = "target")]
    disk: Option<String>,
    /// The libvirt that knows the domain
    #[arg(long, value_name = "URI", conflicts_with = "target")]
    connect: Option<String>,
    /// Whose ways: those of libvirt 11.3 or 9.0, which knows no data files
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "VERSION",
        conflicts_with = "target"
    )]
    libvirt: Version,
    #[command(flatten)]
    policy: PolicyArgs,
    /// For the sake of other verbs' habit: nothing is locked anyway
    #[arg(short = 'U', long = "force-share", hide = true, conflicts_with = "domain")]
    _force_share: bool,
    /// How to show it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Drawing,
    /// Count what each layer holds, however much must be read for that
    #[arg(long)]
    count: bool,
    /// Draw all layers of a deep chain, also on a terminal
    #[arg(long)]
    all: bool,
    /// Draw with ASCII characters alone
    #[arg(long)]
    ascii: bool,
}

/// Shows the chain.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let target = match (&args.target, &args.domain) {
        (Some(target), _) => target,
        (None, name) => return domain::run(args, name.as_deref().unwrap_or_default()),
    };
    let policy = args.policy.load()?;
    let chain = detect(&Start::at(target, args.format), &policy);
    let shown = Shown::of(&chain, &policy, target, args.count);
    let mut out = output::stdout();
    match args.output {
        Drawing::Human => tree::draw(&shown, look(args, shown.layers.len()), &mut out)?,
        Drawing::Json => output::json(&shown, &mut out)?,
        Drawing::Dot => dot::draw(&shown, &mut out)?,
        Drawing::Svg => svg::draw(&shown, &mut out)?,
    }
    out.flush()?;
    Ok(if shown.is_wrong() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn look(args: &Args, layers: usize) -> Look {
    let collapse = !args.all && layers > MOST_LAYERS && output::is_terminal();
    Look {
        width: output::width(),
        unicode: !args.ascii && output::is_unicode(),
        ends: collapse.then_some(ENDS),
    }
}
