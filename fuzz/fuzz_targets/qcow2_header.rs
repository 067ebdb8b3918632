//! qcow2 headers: read, written back, and changed while the power may fail at any instant.
#![no_main]

use catena_format::qcow2::extension::Extension;
use catena_format::qcow2::header::BackingName;
use catena_format::qcow2::rewrite::{self, Write};
use catena_format::qcow2::{self, Header};
use catena_fuzz::{number, plant, seeds};
use libfuzzer_sys::fuzz_target;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

fuzz_target!(
    init: plant(seeds::qcow2::with_headers().into_iter().map(|(name, bytes)| {
        (name, [b"\x08\x03new.base.qcow2\x55\x55".to_vec(), bytes].concat())
    })),
    |input: &[u8]| {
        let mut image = input;
        let name_len = number(&mut image, 1) as usize * 4;
        let format_len = number(&mut image, 1) as usize % 16;
        let (name, rest) = image.split_at(name_len.min(1023).min(image.len()));
        let (format, mut image) = rest.split_at(format_len.min(rest.len()));
        let torn = number(&mut image, 2);
        let mut image = image.to_vec();
        // What a file that ends in its first cluster lacks is zeros once that is written to.
        let cluster_bits = image.get(23).map_or(0, |bits| bits % 32);
        image.resize(image.len().max(1 << cluster_bits.min(21)), 0);

        let Ok(header) = Header::read(&image) else {
            return;
        };
        let _ = header.check_readable();
        let _ = qcow2::description(&header, &image);
        round_trip(&header);
        without_stamps(&header);
        change(&image, &header, name, format, torn);
    }
);

/// What is written back says the same.
fn round_trip(header: &Header) {
    let Ok(mut bytes) = header.encode() else {
        return;
    };
    assert!(bytes.len() as u64 <= header.cluster_bits.size());
    assert_eq!(header.encoded_len(), bytes.len() as u64);
    bytes.resize(1 << header.cluster_bits.get(), 0);
    let again = Header::read(&bytes).expect("what was written can be read");
    let mut expected = header.clone();
    // These two may move.
    expected.header_length = again.header_length;
    if let (Some(old), Some(new)) = (&mut expected.backing, &again.backing) {
        old.offset = new.offset;
    }
    assert_eq!(again, expected);
}

/// What Catena added goes without a trace, and what it said comes back.
fn without_stamps(header: &Header) {
    let (stamp, lineage) = (header.stamp().cloned(), header.lineage().cloned());
    let mut bare = header.clone();
    bare.set_stamp(None);
    bare.set_lineage(None);
    assert!(bare.stamp().is_none() && bare.lineage().is_none());
    round_trip(&bare);
    bare.set_lineage(lineage.clone());
    bare.set_stamp(stamp.clone());
    assert_eq!((bare.stamp(), bare.lineage()), (stamp.as_ref(), lineage.as_ref()));
    round_trip(&bare);
}

type Reference = (Option<Vec<u8>>, Option<Vec<u8>>);

fn reference(header: &Header) -> Reference {
    (
        header.backing.as_ref().map(|backing| backing.name.clone()),
        header.backing_format().map(<[u8]>::to_vec),
    )
}

/// The extensions that a change of the reference must leave alone, but for the feature names, which are a courtesy.
fn others(header: &Header) -> Vec<Extension> {
    let kept = |extension: &&Extension| {
        !matches!(
            extension,
            Extension::BackingFormat(_) | Extension::FeatureNames(_)
        )
    };
    header.extensions.iter().filter(kept).cloned().collect()
}

fn change(image: &[u8], old: &Header, name: &[u8], format: &[u8], torn: u64) {
    let mut new = old.clone();
    new.extensions
        .retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
    if !format.is_empty() {
        new.extensions
            .insert(0, Extension::BackingFormat(format.to_vec()));
    }
    new.backing = (!name.is_empty()).then(|| BackingName {
        offset: 0,
        name: name.to_vec(),
    });
    let cluster = 1 << old.cluster_bits.get();
    let mut disk = image.to_vec();
    disk.resize(disk.len().max(cluster), 0);
    let Ok(writes) = rewrite::plan(&disk[..cluster], old, &new) else {
        return;
    };
    let (before, after) = (reference(old), reference(&new));
    for write in &writes {
        assert!(
            write.0 as usize + write.1.len() <= cluster,
            "a write leaves the first cluster"
        );
        let mut half = disk.clone();
        apply(&mut half, write, |sector| torn >> (sector % 16) & 1 == 1);
        apply(&mut disk, write, |_| true);
        for state in [&half, &disk] {
            let header = Header::read(state).expect("readable at every instant");
            let seen = reference(&header);
            assert!(
                seen == before || seen == after,
                "{seen:?} is neither {before:?} nor {after:?}"
            );
            assert_eq!(others(&header), others(old));
        }
    }
    assert_eq!(reference(&Header::read(&disk).expect("readable")), after);
    assert!(
        disk[cluster..] == image[cluster.min(image.len())..],
        "something behind the first cluster has changed"
    );
}

/// Performs a write as far as its sectors make it.
fn apply(disk: &mut [u8], (offset, data): &Write, makes_it: impl Fn(usize) -> bool) {
    let offset = *offset as usize;
    for (i, byte) in data.iter().enumerate() {
        if makes_it((offset + i) / SECTOR) {
            disk[offset + i] = *byte;
        }
    }
}
