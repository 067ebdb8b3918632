//! The stamp: a header extension of Catena's own, by which an overlay knows the image that it was made on.
//!
//! qcow2 records a backing image's name and nothing of the image. The stamp says what the base was when somebody vouched for it:
//! how long, how old, and fingerprints of its geometry, its mapping tables and samples of its content. Here are its bytes; how the
//! fingerprints are made and what follows from them is the library's business. A stamp of another version or with flags that
//! nobody here knows is an unknown extension: it is carried on, and not judged.

use super::extension::Extension;
use super::header::Header;
use super::raw;
use zerocopy::{FromBytes, IntoBytes};

/// The extension type: "CatS".
pub(super) const KIND: u32 = 0x4361_7453;
/// The version that is written and read.
const VERSION: u32 = 1;
/// Flag: the digest of the base's view is there.
const HAS_VIEW: u32 = 1;

/// Half of a BLAKE3 digest: enough to tell images apart that nobody made to collide.
pub type Fingerprint = [u8; 16];

/// What an overlay knows of its backing image. The numbers are those of the time when it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes of the disk that the base shows.
    pub virtual_size: u64,
    /// Bytes of its file, and of its data file if it has one.
    pub file_length: u64,
    /// When these were modified last, in nanoseconds since 1970; `None` where nobody knows.
    pub modified: Option<u64>,
    /// When the stamp was taken, in seconds since 1970.
    pub taken: u64,
    /// The start of a digest of the recorded name and format: which reference the stamp is about.
    pub reference: [u8; 8],
    /// Of the base's format and what decides how its tables are read.
    pub layout: Fingerprint,
    /// Of its mapping tables; of nothing where its format has none that are read.
    pub tables: Fingerprint,
    /// Of samples of its data.
    pub content: Fingerprint,
    /// The BLAKE3 digest of all that the base shows, where it was asked for.
    pub view: Option<[u8; 32]>,
}

impl Stamp {
    /// Reads the extension's data; `None` where it is not of the form that is known.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let raw = raw::Stamp::ref_from_bytes(data).ok()?;
        let stamp = Self {
            virtual_size: raw.virtual_size.get(),
            file_length: raw.file_length.get(),
            modified: Some(raw.modified.get()).filter(|time| *time != 0),
            taken: raw.taken.get(),
            reference: raw.reference,
            layout: raw.layout,
            tables: raw.tables,
            content: raw.content,
            view: (raw.flags.get() & HAS_VIEW != 0).then_some(raw.view),
        };
        // Nothing in it may get lost when it is written again.
        (raw.version.get() == VERSION && stamp.encode() == data).then_some(stamp)
    }

    /// The extension's data.
    pub fn encode(&self) -> Vec<u8> {
        raw::Stamp {
            version: VERSION.into(),
            flags: if self.view.is_some() { HAS_VIEW } else { 0 }.into(),
            virtual_size: self.virtual_size.into(),
            file_length: self.file_length.into(),
            modified: self.modified.unwrap_or(0).into(),
            taken: self.taken.into(),
            reference: self.reference,
            layout: self.layout,
            tables: self.tables,
            content: self.content,
            view: self.view.unwrap_or_default(),
        }
        .as_bytes()
        .to_vec()
    }

    /// The three fingerprints.
    pub fn parts(&self) -> [Fingerprint; 3] {
        [self.layout, self.tables, self.content]
    }

    /// Whether both have the same fingerprints: they are of one image, or of a copy of it.
    pub fn same_base(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Header {
    /// What the image knows of its backing image.
    pub fn stamp(&self) -> Option<&Stamp> {
        self.extensions.iter().find_map(|extension| match extension {
            Extension::Stamp(stamp) => Some(&**stamp),
            _ => None,
        })
    }

    /// Gives the image a stamp, or takes it away; also one that is of no form that is known here.
    ///
    /// It comes last, where QEMU writes what it does not know, so that it stays where it is when QEMU writes the header.
    pub fn set_stamp(&mut self, stamp: Option<Stamp>) {
        self.extensions.retain(|extension| extension.kind() != KIND);
        self.extensions
            .extend(stamp.map(|stamp| Extension::Stamp(Box::new(stamp))));
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::{CreateOptions, NewImage};
    use super::*;

    fn stamp() -> Stamp {
        Stamp {
            virtual_size: 1 << 30,
            file_length: 123_456,
            modified: Some(1_700_000_000_123_456_789),
            taken: 1_700_000_100,
            reference: [1; 8],
            layout: [2; 16],
            tables: [3; 16],
            content: [4; 16],
            view: None,
        }
    }

    #[test]
    fn it_has_its_bytes_where_the_page_draws_them() {
        let mut stamp = stamp();
        stamp.view = Some([5; 32]);
        let bytes = stamp.encode();
        assert_eq!(bytes.len(), 128);
        assert_eq!(bytes[..8], [0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(bytes[8..16], (1u64 << 30).to_be_bytes());
        assert_eq!(bytes[16..24], 123_456u64.to_be_bytes());
        assert_eq!(bytes[24..32], 1_700_000_000_123_456_789u64.to_be_bytes());
        assert_eq!(bytes[32..40], 1_700_000_100u64.to_be_bytes());
        assert_eq!(bytes[40..48], [1; 8]);
        assert_eq!(bytes[48..96], [[2; 16], [3; 16], [4; 16]].concat());
        assert_eq!(bytes[96..], [5; 32]);
        assert_eq!(Stamp::parse(&bytes), Some(stamp));
    }

    #[test]
    fn what_is_not_known_is_carried_on_word_for_word() {
        let known = stamp().encode();
        for (at, byte) in [(3, 2), (7, 2), (7, 3), (100, 1)] {
            let mut data = known.clone();
            data[at] = byte;
            assert_eq!(Stamp::parse(&data), None);
            let mut header = NewImage::lay_out(&CreateOptions::new(1 << 20).unwrap())
                .unwrap()
                .header;
            header.extensions.push(Extension::Unknown { kind: KIND, data });
            let again = Header::read(&header.encode().unwrap()).unwrap();
            assert_eq!(again.extensions, header.extensions);
            assert_eq!(again.stamp(), None);
        }
        assert_eq!(Stamp::parse(&known[..127]), None);
        assert_eq!(Stamp::parse(&[known.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn a_new_one_takes_the_place_of_the_old_ones() {
        let mut header = NewImage::lay_out(&CreateOptions::new(1 << 20).unwrap())
            .unwrap()
            .header;
        let others = header.extensions.clone();
        header.set_stamp(Some(stamp()));
        header.extensions.push(Extension::Unknown {
            kind: KIND,
            data: vec![9],
        });
        // Others may write what they like into an image; QEMU opens it.
        let mut header = Header::read(&header.encode().unwrap()).unwrap();
        let new = Stamp { taken: 5, ..stamp() };
        assert!(new.same_base(header.stamp().unwrap()));
        header.set_stamp(Some(new.clone()));
        let mut header = Header::read(&header.encode().unwrap()).unwrap();
        assert_eq!(header.stamp(), Some(&new));
        assert_eq!(header.extensions.len(), others.len() + 1);
        header.set_stamp(None);
        assert_eq!(header.extensions, others);
    }
}
