//! What an overlay's own bytes say of an image that it may have been made on.
//!
//! An overlay is given whole clusters, and a guest writes less: what it did not write of them was copied from the base. So the right
//! base has in many places what the overlay has beside what was written, and another disk does not. And what guests call their disks
//! and file systems by stands in both. Neither proves anything: an older state of the same disk agrees nearly as well.

use super::super::sectors::Sectors;
use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::extents::Extents;
use crate::open::Sharing;
use crate::policy::Policy;
use catena_engine::{Disk, Error, ErrorKind, ExtentKind, GuestOffset, Result, Stack};
use catena_format::{Format, identifiers};
use std::fmt;
use std::path::Path;

/// Pieces that are compared, and how long each is at most: what most images have for clusters.
const PIECES: u64 = 64;
const PIECE: u64 = 64 << 10;
/// Stretches of the overlay's data that are known of; what lies behind them is not compared.
const STRETCHES: usize = 1 << 16;
/// What bytes are compared in.
const SECTOR: usize = 512;
/// So many pieces that agree are no chance, and so many among which none does are none either.
const ENOUGH: u64 = 4;
const MANY: u64 = 16;

/// How an overlay's own data agrees with what an image shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Pieces of the overlay's data where the image has something that can be told from anything else.
    pub compared: u64,
    /// Those of them that have some of it, at the same place.
    pub agreeing: u64,
    /// Identifiers of the disk or its file systems that both have: of what, and whether they are the same.
    pub identifiers: Vec<(&'static str, bool)>,
}

impl Content {
    /// Whether this speaks for the image.
    pub fn supports(&self) -> bool {
        let same = self.identifiers.iter().any(|(_, same)| *same);
        !self.contradicts()
            && (same && self.agreeing > 0 || self.agreeing >= ENOUGH)
            && self.agreeing.saturating_mul(8) >= self.compared
    }

    /// Whether it speaks against it.
    pub fn contradicts(&self) -> bool {
        let other = self.identifiers.iter().any(|(_, same)| !same);
        other || self.compared >= MANY && self.agreeing == 0
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            compared, agreeing, ..
        } = self;
        let pieces = (*compared > 0).then(|| format!("{agreeing} of {compared} pieces agree"));
        let identifiers = self.identifiers.iter().map(|(of, same)| {
            let is = if *same { "the same" } else { "another" };
            format!("the identifier of its {of} is {is}")
        });
        let said: Vec<_> = pieces.into_iter().chain(identifiers).collect();
        f.write_str(&said.join(", "))
    }
}

/// An overlay's own data, as much of it as is compared.
pub(super) struct Own {
    disk: Stack,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Own {
    /// Reads it.
    ///
    /// # Errors
    /// Where the image cannot be opened or read; what it stands on need not be there.
    pub fn of(overlay: &Path, policy: &Policy) -> Result<Self> {
        let chain = detect(&Start::at(overlay, Some(Format::Qcow2)), policy);
        let disk = there(&chain, 1)?;
        let mut stretches = Vec::new();
        let mut count = 0;
        for extent in Extents::of(&disk) {
            let extent = extent?;
            if let ExtentKind::Data { .. } = extent.kind {
                count += pieces_of(extent.start.0, extent.len);
                stretches.push((extent.start.0, extent.len));
            }
            if stretches.len() == STRETCHES {
                break;
            }
        }
        let mut wanted = (0..PIECES.min(count)).map(|number| number * count / PIECES.min(count));
        let mut next = wanted.next();
        let (mut before, mut pieces) = (0, Vec::new());
        for (start, len) in stretches {
            let here = pieces_of(start, len);
            while let Some(number) = next.filter(|number| *number < before + here) {
                let at = (start / PIECE + (number - before))
                    .saturating_mul(PIECE)
                    .max(start);
                let end = (at / PIECE + 1).saturating_mul(PIECE).min(start + len);
                let mut piece = vec![0; usize::try_from(end - at).unwrap_or_default()];
                // What cannot be read is not compared.
                if disk.read_at(&mut piece, GuestOffset(at)).is_ok() {
                    pieces.push((at, piece));
                }
                next = wanted.next();
            }
            before += here;
        }
        Ok(Self { disk, pieces })
    }

    /// Holds it against an image.
    ///
    /// # Errors
    /// Where that cannot be opened.
    pub fn against(&self, image: &Path, format: Format, policy: &Policy) -> Result<Content> {
        let chain = detect(&Start::at(image, Some(format)), policy);
        // What it lacks in its turn shows zeros, of which nothing is compared.
        let disk = there(&chain, usize::MAX)?;
        let mut content = Content::default();
        for (at, own) in &self.pieces {
            let there = disk.size().saturating_sub(*at).min(own.len() as u64);
            let mut base = vec![0; usize::try_from(there).unwrap_or_default()];
            if base.is_empty() || disk.read_at(&mut base, GuestOffset(*at)).is_err() {
                continue;
            }
            let sectors = || base.chunks_exact(SECTOR).zip(own.chunks_exact(SECTOR));
            content.compared += u64::from(sectors().any(|(base, _)| is_telling(base)));
            let agrees = |(base, own): (&[u8], &[u8])| base == own && is_telling(base);
            content.agreeing += u64::from(sectors().any(agrees));
        }
        // A disk with a damaged table has none.
        for identifier in identifiers::read(&Sectors(&disk)).unwrap_or_default() {
            if let Some(own) = self.data_at(identifier.at, identifier.bytes.len()) {
                let same = own == identifier.bytes;
                content.identifiers.push((identifier.of, same));
            }
        }
        Ok(content)
    }

    /// Bytes that the overlay itself holds.
    fn data_at(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let end = at
            .checked_add(len as u64)
            .filter(|end| *end <= self.disk.size())?;
        let extents = Extents::within(&self.disk, GuestOffset(at), GuestOffset(end));
        for extent in extents {
            match extent.ok()?.kind {
                ExtentKind::Data { .. } => {}
                _ => return None,
            }
        }
        let mut bytes = vec![0; len];
        self.disk.read_at(&mut bytes, GuestOffset(at)).ok()?;
        Some(bytes)
    }
}

/// The layers of a chain that are there, as far as so many.
fn there(chain: &Chain, most: usize) -> Result<Stack> {
    if chain.layers.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "the image cannot be opened"));
    }
    let layers = chain.layers.iter().take(most);
    let layers = layers.map(|layer| layer.stacked(Sharing::Force));
    Ok(Stack::new(layers.collect::<Result<Vec<_>>>()?))
}

/// Pieces that a stretch touches.
fn pieces_of(start: u64, len: u64) -> u64 {
    (start.saturating_add(len)).div_ceil(PIECE) - start / PIECE
}

/// Whether a sector is more than one byte over and over.
fn is_telling(sector: &[u8]) -> bool {
    let first = sector.first();
    sector.iter().any(|byte| Some(byte) != first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(compared: u64, agreeing: u64, identifiers: &[(&'static str, bool)]) -> Content {
        Content {
            compared,
            agreeing,
            identifiers: identifiers.to_vec(),
        }
    }

    #[test]
    fn pieces_that_agree_support_and_many_that_do_not_contradict() {
        assert!(content(20, 15, &[]).supports());
        assert!(!content(3, 3, &[]).supports() && !content(3, 3, &[]).contradicts());
        assert!(!content(64, 5, &[]).supports() && !content(64, 5, &[]).contradicts());
        assert!(content(64, 0, &[]).contradicts() && !content(15, 0, &[]).contradicts());
        assert!(!Content::default().supports() && !Content::default().contradicts());
    }

    #[test]
    fn identifiers_outweigh_pieces() {
        assert!(content(1, 1, &[("ext", true)]).supports());
        assert!(!content(1, 0, &[("ext", true)]).supports());
        let other = content(64, 60, &[("mbr", true), ("ext", false)]);
        assert!(other.contradicts() && !other.supports());
    }

    #[test]
    fn stretches_are_cut_where_pieces_begin() {
        assert_eq!(pieces_of(0, 1), 1);
        assert_eq!(pieces_of(PIECE - 1, 2), 2);
        assert_eq!(pieces_of(PIECE, 3 * PIECE), 3);
    }
}
