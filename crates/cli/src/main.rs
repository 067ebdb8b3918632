//! The `catena` command. [`cli`] says what may be written on the command line, [`commands`] has one verb a file.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod error;
mod limits;
mod output;
mod progress;
mod target;
mod text;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli.color.write_global();
    limits::raise();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}
