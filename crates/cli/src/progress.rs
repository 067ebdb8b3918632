//! A long operation watched: a bar on a terminal, and Ctrl-C.

use crate::text;
use catena::ops::Observer;
use catena::{Error, GuestOffset};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// The status of a shell for a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Shows a bar on standard error where that is a terminal, and stops the operation at Ctrl-C; a second one ends the
/// process at once.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

/// Whether it is to stop. A process catches Ctrl-C once, whoever watches then.
static STOP: AtomicBool = AtomicBool::new(false);

impl Progress {
    /// Begins to watch. `verb` says what is being done.
    pub fn start(verb: &'static str) -> Self {
        Self::on(ProgressBar::new(0), verb)
    }

    /// Begins to watch and shows nothing.
    pub fn quiet() -> Self {
        Self::on(ProgressBar::hidden(), "")
    }

    /// From here on, something else is being done.
    pub fn say(&self, verb: &'static str) {
        self.bar.set_message(verb);
    }

    fn on(bar: ProgressBar, verb: &'static str) -> Self {
        // Where signals cannot be caught, Ctrl-C ends the process, as it would without us.
        let _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
        });
        // The bar hides by itself where standard error is no terminal.
        let bar = bar.with_message(verb);
        let template = "{msg}  {bar:32.blue}  {percent:>3}%  {binary_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }
}

impl Observer for Progress {
    fn progress(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }

    fn unreadable(&self, at: GuestOffset, why: &Error) {
        let why = text::printable(&why.to_string());
        self.bar.suspend(|| {
            // Nobody is left to be told where standard error is gone.
            let _ = writeln!(
                anstream::stderr(),
                "catena: the sector at guest offset {at} cannot be read, and becomes zeros: {why}"
            );
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
