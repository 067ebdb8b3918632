//! The verbs. Each file has an `Args` that clap fills in and a `run` that does it and says how it went.

pub mod reference;

use std::process::ExitCode;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say what a recorded backing reference means
    Reference(reference::Args),
}

impl Command {
    /// Does it.
    pub fn run(&self) -> ExitCode {
        match self {
            Self::Reference(args) => reference::run(args),
        }
    }
}
