//! A disk that an operation reads.

use super::view::View;
use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use catena_engine::{Disk, Error, ErrorKind, Extent, FileRole, GuestOffset, Result};
use catena_storage::Storage;
use std::fmt;
use std::sync::Arc;

/// Which disk to read.
#[derive(Clone)]
pub enum Input {
    /// What a chain shows.
    Chain {
        /// Its active image.
        start: Start,
        /// An internal snapshot of the active image, by id or name, instead of its present state.
        snapshot: Option<String>,
        /// Whether images that somebody writes are read.
        sharing: Sharing,
    },
    /// A part of another input: the bytes of its disk from `start` to `end`, or to the disk's end.
    Part {
        /// The input.
        of: Box<Input>,
        /// First address.
        start: u64,
        /// The address behind the last one.
        end: u64,
    },
    /// A disk that the caller has opened.
    Open {
        /// The disk. An extent of layer 0 is one that its active image answers for.
        disk: Arc<dyn Disk>,
        /// How messages name it.
        name: String,
    },
}

impl Input {
    /// The present state of the chain at a file, locked against writers.
    pub fn at(start: Start) -> Self {
        Self::Chain {
            start,
            snapshot: None,
            sharing: Sharing::Locked,
        }
    }

    /// How messages name it.
    pub fn name(&self) -> String {
        match self {
            Self::Chain { start, .. } => start.source.to_string(),
            Self::Open { name, .. } => name.clone(),
            Self::Part { of, .. } => of.name(),
        }
    }

    /// Opens it.
    pub(super) fn open(&self, policy: &Policy) -> Result<OpenInput> {
        match self {
            Self::Part { of, start, end } => {
                let OpenInput { view, chain } = of.open(policy)?;
                let part = Part::new(Arc::clone(view.disk()), *start, *end);
                Ok(OpenInput {
                    // The same bytes are at other addresses here, so identity says nothing of them.
                    view: View::of_disk(Arc::new(part)),
                    chain,
                })
            }
            Self::Open { disk, .. } => Ok(OpenInput {
                view: View::of_disk(Arc::clone(disk)),
                chain: None,
            }),
            Self::Chain {
                start,
                snapshot,
                sharing,
            } => {
                let chain = detect(start, policy);
                chain.check_complete()?;
                chain.check_not_encrypted(0)?;
                let stack = match snapshot {
                    None => chain.open(*sharing)?,
                    Some(snapshot) => chain.open_snapshot(snapshot, *sharing)?,
                };
                Ok(OpenInput {
                    view: View::of_chain(Arc::new(stack.for_walking()), &chain.layers),
                    chain: Some(chain),
                })
            }
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({})", self.name())
    }
}

/// A disk that is read, with the chain it is the view of.
#[derive(Debug)]
pub(super) struct OpenInput {
    pub view: View,
    /// Holds the locks.
    pub chain: Option<Chain>,
}

/// A part of a disk as a disk.
pub struct Part {
    disk: Arc<dyn Disk>,
    start: u64,
    end: u64,
}

impl Part {
    /// The bytes from `start` to `end`, or what of them is on the disk.
    pub fn new(disk: Arc<dyn Disk>, start: u64, end: u64) -> Self {
        let end = end.min(disk.size());
        Self {
            start: start.min(end),
            end,
            disk,
        }
    }
}

impl Disk for Part {
    fn size(&self) -> u64 {
        self.end - self.start
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        let end = offset.0.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(Error::new(ErrorKind::OutOfBounds, "reading past the end of the disk").at(offset.0));
        }
        self.disk.read_at(buf, offset.plus(self.start))
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        let end = GuestOffset(end.plus(self.start).0.min(self.end));
        let mut extents = self.disk.extents(offset.plus(self.start), end)?;
        for extent in &mut extents {
            extent.start = GuestOffset(extent.start.0.saturating_sub(self.start));
        }
        Ok(extents)
    }

    fn store(&self, layer: u32, file: FileRole) -> Option<&dyn Storage> {
        self.disk.store(layer, file)
    }
}

/// Disks one behind the other as one.
pub struct Concatenated {
    /// The disks and where they end.
    disks: Vec<(Arc<dyn Disk>, u64)>,
}

impl Concatenated {
    /// Puts disks one behind the other.
    pub fn new(disks: impl IntoIterator<Item = Arc<dyn Disk>>) -> Self {
        let mut end = 0_u64;
        let disks = disks
            .into_iter()
            .map(|disk| {
                end = end.saturating_add(disk.size());
                (disk, end)
            })
            .collect();
        Self { disks }
    }

    /// The disk at an address, and where that disk begins.
    fn at(&self, address: u64) -> Option<(&Arc<dyn Disk>, u64)> {
        let index = self.disks.partition_point(|(_, end)| *end <= address);
        let (disk, end) = self.disks.get(index)?;
        Some((disk, end - disk.size()))
    }
}

impl Disk for Concatenated {
    fn size(&self) -> u64 {
        self.disks.last().map_or(0, |(_, end)| *end)
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        let (mut at, mut rest) = (offset.0, buf);
        while !rest.is_empty() {
            let (disk, start) = self.at(at).ok_or_else(|| {
                Error::new(ErrorKind::OutOfBounds, "reading past the end of the disk").at(at)
            })?;
            let there = usize::try_from(start + disk.size() - at).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(there.min(rest.len()));
            disk.read_at(now, GuestOffset(at - start))?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        let Some((disk, start)) = self.at(offset.0) else {
            return Ok(Vec::new());
        };
        let to = end.0.saturating_sub(start).min(disk.size());
        let mut extents = disk.extents(GuestOffset(offset.0 - start), GuestOffset(to))?;
        for extent in &mut extents {
            extent.start = extent.start.plus(start);
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extents::Extents;
    use catena_engine::{Raw, RawDisk, WritableDisk};
    use catena_storage::MemoryStorage;

    fn disk(size: u64, byte: u8) -> Arc<dyn Disk> {
        let storage = Arc::new(MemoryStorage::with_len(size));
        let disk = RawDisk::new(Raw::open(storage).unwrap());
        disk.write_at(&vec![byte; usize::try_from(size).unwrap()], GuestOffset(0))
            .unwrap();
        Arc::new(disk)
    }

    #[test]
    fn disks_behind_each_other_read_as_one() {
        let all = Concatenated::new([disk(1024, 1), disk(0, 9), disk(512, 2), disk(2048, 3)]);
        assert_eq!(all.size(), 3584);
        let mut bytes = vec![0; 1024];
        all.read_at(&mut bytes, GuestOffset(768)).unwrap();
        let expected: Vec<_> = [vec![1; 256], vec![2; 512], vec![3; 256]].concat();
        assert!(bytes == expected);
        let ends: Vec<_> = Extents::of(&all).map(|extent| extent.unwrap().end().0).collect();
        assert_eq!(ends.last(), Some(&3584));
        assert!(all.read_at(&mut bytes, GuestOffset(3000)).is_err());

        let part = Part::new(Arc::new(all), 1000, 1600);
        assert_eq!(part.size(), 600);
        part.read_at(&mut bytes[..600], GuestOffset(0)).unwrap();
        let expected: Vec<_> = [vec![1; 24], vec![2; 512], vec![3; 64]].concat();
        assert!(bytes[..600] == expected);
        let ends: Vec<_> = Extents::of(&part).map(|extent| extent.unwrap().end().0).collect();
        assert_eq!(ends.last(), Some(&600));
        assert!(part.read_at(&mut bytes[..2], GuestOffset(599)).is_err());
    }
}
