//! What could be on the disks after a cut.
//!
//! A disk has promised what was flushed. Of what came later it may have done any part, in any order, a sector at a time: so
//! after a cut each sector holds what it held at the last flush, or what any of the changes since made of it. A store's
//! length is that of the last flush, or that which any of the changes since gave it.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::content::Content;
use super::recording::{Change, Entry, Record};
use crate::dice::Dice;

/// How often a position is tried again for a state that was not seen yet.
const TRIES: usize = 3;
/// Above this many sectors a change is torn into runs of sectors, not into single ones.
const SINGLE_SECTORS: u64 = 64;

/// One state of the disks after a cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// What each store holds, in the order in which their recordings began.
    pub files: Vec<Content>,
    /// The last note before the cut ([`Log::reached`](super::Log::reached)); `None` before the first.
    pub reached: Option<u64>,
    /// How it came about, for messages.
    pub way: Way,
}

/// How a cut came about: where it was in the log, and what of the changes that were not durable was done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// How many entries of the log, notes among them, came before.
    pub position: usize,
    /// How many changes were not durable.
    pub pending: usize,
    /// The entries of the log that were done, each with its pieces' parts, in sectors. What is missing was not done.
    pub done: Vec<(usize, Vec<Vec<Range<u64>>>)>,
}

/// States of the disks after cuts, all over a log. See [`Log::cuts`](super::Log::cuts).
#[derive(Debug)]
pub struct Cuts {
    record: Record,
    dice: Dice,
    left: usize,
    position: usize,
    /// How many states are still wanted of this position, how many were drawn, and how many may be.
    budget: usize,
    tried: usize,
    tries: usize,
    durable: Vec<Content>,
    /// Entries that are changes and not durable, in order.
    pending: Vec<usize>,
    reached: Option<u64>,
    seen: HashSet<u64>,
}

impl Cuts {
    pub(super) fn new(record: Record, seed: u64, how_many: usize) -> Self {
        let mut cuts = Self {
            dice: Dice::new(seed),
            left: how_many,
            position: 0,
            budget: 0,
            tried: 0,
            tries: 0,
            durable: record.start.clone(),
            pending: Vec::new(),
            reached: None,
            seen: HashSet::new(),
            record,
        };
        cuts.set_budget();
        cuts
    }

    fn set_budget(&mut self) {
        let positions = self.record.entries.len() + 1 - self.position;
        self.budget = self.left.div_ceil(positions);
        self.tried = 0;
        self.tries = if self.pending.is_empty() {
            1
        } else {
            self.budget.saturating_mul(TRIES)
        };
    }

    /// Goes on to the next position; no if there is none.
    fn advance(&mut self) -> bool {
        let Some(entry) = self.record.entries.get(self.position) else {
            return false;
        };
        match entry {
            Entry::Change { .. } => self.pending.push(self.position),
            Entry::Flush { file } => {
                let file = *file;
                let Record { entries, .. } = &self.record;
                let durable = &mut self.durable[file];
                self.pending.retain(|index| match &entries[*index] {
                    Entry::Change { file: of, change } if *of == file => {
                        for piece in &change.pieces {
                            piece.apply(durable, change.len_after, 0..piece.parts());
                        }
                        false
                    }
                    _ => true,
                });
                durable.settle();
            }
            Entry::Reached(step) => {
                self.reached = Some(*step);
                // The same bytes have other promises to keep from here on.
                self.seen.clear();
            }
        }
        self.position += 1;
        self.set_budget();
        true
    }

    fn change(&self, index: usize) -> Option<(usize, &Arc<Change>)> {
        match &self.record.entries[index] {
            Entry::Change { file, change } => Some((*file, change)),
            _ => None,
        }
    }

    /// Draws which of the pending changes were done.
    fn draw(&mut self, attempt: usize) -> Way {
        let count = self.pending.len();
        let mut done = Vec::new();
        let pending = std::mem::take(&mut self.pending);
        let pick = self.dice.index(count.max(1));
        let kind = self.dice.below(6);
        let likely = *self.dice.one_of(&[10, 30, 50, 70, 90]);
        for (place, index) in pending.iter().enumerate() {
            let how = match (attempt, kind) {
                (0, _) => How::Whole,
                (1, _) => How::Not,
                (_, 0) => How::when(place != pick),
                (_, 1) => How::when(place == pick),
                (_, 2) if place == pick => How::Torn,
                (_, 2) => How::Whole,
                (_, 3) if place == pick => How::Torn,
                (_, 3) => How::Not,
                (_, 4) => How::when(self.dice.chance(likely)),
                _ if self.dice.chance(50) => How::Torn,
                _ => How::when(self.dice.chance(likely)),
            };
            let parts = self.parts(*index, how);
            if parts.iter().any(|ranges| !ranges.is_empty()) {
                done.push((*index, parts));
            }
        }
        self.pending = pending;
        Way {
            position: self.position,
            pending: count,
            done,
        }
    }

    /// Draws the parts of one change's pieces.
    fn parts(&mut self, index: usize, how: How) -> Vec<Vec<Range<u64>>> {
        let lens: Vec<u64> = match self.change(index) {
            Some((_, change)) => change.pieces.iter().map(|piece| piece.parts()).collect(),
            None => return Vec::new(),
        };
        let draw = |len: u64| match how {
            How::Whole => std::iter::once(0..len).collect(),
            How::Not => vec![],
            How::Torn => tear(&mut self.dice, len),
        };
        lens.into_iter().map(draw).collect()
    }

    fn materialise(&self, way: Way) -> Cut {
        let mut files = self.durable.clone();
        for (index, parts) in &way.done {
            if let Some((file, change)) = self.change(*index) {
                for (piece, ranges) in change.pieces.iter().zip(parts) {
                    for range in ranges {
                        piece.apply(&mut files[file], change.len_after, range.clone());
                    }
                }
            }
        }
        Cut {
            files,
            reached: self.reached,
            way,
        }
    }
}

impl Iterator for Cuts {
    type Item = Cut;

    fn next(&mut self) -> Option<Cut> {
        while self.left > 0 {
            let tries = self
                .budget
                .saturating_mul(TRIES)
                .min(self.tried + self.left * TRIES);
            let exhausted =
                self.budget == 0 || self.tried >= tries || (self.pending.is_empty() && self.tried > 0);
            if exhausted {
                if self.advance() {
                    continue;
                }
                return None;
            }
            let way = self.draw(self.tried);
            self.tried += 1;
            let mut hasher = DefaultHasher::new();
            // Where the cut was does not matter, but what was durable does: each flush makes something else of the rest.
            (&way.done, self.durable_mark(), way.pending == way.done.len()).hash(&mut hasher);
            if self.seen.insert(hasher.finish()) {
                self.left -= 1;
                self.budget -= 1;
                return Some(self.materialise(way));
            }
        }
        None
    }
}

impl Cuts {
    /// What tells the durable states apart: the first change that is pending, and how many there were before.
    fn durable_mark(&self) -> (usize, Vec<u64>) {
        let first = self.pending.first().copied().unwrap_or(self.position);
        (first, self.durable.iter().map(Content::len).collect())
    }
}

#[derive(Clone, Copy)]
enum How {
    Whole,
    Not,
    Torn,
}

impl How {
    fn when(done: bool) -> Self {
        if done { Self::Whole } else { Self::Not }
    }
}

/// Some of so many sectors.
fn tear(dice: &mut Dice, len: u64) -> Vec<Range<u64>> {
    let at = dice.below(len);
    let [before, after] = match dice.below(5) {
        0 => [0..at, 0..0],
        1 => [at..len, 0..0],
        2 => [at..at + 1, 0..0],
        3 => [0..at, at + 1..len],
        _ => return runs(dice, len),
    };
    [before, after]
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect()
}

/// About half of so many sectors.
fn runs(dice: &mut Dice, len: u64) -> Vec<Range<u64>> {
    let step = if len <= SINGLE_SECTORS { 1 } else { len / 32 };
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut start = 0;
    while start < len {
        let end = (start + step).min(len);
        if dice.chance(50) {
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    runs
}
