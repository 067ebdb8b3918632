//! Where images are looked for.
//!
//! No image records its overlays, so they are looked for where they are likely to be, where somebody says, and where they were
//! seen before. One that is elsewhere is not found; nobody can find it without knowing where to look.

use super::{Forest, Index, To};
use catena_engine::Result;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folders and single files to look at.
#[derive(Clone, Debug, Default)]
pub struct Search {
    pub(super) places: Vec<Place>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub path: PathBuf,
    /// Levels of folders below it that are looked into: with 0, what lies in it alone.
    pub levels: usize,
    /// Whether nobody asked for it: that it cannot be looked into is no news.
    pub guessed: bool,
}

impl Search {
    /// In these folders and everything below them.
    pub fn below(places: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self::default().and(places, usize::MAX)
    }

    /// In these folders too, with so many levels of folders below.
    #[must_use]
    pub fn and(self, places: impl IntoIterator<Item = impl Into<PathBuf>>, levels: usize) -> Self {
        self.with(places, levels, false)
    }

    fn with(
        mut self,
        places: impl IntoIterator<Item = impl Into<PathBuf>>,
        levels: usize,
        guessed: bool,
    ) -> Self {
        self.places.extend(places.into_iter().map(|path| Place {
            path: path.into(),
            levels,
            guessed,
        }));
        self
    }
}

/// Where those are looked for that stand on an image.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Folders beside the image's own.
    pub folders: Vec<PathBuf>,
    /// What was seen before, wherever that was.
    pub index: Option<Arc<Index>>,
}

impl Around {
    /// In the folders of these images and those that were named, with everything below; in the folders beside the images' own,
    /// and the current one with those in it; and at what was seen before and named them.
    pub fn widely(&self, images: &[impl AsRef<Path>]) -> Search {
        let own = folders_of(images);
        let mut beside: BTreeSet<_> = std::env::current_dir().into_iter().collect();
        let absolute = own.iter().filter_map(|folder| std::path::absolute(folder).ok());
        beside.extend(absolute.filter_map(|folder| Some(folder.parent()?.to_owned())));
        beside.retain(|folder| is_of_somebody(folder));
        Search::below(own)
            .and(&self.folders, usize::MAX)
            .with(beside, 1, true)
            .with(self.seen(images), 0, true)
    }

    /// In the folders of these images and those that were named, without anything below, and at what was seen before.
    pub fn closely(&self, images: &[impl AsRef<Path>]) -> Search {
        Search::default()
            .and(folders_of(images), 0)
            .and(&self.folders, 0)
            .with(self.seen(images), 0, true)
    }

    /// The images of a forest, among these, that one needs which was seen before and is not of the forest.
    pub fn needed_elsewhere(&self, forest: &Forest, images: &[impl AsRef<Path>]) -> Result<Vec<usize>> {
        let mut needed = Vec::new();
        let seen = Forest::grow(&Search::below(self.seen(images)), None, None);
        for image in seen.images() {
            if forest.find(image.path())?.is_some() {
                continue;
            }
            for edge in image.backing.iter().chain(&image.data_file) {
                let object = match edge.to {
                    To::Image(number) => seen.images().get(number).map(|image| image.object),
                    To::Outside(object) => Some(object),
                    _ => None,
                };
                needed.extend(object.and_then(|object| forest.number_of(object)));
            }
        }
        Ok(needed)
    }

    fn seen(&self, images: &[impl AsRef<Path>]) -> Vec<PathBuf> {
        let names = { images.iter() }.flat_map(|image| {
            let real = std::fs::canonicalize(image).ok();
            [Some(image.as_ref().to_owned()), real].into_iter().flatten()
        });
        let names: BTreeSet<_> = names
            .filter_map(|path| path.file_name().map(OsStr::to_owned))
            .collect();
        self.index
            .as_ref()
            .map_or_else(Vec::new, |index| index.that_name(&names))
    }
}

/// Whether what lies in a folder may have to do with each other: everything lies below the root, and everybody's files in the
/// folders for temporary ones.
fn is_of_somebody(folder: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let sticky = std::fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & STICKY != 0);
    folder.parent().is_some() && !sticky
}

/// The folders that these files are in, as they are called, and in truth.
fn folders_of(images: &[impl AsRef<Path>]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for image in images {
        let image = image.as_ref();
        let real = std::fs::canonicalize(image).ok();
        let names = std::iter::once(image).chain(real.as_deref());
        folders.extend(names.map(crate::ops::folder_of));
    }
    folders.dedup();
    folders
}
