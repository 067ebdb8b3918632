//! `catena man`: the manual pages, one a verb, made from the command line's own help. For packagers, so it is hidden.

use crate::cli::Cli;
use crate::error::CommandError;
use catena::{Error, ErrorKind};
use clap::CommandFactory;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to write catena.1, catena-show.1 and so on into; it must exist
    dir: PathBuf,
}

/// Writes the pages.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot write the manual pages")
            .with_path(&args.dir)
            .with_source(error)
    })?;
    Ok(ExitCode::SUCCESS)
}
