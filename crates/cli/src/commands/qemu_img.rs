//! `catena qemu-img`: be `qemu-img`, by that name.
//!
//! The words behind it are that command's, and reach it as they are: here is only what help, manual pages and completions say.

use crate::qemu_img;
use std::ffi::OsString;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Takes qemu-img's command lines, and answers with its output and exit status,
for raw and qcow2. A link to catena with the name qemu-img does the same:
  ln -s \"$(command -v catena)\" qemu-img

Examples:
  catena qemu-img --help
  catena qemu-img info vm.qcow2
  catena qemu-img convert -O raw vm.qcow2 vm.raw"
)]
pub struct Args {
    /// A subcommand of qemu-img with its options
    #[arg(value_name = "WORDS", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Is qemu-img.
pub fn run(args: &Args) -> ExitCode {
    let name = OsString::from("qemu-img");
    qemu_img::main(std::iter::once(name).chain(args.words.iter().cloned()))
}
