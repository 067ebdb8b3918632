//! The one place where an error becomes text and an exit status.
//!
//! The first line is `catena: ` and what is wrong, with where; then the errors underneath, one a line; then what to do
//! next as `hint: `. All of it goes to standard error.

use crate::text;
use anstyle::{AnsiColor, Style};
use std::io::{self, Write};
use std::process::ExitCode;

const RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

/// The status of a shell for a process that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Why a verb ends.
#[derive(Debug)]
pub enum CommandError {
    /// It could not be done.
    Failed(Box<catena::Error>),
    /// Standard output cannot be written.
    Output(io::Error),
}

impl CommandError {
    /// Says what is wrong on standard error, and gives the exit status. When that is gone too, there is nobody to tell.
    pub fn report(&self) -> ExitCode {
        self.report_as(1)
    }

    /// The same, where it could not be done, with a status of the verb's own.
    pub fn report_as(&self, failed: u8) -> ExitCode {
        let mut stderr = anstream::stderr().lock();
        let (code, _) = match self {
            Self::Failed(error) if error.kind() == catena::ErrorKind::Cancelled => {
                (INTERRUPTED, write_stopped(&mut stderr, error))
            }
            Self::Failed(error) => (failed, write_error(&mut stderr, error)),
            // Whoever reads has seen enough: `catena … | head` is no failure.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => (0, Ok(())),
            Self::Output(error) => (
                1,
                writeln!(stderr, "{RED}catena:{RED:#} cannot write the output: {error}"),
            ),
        };
        ExitCode::from(code)
    }
}

/// Says that it was stopped, and what that means.
fn write_stopped(out: &mut impl Write, error: &catena::Error) -> io::Result<()> {
    match error.hint() {
        Some(hint) => writeln!(out, "catena: stopped; {hint}"),
        None => writeln!(out, "catena: stopped"),
    }
}

/// Writes an error in full: what and where, what is underneath, what to do next.
pub fn write_error(out: &mut impl Write, error: &catena::Error) -> io::Result<()> {
    writeln!(out, "{RED}catena:{RED:#} {}", text::printable(&error.to_string()))?;
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        writeln!(out, "  because: {}", text::printable(&cause.to_string()))?;
        source = cause.source();
    }
    match error.hint() {
        Some(hint) => writeln!(out, "{CYAN}hint:{CYAN:#} {}", text::printable(hint)),
        None => Ok(()),
    }
}

impl From<catena::Error> for CommandError {
    fn from(error: catena::Error) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl From<catena_format::Error> for CommandError {
    fn from(error: catena_format::Error) -> Self {
        catena::Error::from(error).into()
    }
}

impl From<catena_storage::Error> for CommandError {
    fn from(error: catena_storage::Error) -> Self {
        catena::Error::from(error).into()
    }
}

/// Writing is the only thing here whose errors are the system's alone.
impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<serde_json::Error> for CommandError {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}
