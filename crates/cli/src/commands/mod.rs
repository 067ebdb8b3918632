//! The verbs. Each file has an `Args` that clap fills in and a `run` that does it and gives the exit status.

pub mod completions;
pub mod man;
pub mod map;
pub mod reference;

use crate::error::CommandError;
use std::process::ExitCode;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Tell which layer holds what of the guest's disk, and where
    Map(map::Args),
    /// Say what a recorded backing reference means
    Reference(reference::Args),
    /// Print a shell's completions
    #[command(hide = true)]
    Completions(completions::Args),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Args),
}

impl Command {
    /// Does it.
    pub fn run(&self) -> Result<ExitCode, CommandError> {
        match self {
            Self::Map(args) => map::run(args),
            Self::Reference(args) => Ok(reference::run(args)),
            Self::Completions(args) => completions::run(args),
            Self::Man(args) => man::run(args),
        }
    }
}
