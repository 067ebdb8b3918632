//! `-p`: how far a subcommand is, in per cent on standard output.
//!
//! QEMU prints at every hundredth, counting the pieces that it moves; so the numbers are those of its pieces, not of ours. Without
//! `-p` a `SIGUSR1` asks for one line on standard error.

use super::asked::Asked;
use catena::ops::Observer;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// What is printed, and when.
pub struct Percent {
    shown: bool,
    asked: Asked,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: f32,
    printed: f32,
    /// How far a walk is that begins anew several times: where the last one began, and its last step.
    walk: (f32, u64),
    /// Pieces that are not passed yet, in their order: up to where, in bytes that are moved, and what is said then.
    steps: std::collections::VecDeque<(u64, f32)>,
}

impl Percent {
    /// Begins at nothing.
    pub fn begin(shown: bool) -> Self {
        let percent = Self::new(shown);
        percent.set(0.0);
        percent
    }

    /// Does not begin yet. There is a line for it in any case.
    pub fn new(shown: bool) -> Self {
        Self {
            shown,
            asked: Asked::listen(),
            state: Mutex::default(),
        }
    }

    /// So far is a walk of so many steps. When it begins anew, half of what was left is behind it: nobody knows how often it will.
    pub fn walked(&self, done: u64, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut from, last) = state.walk;
        if done < last {
            from += (100.0 - from) / 2.0;
        }
        state.walk = (from, done);
        let part = done as f32 / total.max(1) as f32;
        let now = from + (100.0 - from) / 2.0 * part.min(1.0);
        if now > state.now {
            self.advance(&mut state, now);
        }
        let now = state.now;
        drop(state);
        self.answer(now.into());
    }

    fn answer(&self, percent: f64) {
        if !self.shown {
            self.asked.answer(percent);
        }
    }

    /// Whether anybody sees it.
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// So much is done.
    pub fn set(&self, percent: f32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.advance(&mut state, percent);
    }

    /// Says how much is done when so many bytes are moved.
    pub fn expect(&self, steps: impl IntoIterator<Item = (u64, f32)>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.steps = steps.into_iter().collect();
    }

    /// Everything that was expected has happened.
    pub fn complete(&self) {
        self.reached(u64::MAX);
        self.set(100.0);
    }

    fn reached(&self, done: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, percent)) = state.steps.pop_front_if(|(at, _)| *at <= done) {
            self.advance(&mut state, percent);
        }
    }

    fn advance(&self, state: &mut State, percent: f32) {
        state.now = percent.min(100.0);
        let changed = (state.now - state.printed).abs() > 1.0;
        if changed || state.now == 100.0 || state.now == 0.0 {
            state.printed = state.now;
            if self.shown {
                print(format_args!("    ({:3.2}/100%)\r", state.now));
            }
        }
    }
}

impl Observer for Percent {
    fn progress(&self, done: u64, total: u64) {
        self.reached(done);
        self.answer(done as f64 * 100.0 / total.max(1) as f64);
    }
}

impl Drop for Percent {
    fn drop(&mut self) {
        if self.shown {
            print(format_args!("\n"));
        }
    }
}

/// A reader that is gone has seen enough.
fn print(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}
