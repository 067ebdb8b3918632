//! Damaged images: what is refused, and that it is refused before it does harm.

use super::lab::{Lab, PLAIN, Shape, file};
use catena_engine::qcow2::{DiskOptions, OverlapChecks, Qcow2Disk};
use catena_engine::{Disk, ErrorKind, GuestOffset, WritableDisk};
use catena_format::qcow2::{Autoclear, Incompatible};
use catena_testkit::dice::Dice;

const CLUSTER: u64 = 1 << 16;
/// Where things lie in an image that was written at guest offset 0 once.
const L1: u64 = 3 * CLUSTER;
const L2: u64 = 4 * CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const COPIED: u64 = 1 << 63;

fn written(shape: &Shape) -> Lab {
    let mut lab = Lab::new(shape, &mut Dice::new(0));
    let disk = lab.open();
    disk.write_at(&[1; 1 << 16], GuestOffset(0)).unwrap();
    lab.model[..1 << 16].fill(1);
    disk.close().unwrap();
    lab
}

fn patched(offset: u64, bytes: &[u8]) -> Lab {
    let lab = written(&PLAIN);
    lab.folder.patch("image.qcow2", offset, bytes);
    lab
}

/// A write fails with that sentence, the image is marked, and nothing is written after it.
fn refuses(lab: &Lab, at: u64, sentence: &str) {
    let disk = lab.open();
    let before = std::fs::read(lab.folder.file("image.qcow2")).unwrap();
    let error = disk.write_at(&[2; 100], GuestOffset(at)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().starts_with(sentence), "{error}");
    assert!(disk.write_at(&[2; 100], GuestOffset(3 << 20)).is_err());
    assert!(disk.flush().is_err());
    assert!(disk.close().is_err());
    let header = lab.header();
    assert!(header.incompatible.contains(Incompatible::CORRUPT));
    let after = std::fs::read(lab.folder.file("image.qcow2")).unwrap();
    assert!(before[512..] == after[512..], "only the header has changed");
    let again = Qcow2Disk::open(file(&lab.folder.file("image.qcow2")), None, None).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Corrupt);
}

#[test]
fn data_is_not_written_over_metadata() {
    for (host, name) in [
        (0, ""),
        (CLUSTER, "refcount table"),
        (REFCOUNT_BLOCK, "refcount block"),
        (L1, "active L1 table"),
        (L2, "active L2 table"),
    ] {
        if host == 0 {
            continue;
        }
        let lab = patched(L2, &(COPIED | host).to_be_bytes());
        refuses(
            &lab,
            0,
            &format!("Preventing invalid write on metadata (overlaps with {name})"),
        );
    }
}

#[test]
fn a_free_cluster_that_holds_metadata_is_not_taken() {
    for (cluster, name) in [
        (0, "qcow2_header"),
        (1, "refcount table"),
        (2, "refcount block"),
        (3, "active L1 table"),
        (4, "active L2 table"),
    ] {
        let lab = patched(REFCOUNT_BLOCK + cluster * 2, &[0, 0]);
        refuses(
            &lab,
            1 << 20,
            &format!("Preventing invalid write on metadata (overlaps with {name})"),
        );
    }
}

#[test]
fn offsets_that_are_not_aligned_are_not_followed() {
    let lab = patched(L2, &(COPIED | (5 * CLUSTER + 512)).to_be_bytes());
    refuses(&lab, 0, "data cluster offset 0x50200 is not cluster-aligned");
    let lab = patched(L1, &(COPIED | (L2 + 512)).to_be_bytes());
    refuses(&lab, 0, "L2 table offset 0x40200 unaligned (L1 index: 0x0)");
    let lab = patched(CLUSTER, &(REFCOUNT_BLOCK + 512).to_be_bytes());
    refuses(
        &lab,
        1 << 20,
        "Refblock offset 0x20200 unaligned (reftable index: 0x0)",
    );
}

#[test]
fn what_a_snapshot_needs_is_not_written_over() {
    let lab = written(&PLAIN);
    lab.folder.img("snapshot -c s image.qcow2");
    let header = lab.header();
    // The snapshot's own L2 table, which only a look at everything finds.
    let disk = lab.open();
    disk.write_at(&[3; 100], GuestOffset(0)).unwrap();
    disk.close().unwrap();
    let l2 = L2;
    let active_l2 = {
        let bytes = std::fs::read(lab.folder.file("image.qcow2")).unwrap();
        let at = header.l1_offset as usize;
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & !COPIED
    };
    assert_ne!(active_l2, l2, "the table was copied");
    lab.folder
        .patch("image.qcow2", active_l2 + 8, &(COPIED | l2).to_be_bytes());
    let open = |checks| {
        DiskOptions::default()
            .overlap_checks(checks)
            .open(file(&lab.folder.file("image.qcow2")), None, None)
            .unwrap()
    };
    let disk = open(OverlapChecks::All);
    let error = disk.write_at(&[4; 100], GuestOffset(CLUSTER)).unwrap_err();
    assert_eq!(
        error.message(),
        "Preventing invalid write on metadata (overlaps with inactive L2 table)"
    );
    drop(disk);
    for (offset, name) in [
        (header.snapshots_offset, "snapshot table"),
        (inactive_l1(&lab), "inactive L1 table"),
    ] {
        let lab = written(&PLAIN);
        lab.folder.img("snapshot -c s image.qcow2");
        let disk = lab.open();
        disk.write_at(&[3; 100], GuestOffset(0)).unwrap();
        disk.close().unwrap();
        lab.folder
            .patch("image.qcow2", active_l2 + 8, &(COPIED | offset).to_be_bytes());
        refuses(
            &lab,
            CLUSTER,
            &format!("Preventing invalid write on metadata (overlaps with {name})"),
        );
    }
}

fn inactive_l1(lab: &Lab) -> u64 {
    let bytes = std::fs::read(lab.folder.file("image.qcow2")).unwrap();
    let at = lab.header().snapshots_offset as usize;
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn an_image_that_is_corrupt_or_has_unknown_features_is_not_opened_and_not_changed() {
    for (offset, bits) in [(72, 2u64), (72, 3), (72, 1 << 40), (72, 1 << 40 | 1)] {
        let lab = patched(offset, &bits.to_be_bytes());
        let before = std::fs::read(lab.folder.file("image.qcow2")).unwrap();
        assert!(Qcow2Disk::open(file(&lab.folder.file("image.qcow2")), None, None).is_err());
        assert_eq!(before, std::fs::read(lab.folder.file("image.qcow2")).unwrap());
    }
}

#[test]
fn an_image_that_was_not_closed_properly_is_repaired_before_it_is_written() {
    let lab = patched(72, &1u64.to_be_bytes());
    // What lazy refcounts leave: a cluster that is in use and not counted.
    lab.folder.patch("image.qcow2", REFCOUNT_BLOCK + 5 * 2, &[0, 0]);
    let disk = lab.open();
    let mut lab = lab;
    disk.write_at(&[2; 1 << 16], GuestOffset(1 << 20)).unwrap();
    lab.model[1 << 20..][..1 << 16].fill(2);
    disk.close().unwrap();
    assert!(!lab.header().incompatible.contains(Incompatible::DIRTY));
    lab.settle("after the repair");
}

#[test]
fn an_image_that_cannot_be_repaired_is_not_opened_and_not_changed() {
    let lab = patched(72, &1u64.to_be_bytes());
    // An L2 table that lies nowhere: what it said is lost.
    lab.folder
        .patch("image.qcow2", L1, &(COPIED | (L2 + 512)).to_be_bytes());
    let before = std::fs::read(lab.folder.file("image.qcow2")).unwrap();
    let refused = Qcow2Disk::open(file(&lab.folder.file("image.qcow2")), None, None).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert_eq!(before, std::fs::read(lab.folder.file("image.qcow2")).unwrap());
}

#[test]
fn autoclear_bits_that_nobody_keeps_go_with_the_first_change_and_not_before() {
    let lab = patched(88, &(1u64 << 50).to_be_bytes());
    let disk = lab.open();
    disk.read_at(&mut [0; 100], GuestOffset(0)).unwrap();
    disk.close().unwrap();
    assert_eq!(lab.header().autoclear.bits(), 1 << 50);
    let disk = lab.open();
    disk.write_at(&[1; 10], GuestOffset(0)).unwrap();
    assert_eq!(lab.header().autoclear, Autoclear::empty());
    disk.close().unwrap();
    lab.settle("after the bit was cleared");
}

#[test]
fn a_range_that_is_not_on_the_disk_changes_nothing() {
    let lab = written(&PLAIN);
    let disk = lab.open();
    let end = GuestOffset(disk.size() - 10);
    for outcome in [
        disk.write_at(&[1; 11], end),
        disk.discard(end, 11),
        disk.write_zeroes(end, u64::MAX, catena_engine::Unmap::Keep),
        disk.write_compressed(&[1; 1 << 16], GuestOffset(disk.size())),
        disk.read_at(&mut [1; 11], end),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::OutOfBounds);
    }
    disk.close().unwrap();
    lab.settle("refused");
}
