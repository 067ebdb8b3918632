//! Structures that share a cluster although its refcount allows for all of them.
//!
//! QEMU's check does not look for it: two references and a refcount of two are all right. But a guest that writes to its
//! share changes the other, so what must be alone in its clusters is held against the number of references to it.

use super::counts::{CHUNK, Counts};
use super::finding::FindingKind;
use super::found::{Found, Room};
use super::roots::Roots;

/// Looks for references to metadata among the clusters of a pass. `tables` counts how often L1 tables refer to each L2
/// table that may be shared.
pub(super) fn examine(roots: &Roots, counts: &Counts, tables: &Counts, room: &Room, found: &mut Found) {
    let bits = roots.header.cluster_bits;
    let mut push = |cluster: u64, what| {
        let offset = cluster << bits.get();
        found.push(room, FindingKind::Overlap { offset, what });
    };
    for (offset, len, what) in exclusive(roots) {
        let first = offset >> bits.get();
        let clusters = bits.clusters(bits.offset_in_cluster(offset).saturating_add(len));
        for cluster in counts.above_one(first, clusters) {
            push(cluster, what);
        }
    }
    for start in tables.chunk_starts() {
        let Some(tables) = tables.snapshot(start).filter(|chunk| !chunk.is_empty()) else {
            continue;
        };
        let Some(counts) = counts.snapshot(start) else {
            continue;
        };
        let mut at = tables.nonzero_from(0, CHUNK);
        while at < CHUNK {
            if counts.get(at) > tables.get(at) {
                push(start + at, "an L2 table");
            }
            at = tables.nonzero_from(at + 1, CHUNK);
        }
    }
}

/// What must be alone in its clusters: offset, bytes, what it is.
fn exclusive(roots: &Roots) -> impl Iterator<Item = (u64, u64, &'static str)> {
    let header = &roots.header;
    let refcount_table = u64::from(header.refcount_table_clusters) * header.cluster_bits.size();
    let directory = header.bitmaps().filter(|_| roots.bitmaps_believed());
    let snapshots = roots
        .snapshots
        .iter()
        .filter(|record| record.check(header).is_ok());
    [
        (0, header.cluster_bits.size(), "the header"),
        (header.l1_offset, u64::from(header.l1_entries) * 8, "the L1 table"),
        (header.refcount_table_offset, refcount_table, "the refcount table"),
        (header.snapshots_offset, roots.snapshots_len, "the snapshot table"),
    ]
    .into_iter()
    .chain(snapshots.map(|record| {
        let len = u64::from(record.l1_entries) * 8;
        (record.l1_offset, len, "the L1 table of a snapshot")
    }))
    .chain(directory.map(|directory| {
        (
            directory.directory_offset,
            directory.directory_size,
            "the bitmap directory",
        )
    }))
    .chain(roots.bitmaps.iter().map(|bitmap| {
        (
            bitmap.table_offset,
            u64::from(bitmap.table_entries) * 8,
            "a bitmap table",
        )
    }))
    .filter(|(_, len, _)| *len > 0)
}
