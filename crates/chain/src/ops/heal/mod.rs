//! Heal: overlays whose backing image or data file is not where they record it are told where it is now.
//!
//! What is missing is looked for in the folders that the caller names, and nowhere else. An image that has the fingerprint of the
//! overlay's stamp is certainly it, or of one that stood on the same file. Without stamps, one of its name, format and a size that
//! fits is taken where the overlay holds what it copied of it ([`Content`]), and else only if the caller says so; of others it is only
//! told, with what speaks for them. Header changes are all that is ever done, each with the old
//! reference or the new one at every instant, and what was relative stays so.

mod seek;
mod weigh;

pub use weigh::Content;

use super::folder_of;
use super::observer::Observer;
use super::script::{Journal, Recorded, Script, Step, interrupted};
use crate::chain::Link;
use crate::forest::{Forest, Image, Search, To};
use crate::open::in_use;
use crate::policy::Policy;
use crate::reference::{Reading, Reference};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::qcow2::Header;
use catena_storage::{LocalFile, LockMode, OpenOptions};
use seek::Seeker;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// What to heal.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Folders whose images, with all that they stand on, are to be whole.
    pub places: Vec<PathBuf>,
    /// Folders in which what is missing is looked for too.
    pub search: Vec<PathBuf>,
    /// Whether a name, a format and a size are enough.
    pub by_name: bool,
}

/// Which of the files that an image needs is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its backing image.
    Backing,
    /// Its data file.
    DataFile,
}

/// How sure it is that a file is the missing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// It has the fingerprint of the overlay's stamp.
    Stamp,
    /// It had it, and says that it was rewritten since and shows what it did.
    Lineage,
    /// It has the fingerprint of the stamp of another overlay that lacks the same file.
    Sibling,
    /// It has the name, and what the overlay's own data was copied from.
    NameAndContent,
    /// It has the name, the format, and a size that fits.
    Name,
}

/// A file that is missing.
#[derive(Debug)]
pub struct Missing {
    /// The image that needs it.
    pub image: PathBuf,
    /// As what.
    pub need: Need,
    /// How the image records it, fit to be shown.
    pub recorded: String,
    /// Where it is, and how sure that is.
    pub found: Option<Found>,
    /// Images that could be it, where none is it for certain.
    pub candidates: Vec<Candidate>,
    /// What the image is to record, where that is decided.
    pub change: Option<Change>,
    /// The processes that use the image, which is not written then.
    pub users: Vec<String>,
}

/// The missing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// How sure that is.
    pub by: By,
    /// All that is known of it.
    pub evidence: Evidence,
}

/// A file that could be the missing one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// What speaks for it, and against.
    pub evidence: Evidence,
}

/// What speaks for a file, and against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Whether it has the name.
    pub name: bool,
    /// Whether the overlay's stamp is of it; `None` where it has none.
    pub stamp: Option<bool>,
    /// What the overlay's own data says, where that was asked.
    pub content: Option<Content>,
    /// Whether it was written after the image that needs it was written last.
    pub written_later: bool,
}

impl Found {
    fn of(candidate: &Candidate, by: By) -> Self {
        Self {
            path: candidate.path.clone(),
            by,
            evidence: candidate.evidence.clone(),
        }
    }
}

impl Evidence {
    fn is_supported(&self) -> bool {
        self.content.as_ref().is_some_and(Content::supports)
    }

    fn is_contradicted(&self) -> bool {
        self.content.as_ref().is_some_and(Content::contradicts)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        match self.stamp {
            Some(true) => said.push("it is of the stamp".to_owned()),
            Some(false) => said.push("it is not what the stamp is of".to_owned()),
            None => {}
        }
        let content = self.content.as_ref().map(ToString::to_string);
        said.extend(content.filter(|content| !content.is_empty()));
        if self.written_later && self.stamp != Some(true) {
            said.push("it was written after the image was".to_owned());
        }
        f.write_str(&said.join(", "))
    }
}

/// What an image records, and what it is to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    from: Recorded,
    to: Recorded,
}

/// What is missing, and what is done about it.
#[derive(Debug)]
pub struct Plan {
    missing: Vec<Missing>,
    home: PathBuf,
    words: String,
    /// Folders that could not be looked into.
    pub errors: Vec<Error>,
}

/// Looks for what is missing, and decides.
pub fn plan(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<Plan> {
    let all = request.places.iter().chain(&request.search);
    let mut forest = Forest::grow(&Search::below(all), None, None);
    let errors = std::mem::take(&mut forest.errors);
    let mut seeker = Seeker::new(&forest, policy);
    let whole = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let places: Vec<PathBuf> = request.places.iter().map(whole).collect();
    let is_inside = |image: &Image| {
        let mut names = image.names.iter().map(whole);
        names.any(|name| places.iter().any(|place| name.starts_with(place)))
    };
    let images = forest.images().iter().enumerate();
    let mut open: Vec<usize> = { images.rev().filter(|(_, image)| is_inside(image)) }
        .map(|(number, _)| number)
        .collect();
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    while let Some(number) = open.pop() {
        let Some(image) = forest.images().get(number).filter(|_| seen.insert(number)) else {
            continue;
        };
        observer.check()?;
        for (need, edge) in [
            (Need::Backing, &image.backing),
            (Need::DataFile, &image.data_file),
        ] {
            let Some(edge) = edge else { continue };
            open.extend(edge.image());
            if let To::Broken(Some(path), error) = &edge.to
                && error.kind() == ErrorKind::NotFound
            {
                let found = seeker.find(number, image, need, edge, path, request.by_name);
                // What is found may lack something in its turn.
                let next = found.found.as_ref().filter(|_| found.change.is_some());
                open.extend(next.and_then(|found| forest.find(&found.path).ok().flatten()));
                missing.push(found);
            }
        }
    }
    missing.sort_by(|a, b| a.image.cmp(&b.image));
    let images: Vec<_> = missing.iter().map(|missing| &missing.image).collect();
    // Who cannot be asked about is found when the image is locked.
    let holders = catena_storage::holders_of(&images).unwrap_or_default();
    for (missing, holders) in missing.iter_mut().zip(holders) {
        missing.users = holders.iter().map(ToString::to_string).collect();
    }
    follow_each_other(&mut missing);
    Ok(Plan {
        missing,
        home: home(request),
        words: words(request),
        errors,
    })
}

/// Has the second change of an image begin with what the first one leaves.
fn follow_each_other(missing: &mut [Missing]) {
    let mut last: Option<(PathBuf, Recorded)> = None;
    for Missing {
        image, need, change, ..
    } in missing
    {
        let Some(change) = change else { continue };
        if let Some((_, recorded)) = last.take().filter(|(other, _)| other == image) {
            let to = std::mem::replace(&mut change.to, recorded.clone());
            match need {
                Need::Backing => change.to.backing = to.backing,
                Need::DataFile => change.to.data_file = to.data_file,
            }
            change.from = recorded;
        }
        last = Some((image.clone(), change.to.clone()));
    }
}

const OPERATION: &str = "heal";

fn words(request: &Request) -> String {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let all = |paths: &[PathBuf]| Vec::from_iter(paths.iter().map(absolute));
    let (places, search) = (all(&request.places), all(&request.search));
    format!("{places:?} {search:?} {}", request.by_name)
}

/// Where the journal is: in the first place, or beside it.
fn home(request: &Request) -> PathBuf {
    let first = request.places.first().map_or(Path::new("."), PathBuf::as_path);
    match first.is_dir() {
        true => first.to_owned(),
        false => folder_of(first),
    }
}

/// The journal of the same that was cut off.
///
/// # Errors
/// [`ErrorKind::Locked`] while it runs.
pub fn unfinished(request: &Request) -> Result<Option<Journal>> {
    interrupted(&[home(request)], OPERATION, &words(request))
}

fn read_header(image: &Image) -> Result<Header> {
    let file = LocalFile::open(image.path(), &OpenOptions::new().lock(LockMode::None))?;
    Ok(Header::read(&StorageBytes::new(&file)?)?)
}

/// What an image is to record so that it finds the file; `None` where it cannot.
fn change(header: &Header, need: Need, image: &Path, found: &Path) -> Option<Change> {
    let from = Recorded::of(header).ok()?;
    let old = match need {
        Need::Backing => &from.backing.as_ref()?.text,
        Need::DataFile => from.data_file.as_ref()?,
    };
    let is_relative = Reference::parse(old, Reading::Catena).is_ok_and(|reference| reference.is_relative());
    let path = if is_relative {
        relative(image, found)?
    } else {
        std::path::absolute(found).ok()?
    };
    let text = path.into_os_string().into_string().ok()?;
    // A colon before any slash would be a protocol.
    let slash = text.find('/').unwrap_or(text.len());
    let text = match text.find(':') {
        Some(colon) if colon < slash => format!("./{text}"),
        _ => text,
    };
    let mut to = from.clone();
    match need {
        Need::Backing => {
            to.backing = Some(Link {
                text,
                format: from.backing.as_ref()?.format.clone(),
            });
        }
        Need::DataFile => to.data_file = Some(text),
    }
    to.put_in(header).ok()?;
    Some(Change { from, to })
}

/// The way from an image's folder to a file.
fn relative(image: &Path, file: &Path) -> Option<PathBuf> {
    let folder = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()
    };
    let (from, to) = (folder(image)?, folder(file)?);
    let common = { from.components().zip(to.components()) }
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    let down = to.components().skip(common);
    Some(up.chain(down).collect::<PathBuf>().join(file.file_name()?))
}

impl Plan {
    /// What is missing, by the images that need it.
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Has every image record what was decided for it, each under a lock that excludes every other user. One that somebody uses, or that may
    /// not be written, does not keep the others from it: what became of each stands in the order of [`Plan::missing`], `None` where nothing
    /// was decided.
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<Vec<Option<Result<()>>>> {
        let mut script = Script::new(OPERATION, &self.words);
        let mut outcomes = Vec::new();
        for Missing { image, change, .. } in &self.missing {
            let outcome = change.as_ref().map(|Change { from, to }| {
                check_free(image)?;
                let image = std::path::absolute(image)
                    .map_err(|error| catena_storage::Error::from_io(error, "find").with_path(image))?;
                script.steps.push(Step::Relink {
                    image,
                    from: from.clone(),
                    to: to.clone(),
                });
                Ok(())
            });
            outcomes.push(outcome);
        }
        script.execute(&self.home, policy, observer)?;
        Ok(outcomes)
    }
}

/// Whether an image may be written, and nobody uses it.
fn check_free(image: &Path) -> Result<()> {
    let options = OpenOptions::new().write(true).lock(LockMode::Write);
    match LocalFile::open(image, &options) {
        Ok(_) => Ok(()),
        Err(error) => Err(in_use(
            error.into(),
            "stop it first: an image in use is not written",
        )),
    }
}

impl Change {
    /// What the image will record for that, fit to be shown.
    pub fn records(&self, need: Need) -> String {
        match need {
            Need::Backing => {
                { self.to.backing.as_ref() }.map_or_else(String::new, |link| link.shown().into_owned())
            }
            Need::DataFile => self.to.data_file.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.need {
            Need::Backing => "backing image",
            Need::DataFile => "data file",
        };
        write!(
            f,
            "{}: the {what} '{}' is missing; ",
            self.image.display(),
            self.recorded
        )?;
        let quoted = |path: &Path, evidence: &Evidence| match evidence.to_string() {
            said if said.is_empty() => format!("'{}'", path.display()),
            said => format!("'{}' ({said})", path.display()),
        };
        match (&self.found, self.candidates.as_slice()) {
            (Some(found), _) => {
                let why = match found.by {
                    By::Stamp => "it is this, by its stamp",
                    By::Lineage => "it is this, by its stamp, and was rewritten since",
                    By::Sibling => "it is this, by the stamp of another overlay of it",
                    By::NameAndContent => "it is this, by its name and content",
                    By::Name => "this has its name, and may be it",
                };
                let place = match found.by {
                    By::Stamp | By::Lineage => format!("'{}'", found.path.display()),
                    _ => quoted(&found.path, &found.evidence),
                };
                write!(f, "{why}: {place}")?;
                match &self.change {
                    Some(change) => write!(f, ", recorded as '{}'", change.records(self.need))?,
                    None if found.by != By::Name => {
                        f.write_str(", which the image cannot be made to record")?
                    }
                    None => {}
                }
            }
            (None, []) => f.write_str("it was not found")?,
            (None, [one]) => write!(f, "this could be it: {}", quoted(&one.path, &one.evidence))?,
            (None, several) => {
                let names: Vec<_> = several
                    .iter()
                    .map(|one| quoted(&one.path, &one.evidence))
                    .collect();
                write!(f, "each of these could be it: {}", names.join(", "))?;
            }
        }
        match self.users.as_slice() {
            [] => Ok(()),
            users => write!(f, "; the image is used by {}", users.join(", ")),
        }
    }
}
