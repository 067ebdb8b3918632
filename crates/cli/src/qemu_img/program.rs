//! What all subcommands share: the name of the program, why one fails, and options that several have.

use super::getopt::{Key, Options, Parser};
use std::fmt::Display;
use std::io::Write;

/// The version of qemu-img whose behaviour this is.
pub const VERSION: &str = "10.0.2";

/// The program as it was called.
#[derive(Debug)]
pub struct Program {
    /// The first word of the command line: with its folder, if it was given with one.
    pub called: String,
    /// The subcommand, empty before it is known.
    pub command: &'static str,
}

/// Why a subcommand ends without success.
#[derive(Debug)]
pub enum Failure {
    /// Something is wrong, and this is the exit status.
    Error(String, u8),
    /// The command line is wrong; a second line says where help is.
    Usage(String),
    /// The command line is wrong as `getopt_long` says it.
    Getopt(String),
    /// Everything is said already.
    Silent(u8),
}

/// The result of anything here.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// An error with exit status 1.
pub fn error(text: impl Display) -> Failure {
    Failure::Error(text.to_string(), 1)
}

/// An error of the command line.
pub fn usage(text: impl Display) -> Failure {
    Failure::Usage(text.to_string())
}

impl Program {
    /// The name in messages: what is behind the last slash.
    pub fn name(&self) -> &str {
        self.called.rsplit('/').next().unwrap_or(&self.called)
    }

    /// The words with which help is asked for.
    pub fn words(&self) -> String {
        match self.command {
            "" => self.called.clone(),
            command => format!("{} {command}", self.called),
        }
    }

    /// Prints an error or a warning. When standard error is gone there is nobody to tell.
    pub fn say(&self, text: impl Display) {
        let _ = writeln!(std::io::stderr(), "{}: {text}", self.name());
    }

    /// Says why it failed, and gives the exit status.
    pub fn report(&self, failure: &Failure) -> u8 {
        let help = || {
            let _ = writeln!(std::io::stderr(), "Try '{} --help' for more info", self.words());
            1
        };
        match failure {
            Failure::Silent(status) => *status,
            Failure::Error(text, status) => {
                self.say(text);
                *status
            }
            Failure::Usage(text) => {
                self.say(text);
                help()
            }
            Failure::Getopt(text) => {
                let _ = writeln!(std::io::stderr(), "{}: {text}", self.words());
                help()
            }
        }
    }
}

/// Takes a subcommand's options apart: `each` gets them in turn, and the other words come back. `None` when help was asked for.
pub fn options(
    options: Options,
    words: Vec<String>,
    mut each: impl FnMut(Key, String) -> Result<()>,
) -> Result<Option<Vec<String>>> {
    let mut parser = Parser::new(options, words);
    while let Some((key, value)) = parser.next().map_err(Failure::Getopt)? {
        if key == Key::Letter('h') {
            return Ok(None);
        }
        each(key, value)?;
    }
    Ok(Some(parser.others()))
}

/// `--output`: whether it is JSON.
pub fn output_is_json(value: &str) -> Result<bool> {
    match value {
        "json" => Ok(true),
        "human" => Ok(false),
        other => Err(usage(format!("--output expects 'human' or 'json' not '{other}'"))),
    }
}

/// What goes to standard output, written at once. A reader that is gone has seen enough.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
