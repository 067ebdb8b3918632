//! A line of pieces of work: prepared by several threads at once, delivered one after the other in their order.
//!
//! Reading a disk gains from requests under way at once; writing one gains from being in order, because an image then
//! lies on its medium as the guest's disk does. Each thread holds one piece at a time, so memory is bounded by their number.

use super::observer::Observer;
use catena_engine::{Error, ErrorKind, Result};
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most threads of a line.
pub const MOST_THREADS: usize = 64;

/// How pieces are worked on.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    /// Pieces that are prepared at once; at least one.
    pub threads: usize,
    /// Whether pieces are delivered in their order, one after the other; else at once and in any.
    pub in_order: bool,
    /// Who may stop it.
    pub observer: &'a dyn Observer,
}

/// Whether to go on after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With the next piece.
    Go,
    /// No further: what was looked for is found.
    Stop,
}

/// Threads for work that keeps processors busy.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

impl Line<'_> {
    /// Works on all pieces, or on those up to the first that fails or says to stop. Every thread has a state of its own.
    ///
    /// In order, nothing behind a piece that failed has been delivered.
    pub fn run<P: Send, S: Default>(
        &self,
        pieces: impl Iterator<Item = Result<P>> + Send,
        prepare: impl Fn(&P, &mut S) -> Result<()> + Sync,
        deliver: impl Fn(&P, &mut S) -> Result<Next> + Sync,
    ) -> Result<()> {
        let feed = Mutex::new((pieces, 0_u64));
        let turn = Turn::default();
        let work = || {
            let mut state = S::default();
            loop {
                // Held while the next piece is found: that may read maps, which is done in order and once.
                let mut feed = lock(&feed);
                if turn.has_ended() {
                    break;
                }
                let number = feed.1;
                let piece = match feed.0.next() {
                    None => break,
                    Some(piece) => piece,
                };
                feed.1 = number.saturating_add(1);
                drop(feed);
                let prepared = piece.and_then(|piece| {
                    self.observer.check()?;
                    prepare(&piece, &mut state)?;
                    Ok(piece)
                });
                if self.in_order && !turn.wait_for(number) {
                    break;
                }
                match prepared.and_then(|piece| deliver(&piece, &mut state)) {
                    Ok(Next::Go) => turn.pass(),
                    Ok(Next::Stop) => turn.end(None),
                    Err(error) => turn.end(Some(error)),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.clamp(1, MOST_THREADS) {
                // One thread fewer is no failure: this one works too.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        turn.outcome()
    }
}

/// Whose turn it is to deliver.
#[derive(Default)]
struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    due: u64,
    ended: bool,
    error: Option<Error>,
}

impl Turn {
    /// Waits for a piece's turn; `false` if it does not come.
    fn wait_for(&self, number: u64) -> bool {
        let mut state = lock(&self.state);
        while !state.ended && state.due != number {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.ended
    }

    fn pass(&self) {
        let mut state = lock(&self.state);
        state.due = state.due.saturating_add(1);
        self.changed.notify_all();
    }

    fn end(&self, error: Option<Error>) {
        let mut state = lock(&self.state);
        state.ended = true;
        if let Some(error) = error {
            // That it was to stop is only told where nothing worse happened.
            let milder = state
                .error
                .as_ref()
                .is_none_or(|first| first.kind() == ErrorKind::Cancelled);
            if milder {
                state.error = Some(error);
            }
        }
        self.changed.notify_all();
    }

    fn has_ended(&self) -> bool {
        lock(&self.state).ended
    }

    fn outcome(self) -> Result<()> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.error.map_or(Ok(()), Err)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;

    fn line(threads: usize) -> Line<'static> {
        Line {
            threads,
            in_order: true,
            observer: &Silent,
        }
    }

    #[test]
    fn pieces_are_delivered_in_order_and_none_behind_a_failure() {
        for threads in [1, 2, 7] {
            let seen = Mutex::new(Vec::new());
            line(threads)
                .run(
                    (0..100_u64).map(Ok),
                    |piece, state: &mut u64| {
                        std::thread::sleep(std::time::Duration::from_micros((100 - piece) % 7 * 50));
                        *state = *piece;
                        Ok(())
                    },
                    |piece, state| {
                        assert_eq!(piece, state, "a thread's state is its own");
                        seen.lock().unwrap().push(*piece);
                        Ok(Next::Go)
                    },
                )
                .unwrap();
            assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<_>>());

            let delivered = Mutex::new(Vec::new());
            let failed = line(threads).run(
                (0..100_u64).map(Ok),
                |piece, (): &mut ()| match piece {
                    50 => Err(Error::new(ErrorKind::Io, "fifty")),
                    _ => Ok(()),
                },
                |piece, ()| {
                    delivered.lock().unwrap().push(*piece);
                    Ok(Next::Go)
                },
            );
            assert_eq!(failed.unwrap_err().message(), "fifty");
            assert_eq!(*delivered.lock().unwrap(), (0..50).collect::<Vec<_>>());
        }
    }
}
