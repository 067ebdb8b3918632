//! Scripts: what an operation does to several files, as steps that survive being cut off.
//!
//! The steps of a [`Script`] are made one after the other, each durable before the next, and a [`Journal`] beside the files says how far that
//! has come. Their order is the operation's safety; here it is only kept. After a crash the journal is found ([`find`]), and the
//! script goes on or is taken back ([`Journal::resume`]).
//!
//! A step looks at what it touches: a file that is not the one it was planned for, or records something else, stops the script. So
//! what others did meanwhile is not undone, and two scripts about the same files do not both go on.

mod blank;
mod copy;
mod digits;
mod files;
mod journal;
mod publish;
mod recorded;
mod run;
mod step;

pub use blank::{Blank, Piece};
pub(super) use copy::keep_attributes;
pub use digits::Digits;
pub use files::{FileId, Seen, is_part};
pub(super) use files::{remove, rename_over, set_modified};
pub use journal::{Journal, find};
pub use publish::Made;
pub use recorded::Recorded;
pub use step::Step;

use super::observer::Observer;
use super::stamp;
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use run::Run;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

/// What an operation does, in steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// The operation: a word, which is in the journal's name.
    pub operation: String,
    /// What was asked for, so that the same command given again finds that it was begun.
    pub request: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// Where to with a script that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The steps that are not done are done.
    Finish,
    /// Those that are done are taken back, the last one first.
    TakeBack,
}

impl Script {
    /// A script without steps.
    pub fn new(operation: impl Into<String>, request: impl Into<String>) -> Self {
        Self {
            operation: operation.into(),
            request: request.into(),
            steps: Vec::new(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Performs it, with its journal in the folder `home`. The observer is asked before and after every change whether to go on.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] or [`ErrorKind::Locked`] where another script is at the same files, or was left there; else those of the
    /// steps. What was done by then stays, with the journal, unless that is nothing; the hint says how to go on.
    pub fn execute(&self, home: &Path, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        observer.check()?;
        match self.steps.as_slice() {
            [] => return Ok(()),
            // One change of one header is there or is not: of such a step alone there is nothing to be taken up.
            [Step::Relink { image, from, to }] => return run::relink(image, from, to),
            [Step::Stamp { image, action, .. }] => return stamp::write(image, *action, policy, observer),
            _ => {}
        }
        let home = std::fs::canonicalize(home)
            .map_err(|error| Error::from(catena_storage::Error::from_io(error, "find").with_path(home)))?;
        let journal = Journal::create(&home, self)?;
        // Two that come at once may both be refused, but never both go on.
        if let Err(error) = self.check_alone(&home, journal.path()) {
            let _ = journal.remove();
            return Err(error);
        }
        Run::begin(journal, policy, observer).finish_or_say_how()
    }

    /// Refuses if another script is at work on the same files, or was cut off there.
    fn check_alone(&self, home: &Path, own: &Path) -> Result<()> {
        let ours: HashSet<&Path> = self.steps.iter().flat_map(Step::paths).collect();
        for path in find(&[home])?.iter().filter(|path| *path != own) {
            // Gone meanwhile, none that we would believe, or one whose owner will find ours.
            let Ok(theirs) = Journal::script_in(path) else {
                if let Ok(other) = Journal::open(path)
                    && other.says_nothing()
                {
                    other.remove()?;
                }
                continue;
            };
            let mut theirs = theirs.steps.iter().flat_map(Step::paths);
            if let Some(common) = theirs.find(|path| ours.contains(path)) {
                let other = match Journal::open(path) {
                    Ok(other) => other,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) if error.kind() == ErrorKind::Locked => {
                        return Err(error.with_hint("wait until it has ended"));
                    }
                    Err(error) => return Err(error),
                };
                let message = format!(
                    "'{}' was begun on this and is not finished",
                    other.script.operation
                );
                return Err(Error::new(ErrorKind::Conflict, message)
                    .with_path(common)
                    .with_hint(other.how_to_go_on()));
            }
        }
        Ok(())
    }
}

/// The journal of the same request that was cut off, in one of these folders.
///
/// # Errors
/// [`ErrorKind::Locked`] where it is running.
pub fn interrupted(homes: &[impl AsRef<Path>], operation: &str, request: &str) -> Result<Option<Journal>> {
    for path in find(homes)? {
        let script = Journal::script_in(&path);
        if !script.is_ok_and(|script| script.operation == operation && script.request == request) {
            continue;
        }
        match Journal::open(&path) {
            Ok(journal) => return Ok(Some(journal)),
            Err(error) if error.kind() == ErrorKind::Locked => {
                return Err(error.with_hint("wait until it has ended"));
            }
            _ => {}
        }
    }
    Ok(None)
}

impl Journal {
    /// Goes on with what was cut off, or takes it back.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where it cannot be taken back any more, or files have changed so that going on would lose something; else
    /// those of the steps.
    pub fn resume(self, direction: Direction, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        let mut run = Run::resume(self, policy, observer);
        match direction {
            Direction::Finish => run.finish_or_say_how(),
            Direction::TakeBack => run.take_back(),
        }
    }

    /// How to go on, as a hint.
    fn how_to_go_on(&self) -> String {
        let home = self.path().parent().unwrap_or(Path::new("."));
        let home = crate::detect::quoted(home);
        if self.can_be_taken_back() {
            format!("'catena resume {home}' goes on, and 'catena resume --undo {home}' takes it back")
        } else {
            format!("'catena resume {home}' goes on")
        }
    }
}

impl fmt::Display for Script {
    /// The steps in words, one a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "{}: nothing to do", self.operation);
        }
        for (number, step) in self.steps.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{step}")?;
        }
        Ok(())
    }
}
