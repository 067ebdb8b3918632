//! `SIGUSR1`: somebody asks how far a subcommand is.

use signal_hook::consts::SIGUSR1;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody asked since it was last told.
#[derive(Debug)]
pub struct Asked(Arc<AtomicBool>);

impl Asked {
    /// Listens from now on. A process that does not listen is ended by the signal.
    pub fn listen() -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        // Where signals cannot be caught there is nobody to answer.
        let _ = signal_hook::flag::register(SIGUSR1, Arc::clone(&asked));
        Self(asked)
    }

    /// Answers on standard error, if it was asked.
    pub fn answer(&self, percent: f64) {
        if self.0.swap(false, Ordering::Relaxed) {
            // When standard error is gone there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "    ({percent:3.2}/100%)");
        }
    }
}
