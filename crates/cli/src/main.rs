//! The `catena` command: one verb a file, in [`commands`].
#![forbid(unsafe_code)]

mod commands;

use clap::Parser;
use std::process::ExitCode;

/// Understand, vet and mend chains of virtual-machine disk images.
#[derive(Debug, Parser)]
#[command(name = "catena", version)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    Cli::parse().command.run()
}
