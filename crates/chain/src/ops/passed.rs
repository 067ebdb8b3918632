//! Compressed clusters that are compressed already in the target's way: their bytes are passed on as they are.
//!
//! A map knows how many sectors a stream reaches into, not where it ends. Where another stream begins in its last sector, as it does in
//! what was written in one go, that tells; elsewhere up to a sector more than the stream is taken along, which readers ignore.

use super::pieces::Piece;
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Disk, Extent, ExtentKind, FileRole, GuestOffset, Result as DiskResult};
use std::ops::Range;

/// Bytes that are read at once at most: streams that lie close together are.
const SPAN: u64 = 4 << 20;
/// Bytes between two streams that are read along sooner than left out.
const GAP: u64 = 64 << 10;

/// Where a stream is: its layer, its first byte, and the one behind its last.
type Place = (u32, u64, u64);

/// Streams, one behind the other in a buffer that is used again.
#[derive(Default)]
pub(super) struct Streams {
    bytes: Vec<u8>,
    used: usize,
}

impl Streams {
    /// Forgets them all.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Room for so many bytes more, with anything in it, for `fill`; it tells how many of them are used.
    pub fn add<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Range<usize>, E> {
        let start = self.used;
        let end = start.saturating_add(len);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let used = fill(self.bytes.get_mut(start..end).unwrap_or_default())?;
        self.used = start.saturating_add(used).min(end);
        Ok(start..self.used)
    }

    /// A stream.
    pub fn get(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }
}

/// The streams of those of a piece's clusters, one after the other, that can be passed on. Each is a part of what is added to `into`.
pub(super) fn streams(
    source: &dyn Disk,
    target: &Qcow2Disk,
    piece: &Piece,
    into: &mut Streams,
) -> DiskResult<Vec<Option<Range<usize>>>> {
    let header = target.header();
    let size = header.cluster_bits.size();
    let extents = extents(source, piece)?;
    let number =
        |extent: &Extent| usize::try_from((extent.start.0 - piece.start) / size).unwrap_or(usize::MAX);
    let mut places: Vec<(usize, Place)> = Vec::new();
    for extent in &extents {
        let ExtentKind::Compressed { offset, len } = extent.kind else {
            continue;
        };
        let is_whole = extent.len == size && extent.start.0.is_multiple_of(size);
        if is_whole && source.compression(extent.layer) == Some((header.compression, size)) {
            let end = offset.0.saturating_add(len.into());
            places.push((number(extent), (extent.layer, offset.0, end)));
        }
    }
    // Several threads may have written them, in any order.
    places.sort_unstable_by_key(|(_, place)| *place);
    let mut behind = None;
    for (_, (layer, start, end)) in places.iter_mut().rev() {
        if let Some((other, next)) = behind
            && other == *layer
            && (*start + 1..*end).contains(&next)
        {
            *end = next;
        }
        behind = Some((*layer, *start));
    }
    places.retain(|(_, (_, start, end))| end.saturating_sub(*start) < size);
    let mut streams = vec![None; usize::try_from(piece.len().div_ceil(size)).unwrap_or_default()];
    let mut rest = places.as_slice();
    while !rest.is_empty() {
        rest = read(source, rest, into, &mut streams)?;
    }
    Ok(streams)
}

/// The piece's extents.
fn extents(source: &dyn Disk, piece: &Piece) -> DiskResult<Vec<Extent>> {
    let mut all = Vec::new();
    let mut at = piece.start;
    while at < piece.end {
        let some = source.extents(GuestOffset(at), GuestOffset(piece.end))?;
        let Some(last) = some.last() else {
            break;
        };
        at = last.end().0.max(at + 1);
        all.extend(some);
    }
    Ok(all)
}

/// Reads the first of these places, which are in order, and those that lie close behind, in one go; gives those that are left. Nothing
/// becomes of what the file does not have.
fn read<'a>(
    source: &dyn Disk,
    places: &'a [(usize, Place)],
    into: &mut Streams,
    streams: &mut [Option<Range<usize>>],
) -> DiskResult<&'a [(usize, Place)]> {
    let Some(&(_, (layer, start, mut end))) = places.first() else {
        return Ok(&[]);
    };
    let together = places
        .iter()
        .take_while(|(_, (other, from, to))| {
            let fits =
                *other == layer && *from <= end.saturating_add(GAP) && to.saturating_sub(start) <= SPAN;
            if fits {
                end = end.max(*to);
            }
            fits
        })
        .count()
        .max(1);
    let (now, later) = places.split_at_checked(together).unwrap_or((places, &[]));
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or_default();
    let got = into.add(len, |bytes| match source.store(layer, FileRole::Image) {
        Some(store) => store.read_at(bytes, start),
        None => Ok(0),
    })?;
    for (number, (_, from, to)) in now {
        let index = |offset: &u64| {
            let at = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            got.start.saturating_add(at).min(got.end)
        };
        // The last one may end within a sector that the file has not all of.
        let range = index(from)..index(to);
        if let Some(stream) = streams.get_mut(*number).filter(|_| !range.is_empty()) {
            *stream = Some(range);
        }
    }
    Ok(later)
}
