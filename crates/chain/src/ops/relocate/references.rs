//! What images record of each other while files move, and afterwards.
//!
//! An image that has two names for a while is led to its base from both. What was recorded relative to the image stays so, what
//! leads right anyhow stays as it is, and no name grows: each is made anew from where things are.

use super::leads::{Leads, When, relative};
use crate::chain::{Link, Origin};
use crate::detect::{Start, detect, reference_by_names};
use crate::forest::Image;
use crate::ops::script::Recorded;
use crate::policy::Policy;
use crate::reference::{Location, Reference, Source};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_format::qcow2::Header;
use catena_storage::{LocalFile, LockMode, OpenOptions};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// What an image records now, while its old names and new ones are there, and afterwards.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub now: Recorded,
    pub during: Recorded,
    pub after: Recorded,
}

/// The same of one name that it records.
struct Name {
    now: String,
    during: String,
    after: String,
}

/// The names by which an image is reached.
pub(super) struct Reached<'a> {
    /// One by which it is there now.
    pub now: &'a Path,
    /// All while files move.
    pub during: &'a [PathBuf],
    /// All afterwards.
    pub after: &'a [PathBuf],
}

/// How the references of an image change; `None` where they do not.
pub(super) fn change(
    image: &Image,
    reached: &Reached<'_>,
    leads: &Leads,
    policy: &Policy,
) -> Result<Option<Change>> {
    let failed = |error: Error| error.with_path(reached.now);
    let data_file = image.header.data_file.clone().map(|name| vec![name]);
    let backing = image.header.backing.as_ref().map(|backing| backing.names.clone());
    let [backing, data_file] = [backing, data_file].map(|names| match names {
        Some(names) => name(&names, reached, leads),
        None => Ok(None),
    });
    let (backing, data_file) = (backing.map_err(failed)?, data_file.map_err(failed)?);
    let stays = |name: &Option<Name>| {
        name.as_ref()
            .is_none_or(|name| name.now == name.after && name.now == name.during)
    };
    if stays(&backing) && stays(&data_file) {
        return Ok(None);
    }
    // It is somebody's raw disk, in which a guest wrote what looks like a header.
    if image.format() == Format::Raw {
        return Ok(None);
    }
    if image.header.format != Format::Qcow2 {
        return Err(failed(
            Error::new(
                ErrorKind::Unsupported,
                format!("what a {} image records cannot be rewritten", image.header.format),
            )
            .with_hint(
                "move what it names along with it, or have it hold everything itself: 'catena convert'",
            ),
        ));
    }
    let file = LocalFile::open(reached.now, &OpenOptions::new().lock(LockMode::None))?;
    let bytes = catena_engine::StorageBytes::new(&file)?;
    let header = Header::read(&bytes).map_err(|error| failed(error.into()))?;
    let now = Recorded::of(&header).map_err(failed)?;
    let with = |choose: fn(&Name) -> &String| {
        let mut recorded = now.clone();
        if let (Some(link), Some(name)) = (&mut recorded.backing, &backing) {
            choose(name).clone_into(&mut link.text);
        }
        if let (Some(text), Some(name)) = (&mut recorded.data_file, &data_file) {
            choose(name).clone_into(text);
        }
        recorded
    };
    let mut change = Change {
        during: with(|name| &name.during),
        after: with(|name| &name.after),
        now,
    };
    if let Some(Link { format: None, .. }) = &change.now.backing
        && !stays(&backing)
        && let Some(format) = believed(reached.now, policy)
    {
        for recorded in [&mut change.during, &mut change.after] {
            if let Some(link) = &mut recorded.backing {
                link.format = Some(format.clone());
            }
        }
    }
    for recorded in [&change.during, &change.after] {
        recorded.put_in(&header).map_err(failed)?;
    }
    Ok(Some(change))
}

/// What an image records now, where it is one that others could be led to by rewriting that.
pub(super) fn records(image: &Image, path: &Path) -> Option<Recorded> {
    let names_others = image.header.backing.is_some() || image.header.data_file.is_some();
    if !names_others || image.header.format != Format::Qcow2 || image.format() == Format::Raw {
        return None;
    }
    let file = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None)).ok()?;
    Recorded::read(&file).ok()
}

/// The format for which the backing image of an image that records none is taken, if that may be believed.
fn believed(image: &Path, policy: &Policy) -> Option<String> {
    let chain = detect(&Start::at(image, Some(Format::Qcow2)), policy);
    let backing = chain.layers.get(1)?;
    matches!(backing.origin, Origin::Probed(_)).then(|| backing.format.qemu().unwrap_or("raw").to_owned())
}

/// What becomes of a recorded name; `None` where it leads to no file of this host.
fn name(names: &[Vec<u8>], reached: &Reached<'_>, leads: &Leads) -> Result<Option<Name>> {
    let Ok(reference) = reference_by_names(names, &Source::file(reached.now)) else {
        return Ok(None);
    };
    let leads_to = |reference: &Reference, from: &Path, when| {
        let source = reference.resolve(&Source::file(from));
        leads.follow(source.path()?, when)
    };
    let resolved = reference.resolve(&Source::file(reached.now));
    let Some(Ok(old)) = resolved.path().map(std::fs::canonicalize) else {
        return Ok(None);
    };
    let new = leads.new_of(&old).unwrap_or(&old);
    let fits_after = |reference: &Reference| {
        let mut names = reached.after.iter();
        names.all(|name| leads_to(reference, name, When::After).as_deref() == Some(new))
    };
    let fits_during = |reference: &Reference| {
        let mut names = reached.during.iter();
        names.all(|name| leads_to(reference, name, When::During).is_some_and(|to| to == old || to == new))
    };
    let written = |path: &Path| -> Result<(String, Reference)> {
        let bad =
            |error: crate::reference::ReferenceError| Error::new(ErrorKind::BadReference, error.to_string());
        let mut source = resolved.clone();
        match &mut source.location {
            Location::File(place) | Location::Block(place) => path.clone_into(place),
            _ => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "what it names is no file, and moves",
                ));
            }
        }
        let text = source.to_recorded().map_err(bad)?;
        let reference = Reference::parse(&text, reference.reading()).map_err(bad)?;
        Ok((text, reference))
    };
    let now = names
        .first()
        .map(|name| String::from_utf8_lossy(name).into_owned());
    let now = now.unwrap_or_default();
    let mut after = (now.clone(), reference.clone());
    let moves = !reached.after.iter().any(|name| name == reached.now);
    let climbs = |name: &OsStr| {
        Path::new(name)
            .components()
            .any(|part| part == Component::ParentDir)
    };
    // Or else it would go back and forth with every move.
    if !fits_after(&reference) || (moves && reference.relative_name().is_some_and(climbs)) {
        if !reference.lost().is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "its reference says more than where a file is, which would be lost if it were rewritten",
            ));
        }
        after = written(new)?;
        let folder = reached.after.first().and_then(|name| name.parent());
        if let (true, None, Some(folder)) = (reference.is_relative(), resolved.slice, folder) {
            let relative = written(&relative(folder, new))?;
            if fits_after(&relative.1) {
                after = relative;
            }
        }
    }
    let during = if fits_during(&after.1) {
        after.0.clone()
    } else {
        written(new)?.0
    };
    Ok(Some(Name {
        now,
        during,
        after: after.0,
    }))
}
