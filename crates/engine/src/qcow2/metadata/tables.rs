//! L2 tables, rewritten to other places.

use super::beside::{Beside, in_parallel, too_narrow};
use super::space::Run;
use crate::error::Result;
use crate::qcow2::check::counts::Counts;
use crate::qcow2::check::refcounts::be64;
use crate::qcow2::check::roots::Endless;
use crate::qcow2::check::table::{Kind, Shape};
use crate::qcow2::check::walk::{COPIED, OFFSET_MASK};
use catena_storage::Storage;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of tables that are in memory at once.
const BATCH_BYTES: u64 = 32 << 20;
/// Tables that one write takes at most, as the system has it.
const VECTORS: usize = 512;

/// Passes the tables of an L1 table to `change`, with their L1 indices. Those that it changes (it says so) are written
/// to free clusters, and the L1 entries name them there, without a flag.
pub(super) fn rewrite(
    beside: &mut Beside<'_>,
    l1: &mut [u64],
    change: impl Fn(usize, &mut [u8]) -> Result<bool> + Sync,
) -> Result<()> {
    let size = beside.old.header.cluster_bits.size();
    let at_once = usize::try_from((BATCH_BYTES / size).max(1)).unwrap_or(1);
    let indices: Vec<usize> = (0..l1.len())
        .filter(|index| l1.get(*index).is_some_and(|entry| entry & OFFSET_MASK != 0))
        .collect();
    let guest_bytes = Shape::of(&beside.old.header)
        .layout
        .l2_entries()
        .saturating_mul(size);
    let told = |tables: usize| (tables as u64).saturating_mul(guest_bytes);
    for (number, batch) in indices.chunks(at_once).enumerate() {
        beside.watch().tell(told(number * at_once), told(indices.len()))?;
        let tables: Vec<(usize, u64)> = batch
            .iter()
            .map(|index| (*index, l1.get(*index).map_or(0, |entry| entry & OFFSET_MASK)))
            .collect();
        let changed = read(beside, &tables, &change)?;
        let mut places = Vec::new();
        let mut left = changed.len() as u64;
        while left > 0 {
            let run = beside.take(left)?;
            left -= run.count.min(left);
            places.push(run);
        }
        write(beside, &changed, &places)?;
        let offsets = places
            .iter()
            .flat_map(|run| (0..run.count).map(|n| beside.offset(*run) + n * size));
        for ((index, _), offset) in changed.iter().zip(offsets) {
            if let Some(entry) = l1.get_mut(*index) {
                *entry = offset;
            }
        }
    }
    Ok(())
}

/// Reads tables, and keeps those that are changed.
fn read(
    beside: &Beside<'_>,
    tables: &[(usize, u64)],
    change: &(impl Fn(usize, &mut [u8]) -> Result<bool> + Sync),
) -> Result<Vec<(usize, Vec<u8>)>> {
    let size = usize::try_from(beside.old.header.cluster_bits.size()).unwrap_or_default();
    let (next, changed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    in_parallel(beside.threads(), || {
        let mut table = vec![0; size];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((index, offset)) = tables.get(number) else {
                return Ok(());
            };
            Endless(beside.storage).fill(&mut table, *offset)?;
            if change(*index, &mut table)? {
                let table = std::mem::replace(&mut table, vec![0; size]);
                let mut changed = changed.lock().unwrap_or_else(PoisonError::into_inner);
                changed.push((*index, table));
            }
        }
    })?;
    let mut changed = changed.into_inner().unwrap_or_else(PoisonError::into_inner);
    changed.sort_unstable_by_key(|(index, _)| *index);
    Ok(changed)
}

fn write(beside: &Beside<'_>, tables: &[(usize, Vec<u8>)], places: &[Run]) -> Result<()> {
    let size = beside.old.header.cluster_bits.size();
    // Each piece is one write: its tables and where they go.
    let mut pieces = Vec::new();
    let mut rest = tables;
    for run in places {
        let count = usize::try_from(run.count).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        rest = later;
        let offset = beside.offset(*run);
        for (n, piece) in (0..).zip(now.chunks(VECTORS)) {
            pieces.push((offset + n * VECTORS as u64 * size, piece));
        }
    }
    let next = AtomicUsize::new(0);
    in_parallel(beside.threads(), || {
        while let Some((offset, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let vectors: Vec<IoSlice<'_>> = piece.iter().map(|(_, table)| IoSlice::new(table)).collect();
            beside.storage.write_all_vectored_at(&vectors, *offset)?;
        }
        Ok(())
    })
}

/// Clears every `COPIED` flag of a table; whether there was one.
pub(super) fn clear_copied(shape: Shape, table: &mut [u8]) -> bool {
    let step = usize::try_from(shape.layout.l2_entry_size()).unwrap_or(8);
    let mut changed = false;
    for entry in table.chunks_exact_mut(step) {
        if let Some(first) = entry.first_mut().filter(|first| **first & 0x80 != 0) {
            *first &= 0x7f;
            changed = true;
        }
    }
    changed
}

/// Sets the flags of a table as the counts have it; whether any was wrong.
pub(super) fn settle_copied(shape: Shape, counts: &Counts, table: &mut [u8]) -> bool {
    let bits = shape.layout.cluster_bits;
    let step = usize::try_from(shape.layout.l2_entry_size()).unwrap_or(8);
    let mut changed = false;
    let mut entries = table.chunks_exact_mut(step).peekable();
    let mut run: Vec<&mut [u8]> = Vec::new();
    while let Some(raw) = entries.next() {
        let entry = entry_of(raw);
        if shape.kind(entry) != Kind::Allocated {
            continue;
        }
        run.push(raw);
        let mut next = entry.wrapping_add(bits.size());
        while let Some(raw) = entries.next_if(|raw| entry_of(raw) == next) {
            run.push(raw);
            next = next.wrapping_add(bits.size());
        }
        let (first, count) = ((entry & OFFSET_MASK) >> bits.get(), run.len() as u64);
        let held = counts.holds(first) && counts.holds(first + count - 1);
        // What all of them are, where they are alike.
        let alike = if shape.data_file || held && counts.all_one(first, count) {
            Some(true)
        } else {
            (held && counts.none_one(first, count)).then_some(false)
        };
        for (cluster, raw) in (first..).zip(run.drain(..)) {
            let alone = alike.unwrap_or_else(|| counts.get(cluster) == 1);
            if alone != (entry & COPIED != 0)
                && let Some(first) = raw.first_mut()
            {
                *first ^= 0x80;
                changed = true;
            }
        }
    }
    changed
}

fn entry_of(raw: &[u8]) -> u64 {
    raw.first_chunk().map_or(0, |raw| u64::from_be_bytes(*raw))
}

/// Counts the tables at these places and what they refer to, or takes that back.
pub(super) fn recount(
    beside: &Beside<'_>,
    shape: Shape,
    tables: &[u64],
    counts: &Counts,
    more: bool,
) -> Result<()> {
    let bits = shape.layout.cluster_bits;
    let (next, narrow) = (AtomicUsize::new(0), AtomicBool::new(false));
    in_parallel(beside.threads(), || {
        let mut table = vec![0; usize::try_from(bits.size()).unwrap_or_default()];
        let tell = |first, count| {
            if more {
                counts.add(first, count, |_| narrow.store(true, Ordering::Relaxed));
            } else {
                counts.remove(first, count);
            }
        };
        while let Some(offset) = tables.get(next.fetch_add(1, Ordering::Relaxed)) {
            Endless(beside.storage).fill(&mut table, *offset)?;
            references(shape, &table, tell);
            tell(offset >> bits.get(), 1);
        }
        Ok(())
    })?;
    if narrow.into_inner() {
        return Err(too_narrow(&beside.old.header));
    }
    Ok(())
}

/// The tables that one L1 table refers to more often than another one does, as often as that is.
pub(super) fn missing(l1: &[u64], other: &[u64]) -> Vec<u64> {
    let [tables, other] = [l1, other].map(|l1| {
        let mut tables: Vec<u64> = l1.iter().map(|entry| entry & OFFSET_MASK).collect();
        tables.retain(|table| *table != 0);
        tables.sort_unstable();
        tables
    });
    let mut other = other.into_iter().peekable();
    let is_missing = |table: &u64| {
        while other.next_if(|there| there < table).is_some() {}
        other.next_if_eq(table).is_none()
    };
    tables.into_iter().filter(is_missing).collect()
}

/// Tells of the clusters that a table refers to, in runs: the first, and how many.
pub(super) fn references(shape: Shape, table: &[u8], mut tell: impl FnMut(u64, u64)) {
    let bits = shape.layout.cluster_bits;
    let step = usize::try_from(shape.layout.l2_entry_size()).unwrap_or(8);
    let (mut first, mut count) = (0, 0);
    for entry in table.chunks_exact(step).map(entry_of) {
        let (offset, len) = match shape.kind(entry) {
            Kind::Allocated if !shape.data_file => (entry & OFFSET_MASK, bits.size()),
            Kind::Compressed => shape.compressed(entry),
            _ => continue,
        };
        let start = offset >> bits.get();
        let clusters = bits.clusters(bits.offset_in_cluster(offset).saturating_add(len));
        if start != first + count {
            if count > 0 {
                tell(first, count);
            }
            (first, count) = (start, 0);
        }
        count += clusters;
    }
    if count > 0 {
        tell(first, count);
    }
}

/// Gives every flag of the active disk's tables the value it must have. Tables that change are written anew and counted
/// at their new places; `counts` must be those of the image with this L1 table.
pub(super) fn settle(beside: &mut Beside<'_>, shape: Shape, l1: &mut [u64], counts: &Counts) -> Result<()> {
    let before: Vec<u64> = l1.to_vec();
    let bits = shape.layout.cluster_bits.get();
    rewrite(beside, l1, |_, table| Ok(settle_copied(shape, counts, table)))?;
    for (before, now) in before.iter().zip(l1.iter()) {
        if (before ^ now) & OFFSET_MASK != 0 {
            counts.remove((before & OFFSET_MASK) >> bits, 1);
            counts.add((now & OFFSET_MASK) >> bits, 1, |_| ());
        }
    }
    for entry in l1.iter_mut().filter(|entry| **entry & OFFSET_MASK != 0) {
        let alone = counts.get((*entry & OFFSET_MASK) >> bits) == 1;
        *entry = *entry & OFFSET_MASK | if alone { COPIED } else { 0 };
    }
    Ok(())
}

/// Reads an L1 table, whose length has been bounded.
pub(super) fn read_l1(storage: &dyn Storage, offset: u64, entries: u32) -> Result<Vec<u64>> {
    let mut bytes = vec![0; entries as usize * 8];
    Endless(storage).fill(&mut bytes, offset)?;
    Ok(bytes.chunks_exact(8).map(be64).collect())
}
