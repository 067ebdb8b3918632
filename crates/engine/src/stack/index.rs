//! The merged map as far as it is in memory: stretches, within a bound.
//!
//! Who looks up takes no lock and writes nothing that others read, so readers do not meet. Who adds a stretch may have to drop others: those
//! that were not used since they were last looked at, in turn. A stretch is dropped only when the last reader has let go of it.

use super::stretch::Stretch;
use crate::error::Result;
use arc_swap::ArcSwapOption;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The most places for stretches. On larger disks (4 TiB and more) several share one, and the last that was made has it.
const MOST_PLACES: u64 = 1 << 16;
/// Threads that miss the same stretch wait for one of them to make it; others seldom wait for these.
const MAKERS: u64 = 64;

pub(super) struct Index {
    places: Box<[ArcSwapOption<Stretch>]>,
    makers: Box<[Mutex<()>]>,
    held: Mutex<Held>,
    most_bytes: u64,
}

/// What is in memory, in the order in which it is looked at for dropping.
#[derive(Default)]
struct Held {
    turn: VecDeque<usize>,
    bytes: u64,
}

impl Index {
    /// An empty index of a disk of so many stretches, that takes about `most_bytes` of memory at most.
    pub(super) fn new(stretches: u64, most_bytes: u64) -> Self {
        let places = stretches.clamp(1, MOST_PLACES);
        Self {
            places: (0..places).map(|_| ArcSwapOption::empty()).collect(),
            makers: (0..MAKERS.min(places)).map(|_| Mutex::default()).collect(),
            held: Mutex::default(),
            most_bytes,
        }
    }

    /// Looks into a stretch, which is made where it is not in memory.
    pub(super) fn look_into<T>(
        &self,
        number: u64,
        make: impl FnOnce() -> Result<Stretch>,
        look: impl FnOnce(&Stretch) -> T,
    ) -> Result<T> {
        let place = usize::try_from(number % self.places.len() as u64).unwrap_or_default();
        let Some(here) = self.places.get(place) else {
            return Ok(look(&make()?));
        };
        let is_it = |stretch: &&Arc<Stretch>| stretch.number() == number;
        {
            let found = here.load();
            if let Some(stretch) = found.as_ref().filter(is_it) {
                stretch.mark_used();
                return Ok(look(stretch));
            }
        }
        let maker = self.makers.get(place % self.makers.len().max(1));
        let one_at_a_time = maker.map(|maker| maker.lock().unwrap_or_else(PoisonError::into_inner));
        let made = here.load_full();
        let stretch = match made.as_ref().filter(is_it) {
            Some(stretch) => Arc::clone(stretch),
            None => {
                let stretch = Arc::new(make()?);
                self.insert(place, Arc::clone(&stretch));
                stretch
            }
        };
        drop(one_at_a_time);
        Ok(look(&stretch))
    }

    fn insert(&self, place: usize, stretch: Arc<Stretch>) {
        let Some(here) = self.places.get(place) else {
            return;
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes = held.bytes.saturating_add(stretch.weight());
        match here.swap(Some(stretch)) {
            Some(former) => held.bytes = held.bytes.saturating_sub(former.weight()),
            None => held.turn.push_back(place),
        }
        // Everything gets a second chance if it was used.
        let mut chances = held.turn.len();
        while held.bytes > self.most_bytes
            && let Some(place) = held.turn.pop_front()
        {
            let Some(here) = self.places.get(place) else {
                continue;
            };
            let used = here.load().as_ref().is_some_and(|stretch| stretch.was_used());
            if used && chances > 0 {
                chances -= 1;
                held.turn.push_back(place);
            } else if let Some(dropped) = here.swap(None) {
                held.bytes = held.bytes.saturating_sub(dropped.weight());
            }
        }
    }

    /// Bytes of memory that the stretches take.
    pub(super) fn bytes(&self) -> u64 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("most_bytes", &self.most_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::GuestOffset;
    use crate::extent::{Extent, ExtentKind};

    const LEN: u64 = 1 << 26;

    fn empty(number: u64) -> Stretch {
        let (start, end) = (number * LEN, (number + 1) * LEN);
        let extent = Extent {
            start: GuestOffset(start),
            len: LEN,
            kind: ExtentKind::Unallocated,
            layer: 0,
        };
        Stretch::new(number, start, end, &[extent])
    }

    fn is_held(index: &Index, number: u64) -> bool {
        let mut made = false;
        let make = || {
            made = true;
            Ok(empty(number))
        };
        index.look_into(number, make, |_| ()).unwrap();
        !made
    }

    #[test]
    fn what_was_used_outlives_what_was_not() {
        let index = Index::new(100, empty(0).weight() * 4);
        for number in 0..4 {
            assert!(!is_held(&index, number));
        }
        // The first that does not fit costs everything its first chance, and one its place.
        assert!(!is_held(&index, 4));
        assert!(is_held(&index, 2));
        assert!(!is_held(&index, 5));
        assert!(is_held(&index, 2));
        assert!(index.bytes() <= empty(0).weight() * 4);
    }

    #[test]
    fn nothing_is_kept_within_no_memory_and_all_is_found_all_the_same() {
        let index = Index::new(4, 0);
        for number in [0, 3, 3, 1] {
            let found = index.look_into(number, || Ok(empty(number)), Stretch::number);
            assert_eq!(found.unwrap(), number);
            assert_eq!(index.bytes(), 0);
        }
    }

    #[test]
    fn a_vast_disk_has_few_places_and_each_stretch_is_still_itself() {
        let index = Index::new(u64::MAX / LEN, 1 << 20);
        for number in [7, 7 + MOST_PLACES, 7, 7 + 3 * MOST_PLACES] {
            let found = index.look_into(number, || Ok(empty(number)), Stretch::number);
            assert_eq!(found.unwrap(), number);
        }
        assert_eq!(index.bytes(), empty(0).weight());
    }
}
