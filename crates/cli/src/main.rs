//! The `catena` command. [`cli`] says what may be written on the command line, [`commands`] has one verb a file.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod domain;
mod error;
mod limits;
mod output;
mod progress;
mod qemu_img;
mod target;
mod text;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words: Vec<_> = std::env::args_os().collect();
    if qemu_img::is_called(words.first()) {
        limits::raise();
        return qemu_img::main(words);
    }
    // Before anything else reads them: words such as --help and --color behind it are qemu-img's, too.
    if words.get(1).is_some_and(|word| word == "qemu-img") {
        limits::raise();
        return qemu_img::main(words.split_off(1));
    }
    let cli = cli::Cli::parse();
    cli.color.write_global();
    limits::raise();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}
