//! Heal: overlays whose backing image or data file is not where they record it are told where it is now.
//!
//! What is missing is looked for in the folders that the caller names, and nowhere else. An image that has the fingerprint of the
//! overlay's stamp is certainly it; one of its name, format and a size that fits may be it, and is taken only if the caller says
//! so; of others it is only told. A header change is all that is ever done, one image at a time, and what was relative stays so.

use super::observer::Observer;
use super::script::{self, Recorded};
use crate::chain::Link;
use crate::detect::{Start, detect};
use crate::forest::{Edge, Forest, Image, Search, To};
use crate::policy::Policy;
use crate::reference::{Reading, Reference};
use crate::stamp;
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::Format;
use catena_format::qcow2::{Header, Stamp};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Images that could be the missing one and are told of.
const TOLD: usize = 8;

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
    pub found: Option<(PathBuf, By)>,
    /// Images that could be it, where none is it for certain.
    pub candidates: Vec<PathBuf>,
    /// What the image is to record, where that is decided.
    pub change: Option<Change>,
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
    /// Folders that could not be looked into.
    pub errors: Vec<Error>,
}

/// Looks for what is missing, and decides.
pub fn plan(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<Plan> {
    let all = request.places.iter().chain(&request.search);
    let mut forest = Forest::grow(&Search::below(all), None, None);
    let errors = std::mem::take(&mut forest.errors);
    let mut seeker = Seeker {
        forest: &forest,
        policy,
        known: HashMap::new(),
    };
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
                open.extend(next.and_then(|(path, _)| forest.find(path).ok().flatten()));
                missing.push(found);
            }
        }
    }
    missing.sort_by(|a, b| a.image.cmp(&b.image));
    Ok(Plan { missing, errors })
}

/// Looks for files in a forest.
struct Seeker<'a> {
    forest: &'a Forest,
    policy: &'a Policy,
    /// What the stamps of images would be that were looked at.
    known: HashMap<(usize, Format), Option<Stamp>>,
}

impl Seeker<'_> {
    fn find(
        &mut self,
        number: usize,
        image: &Image,
        need: Need,
        edge: &Edge,
        gone: &Path,
        by_name: bool,
    ) -> Missing {
        let mut missing = Missing {
            image: image.path().to_owned(),
            need,
            recorded: edge.text.clone(),
            found: None,
            candidates: Vec::new(),
            change: None,
        };
        let header = read_header(image);
        let format = match need {
            Need::Backing => edge.format.as_deref().and_then(Format::from_recorded),
            Need::DataFile => Some(Format::Raw),
        };
        // Nothing that stands on the image can be below it.
        let above: BTreeSet<usize> = self.forest.dependents(number).into_iter().collect();
        let images = self.forest.images().iter().enumerate();
        let others: Vec<(usize, &Image)> = images
            .filter(|(other, _)| *other != number && !above.contains(other))
            .filter(|(_, other)| other.inside && is_of_format(other, format))
            .collect();
        let is_namesake = |other: &Image| {
            other
                .names
                .iter()
                .any(|name| name.file_name() == gone.file_name())
        };
        let (namesakes, strangers): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(_, other)| is_namesake(other));
        let stamp = header.as_ref().ok().and_then(|header| {
            let stamp = header.stamp().filter(|_| need == Need::Backing)?;
            (stamp.reference == stamp::reference_of(header)).then(|| stamp.clone())
        });
        if let Some(stamp) = &stamp {
            // Copies of one image are it too; the one of its name is the one that was meant.
            for group in [&namesakes, &strangers] {
                let same: Vec<_> = { group.iter() }
                    .filter(|(number, other)| self.is_of_stamp(*number, other, format, stamp))
                    .map(|(_, other)| other.path().to_owned())
                    .collect();
                match same.as_slice() {
                    [] => continue,
                    [one] => missing.found = Some((one.clone(), By::Stamp)),
                    _ => missing.candidates = same,
                }
                break;
            }
        } else {
            let size = (need == Need::Backing)
                .then_some(image.header.virtual_size)
                .flatten();
            let fits = |other: &Image| {
                size.is_none_or(|size| other.header.virtual_size.is_some_and(|of| of <= size))
            };
            let named: Vec<_> = { namesakes.iter() }
                .filter(|(_, other)| fits(other))
                .map(|(_, other)| other.path().to_owned())
                .collect();
            // A raw image of some size could be anything.
            let alike = strangers.iter().filter(|(_, other)| {
                need == Need::Backing
                    && other.header.format != Format::Raw
                    && other.header.virtual_size == size
            });
            match named.as_slice() {
                [one] => missing.found = Some((one.clone(), By::Name)),
                [] => {
                    missing.candidates = alike
                        .map(|(_, other)| other.path().to_owned())
                        .take(TOLD)
                        .collect()
                }
                _ => missing.candidates = named,
            }
        }
        let (Some((found, by)), Ok(header)) = (&missing.found, &header) else {
            return missing;
        };
        if *by == By::Stamp || by_name {
            missing.change = change(header, need, image.path(), found);
        }
        missing
    }

    fn is_of_stamp(&mut self, number: usize, image: &Image, format: Option<Format>, stamp: &Stamp) -> bool {
        if image.header.virtual_size != Some(stamp.virtual_size) {
            return false;
        }
        let format = format.unwrap_or(image.header.format);
        let policy = self.policy;
        let known = self.known.entry((number, format)).or_insert_with(|| {
            let chain = detect(&Start::at(image.path(), Some(format)), policy);
            stamp::take(chain.active()?, &[], None).ok()
        });
        known.as_ref().is_some_and(|known| known.same_base(stamp))
    }
}

fn is_of_format(image: &Image, format: Option<Format>) -> bool {
    // What an overlay says is raw may look like anything.
    format.is_none_or(|format| format == Format::Raw || image.header.format == format)
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

    /// Has every image record what was decided for it, each under a lock that excludes every other user. One that cannot be changed
    /// does not keep the others from it: what became of each stands in the order of [`Plan::missing`], `None` where nothing was decided.
    pub fn execute(&self) -> Vec<Option<Result<()>>> {
        let heal = |missing: &Missing| {
            let change = missing.change.as_ref()?;
            Some(script::record(&missing.image, &change.from, &change.to))
        };
        self.missing.iter().map(heal).collect()
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
        match (&self.found, self.candidates.as_slice()) {
            (Some((found, by)), _) => {
                let why = match by {
                    By::Stamp => "it is this, by its stamp",
                    By::Name => "this has its name, and may be it",
                };
                write!(f, "{why}: '{}'", found.display())?;
                match &self.change {
                    Some(change) => write!(f, ", recorded as '{}'", change.records(self.need)),
                    None if *by == By::Stamp => f.write_str(", which the image cannot be made to record"),
                    None => Ok(()),
                }
            }
            (None, []) => f.write_str("it was not found"),
            (None, [one]) => write!(f, "this could be it: '{}'", one.display()),
            (None, several) => {
                let names: Vec<_> = several
                    .iter()
                    .map(|path| format!("'{}'", path.display()))
                    .collect();
                write!(f, "each of these could be it: {}", names.join(", "))
            }
        }
    }
}
