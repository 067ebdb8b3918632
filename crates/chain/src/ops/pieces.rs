//! A disk's map cut into pieces of work: what is to be copied, what is to read as zeros, and what is left alone.

use crate::extents::Extents;
use catena_engine::{Disk, Extent, FileRole, GuestOffset, HostOffset, Result};
use std::collections::VecDeque;

/// Bytes that are read and written at once: what qemu-img moves at once, too.
pub(super) const PIECE: u64 = 2 << 20;
/// Runs are not gathered any further than this, so that work begins before the whole map is known.
pub(super) const LONG: u64 = 64 << 20;

/// What is to be done about a stretch of the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Its bytes are moved.
    Copy,
    /// Its bytes go the way of the kernel, if it goes.
    Carry(Place),
    /// It is to read as zeros.
    Zero,
    /// Nothing.
    Skip,
}

/// Where the bytes of a stretch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub layer: u32,
    pub file: FileRole,
    pub offset: HostOffset,
}

/// A stretch with something to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub what: What,
    pub start: u64,
    pub end: u64,
}

impl Piece {
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn offset(&self) -> GuestOffset {
        GuestOffset(self.start)
    }

    /// Bytes that have to be read before anything is done.
    pub fn weight(&self) -> u64 {
        match self.what {
            What::Copy => self.len(),
            What::Carry(_) | What::Zero | What::Skip => 0,
        }
    }
}

/// Pieces of work, in order and without overlaps. What is copied is widened to whole units and cut into pieces of at most
/// [`PIECE`] bytes; zeros come in one piece, and what is to be left alone not at all.
pub(super) struct Pieces<I> {
    runs: Runs<I>,
    align: u64,
    most: u64,
    end: u64,
    /// A run that is not cut up yet.
    current: Option<Piece>,
    /// Runs that may still change with what comes: those of about one unit.
    waiting: VecDeque<Piece>,
    /// The end of the last run that was looked at.
    reached: u64,
    ended: bool,
}

/// Neighbours with the same to be done about them, as one.
struct Runs<I> {
    stretches: I,
    ahead: Option<Piece>,
}

impl<I: Iterator<Item = Result<Piece>>> Runs<I> {
    fn next(&mut self) -> Result<Option<Piece>> {
        let mut run = self.ahead.take();
        for stretch in self.stretches.by_ref() {
            let stretch = stretch?;
            match &mut run {
                None => run = Some(stretch),
                Some(run) if run.what == stretch.what && run.len() < LONG => run.end = stretch.end,
                Some(_) => {
                    self.ahead = Some(stretch);
                    break;
                }
            }
        }
        Ok(run)
    }
}

/// What is to be done about each stretch of a range of a disk, extent by extent.
pub(super) fn stretches<'a, F: FnMut(&Extent) -> What + 'a>(
    disk: &'a dyn Disk,
    start: u64,
    end: u64,
    mut judge: F,
) -> impl Iterator<Item = Result<Piece>> + use<'a, F> {
    Extents::within(disk, GuestOffset(start), GuestOffset(end)).map(move |extent| {
        let extent = extent?;
        Ok(Piece {
            what: judge(&extent),
            start: extent.start.0,
            end: extent.end().0,
        })
    })
}

impl<I: Iterator<Item = Result<Piece>>> Pieces<I> {
    /// Of stretches that follow each other without gaps up to `end`. `align` is 1, or what must be moved as a whole.
    pub fn new(stretches: I, end: u64, align: u64) -> Self {
        Self {
            runs: Runs {
                stretches,
                ahead: None,
            },
            align: align.max(1),
            most: PIECE,
            end,
            current: None,
            waiting: VecDeque::new(),
            reached: 0,
            ended: false,
        }
    }

    /// Cuts into smaller pieces than [`PIECE`]. No smaller than what must be moved as a whole.
    pub fn of_at_most(mut self, bytes: u64) -> Self {
        self.most = bytes.max(self.align);
        self
    }

    /// The next run, as wide as what has to be moved with it makes it.
    fn widened(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.waiting.front().is_some_and(|front| self.is_settled(front)) {
                return Ok(self.waiting.pop_front());
            }
            match self.runs.next()? {
                Some(run) => self.take_in(run),
                None => return Ok(self.waiting.pop_front()),
            }
        }
    }

    /// Whether nothing that comes can change the first run that waits.
    fn is_settled(&self, front: &Piece) -> bool {
        match front.what {
            // What follows has told it where to end.
            What::Copy => self.waiting.len() > 1,
            What::Carry(_) | What::Zero | What::Skip => front.end <= self.reached - self.reached % self.align,
        }
    }

    /// Adds a run behind those that wait.
    fn take_in(&mut self, mut run: Piece) {
        self.reached = run.end;
        if run.what == What::Copy {
            let first = run.start - run.start % self.align;
            // The unit in which it begins is copied as a whole, whatever was to be done about the rest of it.
            while let Some(back) = self.waiting.back_mut()
                && back.what != What::Copy
                && back.end > first
            {
                if back.start < first {
                    back.end = first;
                    break;
                }
                self.waiting.pop_back();
            }
            run.start = match self.waiting.back_mut() {
                Some(back) if back.what == What::Copy && (back.len() < LONG || back.end > first) => {
                    back.end = run.end;
                    return;
                }
                Some(back) => first.max(back.end),
                None => first,
            };
        } else if let Some(back) = self.waiting.back_mut()
            && back.what == What::Copy
        {
            back.end = back.end.next_multiple_of(self.align).min(self.end);
            run.start = run.start.max(back.end);
            if run.start >= run.end {
                return;
            }
        }
        self.waiting.push_back(run);
    }
}

impl<I: Iterator<Item = Result<Piece>>> Iterator for Pieces<I> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let Some(run) = self.current.take() else {
                match self.widened() {
                    Ok(Some(run)) => self.current = Some(run).filter(|run| run.what != What::Skip),
                    Ok(None) => self.ended = true,
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                }
                continue;
            };
            if run.what != What::Copy {
                return Some(Ok(run));
            }
            // Pieces end at multiples of their size, so that they cut as few clusters as possible.
            let cut = (run.start / self.most + 1).saturating_mul(self.most).min(run.end);
            if cut < run.end {
                self.current = Some(Piece { start: cut, ..run });
            }
            return Some(Ok(Piece { end: cut, ..run }));
        }
        None
    }
}

/// Bytes that are to be moved of a range.
pub(super) fn bytes_to_copy(pieces: impl Iterator<Item = Result<Piece>>) -> Result<u64> {
    let mut bytes = 0_u64;
    for piece in pieces {
        let piece = piece?;
        if piece.what == What::Copy {
            bytes = bytes.saturating_add(piece.len());
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_engine::{Error, ErrorKind, ExtentKind};

    /// A disk of 4 KiB units: `d`ata, `z`eros, or nothing (`.`).
    struct Units(&'static str);

    impl Disk for Units {
        fn size(&self) -> u64 {
            self.0.len() as u64 * 4096
        }

        fn read_at(&self, _: &mut [u8], offset: GuestOffset) -> Result<()> {
            Err(Error::new(ErrorKind::Unsupported, "no bytes").at(offset.0))
        }

        fn extents(&self, start: GuestOffset, _: GuestOffset) -> Result<Vec<Extent>> {
            let at = start.0 / 4096;
            let kind = match self.0.as_bytes()[usize::try_from(at).unwrap()] {
                b'd' => ExtentKind::Data {
                    file: FileRole::Image,
                    offset: HostOffset(start.0 * 2),
                },
                b'z' => ExtentKind::Zero { offset: None },
                _ => ExtentKind::Unallocated,
            };
            Ok(vec![Extent {
                start,
                len: 4096,
                kind,
                layer: 0,
            }])
        }
    }

    fn pieces(units: &'static str, align: u64) -> String {
        let disk = Units(units);
        let judge = |extent: &Extent| match extent.kind {
            ExtentKind::Data { .. } => What::Copy,
            ExtentKind::Zero { .. } => What::Zero,
            _ => What::Skip,
        };
        let mut out = String::new();
        let mut at = 0;
        for piece in Pieces::new(stretches(&disk, 0, disk.size(), judge), disk.size(), align * 4096) {
            let piece = piece.unwrap();
            assert!(piece.start >= at && piece.start < piece.end, "{piece:?}");
            out.push_str(&".".repeat(usize::try_from((piece.start - at) / 4096).unwrap()));
            let letter = if piece.what == What::Copy { "d" } else { "z" };
            out.push_str(&letter.repeat(usize::try_from(piece.len() / 4096).unwrap()));
            at = piece.end;
        }
        out
    }

    #[test]
    fn what_is_copied_grows_to_whole_units_and_the_rest_gives_way() {
        assert_eq!(pieces("", 1), "");
        assert_eq!(pieces("dz.dd.", 1), "dz.dd");
        assert_eq!(pieces("z.d.zzzz", 4), "ddddzzzz");
        assert_eq!(pieces("zzzzzzzzzd", 4), "zzzzzzzzdd");
        assert_eq!(pieces("d...zz..d...", 4), "ddddzz..dddd");
        assert_eq!(pieces("...d...d.d..zzzz...d", 4), "ddddddddddddzzzzdddd");
        assert_eq!(pieces("z.z.", 4), "z.z");
    }

    #[test]
    fn long_runs_are_cut_at_multiples_of_the_piece() {
        let disk = Units(Box::leak(format!(".{}", "d".repeat(1100)).into_boxed_str()));
        let judge = |extent: &Extent| match extent.kind {
            ExtentKind::Data { .. } => What::Copy,
            _ => What::Skip,
        };
        let lengths: Vec<_> = Pieces::new(stretches(&disk, 0, disk.size(), judge), disk.size(), 1)
            .map(|piece| piece.unwrap().len() / 4096)
            .collect();
        assert_eq!(lengths, [511, 512, 77]);
    }
}
