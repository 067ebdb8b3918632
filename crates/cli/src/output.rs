//! Standard output: what is written there, and what it is.

use clap::ValueEnum;
use serde::Serialize;
use std::io::{self, BufWriter, IsTerminal, Write};

/// Columns of an output that is no terminal.
const DEFAULT_WIDTH: usize = 100;
/// Narrower terminals are written as if they had this many columns.
const MIN_WIDTH: usize = 40;

/// `--output`: for whom it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text to read
    #[default]
    Human,
    /// JSON, as docs/json.md describes it
    Json,
}

/// `--output` of what can be drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Drawing {
    /// Drawn in the terminal
    #[default]
    Human,
    /// All facts, as docs/json.md describes them
    Json,
    /// For Graphviz
    Dot,
    /// A picture, complete in itself
    Svg,
}

/// Standard output: buffered, and without colours where they are not wanted.
pub fn stdout() -> BufWriter<anstream::AutoStream<Box<dyn Write>>> {
    let colours = anstream::AutoStream::choice(&io::stdout());
    // Who takes the colours out passes on what lies between them piece by piece.
    let gathered: Box<dyn Write> = Box::new(BufWriter::new(io::stdout().lock()));
    BufWriter::new(anstream::AutoStream::new(gathered, colours))
}

/// Writes a value as JSON, indented, with a newline behind it.
pub fn json(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns of the terminal on standard output; `COLUMNS` decides where there is none.
pub fn width() -> usize {
    let terminal = rustix::termios::tcgetwinsize(io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0);
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal.or_else(said).unwrap_or(DEFAULT_WIDTH).max(MIN_WIDTH)
}

/// Whether the locale's characters are those of Unicode.
pub fn is_unicode() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty())
        .is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("utf-8") || value.contains("utf8")
        })
}
