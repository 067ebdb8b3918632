//! Reading a bundle: once, from its first byte to its last, and no byte of it that is not what it has to be.

use super::manifest::{BundledFile, DIGESTS, Digests, MANIFEST, MOST_BYTES, Manifest, wrong};
use super::spans::Spans;
use super::{PIECE, tape};
use crate::ops::observer::Observer;
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::{LocalFile, Storage};
use std::io::{self, Cursor, Read};

const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The largest window that a compressed bundle may ask memory for: 128 MiB, zstd's own limit.
const WINDOW: u32 = 27;

/// Who gets what is read. Nothing of it is to be believed before all of it has been read.
pub(super) trait Receiver {
    /// The manifest has been read.
    fn begin(&mut self, manifest: &Manifest) -> Result<()>;

    /// Where a file's bytes go; nowhere, where it is only to be checked.
    fn open(&mut self, file: &BundledFile) -> Result<Option<LocalFile>>;
}

/// Reads a bundle and hands on what is in it.
///
/// # Errors
/// [`ErrorKind::InvalidFormat`] for what is no bundle; [`ErrorKind::Corrupt`] for one that is damaged or cut off; those of the
/// receiver.
pub(super) fn read(
    mut input: impl Read,
    observer: &dyn Observer,
    receiver: &mut dyn Receiver,
) -> Result<Manifest> {
    let mut head = [0; 4];
    input
        .read_exact(&mut head)
        .map_err(|error| not_read(error, false))?;
    let mut input = Cursor::new(head).chain(input);
    let compressed = head == ZSTD;
    let mut archive = |input: &mut dyn Read| {
        Archive {
            input,
            compressed,
            observer,
            digests: Digests::default(),
            buffer: vec![0; PIECE],
        }
        .read(receiver)
    };
    if !compressed {
        return archive(&mut input);
    }
    let failed = |error| not_read(error, true);
    let mut decoder = zstd::stream::read::Decoder::new(input)
        .map_err(failed)?
        .single_frame();
    decoder.window_log_max(WINDOW).map_err(failed)?;
    let manifest = archive(&mut decoder)?;
    check_at_end(&mut decoder.finish(), false)?;
    Ok(manifest)
}

struct Archive<'a> {
    input: &'a mut dyn Read,
    compressed: bool,
    observer: &'a dyn Observer,
    digests: Digests,
    buffer: Vec<u8>,
}

impl Archive<'_> {
    fn read(mut self, receiver: &mut dyn Receiver) -> Result<Manifest> {
        let manifest = self.manifest()?;
        receiver.begin(&manifest)?;
        let total = manifest.stored();
        let mut done = 0;
        for file in &manifest.files {
            let length = file.sparse.then_some(file.length);
            self.expect(&tape::header(&file.name, file.stored, file.mode, length))?;
            let target = receiver.open(file)?;
            self.file(file, target.as_ref(), &mut done, total)?;
            self.expect(&vec![0; tape::padding(file.stored)])?;
            if let Some(target) = target {
                target.flush()?;
            }
        }
        self.digests()?;
        self.expect(&tape::END)?;
        check_at_end(self.input, self.compressed)?;
        Ok(manifest)
    }

    fn manifest(&mut self) -> Result<Manifest> {
        let mut header = vec![0; tape::header(MANIFEST, 0, 0o644, None).len()];
        self.fill(&mut header)?;
        let len = tape::stored(&header)
            .filter(|len| tape::header(MANIFEST, *len, 0o644, None) == header)
            .ok_or_else(|| wrong("it does not begin with a manifest"))?;
        if len > MOST_BYTES {
            return Err(wrong("its manifest is too long"));
        }
        let mut bytes = Vec::new();
        // It grows with what is there.
        self.input
            .take(len)
            .read_to_end(&mut bytes)
            .map_err(|error| not_read(error, self.compressed))?;
        if bytes.len() as u64 != len {
            return Err(cut_off());
        }
        self.expect(&vec![0; tape::padding(len)])?;
        self.digests.add(MANIFEST, blake3::hash(&bytes));
        let manifest = Manifest::decode(&bytes)?;
        match manifest.encode()? == bytes {
            true => Ok(manifest),
            false => Err(wrong("its manifest is not written as manifests are")),
        }
    }

    fn file(
        &mut self,
        file: &BundledFile,
        target: Option<&LocalFile>,
        done: &mut u64,
        total: u64,
    ) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        let spans = if file.sparse {
            Spans::decode(file.length, file.stored, || {
                let mut block = vec![0; usize::try_from(tape::BLOCK).unwrap_or_default()];
                self.fill(&mut block)?;
                hasher.update(&block);
                *done += tape::BLOCK;
                Ok(block)
            })?
        } else {
            Spans::whole(file.length)
        };
        if let Some(target) = target {
            target.set_len(file.length)?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        for (offset, len) in spans.stretches() {
            let (mut at, end) = (*offset, offset + len);
            while at < end {
                self.observer.check()?;
                let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let piece = buffer.get_mut(..count).unwrap_or_default();
                self.fill(piece)?;
                hasher.update(piece);
                if let Some(target) = target {
                    target.write_all_at(piece, at)?;
                }
                at += count as u64;
                *done += count as u64;
                self.observer.progress(*done, total);
            }
        }
        self.buffer = buffer;
        self.digests.add(&file.name, hasher.finalize());
        Ok(())
    }

    /// Reads the digests, which have to be those of what was read.
    fn digests(&mut self) -> Result<()> {
        let expected = self.digests.encode()?;
        let len = expected.len() as u64;
        self.expect(&tape::header(DIGESTS, len, 0o644, None))?;
        let mut found = vec![0; expected.len()];
        self.fill(&mut found)?;
        if found != expected {
            let name = self.digests.first_other(&found).unwrap_or(DIGESTS);
            let message = format!("the bundle is damaged: the digest of '{name}' is another");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        self.expect(&vec![0; tape::padding(len)])
    }

    /// Reads what can only be one thing.
    fn expect(&mut self, bytes: &[u8]) -> Result<()> {
        let mut found = vec![0; bytes.len()];
        self.fill(&mut found)?;
        match found == bytes {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Corrupt,
                "the bundle is damaged: what is between its files is not what its manifest says",
            )),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let compressed = self.compressed;
        self.input
            .read_exact(buffer)
            .map_err(|error| not_read(error, compressed))
    }
}

/// Refuses what stands behind the end.
fn check_at_end(input: &mut dyn Read, compressed: bool) -> Result<()> {
    loop {
        match input.read(&mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(wrong("something stands behind its end")),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(not_read(error, compressed)),
        }
    }
}

fn not_read(error: io::Error, compressed: bool) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        cut_off()
    } else if compressed && error.raw_os_error().is_none() {
        Error::new(
            ErrorKind::Corrupt,
            format!("the bundle is damaged: it cannot be decompressed: {error}"),
        )
    } else {
        catena_storage::Error::from_io(error, "read").into()
    }
}

fn cut_off() -> Error {
    Error::new(ErrorKind::Corrupt, "the bundle ends too early")
        .with_hint("what is left of it cannot be told from what was changed: nothing of it was restored")
}
