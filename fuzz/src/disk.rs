//! What must hold of any disk, whatever its images say.

use catena_engine::{Disk, ErrorKind, ExtentKind, GuestOffset, Image, Stack};
use std::path::PathBuf;
use std::sync::Arc;

/// How many answers to `extents` are looked at.
const ANSWERS: usize = 3;
/// How many extents of each answer are read.
const READ: usize = 24;
/// Bytes of one read.
const PIECE: u64 = 4096;
/// The smallest thing that an extent can be about.
const SECTOR: u64 = 512;

/// Looks over the disk that the layers make: from its start, around a place of it, and at its end.
pub fn look_over(layers: &[Arc<dyn Image>], place: u64) {
    let names = layers
        .iter()
        .map(|layer| (Arc::clone(layer), PathBuf::from("layer")));
    let disk = Stack::new(names);
    let size = disk.size();
    let mut whole = vec![0; PIECE as usize];
    let past = disk
        .read_at(&mut whole, GuestOffset(size))
        .expect_err("it is past the end");
    assert_eq!(past.kind(), ErrorKind::OutOfBounds);
    if size == 0 {
        return;
    }
    walk(&disk, layers, 0);
    // The place is a fraction of the disk.
    let place = u64::try_from(u128::from(size) * u128::from(place) >> 24).expect("it is on the disk");
    walk(&disk, layers, place);
    pieces_agree(&disk, place);
    pieces_agree(&disk, size.saturating_sub(PIECE));
}

/// Follows the extents from an offset on.
fn walk(disk: &Stack, layers: &[Arc<dyn Image>], from: u64) {
    let size = disk.size();
    let mut at = GuestOffset(from);
    for _ in 0..ANSWERS {
        if at.0 == size {
            break;
        }
        let Ok(extents) = disk.extents(at, GuestOffset(size)) else {
            return;
        };
        assert!(!extents.is_empty(), "nothing is said of {at}");
        assert!(extents.len() as u64 <= (64 << 20) / SECTOR);
        for (index, extent) in extents.iter().enumerate() {
            assert_eq!(extent.start, at, "a gap, or out of order");
            assert!(extent.len > 0 && extent.end().0 <= size);
            assert!((extent.layer as usize) < layers.len());
            at = extent.end();
            if index < READ {
                let len = extent.len.min(PIECE);
                agree(disk, layers, extent.start, len, extent.kind, extent.layer);
                let skip = extent.len - len;
                let last = extent.clip(extent.start.plus(skip), at).expect("it is not empty");
                agree(disk, layers, last.start, len, last.kind, last.layer);
            }
        }
    }
}

/// What is read must be what the extent says.
fn agree(
    disk: &Stack,
    layers: &[Arc<dyn Image>],
    start: GuestOffset,
    len: u64,
    kind: ExtentKind,
    layer: u32,
) {
    let mut bytes = vec![0xaa; len as usize];
    let read = disk.read_at(&mut bytes, start);
    match kind {
        ExtentKind::Zero { .. } | ExtentKind::Unallocated => {
            read.expect("zeros can be read");
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "zeros are not zero at {start}"
            );
        }
        ExtentKind::Data { file, offset } => {
            let storage = layers[layer as usize]
                .storage(file)
                .expect("an extent names files that are there");
            let mut held = vec![0; bytes.len()];
            match (read, storage.read_at(&mut held, offset.0)) {
                (Ok(()), Ok(read)) => {
                    held[read..].fill(0);
                    assert!(bytes == held, "the bytes at {start} are not those at {offset}");
                }
                (read, held) => assert_eq!(read.is_ok(), held.is_ok()),
            }
        }
        ExtentKind::Encrypted { .. } => assert_eq!(read.expect_err("no key").kind(), ErrorKind::Encrypted),
        ExtentKind::Corrupt { .. } => assert_eq!(read.expect_err("damaged").kind(), ErrorKind::Corrupt),
        _ => {}
    }
}

/// A read gives the same bytes in one piece and in two.
fn pieces_agree(disk: &Stack, at: u64) {
    let len = PIECE.min(disk.size() - at) as usize;
    let (mut whole, mut parts) = (vec![1; len], vec![2; len]);
    let cut = len / 3;
    let read = disk.read_at(&mut whole, GuestOffset(at));
    let first = disk.read_at(&mut parts[..cut], GuestOffset(at));
    let second = disk.read_at(&mut parts[cut..], GuestOffset(at).plus(cut as u64));
    assert_eq!(read.is_ok(), first.is_ok() && second.is_ok());
    if read.is_ok() {
        assert!(whole == parts, "the bytes at {at:#x} depend on how they are read");
    }
}
