//! qcow2 images with small clusters, so that all their tables fit in a few kilobytes.

use super::put;
use catena_format::qcow2::create::{CreateOptions, NewImage};
use catena_format::qcow2::extension::{BitmapsExtension, Extension};
use catena_format::qcow2::{ClusterBits, Compression, CryptMethod, Header, Lineage, Stamp, Version};
use std::io::Write;

/// Bit 63 of an entry: the refcount is one.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry: zeros.
const ZERO: u64 = 1;

/// An empty image.
pub fn empty(bits: u32, size: u64, change: impl FnOnce(&mut CreateOptions)) -> (Header, Vec<u8>) {
    let mut options = CreateOptions::new(size).expect("a small disk");
    options.cluster_bits = ClusterBits::new(bits).expect("a cluster size");
    change(&mut options);
    let new = NewImage::lay_out(&options).expect("an image");
    let mut bytes = vec![0; usize::try_from(new.len).expect("a small image")];
    for (offset, data) in new.writes {
        put(
            &mut bytes,
            [(usize::try_from(offset).expect("a small image"), data.as_slice())],
        );
    }
    let cluster = 1 << bits;
    bytes.resize(bytes.len().next_multiple_of(cluster), 0);
    (new.header, bytes)
}

/// A cluster's bytes, compressed.
pub fn compressed(compression: Compression, cluster: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Deflate => {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(cluster).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        }
        Compression::Zstd => zstd::bulk::compress(cluster, 3).expect("memory takes it"),
    }
}

/// Gives an image an L2 table whose first entries are `entries`, each with its bitmap, and appends clusters behind it.
/// An entry is completed by the offset of the cluster that is said to be its own.
fn fill(header: &Header, bytes: &mut Vec<u8>, entries: &[(u64, u64, Option<Vec<u8>>)]) {
    let cluster = usize::try_from(header.cluster_bits.size()).expect("a small cluster");
    let l2 = bytes.len();
    bytes.resize(l2 + cluster, 0);
    put(
        bytes,
        [(
            usize::try_from(header.l1_offset).expect("a small image"),
            (COPIED | l2 as u64).to_be_bytes().as_slice(),
        )],
    );
    let width = if header.has_extended_l2() { 16 } else { 8 };
    for (index, (entry, bitmap, data)) in entries.iter().enumerate() {
        let mut entry = *entry;
        if let Some(data) = data {
            let at = bytes.len();
            entry |= at as u64;
            if entry & COMPRESSED != 0 {
                let sectors = (data.len() as u64 - 1) / 512;
                entry |= sectors << (62 - (header.cluster_bits.get() - 8));
            }
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(cluster), 0);
        }
        let at = l2 + index * width;
        put(bytes, [(at, entry.to_be_bytes().as_slice())]);
        if width == 16 {
            put(bytes, [(at + 8, bitmap.to_be_bytes().as_slice())]);
        }
    }
}

/// Clusters of every kind that an image can have.
fn with_data(bits: u32, change: impl FnOnce(&mut CreateOptions)) -> Vec<u8> {
    let (header, mut bytes) = empty(bits, 64 << bits, change);
    let cluster: Vec<u8> = (0..header.cluster_bits.size()).map(|n| (n / 16) as u8).collect();
    let mut entries = vec![
        (
            COPIED,
            u64::from(u32::MAX),
            (!header.has_data_file()).then(|| cluster.clone()),
        ),
        (0, 0, None),
    ];
    if header.version == Version::V3 {
        entries.push((
            if header.has_extended_l2() { 0 } else { ZERO },
            u64::from(u32::MAX) << 32,
            None,
        ));
    }
    if header.has_extended_l2() {
        entries.push((COPIED, 0x00f0_f000_0000_0f0f, Some(cluster.clone())));
    }
    if !header.has_data_file() {
        entries.push((COMPRESSED, 0, Some(compressed(header.compression, &cluster))));
    }
    fill(&header, &mut bytes, &entries);
    bytes
}

/// Rewrites the header of an image, which keeps its tables.
fn rewritten(mut bytes: Vec<u8>, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::read(&bytes).expect("an image");
    change(&mut header);
    let encoded = header.encode().expect("it fits");
    put(&mut bytes, [(0, encoded.as_slice())]);
    bytes
}

fn with_snapshot() -> Vec<u8> {
    let mut bytes = with_data(9, |_| ());
    let header = Header::read(&bytes).expect("an image");
    let at = bytes.len();
    let mut entry = Vec::new();
    entry.extend(header.l1_offset.to_be_bytes());
    entry.extend(header.l1_entries.to_be_bytes());
    entry.extend([0, 1, 0, 4]);
    entry.extend([0; 20]);
    entry.extend(24u32.to_be_bytes());
    entry.extend(0u64.to_be_bytes());
    entry.extend(header.virtual_size.to_be_bytes());
    entry.extend(u64::MAX.to_be_bytes());
    entry.extend(b"1snap");
    bytes.extend(&entry);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    rewritten(bytes, |header| {
        header.snapshots_offset = at as u64;
        header.snapshot_count = 1;
    })
}

fn with_bitmap() -> Vec<u8> {
    let (_, mut bytes) = empty(12, 1 << 20, |_| ());
    let at = bytes.len();
    let mut entry = Vec::new();
    entry.extend((at as u64 + 4096).to_be_bytes());
    entry.extend(1u32.to_be_bytes());
    entry.extend(2u32.to_be_bytes());
    entry.extend([1, 16, 0, 3, 0, 0, 0, 0]);
    entry.extend(b"inc");
    entry.resize(32, 0);
    bytes.extend(&entry);
    bytes.resize(at + 8192, 0);
    rewritten(bytes, |header| {
        header.extensions.push(Extension::Bitmaps(BitmapsExtension {
            count: 1,
            directory_size: 32,
            directory_offset: at as u64,
        }));
        header.autoclear |= catena_format::qcow2::Autoclear::BITMAPS;
    })
}

fn with_luks() -> Vec<u8> {
    let (_, mut bytes) = empty(12, 1 << 20, |_| ());
    let at = bytes.len() as u64;
    bytes.extend(super::foreign::luks1());
    rewritten(bytes, |header| {
        header.crypt = CryptMethod::Luks;
        header.extensions.push(Extension::CryptoHeader {
            offset: at,
            length: 592,
        });
    })
}

/// What Catena says of an image's base, and of what the image was.
fn with_stamp() -> Vec<u8> {
    let (_, bytes) = empty(12, 1 << 20, |options| {
        options.backing = Some((b"base".to_vec(), b"raw".to_vec()))
    });
    rewritten(bytes, |header| {
        header.set_lineage(Some(Lineage::new([5; 16])));
        header.set_stamp(Some(Stamp {
            virtual_size: 1 << 20,
            file_length: 1 << 20,
            modified: Some(1),
            taken: 2,
            reference: [1; 8],
            layout: [2; 16],
            tables: [3; 16],
            content: [4; 16],
            view: Some([6; 32]),
        }));
    })
}

/// Images that differ in their tables.
pub fn with_tables() -> Vec<(String, Vec<u8>)> {
    let zstd = |options: &mut CreateOptions| options.compression = Compression::Zstd;
    let images = [
        ("deflate", with_data(9, |_| ())),
        ("v2", with_data(9, |options| options.version = Version::V2)),
        ("zstd", with_data(10, zstd)),
        ("extended", with_data(14, |options| options.extended_l2 = true)),
        (
            "data-file",
            with_data(9, |options| options.data_file = Some((b"data".to_vec(), false))),
        ),
        ("snapshot", with_snapshot()),
        ("bitmap", with_bitmap()),
        ("empty", empty(16, 1 << 40, |_| ()).1[..512].to_vec()),
    ];
    images
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

/// Images that differ in their headers.
pub fn with_headers() -> Vec<(String, Vec<u8>)> {
    let backing = |name: &[u8], format: &[u8]| Some((name.to_vec(), format.to_vec()));
    let first = |(_, bytes): (Header, Vec<u8>)| bytes;
    let images = [
        (
            "backing",
            first(empty(12, 1 << 20, |options| {
                options.backing = backing(b"base.img", b"raw")
            })),
        ),
        (
            "small",
            first(empty(9, 1 << 20, |options| {
                options.backing = backing(b"base.img", b"qcow2")
            })),
        ),
        (
            "v2-backing",
            first(empty(12, 1 << 20, |options| {
                options.version = Version::V2;
                options.backing = backing(b"base", b"raw");
            })),
        ),
        (
            "wide",
            first(empty(12, 1 << 20, |options| options.refcount_order = 6)),
        ),
        (
            "raw-data-file",
            first(empty(12, 1 << 20, |options| {
                options.data_file = Some((b"data".to_vec(), true))
            })),
        ),
        (
            "unknown",
            rewritten(first(empty(12, 1 << 20, |_| ())), |header| {
                header.extensions.push(Extension::Unknown {
                    kind: 7,
                    data: vec![1; 700],
                });
                header.unknown_fields = vec![1; 20];
            }),
        ),
        ("luks", with_luks()),
        ("bitmap", with_bitmap()),
        ("stamped", with_stamp()),
    ];
    images
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}
