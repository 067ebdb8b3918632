//! What the stamps of a forest's images say of what they stand on.
//!
//! Headers and the files' lengths and times settle nearly all of it. Only a base that was written since a stamp was taken is looked
//! at, as [`crate::stamp::judge`] does, and no more than a bounded number of them: a forest is asked about often.

use super::{Forest, Image};
use crate::detect::{Start, detect};
use crate::policy::Policy;
use crate::stamp::{self, Stamped};
use catena_format::Format;
use catena_format::qcow2;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

/// Overlays whose bases are looked at; of further ones it is said that nobody did.
const MOST: usize = 256;

/// What a stamp says that can be compared without reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Bytes of the base's file, and of its data file.
    pub file_length: u64,
    /// When these were modified last, in nanoseconds since 1970.
    pub modified: Option<u64>,
    /// When the stamp was taken, in seconds since 1970.
    pub taken: u64,
    /// Whether it is about the reference that the image records.
    pub own: bool,
}

impl Known {
    /// Of a header with a stamp.
    pub(super) fn of(header: &qcow2::Header) -> Option<Self> {
        let stamp = header.stamp()?;
        Some(Self {
            file_length: stamp.file_length,
            modified: stamp.modified,
            taken: stamp.taken,
            own: stamp.reference == stamp::reference_of(header),
        })
    }
}

impl Forest {
    /// What the stamps of all images say of the images below them, by their numbers: the words of [`Stamped`], where those that
    /// stand on nothing that was found, or have no stamp, have [`Stamped::Not`].
    pub fn stamped(&self, policy: &Policy) -> Vec<Stamped> {
        let mut said: Vec<_> = self.images.iter().map(|image| self.glance(image)).collect();
        let doubtful = said.iter().enumerate().filter(|(_, said)| said.is_none());
        let doubtful: Vec<usize> = doubtful.map(|(number, _)| number).take(MOST).collect();
        for (number, stamped) in self.look(&doubtful, policy) {
            if let Some(said) = said.get_mut(number) {
                *said = Some(stamped);
            }
        }
        let not_looked = || Stamped::Unknown("it was written since, and not looked at".to_owned());
        said.into_iter()
            .map(|said| said.unwrap_or_else(not_looked))
            .collect()
    }

    /// What can be said of an image's base without reading; `None` where that is not enough.
    fn glance(&self, image: &Image) -> Option<Stamped> {
        let base = image.base().and_then(|base| self.images.get(base));
        let (Some(known), Some(base)) = (&image.header.stamp, base) else {
            return Some(Stamped::Not);
        };
        let data = base
            .data_file
            .as_ref()
            .and_then(|file| self.images.get(file.image()?));
        let files = || std::iter::once(base).chain(data);
        let length = files().map(|file| file.len).sum::<u64>();
        let modified = |file: &Image| {
            let since = file.modified.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok().filter(|time| *time != 0)
        };
        let times: Option<Vec<u64>> = files().map(modified).collect();
        let modified = times.and_then(|times| times.into_iter().max());
        let same = (known.file_length, known.modified) == (length, modified);
        (known.own && same && stamp::is_settled(modified, known.taken)).then_some(Stamped::Same)
    }

    /// Looks at the bases of some images.
    fn look(&self, numbers: &[usize], policy: &Policy) -> HashMap<usize, Stamped> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Some(image) = self.images.get(*number) else {
                    continue;
                };
                let chain = detect(&Start::at(image.path(), Some(Format::Qcow2)), policy);
                let stamped = match chain.layers.len() {
                    // It leads somewhere, and the policy does not let it be followed.
                    0 | 1 => Stamped::Unknown("what it stands on may not be looked at".to_owned()),
                    _ => chain.stamped(0),
                };
                found.push((*number, stamped));
            }
            found
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        std::thread::scope(|scope| {
            let threads: Vec<_> = { 0..threads.min(numbers.len()) }
                .map(|_| scope.spawn(work))
                .collect();
            let found = threads.into_iter().filter_map(|thread| thread.join().ok());
            found.flatten().collect()
        })
    }
}
