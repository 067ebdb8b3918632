//! A line of pieces of work: prepared by several threads at once, delivered one after the other in their order.
//!
//! Reading a disk gains from requests under way at once; writing one gains from being in order, because an image then
//! lies on its medium as the guest's disk does. A thread takes one large piece or a handful of small ones at a time, so that threads do not
//! wake each other for each cluster; there are no more handfuls under way than threads, so memory is bounded by their number. Who is
//! done with preparing never waits for its turn: whoever delivers goes on with what is ready, so that no piece waits for a thread to wake up.

use super::observer::Observer;
use catena_engine::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

/// Most threads of a line.
pub const MOST_THREADS: usize = 64;
/// Most small pieces that a thread takes at once.
const HANDFUL: usize = 16;
/// How heavy a small piece is at most, in bytes that it takes to prepare it.
const SMALL: u64 = 128 << 10;

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
    /// Works on all pieces, or on those up to the first that fails or says to stop. Each piece has a state, which is used again for another.
    /// Other threads come for pieces that take preparing, which is what `weight` tells, and only if more than one is left: waiting for a
    /// thread that began too late to find work can take longer than all of it.
    ///
    /// In order, nothing behind a piece that failed has been delivered.
    pub fn run<P: Send, S: Default + Send>(
        &self,
        pieces: impl Iterator<Item = Result<P>> + Send,
        weight: impl Fn(&P) -> u64 + Sync,
        prepare: impl Fn(&P, &mut S) -> Result<()> + Sync,
        deliver: impl Fn(&P, &mut S) -> Result<Next> + Sync,
    ) -> Result<()> {
        let threads = self.threads.clamp(1, MOST_THREADS);
        let crew = Crew {
            line: self,
            feed: Mutex::new((pieces.peekable(), 0)),
            weight,
            prepare,
            deliver,
            queue: Mutex::new(Queue {
                idle: (0..threads).map(|_| Handful::default()).collect(),
                ready: BTreeMap::new(),
                due: 0,
                delivering: false,
                ended: false,
                error: None,
            }),
            came_back: Condvar::new(),
        };
        std::thread::scope(|scope| crew.work(scope, threads.saturating_sub(1)));
        let queue = crew.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.error.map_or(Ok(()), Err)
    }
}

/// Those who work at a line, and what they share.
struct Crew<'a, I: Iterator, P, S, Weight, Prepare, Deliver> {
    line: &'a Line<'a>,
    /// The pieces that are to come, and the number of the next handful.
    feed: Mutex<(Peekable<I>, u64)>,
    weight: Weight,
    prepare: Prepare,
    deliver: Deliver,
    queue: Mutex<Queue<P, S>>,
    /// A handful is idle again, or the line has ended.
    came_back: Condvar,
}

/// Pieces that follow each other and are worked on by one thread: several small ones, or one.
struct Handful<P, S> {
    pieces: Vec<P>,
    /// At least as many as pieces. Only the first ever holds a large piece.
    states: Vec<S>,
    /// Why the piece behind them could not be found or prepared.
    failed: Option<Error>,
}

impl<P, S> Default for Handful<P, S> {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            states: Vec::new(),
            failed: None,
        }
    }
}

struct Queue<P, S> {
    idle: Vec<Handful<P, S>>,
    /// What is prepared, and waits for its turn.
    ready: BTreeMap<u64, Handful<P, S>>,
    due: u64,
    /// Somebody is delivering, and goes on for as long as what is due is ready: who comes meanwhile need not wait.
    delivering: bool,
    ended: bool,
    error: Option<Error>,
}

impl<I, P, S, Weight, Prepare, Deliver> Crew<'_, I, P, S, Weight, Prepare, Deliver>
where
    I: Iterator<Item = Result<P>> + Send,
    P: Send,
    S: Default + Send,
    Weight: Fn(&P) -> u64 + Sync,
    Prepare: Fn(&P, &mut S) -> Result<()> + Sync,
    Deliver: Fn(&P, &mut S) -> Result<Next> + Sync,
{
    /// Works until nothing is left, and has up to so many `others` do so too: each joins when the one before it has found work that is worth
    /// it.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, others: usize) {
        let mut others = others;
        while let Some(mut handful) = self.idle_handful() {
            // Held while the next pieces are found: that may read maps, which is done in order and once.
            let mut feed = lock(&self.feed);
            let number = feed.1;
            self.fill(&mut handful, &mut feed.0);
            if handful.pieces.is_empty() && handful.failed.is_none() {
                lock(&self.queue).idle.push(handful);
                self.came_back.notify_one();
                break;
            }
            feed.1 = number.saturating_add(1);
            let takes_preparing = handful.pieces.iter().any(|piece| (self.weight)(piece) > 0);
            let worth_it = others > 0 && takes_preparing && feed.0.peek().is_some();
            drop(feed);
            if let Some(left) = others.checked_sub(1).filter(|_| worth_it) {
                // One thread fewer is no failure: this one works too.
                let _ = std::thread::Builder::new().spawn_scoped(scope, move || self.work(scope, left));
                others = 0;
            }
            self.prepare(&mut handful);
            if self.line.in_order {
                self.deliver_in_turn(number, handful);
            } else {
                let outcome = self.deliver(&mut handful);
                self.settle(&mut lock(&self.queue), outcome, handful);
            }
        }
    }

    /// A handful to fill; nothing where there will be no next piece.
    fn idle_handful(&self) -> Option<Handful<P, S>> {
        let mut queue = lock(&self.queue);
        while !queue.ended {
            if let Some(handful) = queue.idle.pop() {
                return Some(handful);
            }
            queue = self.came_back.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Takes the next pieces.
    fn fill(&self, handful: &mut Handful<P, S>, pieces: &mut Peekable<I>) {
        handful.pieces.clear();
        let is_small = |piece: &P| (self.weight)(piece) <= SMALL;
        while handful.pieces.len() < HANDFUL {
            let next = match handful.pieces.last() {
                None => pieces.next(),
                Some(last) if is_small(last) => pieces.next_if(|next| next.as_ref().map_or(true, is_small)),
                Some(_) => None,
            };
            match next {
                Some(Ok(piece)) => handful.pieces.push(piece),
                Some(Err(error)) => {
                    handful.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
    }

    /// Prepares the pieces up to the first that fails.
    fn prepare(&self, handful: &mut Handful<P, S>) {
        let Handful {
            pieces,
            states,
            failed,
        } = handful;
        if states.len() < pieces.len() {
            states.resize_with(pieces.len(), S::default);
        }
        let prepared = pieces.iter().zip(states).position(|(piece, state)| {
            let prepared = self
                .line
                .observer
                .check()
                .and_then(|()| (self.prepare)(piece, state));
            prepared.map_err(|error| *failed = Some(error)).is_err()
        });
        if let Some(prepared) = prepared {
            pieces.truncate(prepared);
        }
    }

    /// Leaves a handful to whoever is delivering, or delivers it and all that is ready behind it if it is due.
    fn deliver_in_turn(&self, number: u64, handful: Handful<P, S>) {
        let mut queue = lock(&self.queue);
        queue.ready.insert(number, handful);
        if queue.delivering {
            return;
        }
        queue.delivering = true;
        while !queue.ended {
            let due = queue.due;
            let Some(mut handful) = queue.ready.remove(&due) else {
                break;
            };
            drop(queue);
            let outcome = self.deliver(&mut handful);
            queue = lock(&self.queue);
            queue.due = due.saturating_add(1);
            self.settle(&mut queue, outcome, handful);
        }
        queue.delivering = false;
    }

    fn deliver(&self, handful: &mut Handful<P, S>) -> Result<Next> {
        for (piece, state) in handful.pieces.iter().zip(&mut handful.states) {
            if (self.deliver)(piece, state)? == Next::Stop {
                return Ok(Next::Stop);
            }
        }
        handful.failed.take().map_or(Ok(Next::Go), Err)
    }

    /// What comes of a handful that was delivered, or could not be.
    fn settle(&self, queue: &mut Queue<P, S>, outcome: Result<Next>, handful: Handful<P, S>) {
        queue.idle.push(handful);
        match outcome {
            Ok(Next::Go) => return self.came_back.notify_one(),
            Ok(Next::Stop) => {}
            Err(error) => {
                // That it was to stop is only told where nothing worse happened.
                let milder = queue
                    .error
                    .as_ref()
                    .is_none_or(|first| first.kind() == ErrorKind::Cancelled);
                if milder {
                    queue.error = Some(error);
                }
            }
        }
        queue.ended = true;
        self.came_back.notify_all();
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
        // Alone, in handfuls, and mixed.
        let weights: [fn(&u64) -> u64; 3] = [|_| 1 << 20, |_| 4096, |piece| (piece % 7) << 15];
        for (threads, weight) in [1, 2, 7]
            .into_iter()
            .flat_map(|threads| weights.map(|weight| (threads, weight)))
        {
            let seen = Mutex::new(Vec::new());
            line(threads)
                .run(
                    (0..100_u64).map(Ok),
                    weight,
                    |piece, state: &mut u64| {
                        std::thread::sleep(std::time::Duration::from_micros((100 - piece) % 7 * 50));
                        *state = *piece;
                        Ok(())
                    },
                    |piece, state| {
                        assert_eq!(piece, state, "a piece's state is its own");
                        seen.lock().unwrap().push(*piece);
                        Ok(Next::Go)
                    },
                )
                .unwrap();
            assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<_>>());

            let delivered = Mutex::new(Vec::new());
            let failed = line(threads).run(
                (0..100_u64).map(Ok),
                weight,
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

    #[test]
    fn nobody_comes_to_help_where_nothing_takes_preparing_or_nothing_is_left() {
        let run = |pieces: u64, takes_preparing: bool| {
            let seen = Mutex::new(Vec::new());
            let prepare = |_: &u64, (): &mut ()| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                lock(&seen).push(std::thread::current().id());
                Ok(())
            };
            line(4)
                .run(
                    (0..pieces).map(Ok),
                    |_| u64::from(takes_preparing) << 20,
                    prepare,
                    |_, ()| Ok(Next::Go),
                )
                .unwrap();
            let mut seen = seen.into_inner().unwrap();
            assert_eq!(seen.len() as u64, pieces);
            seen.retain(|id| *id != std::thread::current().id());
            seen.len()
        };
        assert_eq!(run(50, false), 0);
        assert_eq!(run(1, true), 0);
        assert!(run(50, true) > 0);
    }
}
