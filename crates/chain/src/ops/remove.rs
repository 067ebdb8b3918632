//! Removing images: refused while anything stands on them, unless those take in first what they would lose.
//!
//! Who stands on an image is told by a [`Forest`]: an overlay in a folder that was not searched is not found.

use super::choice::LayerChoice;
use super::copy::Moving;
use super::folder_of;
use super::observer::Observer;
use super::script::{FileId, Script, Step};
use super::stream;
use crate::detect::Start;
use crate::forest::{Around, Forest, Image, TRASH};
use crate::open::in_use;
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How the folders in it are called: when that was, in UTC.
const TRASH_TIME: &str = "%Y-%m-%dT%H%M%SZ";
/// Overlays that an error names.
const NAMED: usize = 4;

/// What to remove.
#[derive(Clone, Debug)]
pub struct Request {
    /// The images.
    pub images: Vec<PathBuf>,
    /// Where those are looked for that stand on them.
    pub around: Around,
    /// What becomes of those.
    pub overlays: Overlays,
    /// Whether the images are kept for a while.
    pub trash: bool,
}

/// What becomes of overlays of what is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlays {
    /// Where there are any, nothing is removed.
    #[default]
    Refuse,
    /// They take in what the removed images hold, and stand on what those stood on.
    Merge,
    /// They take in everything that they show, and stand on nothing.
    Flatten,
}

/// A removal, decided.
#[derive(Debug)]
pub struct Plan {
    /// What is done.
    pub script: Script,
    home: PathBuf,
    /// Files that go.
    pub files: usize,
    /// Bytes that they take on their medium.
    pub freed: u64,
    /// Bytes that overlays take in.
    pub copied: u64,
    /// Folders that could not be looked into: who stands on the images from there is not known.
    pub unknown: Vec<Error>,
}

/// Decides what is removed and in which order, and that it may be.
///
/// # Errors
/// [`ErrorKind::ViewWouldChange`] where overlays stand on an image and nothing is said about them, [`ErrorKind::Locked`] where somebody
/// uses one.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let Some(first) = request.images.first() else {
        return Err(Error::new(ErrorKind::NotFound, "no image is named"));
    };
    if let Some(link) = request.images.iter().find(|image| image.is_symlink()) {
        let message = "it is a symbolic link, and the image is elsewhere";
        return Err(Error::new(ErrorKind::Conflict, message).with_path(link));
    }
    let forest = Forest::grow(&request.around.widely(&request.images), Some(policy), None);
    let going = Going::find(&forest, &request.images)?;

    let (mut steps, mut copied) = (Vec::new(), 0);
    for overlay in going.overlays(request.overlays)? {
        let base = match request.overlays {
            Overlays::Flatten => None,
            Overlays::Merge | Overlays::Refuse => going.kept_below(overlay),
        };
        let image = absolute(overlay.path())?;
        let base = base.map(|base| absolute(base.path())).transpose()?;
        copied += what_it_takes_in(&image, base.as_ref(), policy)?;
        // What others stand on is what the disk was at one time.
        let dated = overlay.is_needed().then(|| since_1970(overlay.modified));
        steps.push(Step::Stream { image, base, dated });
    }
    let when = Timestamp::now().strftime(TRASH_TIME).to_string();
    let mut folders = BTreeSet::new();
    let files = going.overlays_first();
    for image in &files {
        check_unused(image)?;
        let path = absolute(image.path())?;
        let file = FileId::of(&path)?;
        if request.trash {
            steps.extend(to_trash(path, file, &when, &mut folders));
        } else {
            let kept = None;
            steps.push(Step::Delete { path, file, kept });
        }
    }
    Ok(Plan {
        script: Script {
            steps,
            ..Script::new("rm", words(request))
        },
        home: folder_of(first),
        files: files.len(),
        freed: files.iter().map(|image| image.allocated).sum(),
        copied,
        unknown: forest.errors,
    })
}

/// The request as its journal knows it.
pub fn words(request: &Request) -> String {
    let mut images: Vec<_> = { request.images.iter() }
        .map(|image| std::path::absolute(image).unwrap_or_else(|_| image.clone()))
        .collect();
    images.sort();
    format!("{:?} {images:?} {}", request.overlays, request.trash)
}

/// What is removed, and the forest that it is part of.
struct Going<'a> {
    forest: &'a Forest,
    numbers: BTreeSet<usize>,
}

impl<'a> Going<'a> {
    /// The images, and the data files that nobody else needs.
    fn find(forest: &'a Forest, images: &[PathBuf]) -> Result<Self> {
        let mut numbers = BTreeSet::new();
        for path in images {
            numbers.insert(forest.find(path)?.ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "it is no file and no block device").with_path(path)
            })?);
        }
        let mut going = Self { forest, numbers };
        let data: Vec<_> = { going.images() }
            .filter_map(|image| image.data_file.as_ref()?.image())
            .filter(|number| going.needs(*number).is_empty())
            .collect();
        going.numbers.extend(data);
        Ok(going)
    }

    fn images(&self) -> impl Iterator<Item = &'a Image> {
        let forest = self.forest;
        self.numbers
            .iter()
            .filter_map(|number| forest.images().get(*number))
    }

    /// The images that stay and need one.
    fn needs(&self, number: usize) -> Vec<usize> {
        let image = self.forest.images().get(number);
        { image.into_iter() }
            .flat_map(|image| image.overlays.iter().chain(&image.data_of))
            .copied()
            .filter(|user| !self.numbers.contains(user))
            .collect()
    }

    /// The images that stay and stand on what goes, each once.
    fn overlays(&self, fate: Overlays) -> Result<Vec<&'a Image>> {
        let mut overlays = BTreeSet::new();
        for number in &self.numbers {
            let Some(image) = self.forest.images().get(*number) else {
                continue;
            };
            let others = self.needs(*number);
            if fate == Overlays::Refuse && !others.is_empty() {
                return Err(self.refusal(*number, image, &others));
            }
            if let Some(user) = others.iter().find(|user| image.data_of.contains(user)) {
                let user = self.forest.images().get(*user).map_or(Path::new(""), Image::path);
                let message = format!("it holds the data of '{}'", user.display());
                return Err(Error::new(ErrorKind::Conflict, message).with_path(image.path()));
            }
            overlays.extend(others);
        }
        Ok(overlays
            .into_iter()
            .filter_map(|number| self.forest.images().get(number))
            .collect())
    }

    fn refusal(&self, number: usize, image: &Image, users: &[usize]) -> Error {
        let all = self.forest.dependents(number);
        let mut names: Vec<_> = users
            .iter()
            .filter_map(|user| self.forest.images().get(*user))
            .map(|user| format!("'{}'", user.path().display()))
            .collect();
        names.sort();
        if names.len() > NAMED {
            let more = format!("{} more", names.len() - NAMED);
            names.truncate(NAMED);
            names.push(more);
        }
        let further = all.len().saturating_sub(users.len());
        let further = match further {
            0 => String::new(),
            further => format!(", and {further} more on those"),
        };
        Error::new(
            ErrorKind::ViewWouldChange,
            format!("it is needed by {}{further}", names.join(", ")),
        )
        .with_path(image.path())
        .with_hint(
            "with --merge they take in what it holds, and stand on what it stood on; with --flatten they take in everything; \
             --dry-run tells how much that is",
        )
    }

    /// The nearest image below that stays.
    fn kept_below(&self, overlay: &Image) -> Option<&'a Image> {
        let mut below = overlay.base();
        // Each that goes is passed once, so that a chain that comes back to itself ends.
        for _ in 0..=self.numbers.len() {
            let number = below?;
            let image = self.forest.images().get(number)?;
            if !self.numbers.contains(&number) {
                return Some(image);
            }
            below = image.base();
        }
        None
    }

    /// What goes: overlays before what they stand on, images before their data.
    fn overlays_first(&self) -> Vec<&'a Image> {
        let mut numbers: Vec<_> = { self.numbers.iter() }
            .map(|number| (self.forest.needs(*number).len(), *number))
            .collect();
        numbers.sort_unstable_by_key(|(needs, number)| (std::cmp::Reverse(*needs), *number));
        { numbers.into_iter() }
            .filter_map(|(_, number)| self.forest.images().get(number))
            .collect()
    }
}

/// Bytes that an image takes in to stand on a base. That it can is found out on the way.
fn what_it_takes_in(image: &Path, base: Option<&PathBuf>, policy: &Policy) -> Result<u64> {
    let request = stream::Request {
        start: Start::at(image, None),
        base: base.cloned().map(LayerChoice::Path),
        moving: Moving::default(),
        compressed: false,
        dated: None,
    };
    Ok(stream::plan(&request, policy)?.to_copy())
}

/// The steps that bring a file into the trash beside it.
fn to_trash(path: PathBuf, file: FileId, when: &str, folders: &mut BTreeSet<PathBuf>) -> Vec<Step> {
    let trash = folder_of(&path).join(TRASH);
    let folder = trash.join(when);
    let to = folder.join(path.file_name().unwrap_or_default());
    let mut steps = Vec::new();
    if folders.insert(trash.clone()) {
        steps.extend([trash, folder].map(|path| Step::Folder { path, like: None }));
    }
    steps.push(Step::Rename { from: path, to, file });
    steps
}

/// Seconds and nanoseconds.
pub(super) fn since_1970(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    (seconds, since.subsec_nanos())
}

fn check_unused(image: &Image) -> Result<()> {
    let options = OpenOptions::new().lock(LockMode::Write);
    match LocalFile::open(image.path(), &options) {
        Ok(_) => Ok(()),
        Err(error) => Err(in_use(
            error.into(),
            "stop it first: an image in use is not removed",
        )),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        catena_storage::Error::from_io(error, "find")
            .with_path(path)
            .into()
    })
}

impl Plan {
    /// Does it. What is cut off is finished by [`super::script::interrupted`], or by hand.
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script.execute(&self.home, policy, observer)
    }
}
