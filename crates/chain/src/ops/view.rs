//! What a guest sees, and whether two views are the same.
//!
//! Identity beats reading: where both maps lead to the same bytes of the same file, the views are equal and nothing is
//! read. Only what the maps do not settle is compared byte by byte.

use super::observer::Observer;
use crate::chain::{Chain, Layer};
use crate::open::Sharing;
use catena_engine::{Disk, Extent, ExtentKind, FileRole, GuestOffset, HostOffset, Result, Stack};

/// Content is compared in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// An open stack that remembers which file each extent is in.
#[derive(Debug)]
pub struct View {
    stack: Stack,
    /// For each layer the objects that are its image file and its data file.
    objects: Vec<Objects>,
}

#[derive(Debug)]
struct Objects {
    image: Option<(u64, u64)>,
    data: Option<(u64, u64)>,
}

/// The same bytes of the same file, however they are reached.
#[derive(PartialEq, Eq)]
enum Place {
    Zero,
    Bytes { object: (u64, u64), offset: HostOffset },
    Compressed { object: (u64, u64), offset: HostOffset },
}

impl View {
    /// The view of these layers, active one first.
    pub fn open(layers: &[&Layer], sharing: Sharing) -> Result<Self> {
        let images = layers.iter().map(|layer| layer.stacked(sharing));
        let stack = Stack::new(images.collect::<Result<Vec<_>>>()?);
        let objects = layers
            .iter()
            .map(|layer| Objects {
                image: layer.file.as_ref().map(|file| file.identity.object()),
                data: layer
                    .data_file
                    .as_ref()
                    .and_then(|data| data.file.as_ref().ok())
                    .map(|file| file.identity.object()),
            })
            .collect();
        Ok(Self { stack, objects })
    }

    /// The view of a layer put on top of another chain, whose end must be known.
    pub fn over(layer: &Layer, backing: Option<&Chain>, sharing: Sharing) -> Result<Self> {
        if let Some(backing) = backing {
            backing.check_complete()?;
        }
        let below = backing.map(|chain| chain.layers.as_slice()).unwrap_or_default();
        Self::open(&std::iter::once(layer).chain(below).collect::<Vec<_>>(), sharing)
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.stack.size()
    }

    fn place(&self, extent: &Extent) -> Option<Place> {
        let objects = usize::try_from(extent.layer)
            .ok()
            .and_then(|layer| self.objects.get(layer));
        match extent.kind {
            ExtentKind::Zero { .. } | ExtentKind::Unallocated => Some(Place::Zero),
            ExtentKind::Data { file, offset } => {
                let object = objects.and_then(|objects| match file {
                    FileRole::Image => objects.image,
                    FileRole::Data => objects.data,
                })?;
                Some(Place::Bytes { object, offset })
            }
            ExtentKind::Compressed { offset, .. } => {
                // Of a part of a cluster the guest address, which both sides share, tells which part.
                Some(Place::Compressed {
                    object: objects?.image?,
                    offset,
                })
            }
            _ => None,
        }
    }
}

/// The first guest address at which two views differ; `None` where they are the same.
///
/// A shorter disk differs from a longer one at its end.
pub fn first_difference(a: &View, b: &View, observer: &dyn Observer) -> Result<Option<GuestOffset>> {
    let end = GuestOffset(a.size().min(b.size()));
    let mut at = GuestOffset(0);
    while at < end {
        let (left, right) = (a.stack.extents(at, end)?, b.stack.extents(at, end)?);
        let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
        while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
            observer.check()?;
            let to = l.end().min(r.end());
            let (Some(l_part), Some(r_part)) = (l.clip(at, to), r.clip(at, to)) else {
                break;
            };
            let settled = a
                .place(&l_part)
                .is_some_and(|place| Some(place) == b.place(&r_part));
            if !settled && let Some(differs) = compare_bytes(a, b, at, to, observer)? {
                return Ok(Some(differs));
            }
            let (l_done, r_done) = (l.end() == to, r.end() == to);
            if l_done {
                left.next();
            }
            if r_done {
                right.next();
            }
            at = to;
            observer.progress(at.0, end.0);
        }
    }
    Ok((a.size() != b.size()).then_some(end))
}

fn compare_bytes(
    a: &View,
    b: &View,
    from: GuestOffset,
    to: GuestOffset,
    observer: &dyn Observer,
) -> Result<Option<GuestOffset>> {
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = from;
    while at < to {
        observer.check()?;
        let len = usize::try_from(to.0 - at.0).unwrap_or(PIECE).min(PIECE);
        let (Some(left), Some(right)) = (left.get_mut(..len), right.get_mut(..len)) else {
            break;
        };
        a.stack.read_at(left, at)?;
        b.stack.read_at(right, at)?;
        if left != right {
            let same = left.iter().zip(right.iter()).take_while(|(l, r)| l == r).count();
            return Ok(Some(at.plus(same as u64)));
        }
        at = at.plus(len as u64);
    }
    Ok(None)
}
