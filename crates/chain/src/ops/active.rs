//! An overlay over every active image below some folders, or over images that are named: a snapshot of all disks at once.
//!
//! Active is an image on which nothing stands and which holds no other's data. A file that looks raw may be anything, so one is
//! taken for a disk only where somebody says so. What is chosen here is made by [`overlays`](super::overlays), all or none.

use super::overlays::Overlay;
use super::{folder_of, script};
use crate::forest::{Forest, Image, Search};
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Names of new overlays where none are asked for.
pub const NAMES: &str = "{stem}.{name}.qcow2";

/// Which images, and what their overlays are called.
#[derive(Clone, Debug)]
pub struct Request {
    /// The folders, with everything below.
    pub folders: Vec<PathBuf>,
    /// Images that get one, or nothing is done.
    pub images: Vec<PathBuf>,
    /// The snapshot's name.
    pub name: String,
    /// The overlays' names: `{stem}` is the image's without its suffix, `{file}` the image's, `{name}` the snapshot's.
    pub names: String,
    /// Files that get one as well, since they are raw disks, whatever they look like.
    pub raw: Vec<PathBuf>,
}

/// The request as its journal knows it.
pub fn words(request: &Request) -> String {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let all = |paths: &[PathBuf]| Vec::from_iter(paths.iter().map(absolute));
    let Request { name, names, .. } = request;
    format!(
        "{name} {names} {:?} {:?} {:?}",
        all(&request.folders),
        all(&request.images),
        all(&request.raw)
    )
}

/// What was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// The overlays, those that are there already among them, by name of what they stand on.
    pub overlays: Vec<Overlay>,
    /// Images that get none, with the reason.
    pub left_out: Vec<(PathBuf, String)>,
    /// Folders that could not be looked into.
    pub unknown: Vec<Error>,
}

/// Chooses. Headers are read anew.
///
/// # Errors
/// [`ErrorKind::Conflict`] for names that are none, and for an image that was named and can get no overlay.
pub fn choose(request: &Request, policy: &Policy) -> Result<Chosen> {
    let search = { Search::below(&request.folders) }
        .and(&request.images, 0)
        .and(&request.raw, 0);
    let mut forest = Forest::grow(&search, Some(policy), None);
    let unknown = std::mem::take(&mut forest.errors);
    let mut raw = Vec::new();
    for path in &request.raw {
        let number = forest.find(path)?;
        let active = number.filter(|number| is_active(&forest, *number, request));
        raw.push(active.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "it is not an image on which nothing stands").with_path(path)
        })?);
    }
    let mut chosen = Chosen {
        overlays: Vec::new(),
        left_out: Vec::new(),
        unknown,
    };
    for (number, image) in forest.images().iter().enumerate() {
        if !is_active(&forest, number, request) || is_made(&forest, number, request) {
            continue;
        }
        let (path, raw) = (image.path(), raw.contains(&number));
        let format = if raw { Format::Raw } else { image.header.format };
        match (&image.header.trouble, format) {
            (Some(trouble), _) if !raw => chosen.left_out.push((path.to_owned(), trouble.clone())),
            (_, Format::Qcow2) => chosen.take(image, format, request)?,
            // One that has its overlay already was said to be a disk when that was made.
            (_, Format::Raw) if raw || made(&forest, image, request).is_some() => {
                chosen.take(image, Format::Raw, request)?;
            }
            (_, Format::Raw) => {}
            (_, other) => {
                let why = format!("overlays of images in format '{other}' are not made");
                chosen.left_out.push((path.to_owned(), why));
            }
        }
    }
    for path in &request.images {
        chosen.check_takes(path, &forest)?;
    }
    chosen.overlays.sort_by(|a, b| a.base().cmp(b.base()));
    chosen.left_out.sort();
    Ok(chosen)
}

impl Chosen {
    /// Refuses an image that was named and gets no overlay.
    fn check_takes(&self, path: &Path, forest: &Forest) -> Result<()> {
        let image = forest.find(path)?.and_then(|number| forest.images().get(number));
        let refused = |message: &str| Error::new(ErrorKind::Conflict, message.to_owned()).with_path(path);
        let image = image.ok_or_else(|| refused("it is no file and no block device"))?;
        if { self.overlays.iter() }.any(|overlay| overlay.base() == image.path()) {
            return Ok(());
        }
        let why = self.left_out.iter().find(|(left, _)| left == image.path());
        Err(match why {
            Some((_, why)) => refused(why),
            None if image.is_needed() => refused("an image stands on it that is to get an overlay as well"),
            None => refused("it looks raw, and a file that does may be anything")
                .with_hint("if it is a raw disk, name it with --raw"),
        })
    }

    fn take(&mut self, image: &Image, format: Format, request: &Request) -> Result<()> {
        let name = name_of(image, request)?;
        self.overlays
            .push(Overlay::beside(&name, image.path().to_owned(), format)?);
        Ok(())
    }
}

/// Whether nothing stands on an image but the overlay that is to be made.
fn is_active(forest: &Forest, number: usize, request: &Request) -> bool {
    let Some(image) = forest.images().get(number) else {
        return false;
    };
    if !image.inside || script::is_part(image.path()) || !image.data_of.is_empty() {
        return false;
    }
    let made = made(forest, image, request);
    let fresh = |number: &usize| Some(*number) == made && others(forest, *number).next().is_none();
    others(forest, number).all(|overlay| fresh(&overlay))
}

/// Whether an image is the overlay that this request makes, of an image that it takes.
fn is_made(forest: &Forest, number: usize, request: &Request) -> bool {
    let base = { forest.images().get(number) }.and_then(Image::base);
    base.is_some_and(|base| {
        is_active(forest, base, request) && { forest.images().get(base) }
            .and_then(|base| made(forest, base, request))
            == Some(number)
    })
}

/// What stands on an image and is complete.
fn others(forest: &Forest, number: usize) -> impl Iterator<Item = usize> {
    let overlays = { forest.images().get(number) }.map_or(&[][..], |image| &image.overlays);
    let complete = |number: &usize| {
        let image = forest.images().get(*number);
        image.is_some_and(|image| !script::is_part(image.path()))
    };
    overlays.iter().copied().filter(complete)
}

/// The overlay of the name that this request gives it, where it is there and stands on the image.
fn made(forest: &Forest, image: &Image, request: &Request) -> Option<usize> {
    let path = folder_of(image.path()).join(name_of(image, request).ok()?);
    let number = forest.find(&path).ok()??;
    image.overlays.contains(&number).then_some(number)
}

fn name_of(image: &Image, request: &Request) -> Result<String> {
    let text = |part: Option<&OsStr>| part.and_then(OsStr::to_str).map(str::to_owned);
    let path = image.path();
    let parts = text(path.file_stem()).zip(text(path.file_name()));
    let (stem, file) =
        parts.ok_or_else(|| Error::new(ErrorKind::Unsupported, "its name is not UTF-8").with_path(path))?;
    // In one pass: what an image is called is no template.
    let mut name = String::new();
    let mut rest = request.names.as_str();
    while let Some(next) = rest.chars().next() {
        let known = [("{stem}", &stem), ("{file}", &file), ("{name}", &request.name)];
        let found = { known.iter() }.find_map(|(word, value)| Some((*value, rest.strip_prefix(word)?)));
        match found {
            Some((value, after)) => {
                name.push_str(value);
                rest = after;
            }
            None => {
                name.push(next);
                rest = rest.strip_prefix(next).unwrap_or_default();
            }
        }
    }
    if Path::new(&name).file_name() != Some(OsStr::new(&name)) {
        let message = format!("'{name}' is no name of a file");
        return Err(Error::new(ErrorKind::Conflict, message).with_path(path));
    }
    Ok(name)
}
