//! Repair: what has one right answer is given it.
//!
//! The order is QEMU's, and so is what is told: everything is checked before anything is changed. Entries that have one
//! right value are written in place; then refcounts are lowered and raised in place, or all written anew beside where the
//! structures that hold them are damaged; then `COPIED` flags follow. Each write on the way leaves an image that is no worse
//! than it was. An image that is found free of contradictions in the end is marked so.

use super::beside::{Beside, Freed, LEAST_PUNCHED, MOST_PUNCHED, write_header};
use super::in_place::Ground;
use crate::bytes::StorageBytes;
use crate::error::Result;
use crate::qcow2::check::counts::Counts;
use crate::qcow2::check::refcounts;
use crate::qcow2::check::roots::Roots;
use crate::qcow2::check::{
    self, CheckOptions, Finding, FindingKind, Found, Outcome, Report, Room, Severity, State, Totals,
};
use catena_format::qcow2::{Header, Incompatible, RefcountWidth, SnapshotRecord};
use catena_storage::{SpanKind, Storage};
use std::collections::BTreeMap;
use std::ops::Range;

/// What the extra data of a version 3 snapshot has at least: sizes of VM state and disk.
const SNAPSHOT_EXTRA_BYTES: usize = 16;

/// What is to be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Leaked clusters, and nothing else.
    Leaks,
    /// Everything that has one right answer.
    All,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The findings in QEMU's order, mended or not; its totals count what was mended and what is still there.
    pub report: Report,
    /// Whether nothing could be done, where QEMU says `Check failed`: the snapshot table cannot be read, or leaks alone
    /// were to be mended where refcounts have to be written anew.
    pub failed: bool,
}

/// Repairs an image that the caller holds alone.
///
/// # Errors
/// As for [`check`](crate::qcow2::check()), and where the store fails.
pub fn repair(storage: &dyn Storage, what: Repair, options: &CheckOptions<'_>) -> Result<Repaired> {
    let everything = what == Repair::All;
    let room = Room::new(options.findings);
    let mut told = Found::default();
    let roots = Roots::read(storage, &room, &mut told)?;
    let mut mending = Mending {
        storage,
        options,
        room,
        state: check::examine(storage, &roots, options)?,
        roots,
        told,
        fixed: Totals::default(),
        freed: Vec::new(),
    };
    if mending.told.totals.check_errors > 0 {
        return Ok(mending.failed());
    }
    mending.entries(everything)?;
    if mending.state.needs_rebuild && !everything {
        mending.told.push(&mending.room, FindingKind::NeedsRebuild);
        return Ok(mending.failed());
    }
    mending.refcounts(everything)?;
    mending.flags(everything)?;
    mending.snapshots(everything)?;
    mending.finish()
}

struct Mending<'a> {
    storage: &'a dyn Storage,
    options: &'a CheckOptions<'a>,
    room: Room,
    roots: Roots,
    /// What the image was last found to be.
    state: State,
    /// What is told, in its order.
    told: Found,
    /// What was mended.
    fixed: Totals,
    /// Clusters that were leaked and are free; they still hold what they held.
    freed: Vec<Range<u64>>,
}

impl Mending<'_> {
    fn examine(&mut self) -> Result<()> {
        self.storage.flush()?;
        self.state = check::examine(self.storage, &self.roots, self.options)?;
        Ok(())
    }

    /// Entries whose one right value is known; and all that the walk and the comparison found is told.
    fn entries(&mut self, everything: bool) -> Result<()> {
        let mut walked = self.state.walked.clone();
        if everything && walked.totals.corruptions > 0 {
            let fixed = Ground::of(self.storage, &self.roots, self.options)?.zero_misplaced()?;
            if fixed > 0 {
                self.fixed.corruptions_fixed += fixed;
                self.examine()?;
                walked = as_they_were_mended(walked, self.state.walked.clone(), fixed);
            }
        }
        self.told.append(walked);
        self.told.append(self.state.compared.clone());
        Ok(())
    }

    fn refcounts(&mut self, everything: bool) -> Result<()> {
        let count = |state: &State| {
            (
                state.walked.totals.corruptions + state.compared.totals.corruptions,
                state.compared.totals.leaks,
            )
        };
        let (corruptions, leaks) = count(&self.state);
        if self.state.needs_rebuild {
            self.told.push(&self.room, FindingKind::Rebuilding);
            let beside = Beside::of(self.storage, self.roots.clone(), self.options, false)?;
            let (counts, found) = beside.count_leniently(&self.roots)?;
            let retired = self.retired(&counts)?;
            let freed = match found.totals.corruptions {
                0 => Freed::GiveBack,
                _ => Freed::Keep,
            };
            beside.commit_and(self.roots.clone(), &counts, freed)?;
            self.roots.header = Header::read(&StorageBytes::new(self.storage)?)?;
            self.examine()?;
            // QEMU walks again, and finds again what that finds; and that the old structures have become leaks.
            self.told.append(self.state.walked.clone());
            for kind in retired {
                self.told.note(&self.room, Finding::repaired(kind));
            }
        } else if self.state.compared.totals != Totals::default() {
            // QEMU tells all of them again: what it mends, and what it does not.
            let again = std::mem::take(&mut self.state.compared);
            for mut finding in again.kept {
                let mends = match finding.severity() {
                    Severity::Leak => true,
                    Severity::Corruption => everything,
                    Severity::Error | Severity::Note => false,
                };
                if mends {
                    finding.outcome = Outcome::Repaired;
                }
                self.told.note(&self.room, finding);
            }
            self.freed = Ground::of(self.storage, &self.roots, self.options)?.mend_refcounts(everything)?;
            self.examine()?;
        } else {
            return Ok(());
        }
        let (corruptions_left, leaks_left) = count(&self.state);
        self.fixed.corruptions_fixed += corruptions.saturating_sub(corruptions_left);
        self.fixed.leaks_fixed += leaks.saturating_sub(leaks_left);
        Ok(())
    }

    /// What held refcounts, with the references to it before and after.
    fn retired(&self, counts: &Counts) -> Result<Vec<FindingKind>> {
        let header = &self.roots.header;
        let bits = header.cluster_bits;
        let first = header.refcount_table_offset >> bits.get();
        let table = (first..first + u64::from(header.refcount_table_clusters)).map(|cluster| (cluster, 1));
        let mut retired: BTreeMap<u64, u64> = table.collect();
        let file_end = bits.clusters(self.storage.len()?);
        for entry in refcounts::read_table(self.storage, header)? {
            let cluster = entry >> bits.get();
            if entry != 0 && bits.offset_in_cluster(entry) == 0 && cluster < file_end {
                *retired.entry(cluster).or_default() += 1;
            }
        }
        let most = RefcountWidth::of(header).max();
        let kinds = retired.into_iter().filter_map(|(cluster, retired)| {
            let references = counts.get(cluster);
            let refcount = references.saturating_add(retired).min(most);
            (refcount > references).then_some(FindingKind::RefcountsRetired {
                cluster,
                refcount,
                references,
            })
        });
        Ok(kinds.collect())
    }

    fn flags(&mut self, everything: bool) -> Result<()> {
        let mut copied = self.state.copied.clone();
        let wrong = copied.totals.corruptions;
        // A flag may be wrong because of a leak that is no more. So flags are mended with leaks, too, where refcounts can
        // be believed.
        let Totals {
            corruptions,
            leaks,
            check_errors,
            ..
        } = self.left();
        let sound = corruptions == wrong && leaks + check_errors == 0;
        if (everything || sound) && wrong > 0 {
            Ground::of(self.storage, &self.roots, self.options)?.mend_flags()?;
            self.examine()?;
            self.fixed.corruptions_fixed += wrong.saturating_sub(self.state.copied.totals.corruptions);
            if self.state.copied.totals.corruptions == 0 {
                for finding in &mut copied.kept {
                    finding.outcome = Outcome::Repaired;
                }
            }
        }
        self.told.append(copied);
        Ok(())
    }

    /// Gives snapshots the fields that they lack.
    fn snapshots(&mut self, everything: bool) -> Result<()> {
        let lacks = |finding: &&mut Finding| matches!(finding.kind, FindingKind::SnapshotIncomplete { .. });
        let lacking = self.told.kept.iter_mut().filter(lacks).count() as u64;
        if !everything || lacking == 0 || self.left().corruptions > lacking {
            return Ok(());
        }
        let mut beside = Beside::of(self.storage, self.roots.clone(), self.options, true)?;
        let mut snapshots = self.roots.snapshots.clone();
        for record in &mut snapshots {
            complete(record, &self.roots.header);
        }
        let mut roots = self.roots.clone();
        beside.put_snapshots(&mut roots, snapshots)?;
        let counts = beside.count(&roots)?;
        beside.commit(roots, &counts)?;
        self.fixed.corruptions_fixed += lacking;
        for finding in self.told.kept.iter_mut().filter(lacks) {
            finding.outcome = Outcome::Repaired;
        }
        self.roots = Roots::read(self.storage, &Room::new(0), &mut Found::default())?;
        self.examine()
    }

    /// What is still wrong, and what no longer is.
    fn left(&self) -> Totals {
        let incomplete = self.told.kept.iter().filter(|finding| {
            finding.outcome == Outcome::Found
                && matches!(finding.kind, FindingKind::SnapshotIncomplete { .. })
        });
        let bitmaps = self
            .told
            .kept
            .iter()
            .filter(|finding| matches!(finding.kind, FindingKind::Bitmaps { .. }));
        let state = &self.state;
        let now = [&state.walked, &state.compared, &state.copied].map(|found| found.totals);
        let roots = incomplete.count() + self.bitmaps_unreadable(bitmaps.count());
        Totals {
            corruptions: now.iter().map(|totals| totals.corruptions).sum::<u64>() + roots as u64,
            leaks: now.iter().map(|totals| totals.leaks).sum(),
            check_errors: now.iter().map(|totals| totals.check_errors).sum(),
            beyond_qemu: state.beyond.totals.beyond_qemu,
            ..self.fixed
        }
    }

    /// How many findings about bitmaps come from reading the directory, before the walk.
    fn bitmaps_unreadable(&self, told: usize) -> usize {
        usize::from(told > 0 && self.roots.bitmaps.is_empty() && self.roots.bitmaps_believed())
    }

    fn finish(self) -> Result<Repaired> {
        let left = self.left();
        if left.corruptions == 0 && left.check_errors == 0 {
            let old = Header::read(&StorageBytes::new(self.storage)?)?;
            let marks = Incompatible::DIRTY | Incompatible::CORRUPT;
            if old.incompatible.intersects(marks) {
                let mut new = old.clone();
                new.incompatible -= marks;
                self.storage.flush()?;
                write_header(self.storage, &old, &new)?;
            }
            self.give_back();
        }
        self.storage.flush()?;
        let mut report = self.state.into_report_of(self.told);
        report.totals = left;
        Ok(Repaired {
            report,
            failed: false,
        })
    }

    /// Makes holes of leaked clusters. That is for images without contradictions alone: in others, what seems to be leaked
    /// may be what a damaged structure no longer names.
    fn give_back(&self) {
        let bits = self.roots.header.cluster_bits;
        // All is asked before anything changes: what a store has just been told it would have to look for again.
        let mut pieces = Vec::new();
        for run in &self.freed {
            self.data_in(run.start << bits.get()..run.end << bits.get(), &mut pieces);
        }
        for piece in pieces {
            // That the space is not given back is no reason to fail: it is free in the image.
            let _ = self.storage.punch_hole(piece.start, piece.end - piece.start);
        }
    }

    /// Appends the stretches of data in a range that are worth a hole.
    fn data_in(&self, range: Range<u64>, pieces: &mut Vec<Range<u64>>) {
        let mut at = range.start;
        while at < range.end
            && pieces.len() < MOST_PUNCHED
            && let Ok(Some(span)) = self.storage.span_at(at)
        {
            let end = at.saturating_add(span.len.max(1)).min(range.end);
            if span.kind == SpanKind::Data && end - at >= LEAST_PUNCHED {
                pieces.push(at..end);
            }
            at = end;
        }
    }

    fn failed(self) -> Repaired {
        let totals = self.told.totals;
        let mut report = self.state.into_report_of(self.told);
        report.totals = totals;
        Repaired { report, failed: true }
    }
}

/// What a walk finds that mends so many misplaced clusters on its way: it does not come by what they referred to, nor by
/// one of a shared table twice. `before` and `after` are walks that mend nothing.
fn as_they_were_mended(before: Found, after: Found, mut fixed: u64) -> Found {
    let of_references = |finding: &Finding| {
        matches!(
            finding.kind,
            FindingKind::PastEnd { .. }
                | FindingKind::RefcountOverflow { .. }
                | FindingKind::RefcountBlockShared { .. }
        )
    };
    let mut left = after.kept.into_iter().filter(of_references).peekable();
    let mut kept = Vec::new();
    for mut finding in before.kept {
        if of_references(&finding) {
            kept.extend(left.next_if_eq(&finding));
            continue;
        }
        if matches!(finding.kind, FindingKind::PreallocatedUnaligned { .. }) {
            match fixed.checked_sub(1) {
                Some(rest) => fixed = rest,
                None => {
                    // Nor by what else was wrong with that entry.
                    kept.pop_if(|last: &mut Finding| matches!(last.kind, FindingKind::L2Reserved { .. }));
                    continue;
                }
            }
            finding.outcome = Outcome::Repaired;
        }
        kept.push(finding);
    }
    kept.extend(left);
    Found { kept, ..before }
}

/// Gives a snapshot the fields that version 3 asks for.
pub(super) fn complete(record: &mut SnapshotRecord, header: &Header) {
    let said = record.snapshot(header);
    if record.extra.len() < SNAPSHOT_EXTRA_BYTES {
        // Nothing is known of instructions that were counted.
        record.extra = [said.vm_state_size, said.virtual_size, u64::MAX]
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect();
    }
}
