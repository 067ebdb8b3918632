//! The forest: all images below some folders, and which stands on which.
//!
//! A qcow2 image knows only the way down. Looking at the headers of everything in some folders tells the way up: who would
//! suffer if an image were deleted, moved or written. Images are known by identity (device and inode), so a base that is
//! reached through links or by several names is one image. What lies outside the folders is looked at where an image names it
//! and the policy lets it be opened; who stands on an image from a folder that was not searched stays unknown.
//!
//! A reference counts whoever wrote it, even a guest into a raw disk: an image that may be depended on is not one that
//! can be deleted. Nothing here is a chain to be read; that is for [`crate::detect()`], which believes less.

mod header;
mod index;
mod search;
mod sizes;
mod stamps;
mod walk;

pub use header::{Header, Recorded};
pub use index::Index;
pub use search::{Around, Search};
pub use sizes::Sizes;
pub use stamps::Known;
pub use walk::{STAGING, TRASH};

use crate::policy::{Policy, Role};
use crate::reference::{LostKind, Source, without_credentials};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use walk::{Entry, Stat, walk};

/// An object of this host: device and inode; a block device by its number alone.
pub type Object = (u64, u64);

/// Headers that a thread reads before it asks for more work.
const BATCH: usize = 64;

/// Images, and which stands on which.
#[derive(Debug, Default)]
pub struct Forest {
    images: Vec<Image>,
    objects: HashMap<Object, usize>,
    /// Folders of what was removed and is kept for a while.
    pub trash: Vec<PathBuf>,
    /// Folders of imports that run or were cut off.
    pub staging: Vec<PathBuf>,
    /// Folders that could not be read: what lies there is not known.
    pub errors: Vec<Error>,
}

/// An image.
#[derive(Debug)]
pub struct Image {
    /// Its names: real ones before links, in order. Never none.
    pub names: Vec<PathBuf>,
    /// Which object it is.
    pub object: Object,
    /// Whether it lies where was searched, and not merely where an image pointed.
    pub inside: bool,
    /// Bytes of the file.
    pub len: u64,
    /// Bytes on its medium.
    pub allocated: u64,
    /// When its content changed last.
    pub modified: SystemTime,
    /// What its header says.
    pub header: Header,
    /// The image below it.
    pub backing: Option<Edge>,
    /// The file that holds its data.
    pub data_file: Option<Edge>,
    /// The images that have it as their backing image, by their numbers.
    pub overlays: Vec<usize>,
    /// The images that have it as their data file.
    pub data_of: Vec<usize>,
    /// The formats that its overlays record for it.
    pub taken_for: Vec<Format>,
}

/// What an image names.
#[derive(Debug)]
pub struct Edge {
    /// The name as recorded, fit to be shown.
    pub text: String,
    /// The format as recorded.
    pub format: Option<String>,
    /// Where it leads.
    pub to: To,
}

/// Where a name leads.
#[derive(Debug)]
pub enum To {
    /// To an image of the forest, by its number.
    Image(usize),
    /// To a place on this host where there is nothing, or nothing that can be opened.
    Broken(Option<PathBuf>, Error),
    /// To something on this host that was not looked at.
    Outside(Object),
    /// Away from this host.
    Elsewhere,
}

impl Image {
    /// Its name: the first of them.
    pub fn path(&self) -> &Path {
        self.names.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// The format it is used in: the one that all of its overlays record, else what its header looks like.
    pub fn format(&self) -> Format {
        match self.taken_for.split_first() {
            Some((first, others)) if others.iter().all(|other| other == first) => *first,
            _ => self.header.format,
        }
    }

    /// The number of the image below it, where that is in the forest.
    pub fn base(&self) -> Option<usize> {
        self.backing.as_ref().and_then(Edge::image)
    }

    /// Whether any image needs this one.
    pub fn is_needed(&self) -> bool {
        !(self.overlays.is_empty() && self.data_of.is_empty())
    }

    /// Whether there is anything about it but bytes: it is in a format, or in a relation.
    pub fn is_image(&self) -> bool {
        self.header.format != Format::Raw || self.is_needed()
    }

    /// Why what it names cannot be reached.
    pub fn broken(&self) -> impl Iterator<Item = (&Edge, &Error)> {
        let edges = self.backing.iter().chain(&self.data_file);
        edges.filter_map(|edge| match &edge.to {
            To::Broken(_, error) => Some((edge, error)),
            _ => None,
        })
    }
}

impl Edge {
    /// The number of the image that it leads to.
    pub fn image(&self) -> Option<usize> {
        match self.to {
            To::Image(number) => Some(number),
            _ => None,
        }
    }
}

impl Forest {
    /// Looks at everything in the places to be searched, and at what is named elsewhere as far as a policy lets it be opened;
    /// at nothing else without one. Headers that an index knows already are not read again; without an index, all are.
    pub fn grow(search: &Search, policy: Option<&Policy>, index: Option<&Index>) -> Self {
        let walked = walk(&search.places);
        let mut forest = Self {
            trash: walked.trash,
            staging: walked.staging,
            errors: walked.errors,
            ..Self::default()
        };
        let mut stats = Vec::new();
        let mut names: HashMap<PathBuf, usize> = HashMap::with_capacity(walked.entries.len());
        for Entry { path, stat, .. } in walked.entries {
            let number = *forest.objects.entry(stat.object).or_insert_with(|| {
                stats.push(stat);
                forest.images.push(Image::new(&stat, true));
                forest.images.len() - 1
            });
            names.insert(path.clone(), number);
            if let Some(image) = forest.images.get_mut(number) {
                image.names.push(path);
            }
        }
        forest.read_headers(&stats, index);
        forest.connect(&mut names, policy);
        forest
    }

    /// The images, by their numbers.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The number of the image of this name, whichever of its names that is.
    pub fn find(&self, path: &Path) -> Result<Option<usize>> {
        let metadata = std::fs::metadata(path)
            .map_err(|error| catena_storage::Error::from_io(error, "find").with_path(path))?;
        Ok(Stat::of(&metadata).and_then(|stat| self.number_of(stat.object)))
    }

    /// The number of an object, where it is of the forest.
    pub fn number_of(&self, object: Object) -> Option<usize> {
        self.objects.get(&object).copied()
    }

    /// Everything that needs an image, directly or through others, nearest first; each once.
    pub fn dependents(&self, number: usize) -> Vec<usize> {
        self.reach(number, |image| {
            image.overlays.iter().chain(&image.data_of).copied().collect()
        })
    }

    /// Everything that an image needs, directly or through others, nearest first; each once.
    pub fn needs(&self, number: usize) -> Vec<usize> {
        self.reach(number, |image| {
            let edges = image.data_file.iter().chain(&image.backing);
            edges.filter_map(Edge::image).collect()
        })
    }

    fn reach(&self, number: usize, next: impl Fn(&Image) -> Vec<usize>) -> Vec<usize> {
        let mut seen = std::collections::HashSet::from([number]);
        let mut found = Vec::new();
        let mut front = vec![number];
        while !front.is_empty() {
            let images = front.iter().filter_map(|number| self.images.get(*number));
            let nearer: Vec<_> = images
                .flat_map(&next)
                .filter(|number| seen.insert(*number))
                .collect();
            found.extend(&nearer);
            front = nearer;
        }
        found
    }

    fn read_headers(&mut self, stats: &[Stat], index: Option<&Index>) {
        let done = AtomicUsize::new(0);
        let images = &self.images;
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let work = || {
            let mut read = Vec::new();
            loop {
                let start = done.fetch_add(BATCH, Ordering::Relaxed);
                if start >= images.len() {
                    return read;
                }
                for (number, (image, stat)) in images.iter().zip(stats).enumerate().skip(start).take(BATCH) {
                    read.push((number, header_of(image.path(), stat, index)));
                }
            }
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        for (number, header) in parts.into_iter().flatten() {
            if let Some(image) = self.images.get_mut(number) {
                image.header = header;
            }
        }
    }

    /// Follows what every image names, and what the images found so name.
    fn connect(&mut self, names: &mut HashMap<PathBuf, usize>, policy: Option<&Policy>) {
        let mut number = 0;
        while let Some(image) = self.images.get(number) {
            let owner = Source::file(image.path());
            let backing = image.header.backing.clone();
            let data_file = image.header.data_file.clone();
            let backing = backing.map(|recorded| {
                let edge = self.edge(&recorded.names, &owner, Role::Backing, names, policy);
                Edge {
                    format: recorded.format,
                    ..edge
                }
            });
            let data_file = data_file.map(|name| self.edge(&[name], &owner, Role::DataFile, names, policy));
            if let Some(edge) = &backing
                && let Some(below) = edge.image().and_then(|below| self.images.get_mut(below))
            {
                below.overlays.push(number);
                let format = edge.format.as_deref().and_then(Format::from_recorded);
                below.taken_for.extend(format);
            }
            if let Some(file) = data_file
                .as_ref()
                .and_then(Edge::image)
                .and_then(|file| self.images.get_mut(file))
            {
                file.data_of.push(number);
                file.taken_for.push(Format::Raw);
            }
            if let Some(image) = self.images.get_mut(number) {
                image.backing = backing;
                image.data_file = data_file;
            }
            number += 1;
        }
    }

    fn edge(
        &mut self,
        recorded: &[Vec<u8>],
        owner: &Source,
        role: Role,
        names: &mut HashMap<PathBuf, usize>,
        policy: Option<&Policy>,
    ) -> Edge {
        let text = recorded
            .first()
            .map(|name| String::from_utf8_lossy(name))
            .unwrap_or_default();
        let text = without_credentials(&text).into_owned();
        let to = match crate::detect::reference_by_names(recorded, owner) {
            Err(error) => To::Broken(None, Error::new(ErrorKind::BadReference, error.to_string())),
            Ok(reference) if reference.has_lost(LostKind::Credentials) => To::Elsewhere,
            Ok(reference) => {
                let source = reference.resolve(owner);
                match source.path() {
                    None => To::Elsewhere,
                    Some(path) => match self.reach_image(path, &text, &source, role, names, policy) {
                        Ok(to) => to,
                        Err(error) => To::Broken(Some(path.to_owned()), error),
                    },
                }
            }
        };
        Edge {
            text,
            format: None,
            to,
        }
    }

    /// The image at a place that another one names; one that is not of the forest yet becomes so.
    fn reach_image(
        &mut self,
        path: &Path,
        text: &str,
        source: &Source,
        role: Role,
        names: &mut HashMap<PathBuf, usize>,
        policy: Option<&Policy>,
    ) -> Result<To> {
        if let Some(number) = names.get(path) {
            return Ok(To::Image(*number));
        }
        let failed = |error| catena_storage::Error::from_io(error, "find").with_path(path);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let stat = Stat::of(&metadata).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "it is no file and no block device").with_path(path)
        })?;
        if let Some(number) = self.objects.get(&stat.object) {
            names.insert(path.to_owned(), *number);
            return Ok(To::Image(*number));
        }
        let Some(policy) = policy else {
            return Ok(To::Outside(stat.object));
        };
        policy.check(text, source, role)?;
        let file = policy.open(path)?;
        let stat = Stat {
            object: file.identity().map_or(stat.object, |identity| identity.object()),
            ..stat
        };
        let mut image = Image::new(&stat, false);
        // A name that is joined to that of an image in this folder begins with './', which says nothing.
        image
            .names
            .push(path.strip_prefix(".").unwrap_or(path).to_owned());
        image.header = Header::read(&file, path, &stat).unwrap_or_else(|error| unread(&stat, &error));
        let number = self.images.len();
        self.images.push(image);
        self.objects.insert(stat.object, number);
        names.insert(path.to_owned(), number);
        Ok(To::Image(number))
    }
}

impl Image {
    fn new(stat: &Stat, inside: bool) -> Self {
        let since = u64::try_from(stat.modified).unwrap_or(0);
        Self {
            names: Vec::new(),
            object: stat.object,
            inside,
            len: stat.len,
            allocated: stat.allocated,
            modified: UNIX_EPOCH + Duration::from_nanos(since),
            header: Header::raw(stat.len),
            backing: None,
            data_file: None,
            overlays: Vec::new(),
            data_of: Vec::new(),
            taken_for: Vec::new(),
        }
    }
}

fn header_of(path: &Path, stat: &Stat, index: Option<&Index>) -> Header {
    // An empty file says nothing, and there are file systems on which all are.
    if stat.len == 0 && !stat.block_device {
        return Header::raw(0);
    }
    if let Some(known) = index.and_then(|index| index.get(path, stat)) {
        return known;
    }
    let open = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None));
    let header = open
        .map_err(Error::from)
        .and_then(|file| Header::read(&file, path, stat))
        .unwrap_or_else(|error| unread(stat, &error));
    if let Some(index) = index {
        index.learn(path, stat, &header);
    }
    header
}

/// A header that could not be read: what the file is stays unknown.
fn unread(stat: &Stat, error: &Error) -> Header {
    Header {
        trouble: Some(error.to_string()),
        ..Header::raw(stat.len)
    }
}
