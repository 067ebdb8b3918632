//! The merged map of one stretch of guest addresses, packed: 16 bytes for each run, and at most 4 more to find it by.
//!
//! The stretch is cut into about as many equal parts as there are runs, and a table tells which run each part begins in. A look-up reads one
//! entry of it and a run or two: two lines of cache, however many runs there are, where they are spread evenly; where they are not, a binary
//! search among those of one part. Nothing changes after it was made, but whether it was used.

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
    /// The run that holds the first byte of each part of `1 << part_bits` bytes.
    parts: Box<[u32]>,
    part_bits: u32,
    runs: Box<[Run]>,
    /// Where the bytes of compressed clusters are, and how many.
    compressed: Box<[(HostOffset, u32)]>,
    used: AtomicBool,
}

/// A run: where it starts, from the start of the stretch on, its kind and layer, and an offset in two halves, so that nothing is lost to
/// alignment.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u32,
    tag: u32,
    high: u32,
    low: u32,
}

impl Stretch {
    /// Packs extents that fill `start..end`, in order and without gaps; fewer bytes than 32 bits count.
    pub(super) fn new(number: u64, start: u64, end: u64, extents: &[Extent]) -> Self {
        let mut compressed = Vec::new();
        let runs: Box<[Run]> = extents
            .iter()
            .map(|extent| Run::of(extent, start, &mut compressed))
            .collect();
        let last = end.saturating_sub(start).saturating_sub(1);
        let mut part_bits = 0;
        while last >> part_bits >= runs.len().max(1) as u64 {
            part_bits += 1;
        }
        let mut run = 0;
        let parts = (0..=last >> part_bits).map(|part| {
            let first_byte = part << part_bits;
            while runs
                .get(run + 1)
                .is_some_and(|next| u64::from(next.start) <= first_byte)
            {
                run += 1;
            }
            u32::try_from(run).unwrap_or(u32::MAX)
        });
        Self {
            number,
            start,
            end,
            parts: parts.collect(),
            part_bits,
            runs,
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
        let lists = size_of_val(&*self.parts) + size_of_val(&*self.runs) + size_of_val(&*self.compressed);
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
        let runs = self.runs.get(self.find(at)..).unwrap_or_default();
        let ends = runs.iter().skip(1).map(|next| self.address(next));
        runs.iter()
            .zip(ends.chain(std::iter::once(self.end)))
            .map(move |(run, end)| {
                let start = self.address(run);
                Extent {
                    start: GuestOffset(start),
                    len: end.saturating_sub(start),
                    kind: run.kind(&self.compressed),
                    layer: run.tag >> KIND_BITS,
                }
            })
    }

    /// The index of the run that holds `at`.
    fn find(&self, at: GuestOffset) -> usize {
        let inside = at.0.saturating_sub(self.start);
        let part = usize::try_from(inside >> self.part_bits).unwrap_or(usize::MAX);
        let run_at = |part: usize| self.parts.get(part).and_then(|run| usize::try_from(*run).ok());
        let first = run_at(part).unwrap_or_default();
        // The run that the next part begins in may begin in this one.
        let last = run_at(part.saturating_add(1)).unwrap_or(self.runs.len().saturating_sub(1));
        let candidates = self.runs.get(first..=last).unwrap_or_default();
        let behind = candidates.partition_point(|run| u64::from(run.start) <= inside);
        first.saturating_add(behind).saturating_sub(1)
    }

    fn address(&self, run: &Run) -> u64 {
        self.start.saturating_add(run.start.into())
    }
}

impl Run {
    fn of(extent: &Extent, stretch_start: u64, compressed: &mut Vec<(HostOffset, u32)>) -> Self {
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
            start: u32::try_from(extent.start.0.saturating_sub(stretch_start)).unwrap_or(u32::MAX),
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
        let runs = 9 * (16 + 4);
        assert!(stretch.weight() < runs + 2 * 16 + 128);
    }

    /// Runs of those lengths, each its own layer.
    fn layered(start: u64, lengths: impl IntoIterator<Item = u64>) -> Vec<Extent> {
        let mut at = start;
        (0..)
            .zip(lengths)
            .map(|(layer, len)| {
                at += len;
                Extent {
                    start: GuestOffset(at - len),
                    len,
                    kind: ExtentKind::Unallocated,
                    layer,
                }
            })
            .collect()
    }

    #[test]
    fn every_run_is_found_however_they_are_spread() {
        let start = 5 << 26;
        let even = layered(start, [1 << 16; 1024]);
        let crowded = layered(start, [512; 999].into_iter().chain([(1 << 26) - 999 * 512]));
        let growing = layered(start, (0..26).map(|power| 1 << power));
        let odd = layered(start, (0..500).map(|n| n * 7919 % 1013 * 512 + 1));
        for extents in [
            even,
            crowded,
            growing,
            odd,
            layered(start, [1]),
            layered(start, [1 << 26]),
        ] {
            let end = extents.last().unwrap().end().0;
            let stretch = Stretch::new(5, start, end, &extents);
            for extent in &extents {
                for at in [extent.start.0, extent.end().0 - 1] {
                    assert_eq!(stretch.from(GuestOffset(at)).next(), Some(*extent));
                }
            }
        }
    }
}
