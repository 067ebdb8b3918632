//! Compare: whether two disks show their guests the same, by `qemu-img compare`'s rules.

use super::input::{Input, OpenInput};
use super::observer::Observer;
use super::view::{View, first_difference_within, first_non_zero};
use crate::extents::Extents;
use crate::policy::Policy;
use catena_engine::{Disk, Extent, ExtentKind, GuestOffset, Result};

/// What to compare.
#[derive(Clone, Debug)]
pub struct Request {
    /// One disk.
    pub a: Input,
    /// The other.
    pub b: Input,
    /// Whether sizes, and what is data, zeros or nothing, must be the same as well.
    pub strict: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Guests see the same. `sizes` are given where they differ, the rest of the longer disk being zeros.
    Same {
        /// Bytes of both disks, where those are not the same.
        sizes: Option<(u64, u64)>,
    },
    /// The bytes differ.
    Content {
        /// First address of a byte that differs.
        at: GuestOffset,
        /// Bytes of both disks, where those are not the same.
        sizes: Option<(u64, u64)>,
    },
    /// One disk is longer, which matters when comparing strictly.
    Size {
        /// Bytes of both disks.
        sizes: (u64, u64),
    },
    /// What is allocated differs, which matters when comparing strictly.
    Status {
        /// First address of which the maps say something else.
        at: GuestOffset,
    },
}

impl Outcome {
    /// Whether guests see the same, and, when comparing strictly, everything else is the same too.
    pub fn is_same(self) -> bool {
        matches!(self, Self::Same { .. })
    }
}

/// Opens both disks and compares them.
pub fn compare(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<Outcome> {
    let OpenInput { view: a, chain: _a } = request.a.open(policy)?;
    let OpenInput { view: b, chain: _b } = request.b.open(policy)?;
    compare_views(&a, &b, request.strict, observer)
}

/// Compares two open disks.
pub fn compare_views(a: &View, b: &View, strict: bool, observer: &dyn Observer) -> Result<Outcome> {
    let sizes = (a.size() != b.size()).then(|| (a.size(), b.size()));
    if let Some(sizes) = sizes.filter(|_| strict) {
        return Ok(Outcome::Size { sizes });
    }
    let common = a.size().min(b.size());
    let status = if strict {
        first_status_mismatch(&**a.disk(), &**b.disk())?
    } else {
        None
    };
    // What comes first is told; where both do, the map.
    let end = status.map_or(common, |at| at.0);
    if let Some(at) = first_difference_within(a, b, end, observer)? {
        return Ok(Outcome::Content { at, sizes });
    }
    if let Some(at) = status {
        return Ok(Outcome::Status { at });
    }
    let longer = if a.size() > b.size() { a } else { b };
    match first_data(&**longer.disk(), common, observer)? {
        Some(at) => Ok(Outcome::Content { at, sizes }),
        None => Ok(Outcome::Same { sizes }),
    }
}

/// The first address from `start` on that does not read as zero.
fn first_data(disk: &dyn Disk, start: u64, observer: &dyn Observer) -> Result<Option<GuestOffset>> {
    let mut buffer = vec![0; 1 << 20];
    for extent in Extents::within(disk, GuestOffset(start), GuestOffset(disk.size())) {
        let extent = extent?;
        if is_zero(&extent) {
            continue;
        }
        let mut at = extent.start;
        while at < extent.end() {
            observer.check()?;
            let len = usize::try_from(extent.end().0 - at.0)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let piece = buffer.get_mut(..len).unwrap_or_default();
            disk.read_at(piece, at)?;
            if let Some(index) = first_non_zero(piece) {
                return Ok(Some(at.plus(index as u64)));
            }
            at = at.plus(len as u64);
        }
    }
    Ok(None)
}

fn is_zero(extent: &Extent) -> bool {
    matches!(extent.kind, ExtentKind::Zero { .. } | ExtentKind::Unallocated)
}

/// The first address that one map calls data, zeros or nothing, and the other something else.
fn first_status_mismatch(a: &dyn Disk, b: &dyn Disk) -> Result<Option<GuestOffset>> {
    let (mut left, mut right) = (Extents::of(a), Extents::of(b));
    let (mut l, mut r) = (left.next().transpose()?, right.next().transpose()?);
    while let (Some(one), Some(other)) = (l, r) {
        if status(&one) != status(&other) {
            return Ok(Some(one.start.max(other.start)));
        }
        if one.end() <= other.end() {
            l = left.next().transpose()?;
        }
        if other.end() <= one.end() {
            r = right.next().transpose()?;
        }
    }
    Ok(None)
}

fn status(extent: &Extent) -> (bool, bool) {
    let nothing = extent.kind == ExtentKind::Unallocated;
    (is_zero(extent), nothing)
}
