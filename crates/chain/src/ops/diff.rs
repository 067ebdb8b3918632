//! Diff: where two disks show their guests something else, and what layers of a chain hold.
//!
//! The cost follows the difference and not the disk: what both maps lead to in the same place is not read, and what layers
//! hold is told from maps alone.

use super::choice::LayerChoice;
use super::copy::is_zero;
use super::input::{Input, OpenInput};
use super::line::Next;
use super::observer::Observer;
use super::sectors::Sectors;
use super::view::{self, Pair};
use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::extents::Extents;
use crate::open::Sharing;
use crate::policy::Policy;
use catena_engine::{Disk, Error, ErrorKind, ExtentKind, GuestOffset, Result};
use catena_format::Format;
use catena_format::partitions::{self, Table};
use std::sync::{Mutex, PoisonError};

/// What two disks are held against each other in, unless told otherwise: a guest's sector.
pub const UNIT: u64 = 512;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Request {
    /// The disk as it was.
    pub first: Input,
    /// The disk as it is.
    pub second: Input,
    /// Bytes that differ as a whole if one of them does: a power of two from 512 to 256 KiB.
    pub unit: u64,
}

/// What a stretch of a disk is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Zero,
    /// Anything else.
    Data,
}

/// A stretch that differs, as long as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its first byte.
    pub start: GuestOffset,
    /// Its bytes.
    pub len: u64,
    /// What the first disk has there.
    pub first: Content,
    /// What the second has.
    pub second: Content,
}

/// A stretch that layers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its first byte.
    pub start: GuestOffset,
    /// Its bytes.
    pub len: u64,
    /// Whether bytes are stored for it.
    pub content: Content,
}

/// Two disks, open.
#[derive(Debug)]
pub struct Diff {
    first: OpenInput,
    second: OpenInput,
    unit: u64,
}

impl Diff {
    /// Opens both.
    ///
    /// # Errors
    /// Those of opening, and [`ErrorKind::Conflict`] for a unit that is none.
    pub fn open(request: &Request, policy: &Policy) -> Result<Self> {
        let unit = request.unit;
        if !unit.is_power_of_two() || !(UNIT..=view::PIECE).contains(&unit) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a unit is a power of two from {UNIT} to {}", view::PIECE),
            ));
        }
        Ok(Self {
            first: request.first.open(policy)?,
            second: request.second.open(policy)?,
            unit,
        })
    }

    /// Bytes of both disks.
    pub fn sizes(&self) -> (u64, u64) {
        (self.first.view.size(), self.second.view.size())
    }

    /// The partition table of the second disk; that of the first, where the second has none.
    pub fn partitions(&self) -> Result<Option<Table>> {
        for input in [&self.second, &self.first] {
            if let Some(table) = partitions::read(&Sectors(&**input.view.disk()))? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// Tells all differences in order. A disk has zeros behind its end.
    pub fn run(
        &self,
        observer: &dyn Observer,
        each: &mut (dyn FnMut(&Difference) -> Result<()> + Send),
    ) -> Result<()> {
        let (first, second) = self.sizes();
        let pair = Pair {
            a: &self.first.view,
            b: &self.second.view,
        };
        let found = Mutex::new(Joined { run: None, each });
        view::side_by_side(
            pair,
            first.max(second),
            observer,
            |piece, a, b, units: &mut Vec<Difference>| {
                units.clear();
                differing(piece.start, a, b, self.unit, units);
            },
            |_, units| {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                units.drain(..).try_for_each(|unit| found.push(unit))?;
                Ok(Next::Go)
            },
        )?;
        found.into_inner().unwrap_or_else(PoisonError::into_inner).end()
    }
}

/// The units of a piece that differ. Pieces begin anywhere, units at their multiples.
fn differing(start: u64, a: &[u8], b: &[u8], unit: u64, out: &mut Vec<Difference>) {
    if a == b {
        return;
    }
    let content = |bytes: &[u8]| {
        if is_zero(bytes) {
            Content::Zero
        } else {
            Content::Data
        }
    };
    let (mut at, mut a, mut b) = (start, a, b);
    while !a.is_empty() {
        let len = usize::try_from(unit - at % unit).unwrap_or(usize::MAX);
        let (this, rest) = a.split_at(len.min(a.len()));
        let (other, others) = b.split_at(len.min(b.len()));
        if this != other {
            out.push(Difference {
                start: GuestOffset(at),
                len: this.len() as u64,
                first: content(this),
                second: content(other),
            });
        }
        at += this.len() as u64;
        (a, b) = (rest, others);
    }
}

/// Differences, neighbours of one kind joined.
struct Joined<'a> {
    run: Option<Difference>,
    each: &'a mut (dyn FnMut(&Difference) -> Result<()> + Send),
}

impl Joined<'_> {
    fn push(&mut self, next: Difference) -> Result<()> {
        match &mut self.run {
            Some(run)
                if run.start.plus(run.len) == next.start
                    && (run.first, run.second) == (next.first, next.second) =>
            {
                run.len += next.len;
                Ok(())
            }
            run => match run.replace(next) {
                Some(done) => (self.each)(&done),
                None => Ok(()),
            },
        }
    }

    fn end(self) -> Result<()> {
        self.run.map_or(Ok(()), |run| (self.each)(&run))
    }
}

/// The disk that an image stands on.
///
/// # Errors
/// [`ErrorKind::Conflict`] where it stands on none.
pub fn backing_of(start: &Start, sharing: Sharing, policy: &Policy) -> Result<Input> {
    let chain = detect(start, policy);
    chain.check_complete()?;
    let below = chain.layers.get(1).ok_or_else(|| {
        Error::new(
            ErrorKind::Conflict,
            format!("'{}' stands on no other image", start.source),
        )
        .with_hint("name two images, or with --snapshot an internal snapshot of this one")
    })?;
    Ok(Input::Chain {
        start: Start {
            source: below.source.clone(),
            format: Some(below.format),
        },
        snapshot: None,
        sharing,
    })
}

/// Tells what the uppermost layers of a chain hold, all above `below`, or the active one alone; and how large the disk is.
///
/// # Errors
/// Those of opening; [`ErrorKind::NotFound`] where `below` is no layer of the chain; [`ErrorKind::Corrupt`] for a damaged map.
pub fn held(
    start: &Start,
    below: Option<&LayerChoice>,
    sharing: Sharing,
    policy: &Policy,
    each: &mut dyn FnMut(&Held) -> Result<()>,
) -> Result<u64> {
    let chain = detect(start, policy);
    chain.check_complete()?;
    let above = match below {
        Some(below) => below.find(&chain)?,
        None => 1,
    };
    let disk = chain.open(sharing)?.for_walking();
    let mut run: Option<Held> = None;
    for extent in Extents::of(&disk) {
        let extent = extent?;
        let of_layer = usize::try_from(extent.layer).is_ok_and(|layer| layer < above);
        let content = match extent.kind {
            ExtentKind::Unallocated => continue,
            _ if !of_layer => continue,
            ExtentKind::Corrupt { entry } => return Err(damaged(&chain, extent.start, entry.0)),
            ExtentKind::Zero { .. } => Content::Zero,
            _ => Content::Data,
        };
        let next = Held {
            start: extent.start,
            len: extent.len,
            content,
        };
        match &mut run {
            Some(run) if run.start.plus(run.len) == next.start && run.content == content => {
                run.len += next.len
            }
            run => {
                if let Some(done) = run.replace(next) {
                    each(&done)?;
                }
            }
        }
    }
    run.map_or(Ok(()), |run| each(&run))?;
    Ok(disk.size())
}

fn damaged(chain: &Chain, at: GuestOffset, entry: u64) -> Error {
    let error = Error::new(
        ErrorKind::Corrupt,
        format!("the mapping of guest offset {at} is damaged"),
    )
    .at(entry);
    match chain.active() {
        Some(active) if active.format == Format::Qcow2 => {
            error.with_hint(format!("'catena check --chain {}' tells more", active.name()))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;
    use catena_engine::{Raw, RawDisk, WritableDisk};
    use catena_storage::MemoryStorage;
    use std::sync::Arc;

    fn disk(size: u64, writes: &[(u64, usize, u8)]) -> Input {
        let disk = RawDisk::new(Raw::open(Arc::new(MemoryStorage::with_len(size))).unwrap());
        for (offset, len, byte) in writes {
            disk.write_at(&vec![*byte; *len], GuestOffset(*offset)).unwrap();
        }
        Input::Open {
            disk: Arc::new(disk),
            name: "a disk".to_owned(),
        }
    }

    fn differences(first: Input, second: Input, unit: u64) -> Vec<(u64, u64, Content, Content)> {
        let request = Request { first, second, unit };
        let diff = Diff::open(&request, &Policy::default()).unwrap();
        let mut all = Vec::new();
        diff.run(&Silent, &mut |found| {
            all.push((found.start.0, found.len, found.first, found.second));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn differences_are_told_in_order_joined_and_in_units() {
        use Content::{Data, Zero};
        let first = || disk(4 << 20, &[(0, 1 << 20, 1), (2 << 20, 4096, 3)]);
        let second = || {
            disk(
                5 << 20,
                &[
                    (0, 1 << 20, 1),
                    (1 << 20, 600_000, 2),
                    (700, 1, 9),
                    (4 << 20, 512, 1),
                ],
            )
        };
        assert_eq!(
            differences(first(), second(), 512),
            [
                (512, 512, Data, Data),
                (1 << 20, 600_064, Zero, Data),
                (2 << 20, 4096, Data, Zero),
                (4 << 20, 512, Zero, Data)
            ]
        );
        assert_eq!(
            differences(first(), second(), 65536),
            [
                (0, 65536, Data, Data),
                (1 << 20, 10 * 65536, Zero, Data),
                (2 << 20, 65536, Data, Zero),
                (4 << 20, 65536, Zero, Data)
            ]
        );
        assert_eq!(differences(first(), first(), 512), []);
    }

    #[test]
    fn a_unit_is_a_power_of_two() {
        for unit in [0, 100, 256, 513, 1 << 20] {
            let request = Request {
                first: disk(0, &[]),
                second: disk(0, &[]),
                unit,
            };
            let refused = Diff::open(&request, &Policy::default()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict);
        }
    }

    #[test]
    fn who_is_told_can_end_it() {
        let request = Request {
            first: disk(8 << 20, &[]),
            second: disk(8 << 20, &[(0, 512, 1), (4 << 20, 512, 1)]),
            unit: UNIT,
        };
        let diff = Diff::open(&request, &Policy::default()).unwrap();
        let mut told = 0;
        let ended = diff.run(&Silent, &mut |_| {
            told += 1;
            Err(Error::new(ErrorKind::Cancelled, "enough"))
        });
        assert_eq!((told, ended.unwrap_err().message()), (1, "enough"));
    }
}
