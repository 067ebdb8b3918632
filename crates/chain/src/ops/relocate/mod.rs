//! Move: images, links and folders get new places, and everything that names them names the new ones.
//!
//! Every file first has both names: a hard link, or a copy on another file system. Then whatever stands on it is led to the new one,
//! and then the old names go, overlays before what they stand on. So at every instant both the old place and the new one lead to
//! chains that work, as far as they are there.
//!
//! Who names what is moved is looked for in its folder, in that where it goes, in those given, and in everything below them.

mod items;
mod leads;
mod references;

use super::observer::Observer;
use super::script::{Journal, Recorded, Script, Step, interrupted, is_part};
use crate::forest::{Around, Forest};
use crate::open::in_use;
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::{Hold, LocalFile, LockMode, OpenOptions, holders_of};
use items::{Item, Kind, items, real_name};
use leads::Leads;
use references::{Change, Reached, change, records};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

/// What moves, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// Files, links and folders.
    pub sources: Vec<PathBuf>,
    /// Where to.
    pub destination: Destination,
    /// Whether the images below them move too.
    pub chain: bool,
    /// Where images are looked for that name what moves.
    pub around: Around,
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Into this folder if it is one; else it is the new name of the one source.
    Place(PathBuf),
    /// It is the new name of the one source.
    Name(PathBuf),
}

/// A move, decided.
#[derive(Debug)]
pub struct Plan {
    request: String,
    home: PathBuf,
    moves: Vec<(PathBuf, PathBuf)>,
    /// New names, and what images record while they have both.
    names: Vec<Step>,
    /// What else names them.
    references: Vec<Step>,
    /// What goes, and what images record afterwards.
    ends: Vec<Step>,
    remarks: Vec<String>,
    unknown: Vec<Error>,
}

/// The journal of the same move that was cut off.
///
/// # Errors
/// [`ErrorKind::Locked`] while it runs.
pub fn unfinished(request: &Request) -> Result<Option<Journal>> {
    let homes: BTreeSet<PathBuf> = { request.sources.iter() }
        .filter_map(|source| Some(real_name(source).ok()?.parent()?.to_owned()))
        .collect();
    interrupted(&Vec::from_iter(homes), OPERATION, &asked(request))
}

const OPERATION: &str = "move";

/// What was asked for, in a form that is the same when it is asked again.
fn asked(request: &Request) -> String {
    let real = |path: &Path| real_name(path).unwrap_or_else(|_| path.to_owned());
    let sources: Vec<_> = request.sources.iter().map(|path| real(path)).collect();
    let (Destination::Place(destination) | Destination::Name(destination)) = &request.destination;
    format!(
        "{sources:?} to {:?}{}",
        real(destination),
        if request.chain { " with all below" } else { "" }
    )
}

/// Decides.
///
/// # Errors
/// [`ErrorKind::Locked`] where somebody uses what moves or is rewritten, [`ErrorKind::Conflict`] where a new name is taken, and
/// [`ErrorKind::Unsupported`] where what an image records cannot be rewritten.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let items = items(request, policy)?;
    let first = items
        .first()
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "nothing is named that could move"))?;
    let mut leads = Leads::default();
    for item in &items {
        let target = match &item.kind {
            Kind::Symlink(target) => Some(target.clone()),
            _ => None,
        };
        leads.add(&item.old, &item.new, target);
    }
    // By real names, which are those of the items.
    let real = |folder: &PathBuf| {
        std::fs::canonicalize(folder)
            .map_err(|error| Error::from(catena_storage::Error::from_io(error, "find").with_path(folder)))
    };
    let around = Around {
        folders: { request.around.folders.iter() }
            .map(real)
            .collect::<Result<_>>()?,
        index: request.around.index.clone(),
    };
    let old: Vec<_> = items.iter().map(|item| &item.old).collect();
    let new = { items.iter() }
        .filter_map(|item| item.new.parent())
        .filter(|folder| folder.is_dir());
    let search = around.widely(&old).and(new, usize::MAX);
    let forest = Forest::grow(&search, None, None);
    let changes = Changes::of(&forest, &items, &leads, policy)?;
    changes.check_unused(&items)?;
    let home = first.old.parent().unwrap_or(Path::new("/")).to_owned();
    let mut plan = Plan {
        request: asked(request),
        home,
        moves: { items.iter() }
            .map(|item| (item.old.clone(), item.new.clone()))
            .collect(),
        names: Vec::new(),
        references: changes.others.iter().chain(&changes.expected).cloned().collect(),
        ends: Vec::new(),
        remarks: remarks(&forest, &leads),
        unknown: forest.errors,
    };
    plan.arrange(&items, &changes);
    Ok(plan)
}

/// What images record of each other, changed.
#[derive(Default)]
struct Changes {
    /// Of images that get another name, before they do.
    before: HashMap<PathBuf, Step>,
    /// Of the same when the old name is gone.
    after: HashMap<PathBuf, Step>,
    /// What copies record.
    copies: HashMap<PathBuf, Recorded>,
    /// Of images that stay where they are.
    others: Vec<Step>,
    /// What images that move are to record before the old names go.
    expected: Vec<Step>,
    /// How many images each file needs.
    depth: HashMap<PathBuf, usize>,
}

impl Changes {
    fn of(forest: &Forest, items: &[Item], leads: &Leads, policy: &Policy) -> Result<Self> {
        let kinds: HashMap<&Path, &Kind> = items
            .iter()
            .map(|item| (item.old.as_path(), &item.kind))
            .collect();
        let mut changes = Self::default();
        for (number, image) in forest.images().iter().enumerate() {
            let mut real: Vec<PathBuf> = image
                .names
                .iter()
                .filter(|name| !name.is_symlink())
                .cloned()
                .collect();
            if real.is_empty() {
                real.extend(std::fs::canonicalize(image.path()));
            }
            real.retain(|name| !is_part(name));
            let depth = forest.needs(number).len();
            changes
                .depth
                .extend(real.iter().map(|name| (name.clone(), depth)));
            let (copied, here): (Vec<_>, Vec<_>) = real
                .into_iter()
                .partition(|name| kinds.get(name.as_path()) == Some(&&Kind::Copied));
            for name in copied {
                let Some(new) = leads.new_of(&name) else { continue };
                let new = [new.to_owned()];
                let reached = Reached {
                    now: &name,
                    during: &new,
                    after: &new,
                };
                // What is copied is locked from then on, so what it records stays if it is still what the plan was made for.
                changes.expect(&name, records(image, &name));
                if let Some(change) = change(image, &reached, leads, policy)? {
                    changes.copies.insert(name, change.after);
                }
            }
            changes.add_in_place(image, &here, leads, policy)?;
        }
        Ok(changes)
    }

    /// Has it looked at before the old names go: another move may have led an image elsewhere.
    fn expect(&mut self, image: &Path, records: Option<Recorded>) {
        self.expected.extend(records.map(|records| Step::Expect {
            image: image.to_owned(),
            records,
        }));
    }

    /// An image that stays the same file, whatever names it has afterwards.
    fn add_in_place(
        &mut self,
        image: &crate::forest::Image,
        names: &[PathBuf],
        leads: &Leads,
        policy: &Policy,
    ) -> Result<()> {
        let Some(now) = names.first().cloned() else {
            return Ok(());
        };
        let new: Vec<PathBuf> = { names.iter() }
            .filter_map(|name| leads.new_of(name))
            .map(Path::to_owned)
            .collect();
        let staying = names.iter().filter(|name| leads.new_of(name).is_none());
        let after: Vec<PathBuf> = new.iter().chain(staying).cloned().collect();
        let during: Vec<PathBuf> = names.iter().chain(&new).cloned().collect();
        let reached = Reached {
            now: &now,
            during: &during,
            after: &after,
        };
        let Some(Change {
            now: old,
            during,
            after,
        }) = change(image, &reached, leads, policy)?
        else {
            if let Some(new) = new.first() {
                self.expect(new, records(image, &now));
            }
            return Ok(());
        };
        let relink = |image: &Path, from: &Recorded, to: &Recorded| Step::Relink {
            image: image.to_owned(),
            from: from.clone(),
            to: to.clone(),
        };
        // Of several names that go, the one that is there first and goes last.
        match names.iter().find_map(|name| Some((name, leads.new_of(name)?))) {
            None => self.others.push(relink(&now, &old, &after)),
            Some((name, new)) => {
                if during != old {
                    self.before.insert(name.clone(), relink(name, &old, &during));
                }
                self.expect(new, Some(during.clone()));
                if after != during {
                    self.after.insert(name.clone(), relink(new, &during, &after));
                }
            }
        }
        Ok(())
    }

    /// Refuses if somebody uses what moves, or what is rewritten.
    fn check_unused(&self, items: &[Item]) -> Result<()> {
        let stop = "stop it first: an image in use is not moved or written";
        let is_file = |item: &&Item| matches!(item.kind, Kind::Linked | Kind::Copied);
        let mut paths: Vec<&Path> = items
            .iter()
            .filter(is_file)
            .map(|item| item.old.as_path())
            .collect();
        for path in &paths {
            LocalFile::open(path, &OpenOptions::new().lock(LockMode::Write))
                .map_err(|error| in_use(error.into(), stop))?;
        }
        for step in self.others.iter().chain(self.before.values()) {
            if let Step::Relink { image, .. } = step {
                LocalFile::open(image, &OpenOptions::new().write(true).lock(LockMode::Write))
                    .map_err(|error| in_use(error.into(), stop))?;
                paths.push(image);
            }
        }
        // Where there is no list of processes, the locks have to do.
        let holders = holders_of(&paths).unwrap_or_default();
        for (path, holders) in paths.iter().zip(holders) {
            if let Some(holder) = holders.iter().find(|holder| holder.hold == Hold::Writing) {
                return Err(
                    Error::new(ErrorKind::Locked, format!("{holder} has it open for writing"))
                        .with_path(path)
                        .with_hint(stop),
                );
            }
        }
        Ok(())
    }
}

/// What stays behind.
fn remarks(forest: &Forest, leads: &Leads) -> Vec<String> {
    let mut remarks = BTreeSet::new();
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    for image in forest.images() {
        let moves = image.names.iter().any(|name| leads.new_of(name).is_some());
        for name in image
            .names
            .iter()
            .filter(|name| name.is_symlink() && leads.new_of(name).is_none())
        {
            if let Some(new) = real(name).and_then(|old| leads.new_of(&old).map(Path::to_owned)) {
                remarks.insert(format!(
                    "the link '{}' leads nowhere any more: it led to what is '{}' then",
                    name.display(),
                    new.display()
                ));
            }
        }
        let edges = image.backing.iter().chain(&image.data_file).filter(|_| moves);
        for below in edges.filter_map(|edge| forest.images().get(edge.image()?)) {
            if !below.names.iter().any(|name| leads.new_of(name).is_some()) {
                remarks.insert(format!(
                    "'{}' stays where it is; --chain takes what lies below along",
                    below.path().display()
                ));
            }
        }
    }
    remarks.into_iter().collect()
}

impl Plan {
    fn arrange(&mut self, items: &[Item], changes: &Changes) {
        let file_kept = |item: &Item, kept: Option<PathBuf>| Step::Delete {
            path: item.old.clone(),
            file: item.file,
            kept,
        };
        for item in items.iter().filter(|item| item.kind == Kind::Folder) {
            self.names.push(Step::Folder {
                path: item.new.clone(),
                like: Some(item.old.clone()),
            });
        }
        let mut files: Vec<&Item> = { items.iter() }
            .filter(|item| matches!(item.kind, Kind::Linked | Kind::Copied))
            .collect();
        // What is needed is there before what needs it, and goes after it.
        files.sort_by_key(|item| changes.depth.get(&item.old).copied().unwrap_or_default());
        for item in &files {
            let (from, to, file) = (item.old.clone(), item.new.clone(), item.file);
            if item.kind == Kind::Copied {
                let records = changes.copies.get(&item.old).cloned();
                self.names.push(Step::Copy {
                    from,
                    to,
                    file,
                    records,
                });
            } else {
                self.names.extend(changes.before.get(&item.old).cloned());
                self.names.push(Step::Link { from, to, file });
            }
        }
        for item in items {
            if let Kind::Symlink(target) = &item.kind {
                self.names.push(Step::Symlink {
                    path: item.new.clone(),
                    target: target.clone(),
                });
                self.ends.push(file_kept(item, None));
            }
        }
        for item in files.iter().rev() {
            self.ends.push(file_kept(item, Some(item.new.clone())));
            self.ends.extend(changes.after.get(&item.old).cloned());
        }
        for item in items.iter().rev().filter(|item| item.kind == Kind::Folder) {
            self.ends.push(Step::RemoveFolder {
                path: item.old.clone(),
            });
        }
    }

    /// Every file, link and folder that moves: the old name, free of links, and the new one.
    pub fn moves(&self) -> &[(PathBuf, PathBuf)] {
        &self.moves
    }

    /// What the user should know besides, in sentences.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Folders that could not be looked into: what lies there may name what moves.
    pub fn unknown(&self) -> &[Error] {
        &self.unknown
    }

    /// Has a text file that names what moves get another text, when the new names are there and before the old ones go.
    pub fn replace(&mut self, file: &Path, from: String, to: String) -> Result<()> {
        let file = std::fs::canonicalize(file)
            .map_err(|error| Error::from(catena_storage::Error::from_io(error, "find").with_path(file)))?;
        self.references.push(Step::Replace { file, from, to });
        Ok(())
    }

    /// What is done, step by step.
    pub fn script(&self) -> Script {
        let mut script = Script::new(OPERATION, &self.request);
        let steps = self.names.iter().chain(&self.references).chain(&self.ends);
        script.steps = steps.cloned().collect();
        script
    }

    /// Performs it. What is stopped or killed on the way is finished by the same request, by way of [`unfinished`].
    ///
    /// # Errors
    /// As [`Script::execute`].
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script().execute(&self.home, policy, observer)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.script())?;
        self.remarks.iter().try_for_each(|remark| write!(f, "\n{remark}"))
    }
}
