//! New images that are to be made together, and those of them that are there already: images that nobody has written.

use super::create::{self, Existing};
use super::script::{Blank, Step};
use catena_engine::{Error, Result, StorageBytes};
use catena_format::qcow2::{Header, NewImage};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The images.
#[derive(Debug, Default)]
pub(super) struct Together {
    missing: Vec<Missing>,
    /// How many are there already.
    there: usize,
}

/// One that is not there yet.
#[derive(Debug)]
struct Missing {
    path: PathBuf,
    image: Arc<NewImage>,
    /// The file whose owner and permissions it gets.
    like: Option<PathBuf>,
}

impl Together {
    /// Adds one. What is there must be what would be made, untouched.
    pub fn add(&mut self, path: &Path, image: &Arc<NewImage>, like: Option<&Path>) -> Result<()> {
        if path.symlink_metadata().is_err() {
            self.missing.push(Missing {
                path: path.to_owned(),
                image: Arc::clone(image),
                like: like.map(Path::to_owned),
            });
        } else if is_untouched(path, image)? {
            self.there += 1;
        } else {
            create::refuse_existing(path, Existing::Refuse)?;
        }
        Ok(())
    }

    /// Those that are made, in order.
    pub fn missing(&self) -> impl DoubleEndedIterator<Item = (&Path, &NewImage)> + ExactSizeIterator {
        self.missing
            .iter()
            .map(|missing| (missing.path.as_path(), missing.image.as_ref()))
    }

    /// How many are there already.
    pub fn there(&self) -> usize {
        self.there
    }

    /// The step that makes them; `None` where all are there.
    pub fn step(&self) -> Result<Option<Step>> {
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|error| Error::from(catena_storage::Error::from_io(error, "find").with_path(path)))
        };
        let mut images: Vec<Blank> = Vec::new();
        let mut last: Option<&Missing> = None;
        for missing in &self.missing {
            let name = absolute(&missing.path)?;
            let alike = last
                .is_some_and(|last| Arc::ptr_eq(&last.image, &missing.image) && last.like == missing.like);
            match images.last_mut().filter(|_| alike) {
                Some(image) => image.names.push(name),
                None => {
                    let like = missing.like.as_deref().map(absolute).transpose()?;
                    images.push(Blank::of(&missing.image, vec![name], like));
                }
            }
            last = Some(missing);
        }
        Ok((!images.is_empty()).then_some(Step::Create { images }))
    }
}

/// Whether a file is what would be written, byte for byte: an overlay that no guest has written.
fn is_untouched(path: &Path, image: &NewImage) -> Result<bool> {
    let file = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None))?;
    if file.is_block_device() || file.len()? != image.len {
        return Ok(false);
    }
    let mut expected = Blank::of(image, Vec::new(), None).bytes();
    // Two stamps of one base are two all the same: they were not taken at the same time.
    let mut header = image.header.clone();
    let ours = header.stamp().cloned();
    let theirs = Header::read(&StorageBytes::new(&file)?)
        .ok()
        .and_then(|found| found.stamp().cloned());
    if let (Some(ours), Some(theirs)) = (ours, theirs)
        && ours.same_base(&theirs)
    {
        header.set_stamp(Some(theirs));
        let bytes = header.encode()?;
        if let Some(place) = expected.get_mut(..bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
    let mut found = vec![0; expected.len()];
    file.read_at(&mut found, 0)?;
    Ok(found == expected)
}
