//! What the verbs share that do something to several files: what was cut off is finished first, what is decided is performed with its
//! journal, and either is told, as text or as JSON.

use super::change::stopped;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::text::{count, printable};
use catena::Policy;
use catena::ops::Observer;
use catena::ops::bundle::import::Left;
use catena::ops::script::{Direction, Journal, Step};
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What a verb does, decided.
pub trait Operation {
    /// Performs it.
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()>;

    /// Tells it as text: what was done, or would be.
    fn tell(&self, done: bool, out: &mut dyn Write) -> io::Result<()>;

    /// The same as an object, as docs/json.md describes it.
    fn tell_json(&self, done: bool, out: &mut dyn Write) -> io::Result<()>;

    /// The exit status that it ends with.
    fn status(&self, _done: bool) -> ExitCode {
        ExitCode::SUCCESS
    }
}

/// How it is performed and told.
pub struct Manner<'a> {
    /// What is being done, for a bar on a terminal.
    pub verb: &'static str,
    /// What may be opened.
    pub policy: &'a Policy,
    /// Whether nothing is changed.
    pub dry_run: bool,
    /// Whether nothing but errors is printed.
    pub quiet: bool,
    /// How to print it.
    pub output: Output,
}

impl Manner<'_> {
    /// Finishes what the same command began and was cut off, `begun`; else decides, performs and tells.
    pub fn perform<O: Operation>(
        &self,
        begun: Option<Journal>,
        decide: impl FnOnce() -> Result<O, CommandError>,
    ) -> Result<ExitCode, CommandError> {
        if let Some(journal) = begun {
            return self.finish(journal);
        }
        let mut operation = decide()?;
        if !self.dry_run {
            operation
                .execute(self.policy, &self.progress())
                .map_err(stopped)?;
        }
        let done = !self.dry_run;
        let mut out = output::stdout();
        match self.output {
            _ if self.quiet => {}
            Output::Human => operation.tell(done, &mut out)?,
            Output::Json => operation.tell_json(done, &mut out)?,
        }
        out.flush()?;
        Ok(operation.status(done))
    }

    /// Finishes what was cut off before a command that then finds what else there is to do. A dry run only tells it.
    pub fn finish_first(&self, begun: Option<Journal>) -> Result<Option<Journal>, CommandError> {
        match begun {
            Some(journal) if !self.dry_run => self.resume(journal).map(|()| None),
            begun => Ok(begun),
        }
    }

    fn resume(&self, journal: Journal) -> Result<(), CommandError> {
        let progress = self.progress();
        let finished = journal.resume(Direction::Finish, self.policy, &progress);
        Ok(finished.map_err(stopped)?)
    }

    fn finish(&self, journal: Journal) -> Result<ExitCode, CommandError> {
        let told = Told::of(&journal);
        if !self.dry_run {
            self.resume(journal)?;
        }
        let mut out = output::stdout();
        match self.output {
            _ if self.quiet => {}
            Output::Human => {
                let becomes = if self.dry_run { "would be" } else { "is" };
                writeln!(out, "what was cut off {becomes} finished:")?;
                told.steps_left(&mut out)?;
            }
            Output::Json => output::json(&Resumed { resumed: told }, &mut out)?,
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }

    fn progress(&self) -> Progress {
        match self.quiet {
            true => Progress::quiet(),
            false => Progress::start(self.verb),
        }
    }
}

/// What a verb tells as JSON that has finished what was cut off.
#[derive(Serialize)]
struct Resumed {
    resumed: Told,
}

/// A journal, as JSON has it.
#[derive(Debug, Serialize)]
pub struct Told {
    pub journal: PathBuf,
    /// The operation.
    pub operation: String,
    /// Whether it runs at this moment; nothing more is known of it then.
    pub running: bool,
    /// How many steps are done.
    pub done: usize,
    /// All steps.
    pub steps: Vec<Step>,
    /// Whether it can be taken back.
    pub undo: bool,
}

impl Told {
    /// What an import left that had not read all of its bundles: there is nothing to go on with.
    pub fn import(left: &Left) -> Self {
        Self {
            journal: left.path().to_owned(),
            operation: "import".to_owned(),
            running: false,
            done: 0,
            steps: Vec::new(),
            undo: true,
        }
    }

    /// What one says that was left.
    pub fn of(journal: &Journal) -> Self {
        let script = journal.script();
        Self {
            journal: journal.path().to_owned(),
            operation: script.operation.clone(),
            running: false,
            done: journal.done(),
            steps: script.steps.clone(),
            undo: journal.can_be_taken_back(),
        }
    }

    /// One that nobody else can read now.
    pub fn running(journal: PathBuf) -> Self {
        Self {
            journal,
            operation: String::new(),
            running: true,
            done: 0,
            steps: Vec::new(),
            undo: false,
        }
    }

    /// The number of its steps, in words.
    pub fn steps_in_words(&self) -> String {
        count(self.steps.len() as u64, "step")
    }

    /// Tells the steps that are to be done, one a line.
    pub fn steps_left(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut left = self.steps.iter().skip(self.done);
        left.try_for_each(|step| writeln!(out, "  {}", printable(&step.to_string())))
    }

    /// Tells those that would be taken back, one a line.
    pub fn steps_back(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut back = self.steps.iter().take(self.done).rev();
        back.try_for_each(|step| writeln!(out, "  undo: {}", printable(&step.to_string())))
    }
}
