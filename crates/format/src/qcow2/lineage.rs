//! The lineage: a header extension of Catena's own, by which an image is known again after it was rewritten.
//!
//! What pulls layers up into an image, or merges it with one below, leaves what it shows and changes all that a stamp is of. So the
//! image itself says which fingerprints it had before, and which it has now: the stamps of all that stand on it stay good, wherever
//! those are. If its fingerprint is not the one it says, somebody has written it since, and its lineage means nothing any more.

use super::extension::Extension;
use super::header::Header;
use super::stamp::Fingerprint;

/// The extension type: "CatL".
pub(super) const KIND: u32 = 0x4361_744c;
/// The version that is written and read.
const VERSION: u32 = 1;
/// Flag: the image is being rewritten, or that was cut off.
const UNDER_WAY: u32 = 1;
/// Most former fingerprints that are kept.
const FORMER: usize = 8;

/// Which fingerprints an image had while it showed what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Whether it is being rewritten, so that its fingerprint is none that anybody knows.
    pub under_way: bool,
    /// The fingerprint that it has.
    pub now: Fingerprint,
    former: Vec<Fingerprint>,
}

impl Lineage {
    /// Of an image that had this fingerprint, and is about to be rewritten.
    pub fn new(now: Fingerprint) -> Self {
        Self {
            under_way: true,
            now,
            former: vec![now],
        }
    }

    /// The fingerprints it had, oldest first; one at least.
    pub fn former(&self) -> &[Fingerprint] {
        &self.former
    }

    /// Adds one that it had; the oldest is forgotten if there are too many.
    pub fn push(&mut self, former: Fingerprint) {
        self.former.retain(|known| *known != former);
        self.former.push(former);
        let surplus = self.former.len().saturating_sub(FORMER);
        self.former.drain(..surplus);
    }

    /// Reads the extension's data; `None` where it is not of the form that is known.
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let (version, rest) = data.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<4>()?;
        let (now, rest) = rest.split_first_chunk::<16>()?;
        let (former, rest) = rest.as_chunks::<16>();
        let flags = u32::from_be_bytes(*flags);
        let known = u32::from_be_bytes(*version) == VERSION
            && flags & !UNDER_WAY == 0
            && rest.is_empty()
            && (1..=FORMER).contains(&former.len());
        known.then(|| Self {
            under_way: flags & UNDER_WAY != 0,
            now: *now,
            former: former.to_vec(),
        })
    }

    /// The extension's data.
    pub(super) fn encode(&self) -> Vec<u8> {
        let flags = if self.under_way { UNDER_WAY } else { 0 };
        let mut data = [VERSION.to_be_bytes(), flags.to_be_bytes()].concat();
        data.extend_from_slice(&self.now);
        data.extend(self.former.iter().flatten());
        data
    }
}

impl Header {
    /// Which fingerprints the image had before.
    pub fn lineage(&self) -> Option<&Lineage> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::Lineage(lineage) => Some(&**lineage),
            _ => None,
        })
    }

    /// Gives the image a lineage, or takes it away; also one that is of no form that is known here.
    pub fn set_lineage(&mut self, lineage: Option<Lineage>) {
        self.extensions.retain(|extension| extension.kind() != KIND);
        self.extensions
            .extend(lineage.map(|lineage| Extension::Lineage(Box::new(lineage))));
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::{CreateOptions, NewImage};
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_forgets_the_oldest() {
        let mut lineage = Lineage::new([0; 16]);
        for number in 1..12 {
            lineage.push([number; 16]);
            lineage.push([number; 16]);
        }
        lineage.now = [99; 16];
        assert_eq!((lineage.former().len(), lineage.former()[0]), (8, [4; 16]));
        let mut header = NewImage::lay_out(&CreateOptions::new(1 << 20).unwrap())
            .unwrap()
            .header;
        header.set_lineage(Some(lineage.clone()));
        let mut again = Header::read(&header.encode().unwrap()).unwrap();
        assert_eq!(again.lineage(), Some(&lineage));
        again.set_lineage(None);
        assert_eq!(again.lineage(), None);
    }

    #[test]
    fn what_is_not_known_is_none() {
        let known = Lineage::new([7; 16]).encode();
        assert_eq!(known.len(), 40);
        for (at, byte) in [(3, 2), (7, 3)] {
            let mut data = known.clone();
            data[at] = byte;
            assert_eq!(Lineage::parse(&data), None);
        }
        assert_eq!(Lineage::parse(&known[..24]), None);
        assert_eq!(Lineage::parse(&known[..39]), None);
        assert_eq!(Lineage::parse(&[&known[..24], &[0; 16 * 9]].concat()), None);
    }
}
