//! What of the pieces of a copy the kernel moves by itself, without their bytes passing through this process.
//!
//! Sharing costs about as much for a long run as for a short one, so long runs are shared and short ones copied. What the
//! kernel turns out not to do is copied after all.

use super::pieces::{PIECE, Piece, Place, What};
use catena_engine::{Carriage, Disk, ExtentKind, GuestOffset, Result, WritableDisk};
use catena_storage::Carry;
use std::collections::VecDeque;

/// The shortest run that is shared, in bytes: copying it would take longer.
const SHORTEST_SHARED: u64 = 256 << 10;

/// How much of moving bytes is left to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: all bytes are read and written, and zeros among them are found.
    Never,
    /// Long runs are shared with the source's files, where the file system can do that.
    #[default]
    Share,
    /// All that it can do. Zeros that take up space in the source do so in the target.
    All,
}

impl Offload {
    /// What is asked of the kernel for these, and what the target can have done.
    pub(super) fn to(self, target: &dyn WritableDisk) -> Option<(Carry, Carriage)> {
        let how = match self {
            Self::Never => return None,
            Self::Share => Carry::Share,
            Self::All => Carry::Copy,
        };
        Some((how, target.carriage(how)?))
    }
}

/// Pieces, of which what can be carried is set apart.
pub(super) struct Carried<'a, I> {
    pieces: I,
    source: &'a dyn Disk,
    carriage: Carriage,
    shortest: u64,
    ready: VecDeque<Piece>,
}

impl<'a, I: Iterator<Item = Result<Piece>>> Carried<'a, I> {
    pub fn new(pieces: I, source: &'a dyn Disk, how: Carry, carriage: Carriage) -> Self {
        let shortest = match how {
            Carry::Share => SHORTEST_SHARED,
            Carry::Copy => 1,
        };
        Self {
            pieces,
            source,
            carriage,
            shortest: shortest.max(carriage.unit),
            ready: VecDeque::new(),
        }
    }

    /// Cuts a piece that is to be copied into what is carried and what is not.
    fn cut(&mut self, piece: Piece) -> Result<()> {
        let unit = self.carriage.unit.max(1);
        let mut copied = piece.start;
        let mut at = piece.start;
        while at < piece.end {
            let extents = self.source.extents(GuestOffset(at), GuestOffset(piece.end))?;
            let Some(reached) = extents.last().map(|extent| extent.end().0) else {
                break;
            };
            for extent in &extents {
                let ExtentKind::Data { file, offset } = extent.kind else {
                    continue;
                };
                let start = extent.start.0.next_multiple_of(unit);
                let end = extent.end().0 - extent.end().0 % unit;
                let offset = offset.plus(start.saturating_sub(extent.start.0));
                let is_long = end.saturating_sub(start) >= self.shortest;
                if !is_long || !offset.0.is_multiple_of(self.carriage.block) {
                    continue;
                }
                let place = Place {
                    layer: extent.layer,
                    file,
                    offset,
                };
                if !self.can_be_carried(place) {
                    continue;
                }
                self.copy(copied, start);
                self.ready.push_back(Piece {
                    what: What::Carry(place),
                    start,
                    end,
                });
                copied = end;
            }
            at = reached.max(at + 1);
        }
        self.copy(copied, piece.end);
        Ok(())
    }

    fn can_be_carried(&self, place: Place) -> bool {
        let Some(store) = self.source.store(place.layer, place.file) else {
            return false;
        };
        store.descriptor().is_some()
            && self
                .carriage
                .device
                .is_none_or(|device| store.identity().is_some_and(|identity| identity.device == device))
    }

    fn copy(&mut self, mut start: u64, end: u64) {
        while start < end {
            let cut = (start / PIECE + 1).saturating_mul(PIECE).min(end);
            self.ready.push_back(Piece {
                what: What::Copy,
                start,
                end: cut,
            });
            start = cut;
        }
    }
}

impl<I: Iterator<Item = Result<Piece>>> Iterator for Carried<'_, I> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            match self.pieces.next()? {
                Ok(piece) if piece.what == What::Copy => {
                    if let Err(error) = self.cut(piece) {
                        return Some(Err(error));
                    }
                }
                other => return Some(other),
            }
        }
    }
}
