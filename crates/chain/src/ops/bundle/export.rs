//! Export: layers of a chain as a bundle.
//!
//! Files are carried whole, as they are, with internal snapshots, bitmaps and encryption; holes are not. Of a copy only what
//! it records of other files is new: their names in the bundle. Every file is locked against writers from the plan to the end.

use super::manifest::{
    BundledFile, BundledLayer, DIGESTS, Digests, MANIFEST, Manifest, Since, format_of, is_carried,
};
use super::names::plain;
use super::spans::Spans;
use super::{PIECE, hex, tape, view_of, with_names};
use crate::chain::{Chain, Layer, LayerFile};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::ops::LayerChoice;
use crate::ops::convert::part_of;
use crate::ops::observer::Observer;
use crate::ops::relink::{self, NewBacking};
use crate::policy::Policy;
use crate::stamp::Renewal;
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::Format;
use catena_format::qcow2::{Header, rewrite};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much zstd tries.
const LEVEL: i32 = 3;

/// What to export.
#[derive(Clone, Debug)]
pub struct Request {
    /// The uppermost layer.
    pub start: Start,
    /// The layer above which it begins; `None` for all down to the base.
    pub since: Option<LayerChoice>,
    /// Whether images that somebody writes are read.
    pub sharing: Sharing,
    /// Whether the bundle is compressed with zstd.
    pub compress: bool,
}

/// A bundle, decided. It holds the locks.
pub struct Plan {
    manifest: Manifest,
    files: Vec<Source>,
    compress: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the bundle.
    pub bytes: u64,
    /// BLAKE3 of the digests at its end, and so of everything in it.
    pub digest: String,
}

/// A file as it goes into the bundle.
struct Source {
    storage: Arc<dyn Storage>,
    name: String,
    /// What is in it instead of what is in the file, from its first byte on.
    front: Vec<u8>,
    spans: Spans,
}

/// Decides what goes into the bundle. The guest's views are read, so that the bundle can tell them.
///
/// # Errors
/// Those of opening; [`ErrorKind::Unsupported`] for images that a bundle cannot carry; [`ErrorKind::Encrypted`] where layers
/// below cannot be told by what their guest sees.
pub fn plan(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    chain.check_complete()?;
    let above = match &request.since {
        None => chain.layers.len(),
        Some(since) => since.find(&chain)?,
    };
    if above == 0 {
        return Err(Error::new(
            ErrorKind::Conflict,
            "nothing is above the layer since which layers are exported",
        ));
    }
    let mut taken = BTreeSet::new();
    let since = match chain.layers.get(above) {
        None => None,
        Some(layer) => Some(since(
            &chain,
            layer,
            above,
            request.sharing,
            &mut taken,
            observer,
        )?),
    };
    let mut bundled = Bundled {
        layers: Vec::new(),
        files: Vec::new(),
        sources: Vec::new(),
        taken,
    };
    let mut below = since
        .as_ref()
        .map(|since| (since.name.clone(), format_of(&since.format)))
        .map(|(name, format)| Ok::<_, Error>((name, format?)))
        .transpose()?;
    for layer in chain.layers.iter().take(above).rev() {
        let name = bundled
            .add(layer, below.take(), request.sharing)
            .map_err(|error| error.with_path(layer.name()))?;
        below = Some((name, layer.format));
    }
    let mut manifest = Manifest::new(bundled.layers, bundled.files, since);
    manifest.view = match chain.open(request.sharing) {
        Ok(stack) if chain.check_not_encrypted(0).is_ok() => Some(view_of(&stack.for_walking(), observer)?),
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::Encrypted => None,
        Err(error) => return Err(error),
    };
    Ok(Plan {
        manifest,
        files: bundled.sources,
        compress: request.compress,
    })
}

/// What the bundle stands on: a layer that is not in it.
fn since(
    chain: &Chain,
    layer: &Layer,
    index: usize,
    sharing: Sharing,
    taken: &mut BTreeSet<String>,
    observer: &dyn Observer,
) -> Result<Since> {
    check_carried(layer)?;
    chain.check_not_encrypted(index).map_err(|_| {
        Error::new(
            ErrorKind::Encrypted,
            "what an encrypted layer shows cannot be told, so nothing can be exported since it",
        )
        .with_path(layer.name())
        .with_hint("export the whole chain, without --since")
    })?;
    let stack = chain.open_from(index, sharing)?;
    Ok(Since {
        name: plain(file_name(layer), taken),
        format: layer.format.qemu().unwrap_or("raw").to_owned(),
        virtual_size: catena_engine::Disk::size(&stack),
        view: view_of(&stack, observer)?,
    })
}

/// What is known of a bundle so far.
struct Bundled {
    layers: Vec<BundledLayer>,
    files: Vec<BundledFile>,
    sources: Vec<Source>,
    taken: BTreeSet<String>,
}

impl Bundled {
    /// Adds a layer that stands on one with a name and a format; gives its name in the bundle.
    fn add(&mut self, layer: &Layer, below: Option<(String, Format)>, sharing: Sharing) -> Result<String> {
        check_carried(layer)?;
        let file = layer.file.as_ref().ok_or_else(not_here)?;
        let storage = file.lock(sharing)?;
        let name = plain(file_name(layer), &mut self.taken);
        let data = match &layer.data_file {
            None => None,
            Some(data) => {
                let file = data
                    .file
                    .as_ref()
                    .map_err(|error| Error::new(error.kind(), error.full()))?;
                let path = data.source.as_ref().and_then(|source| source.path());
                let name = path.and_then(Path::file_name).unwrap_or(OsStr::new("data"));
                Some((plain(name, &mut self.taken), file, file.lock(sharing)?))
            }
        };
        let data_name = data.as_ref().map(|(name, ..)| name.clone());
        let front = match &layer.header {
            Some(header) => front(layer, header, &*storage, below, data_name.as_deref())?,
            None => Vec::new(),
        };
        let virtual_size = match layer.format {
            Format::Qcow2 => layer.virtual_size(),
            // Nobody else says how long it is.
            _ => Some(storage.len()?),
        };
        self.layers.push(BundledLayer {
            name: name.clone(),
            format: layer.format.qemu().unwrap_or("raw").to_owned(),
            virtual_size: virtual_size.unwrap_or_default(),
            data_file: data_name,
        });
        self.add_file(name.clone(), file, storage, front)?;
        if let Some((name, file, storage)) = data {
            self.add_file(name, file, storage, Vec::new())?;
        }
        Ok(name)
    }

    fn add_file(
        &mut self,
        name: String,
        file: &LayerFile,
        storage: Arc<dyn Storage>,
        front: Vec<u8>,
    ) -> Result<()> {
        let length = storage.len()?.max(front.len() as u64);
        let spans = Spans::of(&*storage, length, front.len() as u64)?;
        self.files.push(BundledFile {
            name: name.clone(),
            length,
            stored: spans.stored(),
            sparse: spans.is_sparse(),
            mode: mode_of(file),
        });
        self.sources.push(Source {
            storage,
            name,
            front,
            spans,
        });
        Ok(())
    }
}

fn check_carried(layer: &Layer) -> Result<()> {
    let error = |why: String| Error::new(ErrorKind::Unsupported, why).with_path(layer.name());
    if !is_carried(layer.format) {
        let why = format!("a bundle does not carry {} images", layer.format);
        return Err(error(why).with_hint("convert it first: qemu-img convert -O qcow2"));
    }
    if layer.source.slice.is_some() {
        return Err(error(
            "a bundle carries whole files, and this layer is a part of one".to_owned(),
        ));
    }
    Ok(())
}

fn not_here() -> Error {
    Error::new(ErrorKind::Unsupported, "the image is not on this host")
}

fn file_name(layer: &Layer) -> &OsStr {
    let name = layer.path().and_then(Path::file_name);
    name.unwrap_or(OsStr::new("image"))
}

/// Who may do what with a file; only its owner where it is a device.
fn mode_of(file: &LayerFile) -> u32 {
    let stat = file
        .storage
        .descriptor()
        .and_then(|fd| rustix::fs::fstat(fd).ok());
    match stat {
        Some(stat) if !file.storage.is_block_device() => stat.st_mode & 0o777,
        _ => 0o600,
    }
}

/// The beginning of an image with other names in it; nothing where it has these already.
fn front(
    layer: &Layer,
    header: &Header,
    storage: &dyn Storage,
    below: Option<(String, Format)>,
    data_file: Option<&str>,
) -> Result<Vec<u8>> {
    // What was looked at before it was locked may have been written since.
    if Header::read(&StorageBytes::new(storage)?)? != *header {
        return Err(Error::new(ErrorKind::Conflict, "the image was written meanwhile")
            .with_hint("run the command again"));
    }
    let backing = below.map(|(name, format)| NewBacking { name, format });
    let named = backing.as_ref().map(|backing| backing.name.as_bytes());
    let word = backing.as_ref().and_then(|backing| backing.format.qemu());
    let same_backing = header.backing.as_ref().map(|backing| backing.name.as_slice()) == named
        && (named.is_none() || header.backing_format() == word.map(str::as_bytes));
    let same_data = header.data_file_name() == data_file.map(str::as_bytes) || data_file.is_none();
    if same_backing && same_data {
        return Ok(Vec::new());
    }
    relink::changeable_header(layer)?;
    let new = with_names(header, backing.as_ref(), data_file, Renewal::Follow)?;
    let cluster = usize::try_from(header.cluster_bits.size()).unwrap_or_default();
    let mut area = vec![0; cluster];
    storage.read_at(&mut area, 0)?;
    let mut end = 0;
    for (offset, bytes) in rewrite::plan(&area, header, &new)? {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = start
            .checked_add(bytes.len())
            .and_then(|end| area.get_mut(start..end))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::TooLarge,
                    "the first cluster has no room for the new names",
                )
            })?;
        place.copy_from_slice(&bytes);
        end = end.max(start + bytes.len());
    }
    area.truncate(end);
    Ok(area)
}

impl Plan {
    /// What is in the bundle.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes the bundle to a new file, which has its name only when it is complete and durable.
    pub fn save(&self, path: &Path, observer: &dyn Observer) -> Result<Exported> {
        if path.symlink_metadata().is_ok() {
            let taken = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(catena_storage::Error::from_io(taken, "create")
                .with_path(path)
                .into());
        }
        let part = part_of(path);
        let file = LocalFile::create(&part, &OpenOptions::new().lock(LockMode::Write).overwrite(true))?;
        let part = Part(part);
        let exported = self
            .write(&mut Sequential { file: &file, at: 0 }, observer)
            .map_err(|error| error.with_path(path))?;
        file.flush()?;
        renameat_with(CWD, &part.0, CWD, path, RenameFlags::NOREPLACE)
            .map_err(|error| catena_storage::Error::from_io(error.into(), "rename").with_path(path))?;
        sync_directory_of(path)?;
        Ok(exported)
    }

    /// Writes the bundle from its first byte to its last.
    pub fn write(&self, out: &mut dyn Write, observer: &dyn Observer) -> Result<Exported> {
        let mut out = Counted { out, bytes: 0 };
        if !self.compress {
            let digest = self.write_archive(&mut out, observer)?;
            out.flush().map_err(failed)?;
            return Ok(Exported {
                bytes: out.bytes,
                digest,
            });
        }
        let mut encoder = zstd::stream::write::Encoder::new(&mut out, LEVEL).map_err(failed)?;
        encoder.include_checksum(true).map_err(failed)?;
        let digest = self.write_archive(&mut encoder, observer)?;
        encoder.finish().map_err(failed)?.flush().map_err(failed)?;
        Ok(Exported {
            bytes: out.bytes,
            digest,
        })
    }

    fn write_archive(&self, out: &mut dyn Write, observer: &dyn Observer) -> Result<String> {
        let mut digests = Digests::default();
        let manifest = self.manifest.encode()?;
        digests.add(MANIFEST, blake3::hash(&manifest));
        write_small(out, MANIFEST, &manifest)?;
        let total = self.manifest.stored();
        let mut done = 0;
        let mut buffer = vec![0; PIECE];
        for (source, file) in self.files.iter().zip(&self.manifest.files) {
            let length = file.sparse.then_some(file.length);
            put(out, &tape::header(&file.name, file.stored, file.mode, length))?;
            let mut hasher = blake3::Hasher::new();
            source
                .each_piece(&mut buffer, |piece| {
                    observer.check()?;
                    hasher.update(piece);
                    put(out, piece)?;
                    done += piece.len() as u64;
                    observer.progress(done, total);
                    Ok(())
                })
                .map_err(|error| error.with_path(&source.name))?;
            put(out, &vec![0; tape::padding(file.stored)])?;
            digests.add(&file.name, hasher.finalize());
        }
        let digests = digests.encode()?;
        write_small(out, DIGESTS, &digests)?;
        put(out, &tape::END)?;
        Ok(hex(blake3::hash(&digests).as_bytes()))
    }
}

impl Source {
    /// Hands on what is stored of it, a piece at a time.
    fn each_piece(&self, buffer: &mut [u8], mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.spans.is_sparse() {
            each(&self.spans.encode())?;
        }
        for (offset, len) in self.spans.stretches() {
            let (mut at, end) = (*offset, offset + len);
            while at < end {
                let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let piece = buffer.get_mut(..count).unwrap_or_default();
                self.fill(piece, at)?;
                each(piece)?;
                at += count as u64;
            }
        }
        Ok(())
    }

    fn fill(&self, piece: &mut [u8], at: u64) -> Result<()> {
        let read = self.storage.read_at(piece, at)?;
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.front.len());
        let front = self.front.get(from..).unwrap_or_default();
        for (to, from) in piece.iter_mut().zip(front) {
            *to = *from;
        }
        match read.max(front.len()) < piece.len() {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Conflict,
                "the file became shorter meanwhile",
            )),
        }
    }
}

fn write_small(out: &mut dyn Write, name: &str, bytes: &[u8]) -> Result<()> {
    let len = bytes.len() as u64;
    put(out, &tape::header(name, len, 0o644, None))?;
    put(out, bytes)?;
    put(out, &vec![0; tape::padding(len)])
}

fn put(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(failed)
}

fn failed(error: io::Error) -> Error {
    catena_storage::Error::from_io(error, "write").into()
}

/// A bundle that has not its name yet.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // The first error is the one that is reported; one that has its name is not there any more.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file that is written from its first byte on.
struct Sequential<'a> {
    file: &'a LocalFile,
    at: u64,
}

impl Write for Sequential<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at).map_err(|error| {
            let text = error.to_string();
            error.into_io().unwrap_or_else(|| io::Error::other(text))
        })?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .manifest
            .layers
            .iter()
            .map(|layer| layer.name.as_str())
            .collect();
        write!(f, "{}", names.join(" <- "))?;
        match &self.manifest.since {
            Some(since) => write!(f, ", on '{}'", since.name),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}
