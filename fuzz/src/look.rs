//! Looking at bytes that may be an image, in every way there is, and what must hold of what is seen.

use catena_format::{
    Bytes, Description, Format, describe, limits, probe_as_libvirt, probe_as_qemu, recognise,
};
use std::cell::Cell;
use std::io;

/// Most bytes that one look may read: a LUKS 2 header is the longest thing there is.
const MOST_READ: u64 = (4 << 20) + (64 << 10);

/// Bytes that seem to go on to a length of their own, zeros between them and their last kibibyte, and that count what is
/// read of them.
pub struct Image<'a> {
    bytes: &'a [u8],
    len: u64,
    read: Cell<u64>,
}

/// What moves to the end of a longer image: footers are found there.
const TAIL: usize = 1024;

impl<'a> Image<'a> {
    /// An image of the bytes alone.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::with_len(bytes, bytes.len() as u64)
    }

    /// An image of at least that length.
    pub fn with_len(bytes: &'a [u8], len: u64) -> Self {
        Self {
            bytes,
            len: len.max(bytes.len() as u64),
            read: Cell::new(0),
        }
    }

    fn read_no_more_than_allowed(&self) {
        assert!(self.read.replace(0) <= MOST_READ, "one look reads too much");
    }
}

impl Bytes for Image<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = usize::try_from(self.len.saturating_sub(offset)).map_or(buf.len(), |n| n.min(buf.len()));
        let buf = &mut buf[..n];
        self.read.set(self.read.get() + n as u64);
        if self.len == self.bytes.len() as u64 {
            return self.bytes.read_at(offset, buf);
        }
        let tail_at = self.bytes.len().saturating_sub(TAIL);
        buf.fill(0);
        self.bytes[..tail_at].read_at(offset, buf)?;
        let end = self.len - (self.bytes.len() - tail_at) as u64;
        for (to, from) in buf
            .iter_mut()
            .skip(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX))
            .zip(
                self.bytes[tail_at..]
                    .iter()
                    .skip(usize::try_from(offset.saturating_sub(end)).unwrap_or(usize::MAX)),
            )
        {
            *to = *from;
        }
        Ok(n)
    }
}

/// Describes the image as a format and checks the answer.
pub fn as_format(format: Format, image: &Image<'_>) -> Option<Description> {
    let answer = describe(format, image);
    image.read_no_more_than_allowed();
    let description = match answer {
        Ok(description) => description,
        Err(error) => {
            assert!(!error.message().is_empty());
            return None;
        }
    };
    assert_eq!(description.format, format);
    assert!(description.virtual_size.unwrap_or(0) <= limits::VIRTUAL_SIZE);
    assert!(description.oddities.len() < 100 && description.features.len() < 100);
    if let Some(backing) = &description.backing {
        assert!(!description.is_leaf());
        assert!(backing.alternatives.len() < 100);
        // Where the name lies in one piece, it lies there.
        if let (Some(offset), false, false) = (backing.offset, backing.lossy, backing.name.is_empty())
            && matches!(
                format,
                Format::Qcow2 | Format::Qcow | Format::Qed | Format::Vmdk | Format::Cow
            )
        {
            let name = image
                .read_exact(offset, backing.name.len())
                .expect("the name is in the image");
            assert_eq!(name, backing.name.as_bytes());
        }
    }
    Some(description)
}

/// Every guess at what the image is.
pub fn guess(image: &Image<'_>) -> Vec<Format> {
    let found = recognise(image).expect("only reading can fail");
    image.read_no_more_than_allowed();
    for guess in [
        probe_as_libvirt(image),
        probe_as_qemu(image, None),
        probe_as_qemu(image, Some("x.dmg")),
    ] {
        let guess = guess.expect("only reading can fail");
        assert!(Format::ALL.contains(&guess));
    }
    image.read_no_more_than_allowed();
    found
}

/// The image as one format, as it is and as if it were long.
pub fn both_lengths(format: Format, bytes: &[u8]) {
    for len in [0, 1 << 50] {
        let image = Image::with_len(bytes, len);
        as_format(format, &image);
        guess(&image);
    }
}
