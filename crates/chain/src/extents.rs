//! A disk's extents one after the other, neighbours that are one run joined, in constant memory.

use catena_engine::{Disk, Extent, GuestOffset, Result};

/// The extents of a range of a disk, in order and without gaps. Ends after an error.
#[derive(Debug)]
pub struct Extents<'a, D: Disk + ?Sized> {
    disk: &'a D,
    /// Where to ask on.
    at: GuestOffset,
    end: GuestOffset,
    piece: std::vec::IntoIter<Extent>,
    /// The run that may still grow, and the one behind it that does not belong to it.
    runs: Vec<Extent>,
}

impl<'a, D: Disk + ?Sized> Extents<'a, D> {
    /// Of the whole disk.
    pub fn of(disk: &'a D) -> Self {
        Self::within(disk, GuestOffset(0), GuestOffset(disk.size()))
    }

    /// Of what of a range lies on the disk.
    pub fn within(disk: &'a D, start: GuestOffset, end: GuestOffset) -> Self {
        Self {
            disk,
            at: start,
            end: end.min(GuestOffset(disk.size())),
            piece: Vec::new().into_iter(),
            runs: Vec::with_capacity(2),
        }
    }

    fn next_of_piece(&mut self) -> Result<Option<Extent>> {
        loop {
            if let Some(extent) = self.piece.next() {
                self.at = extent.end();
                return Ok(Some(extent));
            }
            if self.at >= self.end {
                return Ok(None);
            }
            let piece = self.disk.extents(self.at, self.end)?;
            if piece.is_empty() {
                // A disk that answers nothing has shrunk; asking again would not end.
                self.at = self.end;
            }
            self.piece = piece.into_iter();
        }
    }
}

impl<D: Disk + ?Sized> Iterator for Extents<'_, D> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_of_piece() {
                Ok(Some(extent)) => extent.push_to(&mut self.runs),
                Ok(None) => return self.runs.pop().map(Ok),
                Err(error) => {
                    self.at = self.end;
                    self.runs.clear();
                    return Some(Err(error));
                }
            }
            if self.runs.len() > 1 {
                return Some(Ok(self.runs.swap_remove(0)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_engine::{Error, ErrorKind, ExtentKind, HostOffset};

    /// Answers a page at a time: data at the guest's own addresses, and a zero page at the third place.
    struct Pages(u64);

    impl Disk for Pages {
        fn size(&self) -> u64 {
            self.0
        }

        fn read_at(&self, _: &mut [u8], offset: GuestOffset) -> Result<()> {
            Err(Error::new(ErrorKind::Unsupported, "no bytes").at(offset.0))
        }

        fn extents(&self, start: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
            let kind = match start.0 {
                0x2000 => ExtentKind::Zero { offset: None },
                0x9000 => return Err(Error::new(ErrorKind::Io, "unreadable")),
                at => ExtentKind::Data {
                    file: catena_engine::FileRole::Image,
                    offset: HostOffset(at),
                },
            };
            let len = (end.0 - start.0).min(0x1000);
            Ok(vec![Extent {
                start,
                len,
                kind,
                layer: 0,
            }])
        }
    }

    fn lengths(disk: &Pages) -> Vec<Option<u64>> {
        Extents::of(disk)
            .map(|extent| extent.ok().map(|extent| extent.len))
            .collect()
    }

    #[test]
    fn joins_what_comes_in_pieces_and_ends_after_an_error() {
        assert_eq!(lengths(&Pages(0)), []);
        assert_eq!(
            lengths(&Pages(0x5800)),
            [Some(0x2000), Some(0x1000), Some(0x2800)]
        );
        assert_eq!(lengths(&Pages(0xb000)), [Some(0x2000), Some(0x1000), None]);
    }
}
