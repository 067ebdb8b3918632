//! `qemu-img map`: where the bytes of the guest's disk are.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::{Opened, Purpose};
use super::preallocated;
use super::program::{self, Program, Result, error, output_is_json, usage};
use super::size;
use super::subclusters::Subclusters;
use catena::open::Sharing;
use catena::{Disk, Stack};
use catena_engine::{Extent, ExtentKind, FileRole, GuestOffset, HostOffset, Image};
use catena_format::Format;
use catena_storage::SpanKind;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

pub const OPTIONS: Options = Options {
    short: "hf:s:l:U",
    long: &[
        long("help", 'h', Nothing),
        long("format", 'f', Argument),
        word("output", Argument),
        word("object", Argument),
        word("image-opts", Nothing),
        long("force-share", 'U', Nothing),
        long("start-offset", 's', Argument),
        long("max-length", 'l', Argument),
    ],
};

/// Guest bytes that a question is answered for.
const PIECE: u64 = 1 << 30;

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let (mut json, mut start, mut most) = (false, 0, None);
    let mut image = ImageArgs::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('s') => {
                start = size::argument("start offset", &value, 0, size::MAX).map_err(error)?
            }
            Key::Letter('l') => {
                most = Some(size::argument("max length", &value, 0, size::MAX).map_err(error)?)
            }
            Key::Word("output") => json = output_is_json(&value)?,
            _ => image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    image.check()?;
    let opened = image.open(program, name, Purpose::default())?;
    let map = Map::new(&opened)?;
    let mut end = map.size;
    if let Some(most) = most {
        end = end.min(start.saturating_add(most));
    }
    let mut out = Out::new(json);
    out.begin();
    let mut current = Entry {
        start,
        ..Entry::default()
    };
    map.walk(start, end, |next| {
        if current.joins(&next) {
            current.length += next.length;
            return Ok(());
        }
        if current.length > 0 {
            out.entry(&current, false)?;
        }
        current = next;
        Ok(())
    })?;
    out.entry(&current, true)?;
    out.flush();
    Ok(0)
}

/// A line of the map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Where it starts.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
    depth: usize,
    present: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
    /// Whether there are bytes.
    pub data: bool,
    compressed: bool,
    offset: Option<u64>,
    file: Option<Arc<str>>,
}

impl Entry {
    /// What a strict comparison compares.
    pub fn status(&self) -> (bool, bool, bool, bool, bool) {
        (
            self.zero,
            self.data,
            self.compressed,
            self.present,
            self.offset.is_some(),
        )
    }

    fn joins(&self, next: &Self) -> bool {
        let kind = |entry: &Self| {
            (
                entry.zero,
                entry.data,
                entry.compressed,
                entry.present,
                entry.depth,
            )
        };
        kind(self) == kind(next)
            && match (self.offset, next.offset) {
                (None, None) => true,
                (Some(here), Some(there)) => {
                    here.checked_add(self.length) == Some(there) && self.file == next.file
                }
                _ => false,
            }
    }
}

struct Out {
    json: bool,
    text: String,
}

impl Out {
    fn new(json: bool) -> Self {
        Self {
            json,
            text: String::new(),
        }
    }

    fn begin(&mut self) {
        if self.json {
            self.text.push('[');
        } else {
            self.text.push_str(&format!(
                "{:<16}{:<16}{:<16}{}\n",
                "Offset", "Length", "Mapped to", "File"
            ));
        }
    }

    fn entry(&mut self, entry: &Entry, last: bool) -> Result<()> {
        if self.json {
            let offset = entry
                .offset
                .map_or_else(String::new, |offset| format!(", \"offset\": {offset}"));
            self.text.push_str(&format!(
                "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}{offset}}}{}\n",
                entry.start,
                entry.length,
                entry.depth,
                entry.present,
                entry.zero,
                entry.data,
                entry.compressed,
                if last { "]" } else { "," }
            ));
        } else if entry.data && !entry.zero {
            let Some(offset) = entry.offset else {
                self.flush();
                return Err(error("File contains external, encrypted or compressed clusters."));
            };
            let file = entry.file.as_deref().unwrap_or_default();
            self.text.push_str(&format!(
                "{:<16}{:<16}{:<16}{file}\n",
                hexadecimal(entry.start),
                hexadecimal(entry.length),
                hexadecimal(offset)
            ));
        }
        if self.text.len() > 1 << 16 {
            self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) {
        // A reader that is gone has seen enough.
        let _ = std::io::stdout().lock().write_all(self.text.as_bytes());
        self.text.clear();
    }
}

/// A number as C's `%#x` has it.
fn hexadecimal(number: u64) -> String {
    match number {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}

/// The merged map of a disk, in QEMU's words.
pub struct Map {
    stack: Stack,
    layers: Vec<MapLayer>,
    /// Bytes of the disk.
    pub size: u64,
}

struct MapLayer {
    image: Arc<dyn Image>,
    is_raw: bool,
    /// Whether the file system is asked which allocated clusters are holes.
    asks_file: bool,
    file: Arc<str>,
    data_file: Option<Arc<str>>,
    /// Clusters that are allocated although a part of them is not, where there are such.
    subclusters: Option<Subclusters>,
}

impl Map {
    /// Of an image with what it stands on.
    pub fn new(opened: &Opened) -> Result<Self> {
        let mut layers = Vec::new();
        let mut images = Vec::new();
        for (index, (layer, name)) in opened.chain.layers.iter().zip(&opened.names).enumerate() {
            let image = layer
                .image(Sharing::Force)
                .map_err(|failed| error(failed.full()))?;
            let is_raw = layer.format != Format::Qcow2;
            let file = if index == 0 { &opened.node.filename } else { name };
            images.push((
                Arc::clone(&image),
                layer.path().map(PathBuf::from).unwrap_or_default(),
            ));
            layers.push(MapLayer {
                asks_file: is_raw || preallocated::seems_so(layer),
                is_raw,
                image,
                data_file: layer
                    .data_file
                    .as_ref()
                    .map(|data_file| super::nodes::beside(file, &data_file.text).into()),
                file: file.as_str().into(),
                subclusters: Subclusters::of(layer),
            });
        }
        let stack = Stack::new(images).for_walking();
        let size = stack.size();
        Ok(Self { stack, layers, size })
    }

    /// Gives the stretches of a range to `each`, in order.
    pub fn walk(&self, start: u64, end: u64, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut at = start;
        while at < end {
            let extents = self
                .stack
                .map(GuestOffset(at), GuestOffset(end))
                .map_err(|failed| error(format!("Could not read file metadata: {}", failed.full())))?;
            let before = at;
            for extent in extents {
                at = extent.end().0;
                let depth = usize::try_from(extent.layer).unwrap_or(usize::MAX);
                let Some(layer) = self.layers.get(depth) else {
                    continue;
                };
                match extent.kind {
                    ExtentKind::Unallocated => layer.nothing(depth, extent.start.0, at, &mut each)?,
                    _ => layer.entries(depth, &extent, &mut each)?,
                }
            }
            if at == before {
                break;
            }
        }
        Ok(())
    }
}

impl MapLayer {
    /// What an extent of this layer is to QEMU.
    fn entries(
        &self,
        depth: usize,
        extent: &Extent,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let mut entry = Entry {
            start: extent.start.0,
            length: extent.len,
            depth,
            present: true,
            ..Entry::default()
        };
        match extent.kind {
            ExtentKind::Zero { offset } => {
                entry.zero = true;
                entry.offset = offset.map(|offset| offset.0);
                entry.file = offset.map(|_| self.name(FileRole::Data));
                each(entry)
            }
            ExtentKind::Compressed { .. } => {
                entry.data = true;
                entry.compressed = true;
                each(entry)
            }
            ExtentKind::Encrypted { .. } => {
                entry.data = true;
                each(entry)
            }
            ExtentKind::Data { file, offset } => {
                entry.data = true;
                entry.offset = Some(offset.0);
                entry.file = Some(self.name(file));
                if self.asks_file {
                    self.refine(file, &entry, each)
                } else {
                    each(entry)
                }
            }
            _ => Err(error("Could not read file metadata: Input/output error")),
        }
    }

    /// What nobody answers for. Where the cluster is allocated for another part of it, QEMU tells its place all the same.
    fn nothing(
        &self,
        depth: usize,
        start: u64,
        end: u64,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            let (to, offset) = match &self.subclusters {
                Some(subclusters) => subclusters.place(at, end),
                None => (end, None),
            };
            each(Entry {
                start: at,
                length: to - at,
                depth,
                zero: true,
                offset,
                file: offset.map(|_| self.name(FileRole::Data)),
                ..Entry::default()
            })?;
            at = to;
        }
        Ok(())
    }

    fn name(&self, file: FileRole) -> Arc<str> {
        match (&self.data_file, file) {
            (Some(name), FileRole::Data) => Arc::clone(name),
            _ => Arc::clone(&self.file),
        }
    }

    /// Splits bytes into what the file holds and its holes.
    fn refine(&self, file: FileRole, entry: &Entry, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let failed =
            |failed: &dyn std::fmt::Display| error(format!("Could not read file metadata: {failed}"));
        let storage = self.image.storage(file).map_err(|error| failed(&error))?;
        let offset = entry.offset.unwrap_or_default();
        let mut done = 0;
        while done < entry.length {
            let left = entry.length - done;
            let span = storage.span_at(offset + done).map_err(|error| failed(&error))?;
            let (hole, len) = match span {
                Some(span) => (span.kind == SpanKind::Hole, span.len.clamp(1, left)),
                None => (true, left),
            };
            each(Entry {
                start: entry.start + done,
                length: len,
                offset: Some(offset + done),
                zero: hole,
                data: !(hole && self.is_raw),
                ..entry.clone()
            })?;
            done += len;
        }
        Ok(())
    }
}

/// A disk whose extents are those of its map, so that holes are zeros only where QEMU knows of them.
pub struct Mapped {
    map: Map,
    disk: Stack,
}

impl Mapped {
    /// Of an image with what it stands on.
    pub fn new(opened: &Opened) -> Result<Self> {
        Ok(Self {
            map: Map::new(opened)?,
            disk: opened.disk()?,
        })
    }
}

impl Disk for Mapped {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> catena::Result<()> {
        self.disk.read_at(buf, offset)
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> catena::Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let to = end.0.min(offset.0.saturating_add(PIECE));
        let walked = self.map.walk(offset.0, to, |entry| {
            Extent {
                start: GuestOffset(entry.start),
                len: entry.length,
                kind: match entry.zero {
                    true => ExtentKind::Zero { offset: None },
                    false => ExtentKind::Data {
                        file: FileRole::Image,
                        offset: HostOffset(entry.start),
                    },
                },
                layer: 0,
            }
            .push_to(&mut extents);
            Ok(())
        });
        match walked {
            Ok(()) => Ok(extents),
            // The map cannot be read; the disk says why.
            Err(_) => self.disk.extents(offset, end),
        }
    }
}
