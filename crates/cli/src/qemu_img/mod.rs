//! `qemu-img`, by that name: its subcommands, options, output and exit statuses, for raw and qcow2.
//!
//! One file a subcommand. They read the command line in the order in which QEMU does, because scripts see which of several
//! faults is told, say what is wrong in its words, and leave the work to the library. `docs/qemu-img.md` lists what differs.

mod amend;
mod asked;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod create_options;
mod dd;
mod directory;
mod errno;
mod getopt;
mod header;
mod help;
mod image_args;
mod info;
mod keyval;
mod map;
mod measure;
mod nodes;
mod number;
mod objects;
mod open;
mod options;
mod percent;
mod preallocated;
mod program;
mod progress;
mod qdict;
mod rebase;
mod resize;
mod settle;
mod size;
mod snapshot;
mod snapshots;
mod subclusters;
mod target;
mod writing;

use getopt::Takes::{Argument, Nothing};
use getopt::{Key, Options, Parser, long};
use program::{Failure, Program, Result, usage};
use std::ffi::OsString;
use std::process::ExitCode;

/// A subcommand.
struct Command {
    name: &'static str,
    run: fn(&Program, Vec<String>) -> Result<u8>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "amend",
        run: amend::run,
    },
    Command {
        name: "bitmap",
        run: bitmap::run,
    },
    Command {
        name: "check",
        run: check::run,
    },
    Command {
        name: "commit",
        run: commit::run,
    },
    Command {
        name: "bench",
        run: bench::run,
    },
    Command {
        name: "convert",
        run: convert::run,
    },
    Command {
        name: "dd",
        run: dd::run,
    },
    Command {
        name: "rebase",
        run: rebase::run,
    },
    Command {
        name: "resize",
        run: resize::run,
    },
    Command {
        name: "compare",
        run: compare::run,
    },
    Command {
        name: "create",
        run: create::run,
    },
    Command {
        name: "measure",
        run: measure::run,
    },
    Command {
        name: "info",
        run: info::run,
    },
    Command {
        name: "map",
        run: map::run,
    },
    Command {
        name: "snapshot",
        run: snapshot::run,
    },
];

const OPTIONS: Options = Options {
    short: "hVT:",
    long: &[
        long("help", 'h', Nothing),
        long("version", 'V', Nothing),
        long("trace", 'T', Argument),
    ],
};

/// Whether a program of this name is qemu-img.
pub fn is_called(name: Option<&OsString>) -> bool {
    let name = name.map(|name| name.to_string_lossy());
    name.is_some_and(|name| name.rsplit('/').next() == Some("qemu-img"))
}

/// Runs a command line, whose first word is the program's name.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut words = words.into_iter().map(|word| word.to_string_lossy().into_owned());
    let mut program = Program {
        called: words.next().unwrap_or_else(|| "qemu-img".to_owned()),
        command: "",
    };
    let status = match run(&mut program, words.collect()) {
        Ok(status) => status,
        Err(failure) => program.report(&failure),
    };
    ExitCode::from(status)
}

fn run(program: &mut Program, words: Vec<String>) -> Result<u8> {
    if words.is_empty() {
        return Err(usage("Not enough arguments"));
    }
    let mut parser = Parser::new(OPTIONS, words).strict();
    while let Some((key, value)) = parser.next().map_err(Failure::Getopt)? {
        match key {
            Key::Letter('h') => {
                program::print(&help::general());
                return Ok(0);
            }
            Key::Letter('V') => {
                program::print(&help::version());
                return Ok(0);
            }
            _ => trace(&value)?,
        }
    }
    let mut others = parser.others();
    if others.is_empty() {
        return Err(usage("Not enough arguments"));
    }
    let name = others.remove(0);
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(usage(format!("Command not found: {name}")));
    };
    program.command = command.name;
    (command.run)(program, others)
}

/// `--trace`: there are no trace events here, so whatever is asked for is never seen.
fn trace(value: &str) -> Result<()> {
    match value {
        "help" | "?" => Err(Failure::Silent(0)),
        _ => Ok(()),
    }
}
