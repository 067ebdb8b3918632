//! Small qcow2 images by the library's own hand, and the ways in which they are spoilt.

use catena_format::qcow2::create::{CreateOptions, NewImage};
use catena_format::qcow2::extension::Extension;
use catena_format::qcow2::{ClusterBits, Header};
use std::path::Path;

pub const CLUSTER: usize = 4096;
/// Where the L1 table of [`empty`]'s images is.
pub const L1: usize = 3 * CLUSTER;
/// Where the L2 table of [`mapped`]'s images is.
pub const L2: usize = 4 * CLUSTER;
/// Where the data of [`mapped`]'s images is.
pub const DATA: usize = 5 * CLUSTER;

pub const COPIED: u64 = 1 << 63;
pub const COMPRESSED: u64 = 1 << 62;

/// An empty disk of 1 MiB with clusters of 4 KiB, changed as asked, on whole clusters.
pub fn empty_with(change: impl FnOnce(&mut CreateOptions)) -> Vec<u8> {
    let mut options = CreateOptions::new(1 << 20).unwrap();
    options.cluster_bits = ClusterBits::new(12).unwrap();
    change(&mut options);
    let new = NewImage::lay_out(&options).unwrap();
    let mut bytes = Vec::new();
    for (offset, data) in new.writes {
        put(&mut bytes, usize::try_from(offset).unwrap(), &data);
    }
    let end = usize::try_from(new.len).unwrap();
    bytes.resize(end.next_multiple_of(1 << options.cluster_bits.get()), 0);
    bytes
}

pub fn empty() -> Vec<u8> {
    empty_with(|_| ())
}

/// An image over a backing image, with the format recorded unless the word is empty.
pub fn over(name: &[u8], format: &[u8]) -> Vec<u8> {
    empty_with(|options| options.backing = Some((name.to_vec(), format.to_vec())))
}

/// An image whose first cluster is what an L2 entry says. Behind the table there is a cluster of data.
pub fn mapped(entry: u64) -> Vec<u8> {
    mapped_in(empty(), entry)
}

pub fn mapped_in(mut bytes: Vec<u8>, entry: u64) -> Vec<u8> {
    put(&mut bytes, L1, &(COPIED | L2 as u64).to_be_bytes());
    put(&mut bytes, L2, &entry.to_be_bytes());
    put(&mut bytes, DATA, &[0x5a; CLUSTER]);
    bytes
}

pub fn put(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    if bytes.len() < at + part.len() {
        bytes.resize(at + part.len(), 0);
    }
    bytes[at..at + part.len()].copy_from_slice(part);
}

pub fn with(mut bytes: Vec<u8>, at: usize, part: &[u8]) -> Vec<u8> {
    put(&mut bytes, at, part);
    bytes
}

pub fn with32(bytes: Vec<u8>, at: usize, number: u32) -> Vec<u8> {
    with(bytes, at, &number.to_be_bytes())
}

pub fn with64(bytes: Vec<u8>, at: usize, number: u64) -> Vec<u8> {
    with(bytes, at, &number.to_be_bytes())
}

/// The same image with its header changed by whoever can still write a valid one.
pub fn rewritten(mut bytes: Vec<u8>, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::read(&bytes).unwrap();
    header
        .extensions
        .retain(|extension| !matches!(extension, Extension::FeatureNames(_)));
    change(&mut header);
    let encoded = header.encode().unwrap();
    bytes[..CLUSTER].fill(0);
    put(&mut bytes, 0, &encoded);
    bytes
}

/// The header followed by these extensions, each a type, a length that is said, and the data that is there.
pub fn extended(extensions: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = empty();
    bytes[112..CLUSTER].fill(0);
    let mut at = 112;
    for (kind, len, data) in extensions {
        put(&mut bytes, at, &kind.to_be_bytes());
        put(&mut bytes, at + 4, &len.to_be_bytes());
        put(&mut bytes, at + 8, data);
        at += 8 + data.len().next_multiple_of(8);
    }
    bytes
}

pub fn write(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join(name), bytes).unwrap();
}
