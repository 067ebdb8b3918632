//! `catena tree`: all images below some folders, drawn from the bases up.

mod dot;
mod drawing;
mod model;
mod rows;
mod svg;

use crate::commands::forest::ForestArgs;
use crate::domain;
use crate::error::CommandError;
use crate::output::{self, Drawing};
use catena::forest::Search;
use model::Shown;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena tree /var/lib/libvirt/images
  catena tree --output svg /srv/vms > forest.svg
  catena tree --output json /srv | jq '.images[] | select(.needed | not).path'
  catena tree --pool default --pool backups
  find /srv -name '*.qcow2' | catena tree --list -

Each base stands above its overlays. Only headers are read, and samples of
bases that were written since an overlay's stamp of them was taken; nothing
stays locked. Images are known by identity: one with several names, or behind
a link, is drawn once. What lies elsewhere is drawn where an image names it.

'on disk' is the room an image takes; 'alone' is what would be free if it were
deleted with everything below it that nothing else needs; 'age' is how long
ago it was written last.

What headers said is kept in an index in the cache folder, so that it is not
read again while the files do not change.

The exit status is 1 where an image names something that cannot be reached, or
stands on something that is not what it was by its stamp.")]
pub struct Args {
    /// Folders, searched with everything below them, and single images
    #[arg(required_unless_present_any = ["list", "pool"])]
    places: Vec<PathBuf>,
    /// Read more places from a file, one a line; '-' is standard input
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Search the folder of a storage pool that libvirt knows; may be given several times
    #[arg(long, value_name = "POOL")]
    pool: Vec<String>,
    /// The libvirt that is asked for pools
    #[arg(long, value_name = "URI", requires = "pool")]
    connect: Option<String>,
    #[command(flatten)]
    forest: ForestArgs,
    /// Show files, too, that look raw and that no image names
    #[arg(long)]
    all: bool,
    /// Read all headers anew, and keep no index
    #[arg(long)]
    no_index: bool,
    /// How to show it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Drawing,
    /// Draw with ASCII characters alone
    #[arg(long)]
    ascii: bool,
}

/// Shows the forest.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut places = args.places.clone();
    if let Some(list) = &args.list {
        places.extend(crate::commands::forest::listed(list)?);
    }
    for pool in &args.pool {
        places.push(domain::pool(args.connect.as_deref(), pool)?);
    }
    let forest = args.forest.grow(&Search::below(&places), !args.no_index)?;
    let stamped = forest.stamped(&args.forest.policy()?);
    let shown = Shown::of(&forest, &stamped, args.all);
    let mut out = output::stdout();
    match args.output {
        Drawing::Human => drawing::draw(&shown, !args.ascii && output::is_unicode(), &mut out)?,
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
