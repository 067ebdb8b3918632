//! What housekeeping left: parts of files that were never complete, what was removed and kept long enough, and images that nothing
//! needs.
//!
//! An image that nothing stands on may be somebody's disk. So what nothing needs is only told where those are named that are
//! in use, and everything they need is needed.

use super::bundle::staging;
use super::folder_of;
use super::observer::Observer;
use super::script::{self, FileId, Journal, Script, Step, interrupted};
use crate::forest::{Around, Forest, Image, Index, Search};
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Where to look, and for what.
#[derive(Clone, Debug)]
pub struct Request {
    /// The folders, with everything below.
    pub folders: Vec<PathBuf>,
    /// How long what was removed is kept.
    pub kept_for: Duration,
    /// The images that are in use, such as those of all domains. Without any, no image counts as unneeded.
    pub used: Vec<PathBuf>,
    /// What was seen before: an image elsewhere may stand on one of these.
    pub index: Option<Arc<Index>>,
}

/// Something that may go.
#[derive(Clone, Debug)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub why: Why,
    /// Bytes on its medium.
    pub allocated: u64,
}

/// Why a file may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A part of a file, or a file that has not got its name, that an operation left when it was cut off.
    Part,
    /// It was removed, and has been kept for long enough.
    Trash,
    /// No image that is in use needs it.
    Unneeded,
}

/// What was found.
#[derive(Debug)]
pub struct Plan {
    /// What may go: parts, then trash, then images, overlays before what they stand on.
    pub found: Vec<Found>,
    /// Journals of operations that were cut off: those are to be resumed first.
    pub journals: Vec<PathBuf>,
    /// Folders that could not be looked into.
    pub unknown: Vec<Error>,
    /// Folders that are empty once what was found for a reason is gone.
    folders: Vec<(Why, PathBuf)>,
    /// What keeps imports out of the folders of those that were cut off.
    held: Vec<File>,
    home: PathBuf,
}

/// Looks.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let home = request.folders.first().cloned();
    let home = home.ok_or_else(|| Error::new(ErrorKind::NotFound, "no folder is named"))?;
    // What is in use may lie elsewhere, and need what lies here.
    let places = request.folders.iter().chain(&request.used);
    let mut forest = Forest::grow(&Search::below(places), Some(policy), None);
    let journals = { folders_of(&forest) }
        .iter()
        .map(|folder| script::find(&[folder]))
        .collect::<Result<Vec<_>>>()?;
    let mut plan = Plan {
        found: Vec::new(),
        journals: journals.concat(),
        unknown: std::mem::take(&mut forest.errors),
        folders: Vec::new(),
        held: Vec::new(),
        home,
    };
    let busy: BTreeSet<PathBuf> = { plan.journals.iter() }.map(|path| folder_of(path)).collect();
    for image in forest.images().iter().filter(|image| image.inside) {
        let folder = folder_of(image.path());
        // What belongs to a script is taken up or taken away by it.
        if script::is_part(image.path()) && !image.is_needed() && !busy.contains(&folder) {
            plan.found.push(Found::of(image, Why::Part));
        }
    }
    for staging in &forest.staging {
        if busy.contains(&folder_of(staging)) {
            continue;
        }
        if let Some(held) = staging::left(staging) {
            plan.take_all(staging, Why::Part)?;
            plan.held.push(held);
        }
    }
    for trash in &forest.trash {
        plan.empty(trash, request.kept_for)?;
    }
    if !request.used.is_empty() {
        plan.find_unneeded(&forest, request)?;
    }
    Ok(plan)
}

const OPERATION: &str = "gc";

fn words(home: &Path, reasons: &[Why]) -> String {
    format!("{home:?} {reasons:?}")
}

/// The journal of the same deletion that was cut off.
///
/// # Errors
/// [`ErrorKind::Locked`] while it runs.
pub fn unfinished(request: &Request, reasons: &[Why]) -> Result<Option<Journal>> {
    let home = request.folders.first();
    home.map_or(Ok(None), |home| {
        interrupted(&[home], OPERATION, &words(home, reasons))
    })
}

impl Plan {
    fn script(&self, reasons: &[Why]) -> Result<Script> {
        let mut script = Script::new(OPERATION, words(&self.home, reasons));
        for found in self.found.iter().filter(|found| reasons.contains(&found.why)) {
            let path = std::path::absolute(&found.path).map_err(|error| failed(error, &found.path))?;
            script.steps.push(Step::Delete {
                file: FileId::of(&path)?,
                path,
                kept: None,
            });
        }
        for (_, path) in self.folders.iter().filter(|(why, _)| reasons.contains(why)) {
            let path = std::path::absolute(path).map_err(|error| failed(error, path))?;
            script.steps.push(Step::RemoveFolder { path });
        }
        Ok(script)
    }

    /// Deletes what was found for these reasons.
    pub fn execute(&self, reasons: &[Why], policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script(reasons)?.execute(&self.home, policy, observer)
    }

    /// Finds what has been in the trash for long enough.
    fn empty(&mut self, trash: &Path, kept_for: Duration) -> Result<()> {
        let cannot = |error| failed(error, trash);
        let mut all = true;
        for day in std::fs::read_dir(trash).map_err(cannot)? {
            let day = day.map_err(cannot)?.path();
            // The folder was made when something was removed.
            let made = std::fs::metadata(&day).and_then(|metadata| metadata.modified());
            let age = made
                .ok()
                .and_then(|made| SystemTime::now().duration_since(made).ok());
            if !day.is_dir() || age.is_none_or(|age| age < kept_for) {
                all = false;
                continue;
            }
            self.take_all(&day, Why::Trash)?;
        }
        if all {
            self.folders.push((Why::Trash, trash.to_owned()));
        }
        Ok(())
    }

    /// Takes a folder with the files in it.
    fn take_all(&mut self, folder: &Path, why: Why) -> Result<()> {
        let cannot = |error| failed(error, folder);
        for file in std::fs::read_dir(folder).map_err(cannot)? {
            let path = file.map_err(cannot)?.path();
            let metadata = path.symlink_metadata().map_err(cannot)?;
            if metadata.is_file() {
                let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata).saturating_mul(512);
                self.found.push(Found { path, why, allocated });
            }
        }
        self.folders.push((why, folder.to_owned()));
        Ok(())
    }

    fn find_unneeded(&mut self, forest: &Forest, request: &Request) -> Result<()> {
        let mut needed = BTreeSet::new();
        for path in &request.used {
            let number = forest
                .find(path)?
                .ok_or_else(|| not_known(path, "it is no file and no block device"))?;
            needed.insert(number);
            needed.extend(forest.needs(number));
        }
        // What is behind a name that leads nowhere, or in a header that cannot be read, may be any of the others.
        for image in needed.iter().filter_map(|number| forest.images().get(*number)) {
            if let Some((edge, error)) = image.broken().next() {
                let message = format!("'{}', which it names, cannot be reached: {error}", edge.text);
                return Err(not_known(image.path(), &message));
            }
            if let Some(trouble) = &image.header.trouble {
                return Err(not_known(image.path(), trouble));
            }
        }
        let can_go =
            |(_, image): &(usize, &Image)| image.inside && image.is_image() && !script::is_part(image.path());
        let inside = || { forest.images().iter().enumerate() }.filter(can_go);
        let paths: Vec<_> = inside().map(|(_, image)| image.path()).collect();
        let around = Around {
            folders: Vec::new(),
            index: request.index.clone(),
        };
        for number in around.needed_elsewhere(forest, &paths)? {
            needed.insert(number);
            needed.extend(forest.needs(number));
        }
        let mut unneeded: Vec<_> = inside()
            .filter(|(number, _)| !needed.contains(number))
            .map(|(number, image)| (forest.needs(number).len(), image))
            .collect();
        unneeded.sort_by(|a, b| (b.0, a.1.path()).cmp(&(a.0, b.1.path())));
        let found = unneeded
            .into_iter()
            .map(|(_, image)| Found::of(image, Why::Unneeded));
        self.found.extend(found);
        Ok(())
    }
}

impl Found {
    fn of(image: &Image, why: Why) -> Self {
        Self {
            path: image.path().to_owned(),
            why,
            allocated: image.allocated,
        }
    }
}

/// What an image in use needs is not known, so nothing can be said to be unneeded.
fn not_known(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("what is in use here is not known: {why}"),
    )
    .with_path(path)
    .with_hint("mend its chain first, or look for other leftovers without saying what is in use")
}

/// The folders in which anything was found.
fn folders_of(forest: &Forest) -> BTreeSet<PathBuf> {
    let inside = forest.images().iter().filter(|image| image.inside);
    let names = inside.flat_map(|image| &image.names);
    { names.chain(&forest.staging) }
        .map(|name| folder_of(name))
        .collect()
}

fn failed(error: std::io::Error, path: &Path) -> Error {
    catena_storage::Error::from_io(error, "look into")
        .with_path(path)
        .into()
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Part => "an operation that was cut off left it",
            Self::Trash => "removed, and kept for long enough",
            Self::Unneeded => "nothing in use needs it",
        })
    }
}
