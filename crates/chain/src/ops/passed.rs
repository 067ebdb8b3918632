//! Compressed clusters that are compressed already in the target's way: their bytes are passed on as they are.
//!
//! A map knows how many sectors a stream reaches into, not where it ends. Where the next cluster's stream begins in its last
//! sector, as it does in what was written in order, that tells; elsewhere up to a sector more than the stream is taken along, which
//! readers ignore.

use super::pieces::Piece;
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Disk, Extent, ExtentKind, FileRole, GuestOffset, Result};

/// Bytes that are read at once at most: streams that lie close together are.
const SPAN: u64 = 4 << 20;

/// Where a stream is: its layer, its first byte, and the one behind its last.
type Place = (u32, u64, u64);

/// The streams of those of a piece's clusters, one after the other, that can be passed on.
pub(super) fn streams(source: &dyn Disk, target: &Qcow2Disk, piece: &Piece) -> Result<Vec<Option<Vec<u8>>>> {
    let header = target.header();
    let size = header.cluster_bits.size();
    let extents = extents(source, piece)?;
    let number = |extent: &Extent| (extent.start.0 - piece.start) / size;
    let mut places = Vec::new();
    for (extent, next) in extents.iter().zip(extents.iter().skip(1).map(Some).chain([None])) {
        let ExtentKind::Compressed { offset, len } = extent.kind else {
            continue;
        };
        let is_whole = extent.len == size && extent.start.0.is_multiple_of(size);
        if !is_whole || source.compression(extent.layer) != Some((header.compression, size)) {
            continue;
        }
        let mut end = offset.0.saturating_add(len.into());
        if let Some(next) = next
            && let ExtentKind::Compressed { offset: behind, .. } = next.kind
            && next.layer == extent.layer
            && (offset.0 + 1..end).contains(&behind.0)
        {
            end = behind.0;
        }
        if end.saturating_sub(offset.0) < size {
            places.push((number(extent), (extent.layer, offset.0, end)));
        }
    }
    let mut streams = vec![None; usize::try_from(piece.len().div_ceil(size)).unwrap_or_default()];
    for ((number, _), bytes) in places.iter().zip(read(source, &places)?) {
        if let Some(stream) = usize::try_from(*number)
            .ok()
            .and_then(|number| streams.get_mut(number))
        {
            *stream = bytes;
        }
    }
    Ok(streams)
}

/// The piece's extents.
fn extents(source: &dyn Disk, piece: &Piece) -> Result<Vec<Extent>> {
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

/// Reads those places, in one go where they lie together. Nothing for what the file does not have.
fn read(source: &dyn Disk, places: &[(u64, Place)]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut streams = Vec::with_capacity(places.len());
    let mut rest = places;
    while let Some(&(_, (layer, start, mut end))) = rest.first() {
        let together = rest
            .iter()
            .take_while(|(_, (other, from, to))| {
                let fits =
                    *other == layer && (start..=end).contains(from) && to.saturating_sub(start) <= SPAN;
                if fits {
                    end = end.max(*to);
                }
                fits
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at_checked(together).unwrap_or((rest, &[]));
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or_default()];
        let got = match source.store(layer, FileRole::Image) {
            Some(store) => store.read_at(&mut bytes, start)?,
            None => 0,
        };
        for (_, (_, from, to)) in now {
            let index = |offset: &u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            // The last one may end within a sector that the file has not all of.
            let stream = bytes.get(index(from)..index(to).min(got));
            streams.push(stream.filter(|stream| !stream.is_empty()).map(<[u8]>::to_vec));
        }
        rest = later;
    }
    Ok(streams)
}
