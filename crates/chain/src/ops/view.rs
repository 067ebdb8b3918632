//! What a guest sees, and where two views differ.
//!
//! Identity beats reading: where both maps lead to the same bytes of the same file, the views are equal and nothing is
//! read. Only what the maps do not settle is compared byte by byte.

use super::aligned::AlignedBytes;
use super::copy::is_zero;
use super::line::{Line, Next, processors};
use super::observer::Observer;
use super::pieces::{Piece, Pieces, What};
use crate::chain::{Chain, Layer};
use crate::extents::Extents;
use crate::open::Sharing;
use catena_engine::{Disk, Extent, ExtentKind, FileRole, GuestOffset, HostOffset, Result, Stack};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are compared at once: little enough for both sides to stay in a processor's cache.
pub(super) const PIECE: u64 = 256 << 10;

/// An open disk that remembers which file each extent is in, where that is known.
#[derive(Clone)]
pub struct View {
    disk: Arc<dyn Disk>,
    /// For each layer the objects that are its image file and its data file; none of a disk that others opened.
    objects: Vec<Objects>,
}

#[derive(Clone, Debug)]
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
        Self::open_with(layers.iter().map(|layer| (*layer, sharing)))
    }

    /// The same, each layer shared in its own way.
    pub(super) fn open_with<'a>(layers: impl IntoIterator<Item = (&'a Layer, Sharing)>) -> Result<Self> {
        let mut images = Vec::new();
        let mut objects = Vec::new();
        for (layer, sharing) in layers {
            images.push(layer.stacked(sharing)?);
            objects.push(Objects::of(layer));
        }
        Ok(Self {
            disk: Arc::new(Stack::new(images).for_walking()),
            objects,
        })
    }

    /// The view of a disk that is open, whose layers are those of a chain.
    pub fn of_chain(disk: Arc<dyn Disk>, layers: &[Layer]) -> Self {
        let objects = layers.iter().map(Objects::of).collect();
        Self { disk, objects }
    }

    /// A disk of which nothing more is known.
    pub fn of_disk(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            objects: Vec::new(),
        }
    }

    /// The view of a layer put on top of another chain, whose end must be known.
    pub fn over(layer: &Layer, backing: Option<&Chain>, sharing: Sharing) -> Result<Self> {
        if let Some(backing) = backing {
            backing.check_complete()?;
        }
        let below = backing.map(|chain| chain.layers.as_slice()).unwrap_or_default();
        Self::open(&std::iter::once(layer).chain(below).collect::<Vec<_>>(), sharing)
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.disk.size()
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

impl Objects {
    fn of(layer: &Layer) -> Self {
        Self {
            image: layer.file.as_ref().map(|file| file.identity.object()),
            data: layer
                .data_file
                .as_ref()
                .and_then(|data| data.file.as_ref().ok())
                .map(|file| file.identity.object()),
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("size", &self.size())
            .field("objects", &self.objects)
            .finish_non_exhaustive()
    }
}

/// Two views side by side.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    /// What is wanted.
    pub a: &'a View,
    /// What it is held against.
    pub b: &'a View,
}

impl<'a> Pair<'a> {
    /// What is to be done about each stretch up to `end`, so that somebody who sees `b` will see `a`: nothing where the maps
    /// settle it, and where `spare` says so of `a`'s extent. A shorter view is zeros behind its end.
    pub fn stretches<F: Fn(&Extent) -> bool + 'a>(
        self,
        end: u64,
        spare: F,
    ) -> impl Iterator<Item = Result<Piece>> + use<'a, F> {
        Zip {
            left: Padded::new(&*self.a.disk, end),
            right: Padded::new(&*self.b.disk, end),
        }
        .map(move |parts| {
            let (a, b) = parts?;
            let place = self.a.place(&a);
            let settled = place.is_some() && place == self.b.place(&b);
            let what = if settled || spare(&a) {
                What::Skip
            } else if place == Some(Place::Zero) {
                What::Zero
            } else {
                What::Copy
            };
            Ok(Piece {
                what,
                start: a.start.0,
                end: a.end().0,
            })
        })
    }

    /// Fills both buffers with a stretch.
    pub fn read(&self, piece: &Piece, a: &mut AlignedBytes, b: &mut AlignedBytes) -> Result<()> {
        read_padded(&*self.a.disk, piece, a)?;
        read_padded(&*self.b.disk, piece, b)
    }
}

/// Fills a buffer with a stretch, zeros behind the end of the disk.
pub(super) fn read_padded(disk: &dyn Disk, piece: &Piece, buffer: &mut AlignedBytes) -> Result<()> {
    buffer.resize(piece.len());
    let there = disk.size().saturating_sub(piece.start).min(piece.len());
    let there = usize::try_from(there).unwrap_or(usize::MAX).min(buffer.len());
    let (on_disk, behind) = buffer.split_at_mut(there);
    behind.fill(0);
    if on_disk.is_empty() {
        return Ok(());
    }
    disk.read_at(on_disk, piece.offset())
}

/// The extents of a disk up to an end that it may not reach.
struct Padded<'a> {
    extents: Extents<'a, dyn Disk + 'a>,
    rest: Option<Extent>,
    next: Option<Extent>,
}

impl<'a> Padded<'a> {
    fn new(disk: &'a dyn Disk, end: u64) -> Self {
        let size = disk.size();
        let rest = Extent {
            start: GuestOffset(size),
            len: end.saturating_sub(size),
            kind: ExtentKind::Unallocated,
            layer: u32::MAX,
        };
        Self {
            extents: Extents::within(disk, GuestOffset(0), GuestOffset(end)),
            rest: (rest.len > 0).then_some(rest),
            next: None,
        }
    }

    fn peek(&mut self) -> Result<Option<Extent>> {
        if self.next.is_none() {
            self.next = match self.extents.next() {
                Some(extent) => Some(extent?),
                None => self.rest.take(),
            };
        }
        Ok(self.next)
    }

    /// Takes what lies before an address.
    fn take_to(&mut self, to: GuestOffset) {
        self.next = self.next.and_then(|extent| extent.clip(to, extent.end()));
    }
}

/// Two maps side by side, cut where either is.
struct Zip<'a> {
    left: Padded<'a>,
    right: Padded<'a>,
}

impl Zip<'_> {
    fn step(&mut self) -> Result<Option<(Extent, Extent)>> {
        let (Some(left), Some(right)) = (self.left.peek()?, self.right.peek()?) else {
            return Ok(None);
        };
        let (start, end) = (left.start.max(right.start), left.end().min(right.end()));
        let parts = left.clip(start, end).zip(right.clip(start, end));
        self.left.take_to(end);
        self.right.take_to(end);
        Ok(parts)
    }
}

impl Iterator for Zip<'_> {
    type Item = Result<(Extent, Extent)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// The first guest address at which two views differ; `None` where they are the same.
///
/// A shorter disk differs from a longer one at its end.
pub fn first_difference(a: &View, b: &View, observer: &dyn Observer) -> Result<Option<GuestOffset>> {
    let end = a.size().min(b.size());
    let found = first_difference_within(a, b, end, observer)?;
    Ok(found.or((a.size() != b.size()).then_some(GuestOffset(end))))
}

/// The first guest address before `end` at which two views differ, a shorter one being zeros behind its end.
pub fn first_difference_within(
    a: &View,
    b: &View,
    end: u64,
    observer: &dyn Observer,
) -> Result<Option<GuestOffset>> {
    let found = Mutex::new(None);
    side_by_side(
        Pair { a, b },
        end,
        observer,
        |_, a, b, differ| *differ = first_mismatch(a, b),
        |piece, differ| {
            let Some(differ) = *differ else {
                return Ok(Next::Go);
            };
            let at = piece.offset().plus(differ as u64);
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
            Ok(Next::Stop)
        },
    )?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Reads what two views' maps do not settle, by several threads, and delivers what `compare` makes of each piece in order. A
/// shorter view is zeros behind its end.
pub(super) fn side_by_side<R: Default + Send>(
    pair: Pair<'_>,
    end: u64,
    observer: &dyn Observer,
    compare: impl Fn(&Piece, &[u8], &[u8], &mut R) + Sync,
    deliver: impl Fn(&Piece, &mut R) -> Result<Next> + Sync,
) -> Result<()> {
    let line = Line {
        threads: processors().min(4),
        in_order: true,
        observer,
    };
    // Zeros on one side are looked at too, in pieces.
    let stretches = pair.stretches(end, |_| false).map(|stretch| {
        let stretch = stretch?;
        let what = match stretch.what {
            What::Zero => What::Copy,
            other => other,
        };
        Ok(Piece { what, ..stretch })
    });
    let reached = AtomicU64::new(0);
    line.run(
        Pieces::new(stretches, end, 1).of_at_most(PIECE),
        Piece::weight,
        |piece, compared: &mut Compared<R>| {
            pair.read(piece, &mut compared.a, &mut compared.b)?;
            compare(piece, &compared.a, &compared.b, &mut compared.found);
            Ok(())
        },
        |piece, compared| {
            observer.progress(
                reached.fetch_max(piece.end, Ordering::Relaxed).max(piece.end),
                end,
            );
            deliver(piece, &mut compared.found)
        },
    )
}

#[derive(Default)]
struct Compared<R> {
    a: AlignedBytes,
    b: AlignedBytes,
    found: R,
}

/// The index of the first byte that differs.
fn first_mismatch(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// The index of the first byte that is not zero.
pub(super) fn first_non_zero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    bytes.iter().position(|byte| *byte != 0)
}
