//! The overlays of an image that is written, and goes on to show what it did: their stamps say nothing meanwhile, and are taken
//! anew when it is done.

use super::{suspended, take_held};
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::forest::{Forest, Search, To};
use crate::open::in_use;
use crate::ops::{change_stamp, folder_of};
use crate::policy::{ChangedBase, Policy};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::qcow2::Header;
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Overlays with stamps, locked against every other user.
pub(crate) struct Overlays {
    files: Vec<(PathBuf, LocalFile)>,
}

impl Overlays {
    /// Suspends the stamps of those that stand on the active image of a chain: those that are named, and those that lie beside it.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where somebody uses one.
    pub fn suspend(chain: &Chain, named: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        let image = chain
            .active()
            .filter(|_| chain.changed_base != ChangedBase::Ignore);
        if let Some(image) = image {
            let mut seen = BTreeSet::new();
            for path in beside(image).iter().chain(named) {
                let Some(file) = stamped(path)? else { continue };
                if seen.insert(file.identity().map(|identity| identity.object())) {
                    files.push((path.clone(), file));
                }
            }
        }
        let suspend = |header: &Header| Ok(header.stamp().map(suspended));
        for (path, file) in &files {
            change_stamp(file, suspend).map_err(|error| error.with_path(path))?;
        }
        Ok(Self { files })
    }

    /// Takes them anew, of the image as it is by now.
    pub fn renew(self, image: &Layer) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let path = image.path().unwrap_or(Path::new(""));
        let chain = detect(&Start::at(path, Some(image.format)), &Policy::libvirt());
        let now = chain
            .active()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the image has gone").with_path(path))?;
        for (path, file) in &self.files {
            let renewed = change_stamp(file, |header| match &header.backing {
                Some(backing) => take_held(now, &backing.name, header.backing_format()).map(Some),
                None => Ok(None),
            });
            renewed.map_err(|error| error.with_path(path))?;
        }
        Ok(())
    }
}

/// The images in the folder of one that stand on it.
fn beside(image: &Layer) -> Vec<PathBuf> {
    let Some(folder) = image.path().map(folder_of) else {
        return Vec::new();
    };
    let search = Search {
        places: vec![folder],
        levels: 0,
    };
    let forest = Forest::grow(&search, None, None);
    let object = image.object();
    let stands = |image: &&crate::forest::Image| match image.backing.as_ref().map(|edge| &edge.to) {
        Some(To::Image(number)) => forest.images().get(*number).map(|base| base.object) == object,
        Some(To::Outside(outside)) => Some(*outside) == object,
        _ => false,
    };
    let overlays = forest.images().iter().filter(stands);
    overlays.map(|overlay| overlay.path().to_owned()).collect()
}

/// An overlay that has a stamp, open and locked.
fn stamped(path: &Path) -> Result<Option<LocalFile>> {
    let looked = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None))?;
    let header = Header::read(&StorageBytes::new(&looked)?);
    if !header.is_ok_and(|header| header.stamp().is_some()) {
        return Ok(None);
    }
    let options = OpenOptions::new().write(true).lock(LockMode::Write);
    let locked = LocalFile::open(path, &options);
    let how = "stop it first: its stamp is about what is to be written";
    locked.map(Some).map_err(|error| in_use(error.into(), how))
}
