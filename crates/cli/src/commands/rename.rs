//! `catena rename`: an image, link or folder gets another name in its folder, and everything that names it names the new one.

use super::moves::MovesArgs;
use crate::error::CommandError;
use catena::ops::relocate::{Destination, Request};
use catena::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena rename base.qcow2 debian-13.qcow2
  catena rename /srv/vms/base.qcow2 debian-13.qcow2 --in /srv/guests

The new name is one in the same folder. Overlays that name the image are found
and rewritten as 'catena move' does it, and in as safe an order.")]
pub struct Args {
    /// What is renamed
    old: PathBuf,
    /// Its new name: without a folder, or in the same one
    new: PathBuf,
    #[command(flatten)]
    moves: MovesArgs,
}

/// Renames.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let folder = args.old.parent().unwrap_or(Path::new(""));
    let elsewhere = args
        .new
        .parent()
        .filter(|named| !named.as_os_str().is_empty() && *named != folder);
    let (Some(name), None) = (args.new.file_name(), elsewhere) else {
        return Err(
            Error::new(ErrorKind::Conflict, "the new name is not one in the same folder")
                .with_path(&args.new)
                .with_hint("'catena move' moves to other folders")
                .into(),
        );
    };
    args.moves.perform(&Request {
        sources: vec![args.old.clone()],
        destination: Destination::Name(folder.join(name)),
        chain: false,
        around: super::forest::around(&args.moves.folders),
    })
}
