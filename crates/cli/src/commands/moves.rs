//! What `move` and `rename` share: the domains that name what moves, and how a move is performed and told.

use super::change::ChangeArgs;
use super::forest::warn;
use super::operation::Operation;
use crate::domain;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::printable;
use catena::ops::Observer;
use catena::ops::relocate::{self, Plan, Request};
use catena::ops::script::Step;
use catena::{Policy, Source};
use catena_virt::Document;
use catena_virt::edit::Edit;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of both.
#[derive(Debug, clap::Args)]
pub struct MovesArgs {
    /// Look in this folder too, with everything below it, for images that name what moves; may be given several times
    #[arg(long = "in", value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// A file with libvirt's XML that names what moves, and is to name the new place; may be given several times
    #[arg(long = "domain", value_name = "FILE")]
    domains: Vec<PathBuf>,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    change: ChangeArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

impl MovesArgs {
    /// Moves, or goes on where the same was cut off.
    pub fn perform(&self, request: &Request) -> Result<ExitCode, CommandError> {
        let policy = self.policy.load()?;
        let manner = self.change.manner("moving", &policy, self.output);
        manner.perform(relocate::unfinished(request)?, || {
            let plan = self.plan(request, &policy)?;
            warn(plan.unknown());
            Ok(plan)
        })
    }

    fn plan(&self, request: &Request, policy: &Policy) -> Result<Plan, CommandError> {
        let mut plan = relocate::plan(request, policy)?;
        let moves: HashMap<PathBuf, PathBuf> = plan.moves().iter().cloned().collect();
        let mut seen = BTreeSet::new();
        for file in &self.domains {
            let document = domain::read(file)?;
            let text = renamed(&document, &moves)?;
            if text != document.text()
                && seen.insert(std::fs::canonicalize(file).unwrap_or_else(|_| file.clone()))
            {
                plan.replace(file, document.text().to_owned(), text)?;
            }
        }
        Ok(plan)
    }
}

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        Plan::execute(self, policy, observer)
    }

    /// Every step where nothing is done yet, and else what became of what.
    fn tell(&self, done: bool, out: &mut dyn Write) -> io::Result<()> {
        if !done {
            let steps = self.to_string();
            return steps
                .lines()
                .try_for_each(|line| writeln!(out, "{}", printable(line)));
        }
        for (old, new) in self.moves() {
            let moved = format!("{} -> {}", old.display(), new.display());
            writeln!(out, "{}", printable(&moved))?;
        }
        let mut remarks = self.remarks().iter();
        remarks.try_for_each(|remark| writeln!(out, "{}", printable(remark)))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let told = Told {
            moves: self.moves(),
            steps: &self.script().steps,
            remarks: self.remarks(),
        };
        output::json(&told, &mut out)
    }
}

/// A move as JSON.
#[derive(serde::Serialize)]
struct Told<'a> {
    /// Old names and new ones.
    moves: &'a [(PathBuf, PathBuf)],
    steps: &'a [Step],
    remarks: &'a [String],
}

/// A document in which every path that leads to what moves is the new one.
fn renamed(document: &Document, moves: &HashMap<PathBuf, PathBuf>) -> Result<String, CommandError> {
    let disks = document.disks.iter().flat_map(|disk| &disk.layers);
    let snapshots = document
        .snapshot_disks
        .iter()
        .filter_map(|disk| disk.layer.as_ref());
    let layers = disks.chain(snapshots);
    let paths: BTreeSet<&Path> = { layers }
        .flat_map(|layer| std::iter::once(layer).chain(layer.data_store.as_deref()))
        .filter_map(|layer| layer.source().and_then(Source::path))
        .collect();
    let mut edit = Edit::new(document);
    for path in paths {
        if let Some(new) = std::fs::canonicalize(path).ok().and_then(|real| moves.get(&real)) {
            edit.relocate(path, new)?;
        }
    }
    Ok(edit.finish()?)
}
