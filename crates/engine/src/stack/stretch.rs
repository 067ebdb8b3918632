//! The merged map of one stretch of guest addresses, packed: 16 bytes for each run.
//!
//! A look-up is a binary search over starts that lie side by side, 4 bytes each, so that even a stretch of a thousand runs is found in a few
//! lines of cache. Nothing changes after it was made, but whether it was used.

use crate::addr::{GuestOffset, HostOffset};
use crate::extent::{Extent, ExtentKind, FileRole};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bits of a tag that say what kind of run it is; those above are the layer.
const KIND_BITS: u32 = 3;

const DATA_IN_IMAGE: u32 = 0;
const DATA_IN_DATA_FILE: u32 = 1;
const ZERO: u32 = 2;
const ZERO_WITH_SPACE: u32 = 3;
const COMPRESSED: u32 = 4;
const ENCRYPTED: u32 = 5;
const UNALLOCATED: u32 = 6;
const CORRUPT: u32 = 7;

/// The runs of a stretch, in order and without gaps.
#[derive(Debug)]
pub(super) struct Stretch {
    number: u64,
    start: u64,
    end: u64,
    /// Where each run starts, from the start of the stretch on.
    starts: Box<[u32]>,
    places: Box<[Place]>,
    /// Where the bytes of compressed clusters are, and how many.
    compressed: Box<[(HostOffset, u32)]>,
    used: AtomicBool,
}

/// What a run is: kind and layer, and an offset in two halves, so that nothing is lost to alignment.
#[derive(Clone, Copy, Debug)]
struct Place {
    tag: u32,
    high: u32,
    low: u32,
}

impl Stretch {
    /// Packs extents that fill `start..end`, in order and without gaps; fewer bytes than 32 bits count.
    pub(super) fn new(number: u64, start: u64, end: u64, extents: &[Extent]) -> Self {
        let mut compressed = Vec::new();
        let starts = extents
            .iter()
            .map(|extent| u32::try_from(extent.start.0.saturating_sub(start)).unwrap_or(u32::MAX));
        Self {
            number,
            start,
            end,
            starts: starts.collect(),
            places: extents
                .iter()
                .map(|extent| Place::of(extent, &mut compressed))
                .collect(),
            compressed: compressed.into(),
            used: AtomicBool::new(true),
        }
    }

    /// Which stretch it is.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of memory it takes.
    pub(super) fn weight(&self) -> u64 {
        let lists = size_of_val(&*self.starts) + size_of_val(&*self.places) + size_of_val(&*self.compressed);
        (size_of::<Self>() + lists) as u64
    }

    /// Notes that it was used. What is shared by all threads is written only where that changes it.
    pub(super) fn mark_used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was used since this was last asked.
    pub(super) fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// The runs from the one that holds `at` on, whole.
    pub(super) fn from(&self, at: GuestOffset) -> impl Iterator<Item = Extent> {
        let inside = at.0.saturating_sub(self.start);
        let behind = self.starts.partition_point(|start| u64::from(*start) <= inside);
        let first = behind.saturating_sub(1);
        let starts = self.starts.get(first..).unwrap_or_default();
        let places = self.places.get(first..).unwrap_or_default();
        let address = |start: &u32| self.start.saturating_add((*start).into());
        let ends = starts
            .iter()
            .skip(1)
            .map(address)
            .chain(std::iter::once(self.end));
        starts
            .iter()
            .zip(places)
            .zip(ends)
            .map(move |((start, place), end)| {
                let start = address(start);
                Extent {
                    start: GuestOffset(start),
                    len: end.saturating_sub(start),
                    kind: place.kind(&self.compressed),
                    layer: place.tag >> KIND_BITS,
                }
            })
    }
}

impl Place {
    fn of(extent: &Extent, compressed: &mut Vec<(HostOffset, u32)>) -> Self {
        let (kind, offset) = match extent.kind {
            ExtentKind::Data {
                file: FileRole::Image,
                offset,
            } => (DATA_IN_IMAGE, offset.0),
            ExtentKind::Data {
                file: FileRole::Data,
                offset,
            } => (DATA_IN_DATA_FILE, offset.0),
            ExtentKind::Zero { offset: None } => (ZERO, 0),
            ExtentKind::Zero { offset: Some(offset) } => (ZERO_WITH_SPACE, offset.0),
            ExtentKind::Compressed { offset, len } => {
                compressed.push((offset, len));
                (COMPRESSED, compressed.len() as u64 - 1)
            }
            ExtentKind::Encrypted { offset } => (ENCRYPTED, offset.0),
            ExtentKind::Unallocated => (UNALLOCATED, 0),
            ExtentKind::Corrupt { entry } => (CORRUPT, entry.0),
        };
        let [a, b, c, d, e, f, g, h] = offset.to_be_bytes();
        Self {
            tag: extent.layer << KIND_BITS | kind,
            high: u32::from_be_bytes([a, b, c, d]),
            low: u32::from_be_bytes([e, f, g, h]),
        }
    }

    fn kind(self, compressed: &[(HostOffset, u32)]) -> ExtentKind {
        let number = u64::from(self.high) << 32 | u64::from(self.low);
        let offset = HostOffset(number);
        match self.tag & ((1 << KIND_BITS) - 1) {
            DATA_IN_IMAGE => ExtentKind::Data {
                file: FileRole::Image,
                offset,
            },
            DATA_IN_DATA_FILE => ExtentKind::Data {
                file: FileRole::Data,
                offset,
            },
            ZERO => ExtentKind::Zero { offset: None },
            ZERO_WITH_SPACE => ExtentKind::Zero { offset: Some(offset) },
            COMPRESSED => {
                let place = usize::try_from(number)
                    .ok()
                    .and_then(|number| compressed.get(number));
                let (offset, len) = place.copied().unwrap_or_default();
                ExtentKind::Compressed { offset, len }
            }
            ENCRYPTED => ExtentKind::Encrypted { offset },
            UNALLOCATED => ExtentKind::Unallocated,
            _ => ExtentKind::Corrupt { entry: offset },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_the_same() {
        let far = HostOffset(0x00ff_1234_5678_9abc);
        let kinds = [
            ExtentKind::Data {
                file: FileRole::Image,
                offset: far,
            },
            ExtentKind::Data {
                file: FileRole::Data,
                offset: HostOffset(512),
            },
            ExtentKind::Zero { offset: None },
            ExtentKind::Compressed {
                offset: far,
                len: u32::MAX,
            },
            ExtentKind::Zero { offset: Some(far) },
            ExtentKind::Encrypted { offset: far },
            ExtentKind::Unallocated,
            ExtentKind::Compressed {
                offset: HostOffset(1),
                len: 77,
            },
            ExtentKind::Corrupt { entry: far },
        ];
        let base = 3 << 26;
        let mut at = base;
        let extents: Vec<Extent> = (1..)
            .zip(kinds)
            .map(|(n, kind)| {
                let extent = Extent {
                    start: GuestOffset(at),
                    len: u64::from(n) * 511,
                    kind,
                    layer: n * 1_000_000,
                };
                at = extent.end().0;
                extent
            })
            .collect();
        let stretch = Stretch::new(3, base, at, &extents);
        for (n, extent) in extents.iter().enumerate() {
            for place in [extent.start, GuestOffset(extent.end().0 - 1)] {
                let found: Vec<Extent> = stretch.from(place).collect();
                assert_eq!(found, extents[n..]);
            }
        }
        let places = 9 * 16;
        assert!(stretch.weight() < places + 2 * 16 + 128);
    }
}
