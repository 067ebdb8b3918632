//! What each layer of a chain contributes to what the guest sees: the sum of the merged map, by layer.
//!
//! Metadata alone is read, in parallel, whatever the depth.

use crate::chain::Chain;
use crate::open::Sharing;
use catena_engine::{Disk, Error, ErrorKind, ExtentKind, GuestOffset, Image, Result, Stack};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Guest bytes that one thread counts before it takes more, at least.
const PIECE: u64 = 512 << 20;
/// Pieces of a disk, at most: more of them would not be shared out better.
const PIECES: u64 = 1 << 16;

/// Guest bytes that one layer answers for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contribution {
    /// Bytes that are stored in it, as they are, compressed or encrypted; holes in its files do not count.
    pub data: u64,
    /// Bytes of which it says that they are zeros, or which lie in holes of its files.
    pub zero: u64,
    /// Bytes whose mapping is damaged.
    pub corrupt: u64,
}

/// What the layers of a chain contribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contributions {
    /// For each layer, active one first, until the first whose map cannot be read.
    pub layers: Vec<Contribution>,
    /// Bytes for which none of these layers answers. They are zeros where the chain ends with the last of them.
    pub open: u64,
}

impl Contributions {
    /// Counts what the layers of a chain contribute, also of one that breaks: what a layer contributes is up to those
    /// above it. Layers from the first on whose map cannot be read are left out.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] where more than `most` bytes of the layers' tables would have to be read, which few system calls tell.
    pub fn of_chain(chain: &Chain, sharing: Sharing, most: u64) -> Result<Self> {
        let images = chain.layers.iter().map_while(|layer| {
            let path = layer.path().unwrap_or(Path::new("")).to_owned();
            Some((layer.image(sharing).ok()?, path))
        });
        let images: Vec<(Arc<dyn Image>, PathBuf)> = images.collect();
        let mut tables = 0u64;
        for (image, path) in &images {
            let own = image.map_tables(most.saturating_sub(tables));
            tables = tables.saturating_add(own.map_err(|error| error.with_path(path))?);
            if tables > most {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("the layers' tables are larger than {} MiB", most >> 20),
                ));
            }
        }
        Self::of_disk(&Stack::new(images).for_walking())
    }

    /// Counts what the layers of a stack contribute.
    pub fn of_disk(disk: &Stack) -> Result<Self> {
        let next = AtomicU64::new(0);
        let total = Mutex::new(Ok(Self::empty(disk.depth())));
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(usize::try_from(disk.size() / PIECE).unwrap_or(threads)) {
                scope.spawn(|| work(disk, &next, &total));
            }
            work(disk, &next, &total);
        });
        total
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Bytes that are stored for the guest to see, in all layers together.
    pub fn data(&self) -> u64 {
        self.layers.iter().map(|layer| layer.data).sum()
    }

    fn empty(depth: usize) -> Self {
        Self {
            layers: vec![Contribution::default(); depth],
            open: 0,
        }
    }

    fn count(&mut self, disk: &Stack, start: u64, end: u64) -> Result<()> {
        let mut at = GuestOffset(start);
        let end = GuestOffset(end);
        while at < end {
            let extents = disk.extents(at, end)?;
            let Some(last) = extents.last() else { break };
            at = last.end();
            for extent in &extents {
                let layer = usize::try_from(extent.layer)
                    .ok()
                    .and_then(|layer| self.layers.get_mut(layer));
                match (extent.kind, layer) {
                    (ExtentKind::Unallocated, _) => self.open += extent.len,
                    (ExtentKind::Zero { .. }, Some(layer)) => layer.zero += extent.len,
                    (ExtentKind::Corrupt { .. }, Some(layer)) => layer.corrupt += extent.len,
                    (_, Some(layer)) => layer.data += extent.len,
                    (_, None) => {}
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, other: &Self) {
        for (sum, layer) in self.layers.iter_mut().zip(&other.layers) {
            sum.data += layer.data;
            sum.zero += layer.zero;
            sum.corrupt += layer.corrupt;
        }
        self.open += other.open;
    }
}

/// How much of a disk one thread counts before it takes more.
fn piece_of(disk: &Stack) -> u64 {
    PIECE.max((disk.size() / PIECES).next_multiple_of(PIECE))
}

/// Counts pieces until there are no more, or somebody failed.
fn work(disk: &Stack, next: &AtomicU64, total: &Mutex<Result<Contributions>>) {
    let mut own = Contributions::empty(disk.depth());
    let mut outcome = Ok(());
    let piece = piece_of(disk);
    while outcome.is_ok() {
        let start = next.fetch_add(piece, Ordering::Relaxed);
        if start >= disk.size() {
            break;
        }
        outcome = own.count(disk, start, start.saturating_add(piece).min(disk.size()));
    }
    if outcome.is_err() {
        next.store(disk.size(), Ordering::Relaxed);
    }
    let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match (&mut *total, outcome) {
        (Ok(total), Ok(())) => total.add(&own),
        (Ok(_), Err(error)) => *total = Err(error),
        (Err(_), _) => {}
    }
}
