//! The progress that `-p` prints: `    (12.34/100%)` on a line that is written again and again.

use super::asked::Asked;
use catena::ops::Observer;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Steps of this many hundredths of a percent are told.
const STEP: u64 = 200;

/// What is told of an operation.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    asked: Asked,
    last: AtomicU64,
    begun: AtomicBool,
}

impl Progress {
    /// Shown or not.
    pub fn new(shown: bool) -> Self {
        let this = Self {
            shown,
            asked: Asked::listen(),
            last: AtomicU64::new(0),
            begun: AtomicBool::new(false),
        };
        this.tell(0);
        this
    }

    fn tell(&self, hundredths: u64) {
        if self.shown {
            self.begun.store(true, Ordering::Relaxed);
            let mut out = std::io::stdout().lock();
            // A reader that is gone has seen enough.
            let _ = write!(out, "    ({}.{:02}/100%)\r", hundredths / 100, hundredths % 100)
                .and_then(|()| out.flush());
        }
    }

    /// Tells that all is done.
    pub fn finish_quietly(&self) {
        self.tell(10_000);
    }

    /// Ends the line.
    pub fn end_line(&self) {
        if self.shown {
            super::program::print("\n");
        }
    }
}

impl Observer for Progress {
    fn progress(&self, done: u64, total: u64) {
        if !self.shown || total == 0 {
            self.asked.answer(done as f64 * 100.0 / total.max(1) as f64);
            return;
        }
        let now = u64::try_from(u128::from(done) * 10_000 / u128::from(total)).unwrap_or(10_000);
        let last = self.last.load(Ordering::Relaxed);
        if now >= last.saturating_add(STEP) && now < 10_000 {
            self.last.store(now, Ordering::Relaxed);
            self.tell(now);
        }
    }
}
