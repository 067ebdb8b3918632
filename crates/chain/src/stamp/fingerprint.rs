//! What an image is made of, in a few digests that cost the same however large it is.
//!
//! Of a qcow2 image: what decides how its tables are read, the tables without what housekeeping changes in them (where they lie,
//! refcounts, the flags that follow these), and samples of its data. Of any other: samples of its file. `docs/qcow2.md` says
//! which. Nothing is locked here: whoever asks sees to it that nobody writes meanwhile.

use crate::chain::Layer;
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::qcow2::stamp::Fingerprint;
use catena_format::qcow2::{Cluster, Compression, CryptMethod, Header, L1Entry, Layout, Stamp};
use catena_format::{Bytes, Format};
use catena_storage::{Identity, LocalFile, Storage};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// L2 tables that are looked at.
const TABLES: u64 = 64;
/// Of a table that is longer, so many pieces of so many bytes are.
const TABLE_BYTES: u64 = 64 << 10;
const PIECES: u64 = 16;
const PIECE: u64 = 4096;
/// Bytes of a sample, and how many there are: of what comes first, and all over.
const SAMPLE: u64 = 4096;
const FIRST: usize = 16;
const SPREAD: u64 = 64;
/// Where the first partition of most disks begins: a mounted file system writes there.
const PARTITION: u64 = 1 << 20;
/// The flag of a table's entry that says that nobody else refers to what it points at.
const COPIED: u64 = 1 << 63;

/// How long an image's files are and when they were written last: what can be asked without reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    pub file_length: u64,
    pub modified: Option<u64>,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub age: Age,
    pub virtual_size: u64,
    pub layout: Fingerprint,
    pub tables: Fingerprint,
    pub content: Fingerprint,
}

/// The files of a layer.
struct Files<'a> {
    image: &'a LocalFile,
    data: Option<&'a LocalFile>,
}

impl<'a> Files<'a> {
    fn of(layer: &'a Layer) -> Result<Self> {
        let file = layer.file.as_ref();
        let image =
            file.ok_or_else(|| Error::new(ErrorKind::Unsupported, "the image is not on this host"))?;
        let data = match &layer.data_file {
            None => None,
            Some(data) => match &data.file {
                Ok(file) => Some(&file.storage),
                Err(error) => return Err(Error::new(error.kind(), error.full())),
            },
        };
        Ok(Self {
            image: &image.storage,
            data,
        })
    }

    fn age(&self) -> Result<Age> {
        let nanoseconds = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok().filter(|time| *time != 0)
        };
        let of = |file: &LocalFile| {
            let identity = file.identity();
            identity.ok_or_else(|| Error::new(ErrorKind::Io, "the file cannot be asked when it changed"))
        };
        let ages = std::iter::once(self.image).chain(self.data).map(of);
        let ages = ages.collect::<Result<Vec<Identity>>>()?;
        let times: Option<Vec<u64>> = { ages.iter() }
            .map(|identity| identity.modified.and_then(nanoseconds))
            .collect();
        Ok(Age {
            file_length: ages.iter().fold(0, |sum, age| age.len.saturating_add(sum)),
            modified: times.and_then(|times| times.into_iter().max()),
        })
    }
}

impl Age {
    /// Asks it.
    pub fn of(layer: &Layer) -> Result<Self> {
        Files::of(layer)?.age()
    }
}

impl Facts {
    /// The three fingerprints, as a stamp has them.
    pub fn parts(&self) -> [Fingerprint; 3] {
        [self.layout, self.tables, self.content]
    }

    /// Looks at a layer: at all of it, or at what there was of it when a stamp was taken.
    pub fn of(layer: &Layer, then: Option<&Stamp>) -> Result<Self> {
        let files = Files::of(layer)?;
        let age = files.age()?;
        let bytes = StorageBytes::new(files.image)?;
        let mut facts = Self {
            age,
            virtual_size: layer.virtual_size().unwrap_or_default(),
            layout: half(blake3::Hasher::new().update(layer.format.as_str().as_bytes())),
            tables: half(&mut blake3::Hasher::new()),
            content: [0; 16],
        };
        if layer.format == Format::Qcow2 {
            // Not the header that detection found: the image may have been written since, by us.
            let header = Header::read(&bytes)?;
            facts.virtual_size = header.virtual_size;
            let size = header.virtual_size;
            let reach = then.map_or(size, |stamp| stamp.virtual_size.min(size));
            facts.layout = layout(&header);
            let (tables, data) = tables(&bytes, &header, reach)?;
            facts.tables = tables;
            let data_bytes = files.data.map(|file| StorageBytes::new(file)).transpose()?;
            facts.content = content(data_bytes.as_ref().unwrap_or(&bytes), samples_of(&data, &header))?;
        } else {
            let start = layer.source.slice.map_or(0, |slice| slice.offset);
            let len = match layer.source.slice.and_then(|slice| slice.size) {
                Some(len) => len,
                None => bytes.len().saturating_sub(start),
            };
            if layer.description.virtual_size.is_none() {
                facts.virtual_size = len;
            }
            let reach = then.map_or(len, |stamp| stamp.file_length.min(len));
            facts.content = content(&bytes, places_in(start, reach))?;
        }
        if files.age()? != age {
            return Err(Error::new(ErrorKind::Conflict, "the image is being written").with_path(layer.name()));
        }
        Ok(facts)
    }
}

fn half(hasher: &mut blake3::Hasher) -> Fingerprint {
    let mut fingerprint = [0; 16];
    hasher.finalize_xof().fill(&mut fingerprint);
    fingerprint
}

/// Of what decides how tables and data are read; not of what can be amended.
fn layout(header: &Header) -> Fingerprint {
    let crypt = match header.crypt {
        CryptMethod::None => 0,
        CryptMethod::Aes => 1,
        CryptMethod::Luks => 2,
    };
    let compression = match header.compression {
        Compression::Deflate => 0,
        Compression::Zstd => 1,
    };
    let cluster_bits = u8::try_from(header.cluster_bits.get()).unwrap_or(u8::MAX);
    let flags = [header.has_extended_l2(), header.has_data_file()].map(u8::from);
    let mut hasher = blake3::Hasher::new();
    hasher.update(Format::Qcow2.as_str().as_bytes());
    hasher
        .update(&[0, cluster_bits, crypt, compression])
        .update(&flags);
    half(&mut hasher)
}

/// Where data lies that an L2 table points at, and how many bytes of it.
type Place = (u64, u64);

/// Of the tables that map the first `reach` bytes of the disk, and the data that those point at which were looked at.
fn tables(bytes: &dyn Bytes, header: &Header, reach: u64) -> Result<(Fingerprint, Vec<Place>)> {
    let layout = Layout::of(header);
    let entries = layout.l1_entries(reach).min(u64::from(header.l1_entries));
    // At most 32 MiB, as the header has been checked.
    let l1 = bytes.read_some(header.l1_offset, usize::try_from(entries * 8).unwrap_or_default())?;
    let mut hasher = blake3::Hasher::new();
    let mut there = Vec::new();
    for (index, entry) in (0_u64..).zip(l1.as_chunks::<8>().0) {
        if let Some(offset) = L1Entry(u64::from_be_bytes(*entry)).offset() {
            hasher.update(&index.to_be_bytes());
            there.push((index, offset));
        }
    }
    let mut data = Vec::new();
    for number in spread(there.len() as u64, TABLES) {
        let Some((index, offset)) = there.get(usize::try_from(number).unwrap_or(usize::MAX)) else {
            continue;
        };
        // What the disk does not reach of the last table is no part of it.
        let mapped = reach.saturating_sub(index.saturating_mul(layout.l2_coverage()));
        let used = header.cluster_bits.clusters(mapped).min(layout.l2_entries()) * layout.l2_entry_size();
        for piece in pieces(used) {
            let len = usize::try_from(piece.end - piece.start).unwrap_or_default();
            let mut table = bytes.read_some(offset.saturating_add(piece.start), len)?;
            normalise(&mut table, layout, &mut data);
            hasher.update(&table);
        }
    }
    Ok((half(&mut hasher), data))
}

/// The parts of a table of so many bytes that are looked at; each a whole number of entries.
fn pieces(used: u64) -> impl Iterator<Item = Range<u64>> {
    let (count, len) = if used <= TABLE_BYTES {
        (1, used)
    } else {
        (PIECES, PIECE)
    };
    spread(used - len + 1, count).map(move |start| {
        let start = start / 16 * 16;
        start..start + len
    })
}

/// Takes the flag out of all entries that refcounts decide, and notes where data lies.
fn normalise(table: &mut [u8], layout: Layout, data: &mut Vec<Place>) {
    let size = layout.cluster_bits.size();
    let words = table.as_chunks_mut::<8>().0;
    let step = if layout.l2_entry_size() == 16 { 2 } else { 1 };
    for entry in words.chunks_mut(step) {
        let Some((word, bitmap)) = entry.split_first_mut() else {
            continue;
        };
        let number = u64::from_be_bytes(*word);
        if number == 0 {
            continue;
        }
        let bitmap = bitmap.first().map_or(0, |bitmap| u64::from_be_bytes(*bitmap));
        match layout.cluster(number, bitmap) {
            Ok(Cluster::Data { host } | Cluster::Subclusters { host: Some(host), .. }) => {
                data.push((host, size));
            }
            Ok(Cluster::Compressed { host, len }) => data.push((host, len.into())),
            // Nothing there, or nothing that makes sense: the entry itself counts.
            _ => {}
        }
        *word = (number & !COPIED).to_be_bytes();
    }
}

/// Which bytes of a qcow2 image's data are looked at: the beginning of each of the first clusters; of others, not always the
/// beginning.
fn samples_of(data: &[Place], header: &Header) -> Vec<Place> {
    let first = data
        .iter()
        .take(FIRST)
        .map(|(host, len)| (*host, SAMPLE.min(*len)));
    let parts = (header.cluster_bits.size() / SAMPLE).max(1);
    let others = (0_u64..).zip(spread(data.len() as u64, SPREAD));
    let others = others.filter_map(|(number, place)| {
        let (host, len) = *data.get(usize::try_from(place).ok()?)?;
        let inner = (number % parts) * SAMPLE;
        let inner = if inner < len { inner } else { 0 };
        Some((host.saturating_add(inner), SAMPLE.min(len - inner)))
    });
    first.chain(others).collect()
}

/// Which bytes of a file's part are looked at.
fn places_in(start: u64, len: u64) -> Vec<Place> {
    let last = len.saturating_sub(SAMPLE);
    let partition = Some(PARTITION).filter(|place| *place <= last);
    let sample = |place: u64| (start.saturating_add(place), SAMPLE.min(len));
    let all = spread(last + 1, SPREAD).map(|place| {
        if place == last {
            last
        } else {
            place / SAMPLE * SAMPLE
        }
    });
    all.chain(partition).map(sample).collect()
}

fn content(bytes: &dyn Bytes, places: Vec<Place>) -> Result<Fingerprint> {
    let mut hasher = blake3::Hasher::new();
    for (offset, len) in places {
        let sample = bytes.read_some(offset, usize::try_from(len).unwrap_or_default())?;
        hasher
            .update(&(sample.len() as u64).to_be_bytes())
            .update(&sample);
    }
    Ok(half(&mut hasher))
}

/// At most `most` of the first `count` numbers, evenly spread, the first and the last among them.
fn spread(count: u64, most: u64) -> impl Iterator<Item = u64> {
    let steps = u128::from(most.min(count).saturating_sub(1).max(1));
    let last = u128::from(count.saturating_sub(1));
    (0..u128::from(most.min(count))).map(move |step| u64::try_from(step * last / steps).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_from_the_first_to_the_last() {
        let all = |count, most| spread(count, most).collect::<Vec<_>>();
        assert!(all(0, 4).is_empty());
        assert_eq!(all(1, 4), [0]);
        assert_eq!(all(3, 4), [0, 1, 2]);
        assert_eq!(all(10, 4), [0, 3, 6, 9]);
        assert_eq!(all(u64::MAX, 3), [0, (u64::MAX - 1) / 2, u64::MAX - 1]);
    }

    #[test]
    fn of_a_large_table_pieces_are_looked_at_and_of_a_small_one_all() {
        for small in [80, 64 << 10] {
            assert!(pieces(small).eq(std::iter::once(0..small)));
        }
        let large: Vec<_> = pieces(2 << 20).collect();
        assert_eq!((large.len(), large[0].clone()), (16, 0..4096));
        assert_eq!(large[15].end, 2 << 20);
        assert!(large.iter().all(|piece| piece.start % 16 == 0));
    }

    #[test]
    fn samples_of_a_file_lie_in_it() {
        for len in [0, 1, 4095, 4096, 10_000, 1 << 20, (1 << 20) + 4096, 1 << 40] {
            let places = places_in(512, len);
            assert!(places.iter().all(|(at, of)| *at >= 512 && at + of <= 512 + len));
            assert_eq!(places.first().unwrap().0, 512);
            assert_eq!(places.iter().map(|(at, of)| at + of).max(), Some(512 + len));
        }
    }
}
