//! qcow2: every field, table and extension with numbers that nobody honest would write.

use super::Expected::{Broken, Reads, Unreadable};
use super::Qemu::{Accepts, NotAsked, Refuses};
use super::images::{
    CLUSTER, COMPRESSED, COPIED, DATA, L1, L2, empty, empty_with, extended, mapped, mapped_in, over, put,
    rewritten, with, with32, with64, write,
};
use super::{Row, seen};
use catena::ErrorKind::{BadReference, Corrupt, Encrypted, TooLarge, Unsupported};
use catena_format::Encryption;
use catena_format::qcow2::Version;
use catena_format::qcow2::create::CreateOptions;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const CRYPTO: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
const BITMAPS: u32 = 0x2385_2875;

fn v2(options: &mut CreateOptions) {
    options.version = Version::V2;
}

/// An incompatible feature bit.
fn incompatible(bytes: Vec<u8>, bits: u64) -> Vec<u8> {
    with64(bytes, 72, bits)
}

fn feature_name(bit: u8, name: &[u8]) -> Vec<u8> {
    let mut entry = vec![0, bit];
    entry.extend(name);
    entry.resize(48, 0);
    entry
}

fn snapshot(extra: u32, id: u16, name: u16, l1: u64, l1_entries: u32) -> Vec<u8> {
    let mut entry = Vec::new();
    entry.extend(l1.to_be_bytes());
    entry.extend(l1_entries.to_be_bytes());
    entry.extend(id.to_be_bytes());
    entry.extend(name.to_be_bytes());
    entry.extend([0; 20]);
    entry.extend(extra.to_be_bytes());
    with(
        with64(with32(empty(), 60, 1), 64, 4 * CLUSTER as u64),
        4 * CLUSTER,
        &entry,
    )
}

/// The snapshots cannot be listed, and that is all.
fn bad_snapshots(kind: catena::ErrorKind) -> super::Expected {
    seen(1, move |chain| {
        let image = chain.layers[0].open_qcow2(catena::open::Sharing::Locked).unwrap();
        assert_eq!(image.snapshots().unwrap_err().kind(), kind);
    })
}

pub fn headers() -> Vec<Row> {
    let e = empty;
    let mut rows = vec![
        Row::qcow2(
            "cluster_bits 0",
            with32(e(), 20, 0),
            Broken(Unsupported, "cluster size: 2^0"),
            Refuses,
        ),
        Row::qcow2(
            "cluster_bits 8",
            with32(e(), 20, 8),
            Broken(Unsupported, "cluster size: 2^8"),
            Refuses,
        ),
        Row::qcow2(
            "cluster_bits 22",
            with32(e(), 20, 22),
            Broken(Unsupported, "cluster size: 2^22"),
            Refuses,
        ),
        Row::qcow2(
            "cluster_bits 63",
            with32(e(), 20, 63),
            Broken(Unsupported, "cluster size: 2^63"),
            Refuses,
        ),
        Row::qcow2(
            "cluster_bits 2^32-1",
            with32(e(), 20, u32::MAX),
            Broken(Unsupported, "cluster size"),
            Refuses,
        ),
        Row::qcow2(
            "version 0",
            with32(e(), 4, 0),
            Broken(Unsupported, "version 0"),
            Refuses,
        ),
        Row::qcow2(
            "version 1",
            with32(e(), 4, 1),
            Broken(Unsupported, "version 1"),
            Refuses,
        ),
        Row::qcow2(
            "version 4",
            with32(e(), 4, 4),
            Broken(Unsupported, "version 4"),
            Refuses,
        ),
        Row::qcow2(
            "header_length 0",
            with32(e(), 100, 0),
            Broken(Corrupt, "header too short"),
            Refuses,
        ),
        Row::qcow2(
            "header_length 103",
            with32(e(), 100, 103),
            Broken(Corrupt, "header too short"),
            Refuses,
        ),
        Row::qcow2(
            "header_length beyond the cluster",
            with32(e(), 100, 4097),
            Broken(Corrupt, "exceeds cluster"),
            Refuses,
        ),
        Row::qcow2(
            "header_length 2^32-1",
            with32(e(), 100, u32::MAX),
            Broken(Corrupt, "exceeds cluster"),
            Refuses,
        ),
        Row::qcow2(
            "a header cut off",
            e()[..90].to_vec(),
            Broken(Corrupt, "cut off"),
            Refuses,
        ),
        Row::qcow2(
            "nothing but the magic",
            b"QFI\xfb".to_vec(),
            Broken(Corrupt, "cut off"),
            Refuses,
        ),
        Row::qcow2(
            "l1_size 2^32-1",
            with32(e(), 36, u32::MAX),
            Broken(TooLarge, "L1 table too large"),
            Refuses,
        ),
        Row::qcow2(
            "l1_size 0",
            with32(e(), 36, 0),
            Broken(Corrupt, "L1 table is too small"),
            Refuses,
        ),
        Row::qcow2(
            "L1 misaligned",
            with64(e(), 40, 0x3008),
            Broken(Corrupt, "not cluster-aligned"),
            Refuses,
        ),
        Row::qcow2(
            "L1 beyond what a file can be",
            with64(e(), 40, !0xfff),
            Broken(Corrupt, "out of range"),
            Refuses,
        ),
        Row::qcow2(
            "L1 past the end of the file",
            with64(e(), 40, 1 << 40),
            Reads(vec![0; 4096]),
            Accepts,
        ),
        Row::qcow2(
            "L1 over the header",
            with64(e(), 40, 0),
            Reads(vec![0; 4096]),
            Accepts,
        ),
        Row::qcow2(
            "refcount table too large",
            with32(e(), 56, u32::MAX),
            Broken(TooLarge, "refcount table too large"),
            Refuses,
        ),
        Row::qcow2(
            "refcount table misaligned",
            with64(e(), 48, 0x1001),
            Broken(Corrupt, "not cluster-aligned"),
            Refuses,
        ),
        Row::qcow2(
            "no refcount table",
            with32(e(), 56, 0),
            Reads(vec![0; 4096]),
            Refuses,
        ),
        Row::qcow2(
            "refcount_order 7",
            with32(e(), 96, 7),
            Broken(TooLarge, "64 bits"),
            Refuses,
        ),
        Row::qcow2(
            "refcount_order 2^32-1",
            with32(e(), 96, u32::MAX),
            Broken(TooLarge, "64 bits"),
            Refuses,
        ),
        Row::qcow2(
            "virtual size 2^63",
            with64(e(), 24, 1 << 63),
            Broken(TooLarge, "virtual size"),
            Refuses,
        ),
        Row::qcow2(
            "virtual size 2^64-1",
            with64(e(), 24, u64::MAX),
            Broken(TooLarge, "virtual size"),
            Refuses,
        ),
        Row::qcow2(
            "virtual size beyond the L1 table",
            with64(e(), 24, 1 << 40),
            Broken(Corrupt, "L1 table is too small"),
            Refuses,
        ),
        Row::qcow2(
            "crypt_method 1",
            with32(mapped(COPIED | DATA as u64), 32, 1),
            Unreadable(Encrypted, "encrypted"),
            Refuses,
        ),
        Row::qcow2(
            "crypt_method 2 without a header",
            with32(e(), 32, 2),
            unreadable_luks("missing"),
            Refuses,
        ),
        Row::qcow2(
            "crypt_method 3",
            with32(e(), 32, 3),
            Broken(Unsupported, "encryption method 3"),
            Refuses,
        ),
        Row::qcow2(
            "a LUKS header at 2^64-1",
            with32(extended(&[(CRYPTO, 16, &[0xff; 16])]), 32, 2),
            unreadable_luks("magic"),
            Refuses,
        ),
        Row::qcow2(
            "compression type 1 without its bit",
            with(e(), 104, &[1]),
            Broken(Corrupt, "contradict"),
            Refuses,
        ),
        Row::qcow2(
            "compression type 2",
            incompatible(with(e(), 104, &[2]), 8),
            Broken(Unsupported, "type 2"),
            Refuses,
        ),
        Row::qcow2(
            "extended L2 with small clusters",
            incompatible(e(), 16),
            Broken(Corrupt, "at least 16384"),
            Refuses,
        ),
        Row::qcow2(
            "the corrupt bit",
            incompatible(e(), 2),
            seen(1, |chain| {
                assert!(
                    chain.layers[0]
                        .description
                        .features
                        .contains(&"corrupt".to_owned())
                );
            }),
            Accepts,
        ),
        Row::qcow2(
            "the dirty bit",
            incompatible(e(), 1),
            seen(1, |chain| {
                assert!(chain.layers[0].description.features.contains(&"dirty".to_owned()));
            }),
            Accepts,
        ),
        Row::qcow2(
            "an incompatible bit without a name",
            incompatible(e(), 1 << 63),
            Unreadable(Unsupported, "bit 63"),
            Refuses,
        ),
    ];
    rows.extend(snapshots());
    rows.extend(extensions());
    rows.extend(names());
    rows
}

fn unreadable_luks(words: &'static str) -> super::Expected {
    seen(1, move |chain| match &chain.layers[0].description.encryption {
        Some(Encryption::LuksUnreadable(why)) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?}"),
    })
}

fn snapshots() -> Vec<Row> {
    vec![
        Row::qcow2(
            "2^32-1 snapshots",
            with32(empty(), 60, u32::MAX),
            Broken(TooLarge, "snapshot table too large"),
            Refuses,
        ),
        Row::qcow2(
            "a misaligned snapshot table",
            with64(with32(empty(), 60, 1), 64, 1),
            Broken(Corrupt, "not cluster-aligned"),
            Refuses,
        ),
        Row::qcow2(
            "65,536 snapshots that are not there",
            with64(with32(empty(), 60, 65_536), 64, 1 << 40),
            bad_snapshots(Corrupt),
            Accepts,
        ),
        Row::qcow2(
            "a snapshot with 4 GiB of extra data",
            snapshot(u32::MAX, 1, 1, 0, 0),
            bad_snapshots(TooLarge),
            Refuses,
        ),
        Row::qcow2(
            "a snapshot whose name is past the end",
            snapshot(0, 65535, 65535, 0, 0),
            bad_snapshots(Corrupt),
            Accepts,
        ),
        Row::qcow2(
            "a snapshot with an L1 table of 32 GiB",
            with(snapshot(0, 0, 0, 0, u32::MAX), 4 * CLUSTER + 40, &[0; 64]),
            bad_snapshots(TooLarge),
            NotAsked,
        ),
        Row::qcow2(
            "a snapshot with a misaligned L1 table",
            with(snapshot(0, 0, 0, 7, 1), 4 * CLUSTER + 40, &[0; 64]),
            bad_snapshots(Corrupt),
            NotAsked,
        ),
    ]
}

fn extensions() -> Vec<Row> {
    let escape = feature_name(60, b"\x1b[2J\x1b]0;owned\x07");
    let many: Vec<(u32, u32, &[u8])> = vec![(0x55, 0, &[]); 400];
    let raw = b"raw\0\0\0\0\0";
    vec![
        Row::qcow2(
            "an extension longer than its area",
            extended(&[(0x1234, u32::MAX, &[])]),
            Broken(Corrupt, "longer than its area"),
            Refuses,
        ),
        Row::qcow2(
            "an extension longer than the first cluster",
            extended(&[(BACKING_FORMAT, 5000, &[])]),
            Broken(Corrupt, "longer than its area"),
            Refuses,
        ),
        Row::qcow2(
            "two backing formats",
            extended(&[(BACKING_FORMAT, 3, raw), (BACKING_FORMAT, 5, b"qcow2\0\0\0")]),
            Broken(Corrupt, "appears twice"),
            Accepts,
        ),
        Row::qcow2(
            "two data files",
            incompatible(extended(&[(DATA_FILE, 1, b"a"), (DATA_FILE, 1, b"b")]), 4),
            Broken(Corrupt, "appears twice"),
            Refuses,
        ),
        Row::qcow2(
            "nothing but empty extensions",
            extended(&many),
            Reads(vec![0; 4096]),
            Accepts,
        ),
        Row::qcow2(
            "a data file's name without its bit",
            extended(&[(DATA_FILE, 11, b"/etc/passwd")]),
            seen(1, |chain| {
                let layer = &chain.layers[0];
                assert!(layer.data_file.is_none() && layer.description.data_file.is_none());
                assert!(
                    layer
                        .description
                        .oddities
                        .iter()
                        .any(|oddity| oddity.contains("data file is named"))
                );
            }),
            Accepts,
        ),
        Row::qcow2(
            "a data file's bit without its name",
            incompatible(empty(), 4),
            Unreadable(BadReference, "empty data-file definition"),
            Refuses,
        ),
        Row::qcow2(
            "a feature named with control sequences",
            incompatible(extended(&[(FEATURE_NAMES, 48, &escape)]), 1 << 60),
            Unreadable(Unsupported, "owned"),
            Refuses,
        ),
        Row::qcow2(
            "feature names of an odd length",
            extended(&[(FEATURE_NAMES, 47, &[1; 47])]),
            Reads(vec![0; 4096]),
            Accepts,
        ),
        Row::qcow2(
            "2^32-1 bitmaps",
            with64(extended(&[(BITMAPS, 24, &[0xff; 24])]), 88, 1),
            seen(1, |_| ()),
            Refuses,
        ),
    ]
}

fn names() -> Vec<Row> {
    let name = |offset: u64, len: u32, bytes: Vec<u8>| with32(with64(bytes, 8, offset), 16, len);
    vec![
        Row::qcow2(
            "a backing name in the header",
            name(20, 4, empty()),
            Broken(Corrupt, "lies in the header"),
            Accepts,
        ),
        Row::qcow2(
            "a backing name of 1024 bytes",
            name(2048, 1024, empty()),
            Broken(TooLarge, "name too long"),
            Refuses,
        ),
        Row::qcow2(
            "a backing name of 4 GiB",
            name(2048, u32::MAX, empty()),
            Broken(TooLarge, "name too long"),
            Refuses,
        ),
        Row::qcow2(
            "a backing name past the end of the file",
            name(1 << 40, 4, empty()),
            Broken(Corrupt, "past the end"),
            Refuses,
        ),
        Row::qcow2(
            "a backing name at 2^64-1",
            name(u64::MAX, 4, empty()),
            Broken(Corrupt, "past the end"),
            Refuses,
        ),
        Row::qcow2(
            "a backing name without length",
            name(2048, 0, empty()),
            seen(1, |_| ()),
            Accepts,
        ),
        Row::qcow2(
            "a backing name outside the first cluster",
            name(DATA as u64, 4, with(empty(), DATA, b"gone")),
            Broken(catena::ErrorKind::NotFound, "gone"),
            Refuses,
        ),
        Row::qcow2(
            "a backing name over the first cluster's end",
            name(CLUSTER as u64 - 2, 4, empty()),
            seen_odd("outside the first cluster"),
            Refuses,
        ),
    ]
}

/// The name is of NULs, so it is an empty one; that it lies where it does is told.
fn seen_odd(words: &'static str) -> super::Expected {
    super::Expected::Seen(Box::new(move |chain| {
        let oddities = &chain.layers[0].description.oddities;
        assert!(
            oddities.iter().any(|oddity| oddity.contains(words)),
            "{oddities:?}"
        );
    }))
}

pub fn tables() -> Vec<Row> {
    let damaged = || Unreadable(Corrupt, "damaged");
    let data = DATA as u64;
    let stream = |bytes: &[u8]| with(mapped(COMPRESSED | data), DATA, bytes);
    // One block of nothing but the distance to itself: it would go on for ever.
    let bomb = {
        use std::io::Write;
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![0; 8 << 20]).unwrap();
        encoder.finish().unwrap()
    };
    let mut subclusters = empty_with(|options| {
        options.cluster_bits = catena_format::qcow2::ClusterBits::new(14).unwrap();
        options.extended_l2 = true;
    });
    let (l1, l2) = (3 << 14, 4 << 14);
    put(&mut subclusters, l1, &(COPIED | l2 as u64).to_be_bytes());
    put(&mut subclusters, l2, &(COPIED | 5 << 14).to_be_bytes());
    put(&mut subclusters, 6 << 14, &[0]);
    let bitmap = |bits: u64| with64(subclusters.clone(), l2 + 8, bits);
    vec![
        Row::qcow2(
            "data as it should be",
            mapped(COPIED | data),
            Reads(vec![0x5a; CLUSTER]),
            Accepts,
        ),
        Row::qcow2(
            "a misaligned data cluster",
            mapped(COPIED | data | 0x200),
            damaged(),
            Refuses,
        ),
        Row::qcow2(
            "a data cluster past the end of the file",
            mapped(COPIED | 1 << 50),
            Reads(vec![0; CLUSTER]),
            Accepts,
        ),
        Row::qcow2(
            "reserved bits of an L2 entry",
            mapped(COPIED | data | 0x3f << 56 | 0x1fe),
            Reads(vec![0x5a; CLUSTER]),
            Accepts,
        ),
        Row::qcow2(
            "a compressed cluster past the end of the file",
            mapped(COMPRESSED | 1 << 50),
            Unreadable(Corrupt, "does not decompress"),
            Refuses,
        ),
        Row::qcow2(
            "a compressed cluster of garbage",
            stream(&[0xff; 512]),
            Unreadable(Corrupt, "does not decompress"),
            Refuses,
        ),
        Row::qcow2(
            "a compressed cluster that would be 8 MiB",
            stream(&bomb[..512]),
            Reads(vec![0; CLUSTER]),
            Accepts,
        ),
        Row::qcow2(
            "a compressed cluster of the most sectors",
            mapped(!COPIED),
            Unreadable(Corrupt, "does not decompress"),
            Refuses,
        ),
        Row::qcow2(
            "a misaligned L2 table",
            with64(mapped(0), L1, L2 as u64 | 0x200),
            damaged(),
            Refuses,
        ),
        Row::qcow2(
            "an L2 table past the end of the file",
            with64(empty(), L1, COPIED | 1 << 50),
            Reads(vec![0; CLUSTER]),
            Accepts,
        ),
        Row::qcow2(
            "an L2 table that is its own L1 table",
            with64(empty(), L1, COPIED | L1 as u64),
            Reads((COPIED | L1 as u64).to_be_bytes().to_vec()),
            Accepts,
        ),
        Row::qcow2(
            "an L2 table that maps itself",
            mapped(COPIED | L2 as u64),
            Reads((COPIED | L2 as u64).to_be_bytes().to_vec()),
            Accepts,
        ),
        Row::qcow2(
            "an L2 table that is the header",
            with64(with64(empty(), 40, 4 * CLUSTER as u64), L2, COPIED),
            Reads(vec![0; CLUSTER]),
            Accepts,
        ),
        Row::qcow2(
            "a zero cluster in version 2",
            mapped_in(empty_with(v2), 1),
            damaged(),
            Refuses,
        ),
        Row::qcow2(
            "a subcluster that is zero and allocated",
            bitmap(1 | 1 << 32),
            damaged(),
            Refuses,
        ),
        Row::qcow2(
            "an allocated subcluster without a cluster",
            with64(bitmap(1), l2, 0),
            damaged(),
            Refuses,
        ),
        Row::made(
            "a compressed cluster beside a data file",
            |dir| {
                write(dir, "data", &[7; CLUSTER]);
                write(dir, "top", &beside_a_data_file());
            },
            Unreadable(Corrupt, "damaged"),
        ),
        Row::qcow2(
            "a disk of an exbibyte in a kilobyte",
            exbibyte(),
            Reads(vec![0; 4096]),
            Accepts,
        ),
        Row::qcow2(
            "an overlay of itself, opened alone",
            over(b"top", b"qcow2"),
            Broken(catena::ErrorKind::Loop, "self-referential"),
            Accepts,
        ),
        Row::qcow2(
            "header fields that nobody knows",
            rewritten(empty(), |header| header.unknown_fields = vec![0xff; 900]),
            Reads(vec![0; 4096]),
            Accepts,
        ),
    ]
}

/// The data file is there; the entry says that its cluster is compressed, which it cannot be.
fn beside_a_data_file() -> Vec<u8> {
    mapped_in(
        empty_with(|options| options.data_file = Some((b"data".to_vec(), false))),
        COMPRESSED | DATA as u64,
    )
}

/// The largest clusters and L1 table there may be; all of the tables are holes.
pub fn exbibyte() -> Vec<u8> {
    let bytes = with32(with32(empty(), 20, 21), 36, 4 << 20);
    with64(with64(with64(bytes, 24, 1 << 60), 40, 4 << 21), 48, 1 << 21)
}

/// The same over a backing image, and smaller.
pub fn pebibyte_over(name: &[u8]) -> Vec<u8> {
    let bytes = with32(with32(over(name, b"qcow2"), 20, 21), 36, 2048);
    with64(with64(with64(bytes, 24, 1 << 50), 40, 4 << 21), 48, 1 << 21)
}
