//! A stack of images read as one disk.
//!
//! The layers' maps are merged top down, once for each stretch of guest addresses that is touched, and the result is
//! kept within a bound. A read then looks up one index however deep the stack is. A layer is asked only for what the
//! layers above leave open, and only up to the smallest virtual size above it: what a smaller layer does not reach
//! reads as zeros, also where a larger one below it has data.

mod index;
mod merge;
mod stretch;

use crate::addr::{GuestOffset, HostOffset};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind, FileRole};
use crate::image::Image;
use catena_format::qcow2::Compression;
use catena_storage::{Shortcut, SpanKind, Storage};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use index::Index;
use stretch::Stretch;

/// Guest bytes whose merged map is built and kept as one piece.
const STRETCH: u64 = 64 << 20;
/// The same at most for a map that is walked once from end to end: few large reads of tables cost less, and there is something for each
/// processor.
const WALKED_STRETCH: u64 = 1 << 30;
/// Clusters that a longer stretch than [`STRETCH`] has at most, so that a map of small clusters takes no more memory than others.
const WALKED_CLUSTERS: u64 = 1 << 16;
/// Default bound of the merged map's memory in bytes.
const DEFAULT_INDEX_BYTES: u64 = 64 << 20;
/// Bound of the decompressed clusters that are kept, in bytes.
const DECOMPRESSED_BYTES: u64 = 32 << 20;

/// Layers as one disk.
#[derive(Debug)]
pub struct Stack {
    layers: Vec<Layer>,
    /// What the layers' bytes are read from, side by side: a look-up leads here in one step.
    stores: Vec<Stores>,
    size: u64,
    stretch: u64,
    walked: bool,
    index_bytes: u64,
    index: Index,
    /// Made when it is first used: to make one, files of the system are read.
    decompressed: OnceLock<Decompressed>,
}

/// Decompressed clusters, by layer and where their bytes are.
type Decompressed = Cache<(u32, HostOffset), Arc<[u8]>, ClusterBytes>;

/// An image at its place, with the name by which errors speak of it.
#[derive(Debug)]
struct Layer {
    image: Arc<dyn Image>,
    path: PathBuf,
}

/// The files of a layer.
#[derive(Debug)]
struct Stores {
    image: Option<Store>,
    data: Option<Store>,
}

/// A file, and the short way to its bytes where there is one.
#[derive(Debug)]
struct Store {
    shortcut: Option<Shortcut>,
    storage: Arc<dyn Storage>,
}

#[derive(Clone, Debug)]
struct ClusterBytes;

impl Weighter<(u32, HostOffset), Arc<[u8]>> for ClusterBytes {
    fn weight(&self, _: &(u32, HostOffset), cluster: &Arc<[u8]>) -> u64 {
        cluster.len() as u64
    }
}

impl Stack {
    /// Stacks images, the active one first, each with the path by which errors name it.
    pub fn new(layers: impl IntoIterator<Item = (Arc<dyn Image>, PathBuf)>) -> Self {
        let layers: Vec<_> = layers
            .into_iter()
            .map(|(image, path)| Layer { image, path })
            .collect();
        let stores = layers.iter().map(|layer| Stores {
            image: layer.image.storage(FileRole::Image).ok().map(Store::new),
            data: layer.image.storage(FileRole::Data).ok().map(Store::new),
        });
        let size = layers.first().map_or(0, |layer| layer.image.virtual_size());
        Self {
            stores: stores.collect(),
            layers,
            size,
            stretch: STRETCH,
            walked: false,
            index_bytes: DEFAULT_INDEX_BYTES,
            index: Index::new(size.div_ceil(STRETCH), DEFAULT_INDEX_BYTES),
            decompressed: OnceLock::new(),
        }
    }

    /// Bounds the memory of the merged map, 64 MiB unless told otherwise. A range that was dropped costs one merge when it is touched again.
    #[must_use]
    pub fn with_index_bytes(mut self, bytes: u64) -> Self {
        self.index_bytes = bytes;
        let stretch = self.stretch;
        self.with_stretch(stretch)
    }

    /// For a map that is walked once from end to end: merges more of it at a time.
    #[must_use]
    pub fn for_walking(mut self) -> Self {
        self.walked = true;
        let clusters = self.layers.iter().map(|layer| layer.image.cluster_size());
        let stretch = clusters
            .min()
            .map_or(STRETCH, |least| least.saturating_mul(WALKED_CLUSTERS));
        // Whole default stretches: the layers' tables are cut alike.
        let stretch = stretch.clamp(STRETCH, WALKED_STRETCH) / STRETCH * STRETCH;
        self.with_stretch(stretch)
    }

    fn with_stretch(mut self, stretch: u64) -> Self {
        self.stretch = stretch;
        self.index = Index::new(self.size.div_ceil(stretch), self.index_bytes);
        self
    }

    /// Bytes of memory that the merged map takes now.
    pub fn index_bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// How many layers there are.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Looks into the merged map at the stretch that holds an address.
    fn at<T>(&self, address: GuestOffset, look: impl FnOnce(&Stretch) -> T) -> Result<T> {
        let number = address.0 / self.stretch;
        let make = || {
            let start = number.saturating_mul(self.stretch);
            let end = start.saturating_add(self.stretch).min(self.size);
            Ok(Stretch::new(number, start, end, &self.merge(start, end)?))
        };
        self.index.look_into(number, make, look)
    }

    /// Merges the layers' maps of `start..end`.
    fn merge(&self, start: u64, end: u64) -> Result<Vec<Extent>> {
        match self.walked {
            true => merge::merge_by_many(&self.layers, start, end),
            false => merge::merge(&self.layers, start, end),
        }
    }

    /// What [`Disk::extents`] tells, but bytes are bytes: no file is asked where it has holes.
    pub fn map(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        let end = end.min(GuestOffset(self.size));
        let mut extents = Vec::new();
        if offset < end {
            extents = self.at(offset, |stretch| {
                let clipped = stretch.from(offset).map_while(|extent| extent.clip(offset, end));
                clipped.collect()
            })?;
            self.go_on_through_nothing(end, &mut extents)?;
        }
        Ok(extents)
    }

    /// Where nobody answered for the last extent, goes on for as long as nobody will: a vast disk is mostly that, and what it costs to walk
    /// over it should not depend on how vast it is.
    fn go_on_through_nothing(&self, end: GuestOffset, extents: &mut Vec<Extent>) -> Result<()> {
        // Looking ahead twice as far each time costs no more than what it gains, whatever comes.
        let mut ahead = self.stretch;
        while let Some(last) = extents.last()
            && last.end() < end
            && last.kind == ExtentKind::Unallocated
        {
            let at = last.end();
            let to = at.plus(ahead).min(end);
            let until = self.silent_until(at, to)?;
            if at < until {
                for extent in self.merge(at.0, until.0)? {
                    extent.push_to(extents);
                }
            }
            if until < to {
                break;
            }
            ahead = ahead.saturating_mul(2);
        }
        Ok(())
    }

    /// How far all layers that could speak certainly say nothing, at most to `to`.
    fn silent_until(&self, at: GuestOffset, mut to: GuestOffset) -> Result<GuestOffset> {
        for layer in &self.layers {
            let size = GuestOffset(layer.image.virtual_size());
            if size <= at {
                // It ends here, and nobody below is asked.
                break;
            }
            to = layer
                .image
                .silent_until(at, to.min(size))
                .map_err(|error| error.with_path(&layer.path))?;
            if to <= at {
                return Ok(at);
            }
        }
        Ok(to)
    }

    fn layer(&self, number: u32) -> Result<&Layer> {
        let layer = usize::try_from(number)
            .ok()
            .and_then(|number| self.layers.get(number));
        layer.ok_or_else(|| Error::new(ErrorKind::OutOfBounds, format!("there is no layer {number}")))
    }

    /// Reads as much of `at..end` as a stretch holds. What is left of the range and of `buf` comes back.
    fn read_from<'a>(
        &self,
        stretch: &Stretch,
        mut at: GuestOffset,
        end: GuestOffset,
        mut buf: &'a mut [u8],
    ) -> Result<(GuestOffset, &'a mut [u8])> {
        for extent in stretch.from(at) {
            let Some(part) = extent.clip(at, end) else {
                break;
            };
            let len = usize::try_from(part.len).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            self.read_extent(&part, now)?;
            buf = later;
            at = part.end();
        }
        Ok((at, buf))
    }

    /// The store behind one of a layer's files.
    fn stored(&self, layer: u32, file: FileRole) -> Option<&Store> {
        let stores = self.stores.get(usize::try_from(layer).ok()?)?;
        match file {
            FileRole::Image => stores.image.as_ref(),
            FileRole::Data => stores.data.as_ref(),
        }
    }

    /// Fills `buf` with the start of an extent's bytes.
    fn read_extent(&self, extent: &Extent, buf: &mut [u8]) -> Result<()> {
        let read = match extent.kind {
            ExtentKind::Zero { .. } | ExtentKind::Unallocated => {
                buf.fill(0);
                return Ok(());
            }
            ExtentKind::Data { file, offset } => match self.stored(extent.layer, file) {
                Some(store) => store.read(buf, offset),
                None => Err(Error::new(
                    ErrorKind::NotFound,
                    "the layer's data is in a file that is not open",
                )),
            },
            ExtentKind::Compressed { offset, len } => self.read_compressed(extent, offset, len, buf),
            ExtentKind::Encrypted { offset } => Err(Error::new(
                ErrorKind::Encrypted,
                "the data is encrypted, and reading encrypted images is not supported",
            )
            .at(offset.0)),
            ExtentKind::Corrupt { entry } => Err(Error::new(
                ErrorKind::Corrupt,
                format!("the mapping of guest offset {} is damaged", extent.start),
            )
            .at(entry.0)),
        };
        read.map_err(|error| match self.layer(extent.layer) {
            Ok(layer) => error.with_path(&layer.path),
            Err(none) => none,
        })
    }

    fn read_compressed(&self, extent: &Extent, offset: HostOffset, len: u32, buf: &mut [u8]) -> Result<()> {
        let layer = self.layer(extent.layer)?;
        let skip = usize::try_from(extent.start.0 % layer.image.cluster_size()).unwrap_or_default();
        let key = (extent.layer, offset);
        let size = layer.image.cluster_size();
        let decompressed = self
            .decompressed
            .get_or_init(|| Cache::with_weighter(512, DECOMPRESSED_BYTES, ClusterBytes));
        let cluster = match decompressed.get(&key) {
            Some(cluster) => cluster,
            // A cluster read whole is not asked for again soon.
            None if skip == 0 && buf.len() as u64 == size => return layer.image.decompress(offset, len, buf),
            None => {
                let mut cluster = vec![0; usize::try_from(size).unwrap_or_default()];
                layer.image.decompress(offset, len, &mut cluster)?;
                let cluster: Arc<[u8]> = cluster.into();
                decompressed.insert(key, Arc::clone(&cluster));
                cluster
            }
        };
        let part = cluster.get(skip..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(
            part.ok_or_else(|| Error::new(ErrorKind::Corrupt, "compressed cluster too short"))?,
        );
        Ok(())
    }

    /// Splits an extent of bytes into what its store holds and what it knows to be holes.
    fn refine(&self, extent: Extent, out: &mut Vec<Extent>) -> Result<()> {
        let ExtentKind::Data { file, offset } = extent.kind else {
            extent.push_to(out);
            return Ok(());
        };
        let layer = self.layer(extent.layer)?;
        let storage = layer.image.storage(file)?;
        let mut done = 0;
        while done < extent.len {
            let left = extent.len - done;
            // Past the end of the store there is nothing but zeros.
            let (kind, len) = match storage.span_at(offset.plus(done).0)? {
                Some(span) => (span.kind, span.len.clamp(1, left)),
                None => (SpanKind::Hole, left),
            };
            let here = offset.plus(done);
            Extent {
                start: extent.start.plus(done),
                len,
                kind: match kind {
                    SpanKind::Data => ExtentKind::Data { file, offset: here },
                    SpanKind::Hole => ExtentKind::Zero { offset: Some(here) },
                },
                layer: extent.layer,
            }
            .push_to(out);
            done += len;
        }
        Ok(())
    }
}

impl Disk for Stack {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        let end = offset
            .0
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= self.size)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::OutOfBounds,
                    format!(
                        "{} bytes at {offset} reach past the end of the disk at {:#x}",
                        buf.len(),
                        self.size
                    ),
                )
            })?;
        let mut at = offset;
        let mut rest = buf;
        while at.0 < end {
            let from = at;
            let read = self.at(at, |stretch| self.read_from(stretch, at, GuestOffset(end), rest))?;
            (at, rest) = read?;
            if at == from {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the map has a gap at {at}"),
                ));
            }
        }
        Ok(())
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for extent in self.map(offset, end)? {
            self.refine(extent, &mut extents)?;
        }
        Ok(extents)
    }

    /// Asks files only whether they have data in the range, not where it ends: that takes some file systems a look at each page of it.
    fn is_nothing(&self, start: GuestOffset, end: GuestOffset) -> Result<bool> {
        let mut at = start;
        while at < end {
            let extents = self.map(at, end)?;
            for extent in &extents {
                let nothing = match extent.kind {
                    ExtentKind::Data { file, offset } => self
                        .layer(extent.layer)?
                        .image
                        .storage(file)?
                        .is_hole(offset.0, extent.len)?,
                    kind => kind.is_nothing(),
                };
                if !nothing {
                    return Ok(false);
                }
            }
            match extents.last() {
                Some(last) if last.end() > at => at = last.end(),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn store(&self, layer: u32, file: FileRole) -> Option<&dyn Storage> {
        Some(&*self.stored(layer, file)?.storage)
    }

    fn compression(&self, layer: u32) -> Option<(Compression, u64)> {
        let image = &self.layer(layer).ok()?.image;
        Some((image.compression()?, image.cluster_size()))
    }
}

impl Store {
    fn new(storage: &Arc<dyn Storage>) -> Self {
        Self {
            shortcut: storage.shortcut(),
            storage: Arc::clone(storage),
        }
    }

    /// Fills `buf` with what lies at an offset.
    fn read(&self, buf: &mut [u8], offset: HostOffset) -> Result<()> {
        let read = match &self.shortcut {
            Some(shortcut) => shortcut.read_at(buf, offset.0)?,
            None => self.storage.read_at(buf, offset.0)?,
        };
        // Past the end of the file there are zeros: a preallocated image, or the rest of a raw one's last sector.
        if let Some(rest) = buf.get_mut(read..) {
            rest.fill(0);
        }
        Ok(())
    }
}
