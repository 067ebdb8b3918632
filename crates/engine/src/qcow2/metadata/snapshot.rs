//! Internal snapshots: taken, applied, deleted.
//!
//! Each is one change made beside, so that a cut leaves the image as it was or as it is to be. Results are as QEMU's.

use super::beside::{Beside, too_narrow};
use super::tables;
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::check::CheckOptions;
use crate::qcow2::check::counts::Counts;
use crate::qcow2::check::roots::Roots;
use crate::qcow2::check::table::Shape;
use crate::qcow2::check::walk::OFFSET_MASK;
use catena_format::limits;
use catena_format::qcow2::{Header, RefcountWidth, SnapshotRecord, Version};
use catena_storage::Storage;
use std::sync::atomic::{AtomicBool, Ordering};

/// A snapshot to be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name. Another snapshot may have the same.
    pub name: Vec<u8>,
    /// Seconds since the epoch.
    pub date_sec: u32,
    /// Nanoseconds of the time.
    pub date_nsec: u32,
    /// Nanoseconds the guest has been running.
    pub vm_clock_nsec: u64,
    /// Instructions the guest has executed; `u64::MAX` where nobody counted.
    pub icount: u64,
}

/// Takes a snapshot of the active disk, without the state of a guest. Tells the id that it got: one more than the largest
/// there was.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with a data file; [`ErrorKind::TooLarge`] where there are too many snapshots or refcounts
/// are too narrow for another; [`ErrorKind::Corrupt`] where the image is to be repaired first.
pub fn create(storage: &dyn Storage, new: &NewSnapshot, options: &CheckOptions<'_>) -> Result<String> {
    let mut beside = Beside::begin(storage, options)?;
    let mut roots = beside.old.clone();
    refuse_data_file(&roots.header)?;
    if roots.header.snapshot_count >= limits::QCOW2_SNAPSHOTS {
        return Err(Error::new(ErrorKind::TooLarge, "there are too many snapshots"));
    }
    let shape = Shape::of(&roots.header);
    let id = next_id(&roots.snapshots).to_string();
    let mut record = SnapshotRecord {
        id: id.clone().into_bytes(),
        name: new.name.clone(),
        l1_offset: roots.header.l1_offset,
        l1_entries: roots.header.l1_entries,
        date_sec: new.date_sec,
        date_nsec: new.date_nsec,
        vm_clock_nsec: new.vm_clock_nsec,
        vm_state_size: 0,
        extra: [0, roots.header.virtual_size, new.icount]
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect(),
    };
    let old = tables::read_l1(storage, roots.header.l1_offset, roots.header.l1_entries)?;
    let counts = beside.counted()?;
    if counts.bound() > RefcountWidth::of(&roots.header).max() / 2 {
        // Each count becomes at most twice what it is. Where that may be too much, nothing is written before it is known.
        let trial = beside.count(&roots)?;
        tables::recount(&beside, shape, &tables::missing(&old, &[]), &trial, true)?;
    }
    let (mut l1, narrow) = (old.clone(), AtomicBool::new(false));
    tables::rewrite(&mut beside, &mut l1, |_, table| {
        tables::references(shape, table, |first, count| {
            counts.add(first, count, |_| narrow.store(true, Ordering::Relaxed));
        });
        Ok(tables::clear_copied(shape, table))
    })?;
    let bits = shape.layout.cluster_bits.get();
    for (entry, old) in l1.iter_mut().zip(&old) {
        *entry &= OFFSET_MASK;
        if *entry != 0 {
            counts.remove((old & OFFSET_MASK) >> bits, 1);
            for _ in 0..2 {
                counts.add(*entry >> bits, 1, |_| narrow.store(true, Ordering::Relaxed));
            }
        }
    }
    if narrow.into_inner() {
        return Err(too_narrow(&roots.header));
    }
    let l1_len = old.len() as u64 * 8;
    beside.recount(&counts, roots.header.l1_offset, l1_len, false);
    record.l1_offset = beside.put_l1(&l1)?;
    roots.header.l1_offset = beside.put_l1(&l1)?;
    for offset in [record.l1_offset, roots.header.l1_offset] {
        beside.recount(&counts, offset, l1_len, true);
    }
    let mut snapshots = roots.snapshots.clone();
    snapshots.push(record);
    put_snapshots(&mut beside, &mut roots, snapshots, &counts)?;
    beside.commit(roots, &counts)?;
    Ok(id)
}

/// Makes the active disk what it was when a snapshot was taken; the snapshot stays. Its number is that of its entry in
/// the snapshot table, from 0.
///
/// # Errors
/// As for [`create`], [`ErrorKind::NotFound`] where there is no such snapshot, and [`ErrorKind::Conflict`] where the image
/// has persistent bitmaps, as QEMU has it.
pub fn apply(storage: &dyn Storage, index: usize, options: &CheckOptions<'_>) -> Result<()> {
    let mut beside = Beside::begin(storage, options)?;
    let mut roots = beside.old.clone();
    refuse_data_file(&roots.header)?;
    let record = snapshot(&roots, index)?;
    if !roots.bitmaps.is_empty() {
        // They would not know what changes.
        return Err(Error::new(ErrorKind::Conflict, "Device has active dirty bitmaps"));
    }
    let virtual_size = record.snapshot(&roots.header).virtual_size;
    if virtual_size != roots.header.virtual_size && roots.header.version == Version::V2 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "Can't resize a v2 image which has snapshots",
        ));
    }
    let shape = Shape::of(&roots.header);
    let old = tables::read_l1(storage, roots.header.l1_offset, roots.header.l1_entries)?;
    let mut l1 = tables::read_l1(storage, record.l1_offset, record.l1_entries)?;
    let needed = shape.layout.l1_entries(virtual_size);
    let entries = u64::from(roots.header.l1_entries)
        .max(needed)
        .max(l1.len() as u64);
    if entries * 8 > limits::QCOW2_L1_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            "the L1 table would become too large",
        ));
    }
    l1.resize(usize::try_from(entries).unwrap_or_default(), 0);
    roots.header.virtual_size = virtual_size;
    let counts = beside.counted()?;
    tables::recount(&beside, shape, &tables::missing(&old, &l1), &counts, false)?;
    tables::recount(&beside, shape, &tables::missing(&l1, &old), &counts, true)?;
    beside.recount(&counts, roots.header.l1_offset, old.len() as u64 * 8, false);
    activate(&mut beside, &mut roots, shape, l1, Some(counts))
        .and_then(|(roots, counts)| beside.commit(roots, &counts))
}

/// Deletes a snapshot, and what only it holds with it. Its number is that of its entry in the snapshot table, from 0.
///
/// # Errors
/// As for [`create`], and [`ErrorKind::NotFound`] where there is no such snapshot.
pub fn delete(storage: &dyn Storage, index: usize, options: &CheckOptions<'_>) -> Result<()> {
    let mut beside = Beside::begin(storage, options)?;
    let mut roots = beside.old.clone();
    let record = snapshot(&roots, index)?;
    let shape = Shape::of(&roots.header);
    let l1 = tables::read_l1(storage, roots.header.l1_offset, roots.header.l1_entries)?;
    let gone = tables::read_l1(storage, record.l1_offset, record.l1_entries)?;
    let counts = beside.counted()?;
    tables::recount(&beside, shape, &tables::missing(&gone, &[]), &counts, false)?;
    for (offset, entries) in [(record.l1_offset, &gone), (roots.header.l1_offset, &l1)] {
        beside.recount(&counts, offset, entries.len() as u64 * 8, false);
    }
    let mut snapshots = roots.snapshots.clone();
    snapshots.remove(index);
    put_snapshots(&mut beside, &mut roots, snapshots, &counts)?;
    activate(&mut beside, &mut roots, shape, l1, Some(counts))
        .and_then(|(roots, counts)| beside.commit(roots, &counts))
}

/// Writes another snapshot table, and counts it instead of the one there was.
fn put_snapshots(
    beside: &mut Beside<'_>,
    roots: &mut Roots,
    snapshots: Vec<SnapshotRecord>,
    counts: &Counts,
) -> Result<()> {
    beside.recount(counts, roots.header.snapshots_offset, roots.snapshots_len, false);
    beside.put_snapshots(roots, snapshots)?;
    beside.recount(counts, roots.header.snapshots_offset, roots.snapshots_len, true);
    Ok(())
}

/// Makes an L1 table the active one, with the flags that it must have; and the counts that go with it. `counts` may be those of
/// everything else, where they are known.
pub(super) fn activate(
    beside: &mut Beside<'_>,
    roots: &mut Roots,
    shape: Shape,
    mut l1: Vec<u64>,
    counts: Option<Counts>,
) -> Result<(Roots, Counts)> {
    // The table is counted where it will be, before its flags are known.
    roots.header.l1_entries = u32::try_from(l1.len())
        .map_err(|_| Error::new(ErrorKind::TooLarge, "the L1 table would become too large"))?;
    for entry in &mut l1 {
        *entry &= OFFSET_MASK;
    }
    roots.header.l1_offset = beside.put_l1(&l1)?;
    let counts = match counts {
        Some(counts) => {
            beside.recount(&counts, roots.header.l1_offset, l1.len() as u64 * 8, true);
            counts
        }
        None => beside.count(roots)?,
    };
    tables::settle(beside, shape, &mut l1, &counts)?;
    let bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    beside.storage.write_all_at(&bytes, roots.header.l1_offset)?;
    Ok((roots.clone(), counts))
}

fn refuse_data_file(header: &Header) -> Result<()> {
    if header.has_data_file() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "an image with a data file cannot have internal snapshots",
        ));
    }
    Ok(())
}

fn snapshot(roots: &Roots, index: usize) -> Result<SnapshotRecord> {
    let found = roots.snapshots.get(index).cloned();
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such snapshot"))
}

/// The largest id that is a number, and one. QEMU counts ids that way.
fn next_id(snapshots: &[SnapshotRecord]) -> u64 {
    let ids = snapshots.iter().map(|record| {
        let digits = record.id.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0u64, |id, digit| {
            id.saturating_mul(10).saturating_add(u64::from(*digit - b'0'))
        })
    });
    ids.max().unwrap_or(0).saturating_add(1)
}
