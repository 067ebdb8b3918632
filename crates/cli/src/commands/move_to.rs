//! `catena move`: images, links and folders get new places, and everything that names them names the new ones.

use super::moves::MovesArgs;
use crate::error::CommandError;
use catena::ops::relocate::{Destination, Request};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena move base.qcow2 /srv/images/
  catena move --chain vm.qcow2 /mnt/other/ --domain vm.xml
  catena move guests /mnt/other/ --in /srv --dry-run

What is named moves, as with mv; with --chain also what lies below it.
Overlays that name it are found by their headers, in its folder, in that
where it goes, in those given with --in, and in everything below them, and
are led to the new place: what they recorded relative to themselves stays
relative. Links move as links, and lead to the same files. Nothing is moved
over what is there, and nothing that somebody uses.

Until the old names go, at the end, everything works from both places. What
was stopped or killed on the way is finished by the same command or
'catena resume', which also takes it back.")]
pub struct Args {
    /// Files, links and folders
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// The folder that they go to, or the new name of a single one
    destination: PathBuf,
    /// Take the images below along, and their data files
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    moves: MovesArgs,
}

/// Moves.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    args.moves.perform(&Request {
        sources: args.sources.clone(),
        destination: Destination::Place(args.destination.clone()),
        chain: args.chain,
        around: super::forest::around(&args.moves.folders),
    })
}
