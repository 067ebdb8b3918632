//! Merging the layers' maps of a range into one, top down.
//!
//! What nobody has answered for yet is a list of gaps. A layer costs what it says about them, and a copy of the list: what it says nothing
//! about is not looked at one by one, for most layers of a deep stack say little about any stretch.

use super::Layer;
use crate::addr::GuestOffset;
use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use std::sync::LazyLock;

/// Fewer layers than this are merged faster than a thread is begun.
const FEW_LAYERS: usize = 8;
/// The least that is worth a thread, in guest bytes.
const PART: u64 = 64 << 20;

/// Asking the system reads several files, which costs more than a small merge.
static PROCESSORS: LazyLock<u64> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |processors| processors.get() as u64));

/// A range that no layer has answered for; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    start: u64,
    end: u64,
}

/// The merged map of `start..end`: in order and without gaps.
pub(super) fn merge(layers: &[Layer], start: u64, end: u64) -> Result<Vec<Extent>> {
    let mut gaps = Gaps {
        open: vec![Gap { start, end }],
        spare: Vec::new(),
    };
    let mut answered = Vec::new();
    let mut own = Vec::new();
    for (number, layer) in (0u32..).zip(layers) {
        let size = layer.image.virtual_size();
        gaps.close_from(size, number.saturating_sub(1), &mut answered);
        let (Some(first), Some(last)) = (gaps.open.first(), gaps.open.last()) else {
            break;
        };
        own.clear();
        layer
            .image
            .map(GuestOffset(first.start), GuestOffset(last.end), &mut own)
            .map_err(|error| error.with_path(&layer.path))?;
        gaps.answer(&own, number, &mut answered);
    }
    let bottom = u32::try_from(layers.len().saturating_sub(1)).unwrap_or(u32::MAX);
    gaps.close_from(0, bottom, &mut answered);
    answered.sort_unstable_by_key(|extent: &Extent| extent.start);
    let mut merged = Vec::with_capacity(answered.len());
    for extent in answered {
        extent.push_to(&mut merged);
    }
    Ok(merged)
}

/// The same by as many threads as there are processors, where there is enough to do.
pub(super) fn merge_by_many(layers: &[Layer], start: u64, end: u64) -> Result<Vec<Extent>> {
    if layers.len() < FEW_LAYERS {
        return merge(layers, start, end);
    }
    let part = end
        .saturating_sub(start)
        .div_ceil(*PROCESSORS)
        .next_multiple_of(PART)
        .max(PART);
    if end.saturating_sub(start) <= part {
        return merge(layers, start, end);
    }
    let begun = |from: u64| from.saturating_add(part).min(end);
    let parts = std::thread::scope(|scope| {
        let mut others = Vec::new();
        let mut from = begun(start);
        while from < end {
            let to = begun(from);
            others.push(scope.spawn(move || merge(layers, from, to)));
            from = to;
        }
        let mut parts = vec![merge(layers, start, begun(start))];
        parts.extend(others.into_iter().map(|other| match other.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        }));
        parts
    });
    let mut merged = Vec::new();
    for part in parts {
        for extent in part? {
            extent.push_to(&mut merged);
        }
    }
    Ok(merged)
}

/// What no layer has answered for yet.
struct Gaps {
    /// In order.
    open: Vec<Gap>,
    /// Where the next list is made.
    spare: Vec<Gap>,
}

impl Gaps {
    /// Nobody answers from `end` on: what is open there reads as zeros, and no further layer is asked.
    ///
    /// `asked` is the last layer that was asked.
    fn close_from(&mut self, end: u64, asked: u32, answered: &mut Vec<Extent>) {
        while let Some(last) = self.open.last_mut().filter(|last| last.end > end) {
            let cut = last.start.max(end);
            answered.push(Extent {
                start: GuestOffset(cut),
                len: last.end - cut,
                kind: ExtentKind::Unallocated,
                layer: asked,
            });
            last.end = cut;
            if last.start < cut {
                break;
            }
            self.open.pop();
        }
    }

    /// Fills what a layer says into the gaps. Its own map is in order.
    fn answer(&mut self, own: &[Extent], layer: u32, answered: &mut Vec<Extent>) {
        self.spare.clear();
        let mut rest = self.open.as_slice();
        // Everything before is dealt with.
        let mut done = 0;
        for extent in own.iter().filter(|extent| extent.kind != ExtentKind::Unallocated) {
            let (start, end) = (extent.start.0, extent.end().0);
            let before = rest.partition_point(|gap| gap.end <= start);
            let (untouched, touched) = rest.split_at_checked(before).unwrap_or_default();
            keep(untouched, done, &mut self.spare);
            rest = touched;
            while let Some((gap, later)) = rest.split_first().filter(|(gap, _)| gap.start < end) {
                let open_from = gap.start.max(done);
                if open_from < start {
                    self.spare.push(Gap {
                        start: open_from,
                        end: start,
                    });
                }
                let part = extent.clip(GuestOffset(open_from), GuestOffset(gap.end));
                answered.extend(part.map(|part| Extent { layer, ..part }));
                if gap.end > end {
                    break;
                }
                rest = later;
            }
            done = end;
        }
        if done > 0 {
            keep(rest, done, &mut self.spare);
            std::mem::swap(&mut self.open, &mut self.spare);
        }
    }
}

/// Appends gaps, what lies before `done` left out: only the first of them can begin there.
fn keep(gaps: &[Gap], done: u64, list: &mut Vec<Gap>) {
    if let Some((first, later)) = gaps.split_first() {
        list.push(Gap {
            start: first.start.max(done),
            end: first.end,
        });
        list.extend_from_slice(later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spans = Vec<(u64, u64)>;

    fn answers(spans: &[(u64, u64)]) -> Vec<Extent> {
        spans
            .iter()
            .map(|(start, end)| Extent {
                start: GuestOffset(*start),
                len: end - start,
                kind: ExtentKind::Zero { offset: None },
                layer: 0,
            })
            .collect()
    }

    fn after(open: &[(u64, u64)], own: &[(u64, u64)]) -> (Spans, Spans) {
        let mut gaps = Gaps {
            open: open
                .iter()
                .map(|(start, end)| Gap {
                    start: *start,
                    end: *end,
                })
                .collect(),
            spare: vec![Gap { start: 7, end: 9 }],
        };
        let mut answered = Vec::new();
        gaps.answer(&answers(own), 3, &mut answered);
        assert!(answered.iter().all(|extent| extent.layer == 3));
        (
            gaps.open.iter().map(|gap| (gap.start, gap.end)).collect(),
            answered
                .iter()
                .map(|extent| (extent.start.0, extent.end().0))
                .collect(),
        )
    }

    #[test]
    fn an_answer_closes_what_it_covers_and_nothing_else() {
        let open = [(0, 10), (20, 30), (40, 50)];
        assert_eq!(after(&open, &[]), (open.to_vec(), vec![]));
        assert_eq!(after(&open, &[(12, 18)]), (open.to_vec(), vec![]));
        assert_eq!(
            after(&open, &[(22, 24), (24, 26), (28, 45)]),
            (
                vec![(0, 10), (20, 22), (26, 28), (45, 50)],
                vec![(22, 24), (24, 26), (28, 30), (40, 45)]
            )
        );
        assert_eq!(after(&open, &[(0, 60)]), (vec![], open.to_vec()));
        assert_eq!(
            after(&open, &[(9, 21), (49, 50)]),
            (
                vec![(0, 9), (21, 30), (40, 49)],
                vec![(9, 10), (20, 21), (49, 50)]
            )
        );
    }
}
