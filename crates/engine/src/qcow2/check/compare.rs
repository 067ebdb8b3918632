//! References held against refcounts.

use super::State;
use super::counts::{CHUNK, Chunk, Counts};
use super::finding::FindingKind;
use super::found::{Found, Room};
use super::refcounts::Refcounts;
use super::walk::Walk;
use std::sync::atomic::Ordering;

/// Bits of a refcount table entry that must not be set.
const RESERVED: u64 = 0x1ff;

/// Counts the refcount blocks themselves, and tells whether something is wrong with them that only new ones cure.
pub(super) fn blocks(walk: &Walk<'_>, refcounts: &Refcounts, found: &mut Found) -> bool {
    let bits = walk.roots.header.cluster_bits;
    let clusters = walk.clusters.load(Ordering::Relaxed);
    let mut rebuild = false;
    for (index, entry) in (0..).zip(&refcounts.table) {
        let offset = refcounts.block_offset(index);
        let cluster = offset >> bits.get();
        let fault = if entry & RESERVED != 0 {
            Some(FindingKind::RefcountTableReserved { index })
        } else if bits.offset_in_cluster(offset) != 0 {
            Some(FindingKind::RefcountBlockUnaligned { index })
        } else if cluster >= clusters {
            Some(FindingKind::RefcountBlockOutside { index })
        } else if offset != 0 {
            walk.count(offset, bits.size(), found);
            let references = walk.counts.get(cluster);
            (references != 1 && walk.counts.holds(cluster))
                .then_some(FindingKind::RefcountBlockShared { index, references })
        } else {
            None
        };
        if let Some(fault) = fault {
            found.push(walk.room, fault);
            rebuild = true;
        }
    }
    rebuild
}

/// Compares refcounts and references of all clusters of a pass that are below `clusters`.
pub(super) fn all(refcounts: &Refcounts, counts: &Counts, clusters: u64, room: &Room, state: &mut State) {
    let readable = refcounts.all_readable();
    let mut marked = false;
    for start in counts.chunk_starts() {
        let (Some(on_disk), Some(counted)) = (refcounts.counts.snapshot(start), counts.snapshot(start))
        else {
            continue;
        };
        let end = clusters.min(counts.end());
        if readable {
            let within = |at: u64| start + at < end;
            for (at, refcount, references) in on_disk.differences(&counted).filter(|(at, ..)| within(*at)) {
                differs(start + at, refcount, references, room, state);
            }
            let end = end.saturating_sub(start);
            used(
                start,
                on_disk.last_before(end).max(counted.last_before(end)),
                state,
            );
            continue;
        }
        one_by_one(
            refcounts,
            &on_disk,
            &counted,
            start..end.min(start + CHUNK),
            &mut marked,
            room,
            state,
        );
    }
}

fn one_by_one(
    refcounts: &Refcounts,
    on_disk: &Chunk,
    counted: &Chunk,
    clusters: std::ops::Range<u64>,
    marked: &mut bool,
    room: &Room,
    state: &mut State,
) {
    let start = clusters.start;
    for cluster in clusters {
        if let Some(index) = refcounts.unreadable_block_of(cluster) {
            let offset = refcounts.block_offset(index);
            // An aligned one is merely past all files.
            if !*marked && !offset.is_multiple_of(refcounts.cluster_size()) {
                *marked = true;
                state
                    .compared
                    .push(room, FindingKind::RefcountBlockUnusable { offset, index });
            }
            state
                .compared
                .push(room, FindingKind::RefcountUnreadable { cluster });
            continue;
        }
        let at = cluster - start;
        let (refcount, references) = (on_disk.get(at), counted.get(at));
        if refcount | references != 0 {
            used(start, Some(at), state);
        }
        if refcount != references {
            differs(cluster, refcount, references, room, state);
        }
    }
}

fn differs(cluster: u64, refcount: u64, references: u64, room: &Room, state: &mut State) {
    state.compared_needs_rebuild |= refcount == 0;
    state.compared.push(
        room,
        FindingKind::Refcount {
            cluster,
            refcount,
            references,
        },
    );
}

fn used(start: u64, last: Option<u64>, state: &mut State) {
    if let Some(at) = last {
        state.used_clusters = state.used_clusters.max(start + at + 1);
    }
}
