//! Checking a whole qcow2 image: every reference is counted and held against the refcounts.
//!
//! [`check`] finds what QEMU's check finds, in its order and with its numbers, and more. It reads all metadata once, by
//! several threads, in bounded memory: a disk too large for that is done in several passes, each over all tables but for
//! some of the clusters. Nothing is written here.
//!
//! The caller keeps others from writing while the check lasts.

mod compare;
pub(in crate::qcow2) mod counts;
mod finding;
mod found;
mod overlap;
pub(in crate::qcow2) mod refcounts;
pub(in crate::qcow2) mod roots;
pub(in crate::qcow2) mod table;
pub(in crate::qcow2) mod walk;
mod watch;

pub use finding::{Finding, FindingKind, Outcome, Severity};
pub use found::Totals;
pub(in crate::qcow2) use found::{Found, Room};
pub use walk::Mapped;
pub use watch::Watch;

use crate::error::{Error, ErrorKind, Result};
use catena_format::qcow2::Header;
use catena_storage::Storage;
use counts::{Counts, max_of_order};
use refcounts::Refcounts;
use roots::Roots;
use std::sync::atomic::Ordering;
use walk::Walk;

/// Clusters of the largest image that is checked: 4 EiB of the default size, 32 TiB of the smallest.
const MOST_CLUSTERS: u64 = 1 << 36;
/// Clusters of which counts are held at once, whatever memory there is: chunks cost some even when they are empty.
const PASS_CLUSTERS: u64 = 1 << 34;

/// Findings that are kept unless told otherwise: more than anybody reads, in a few MiB.
const FINDINGS: usize = 50_000;

/// What a check may use, and who watches it.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions<'a> {
    /// About how many bytes of memory counts may take up.
    pub memory: usize,
    /// How many threads read.
    pub threads: usize,
    /// How many findings are kept; others are counted.
    pub findings: usize,
    /// Who watches.
    pub watch: Watch<'a>,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self {
            memory: 192 << 20,
            threads: std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(16),
            findings: FINDINGS,
            watch: Watch::default(),
        }
    }
}

impl<'a> CheckOptions<'a> {
    /// The same, watched: see [`Watch`].
    #[must_use]
    pub fn watched(self, tell: &'a (dyn Fn(u64, u64) -> bool + Sync)) -> Self {
        Self {
            watch: Watch::new(tell),
            ..self
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings in QEMU's order.
    pub findings: Vec<Finding>,
    /// How many more there are than were kept.
    pub more: u64,
    /// How many findings there are.
    pub totals: Totals,
    /// What the active disk is made of.
    pub mapped: Mapped,
    /// Clusters of the active disk.
    pub total_clusters: u64,
    /// One past the last byte of the last cluster in use.
    pub image_end_offset: u64,
    /// Whether the refcounts have to be written anew: mending them one by one does not help.
    pub needs_rebuild: bool,
}

impl Report {
    /// Whether nothing is wrong: neither corrupt nor leaked nor impossible to examine.
    pub fn is_clean(&self) -> bool {
        let Totals {
            corruptions,
            leaks,
            check_errors,
            beyond_qemu,
            ..
        } = self.totals;
        corruptions + leaks + check_errors + beyond_qemu == 0
    }

    /// Whether the image may be written: it is clean but perhaps for leaks.
    pub fn is_sound(&self) -> bool {
        let Totals {
            corruptions,
            check_errors,
            beyond_qemu,
            ..
        } = self.totals;
        corruptions + check_errors + beyond_qemu == 0
    }

    pub(in crate::qcow2) fn take(&mut self, found: Found) {
        self.findings.extend(found.kept);
        self.more += found.more;
        self.totals.add(found.totals);
    }
}

/// Checks an image. See the module.
///
/// # Errors
/// Where the header cannot be read or asks for features that are not understood, the image is absurdly large, or the
/// store fails; [`ErrorKind::Cancelled`] where whoever watches says so.
pub fn check(storage: &dyn Storage, options: &CheckOptions<'_>) -> Result<Report> {
    let room = Room::new(options.findings);
    let mut found = Found::default();
    let roots = Roots::read(storage, &room, &mut found)?;
    let state = examine(storage, &roots, options)?;
    Ok(state.into_report(found))
}

/// What an image was found to be, with what a repair needs to know beside its findings.
#[derive(Debug, Default)]
pub(in crate::qcow2) struct State {
    /// Findings about references.
    pub walked: Found,
    /// Findings about refcounts.
    pub compared: Found,
    /// Findings about `COPIED` flags.
    pub copied: Found,
    /// What QEMU does not look for.
    pub beyond: Found,
    /// What the active disk is made of.
    pub mapped: Mapped,
    /// Clusters of the active disk.
    pub total_clusters: u64,
    /// One past the last cluster in use.
    pub used_clusters: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Whether refcounts cannot be mended in place.
    pub needs_rebuild: bool,
    compared_needs_rebuild: bool,
}

impl State {
    fn kept(&self) -> usize {
        [&self.walked, &self.compared, &self.copied, &self.beyond]
            .map(|found| found.kept.len())
            .iter()
            .sum()
    }

    /// Adds what another pass found. Only the first tells what does not depend on the clusters of the pass.
    fn append(&mut self, mut pass: Self, is_first: bool) {
        if is_first {
            self.mapped = pass.mapped;
            self.needs_rebuild |= pass.needs_rebuild;
            self.walked.append(pass.walked);
        } else {
            // Counts alone are new; all else was found before.
            let is_new = |finding: &Finding| {
                matches!(
                    finding.kind,
                    FindingKind::RefcountOverflow { .. } | FindingKind::RefcountBlockShared { .. }
                )
            };
            let room = Room::new(pass.walked.kept.len());
            pass.walked.kept.retain(is_new);
            for finding in pass.walked.kept {
                self.needs_rebuild |= matches!(finding.kind, FindingKind::RefcountBlockShared { .. });
                self.walked.note(&room, finding);
            }
            self.needs_rebuild |= pass.compared_needs_rebuild;
        }
        self.compared.append(pass.compared);
        self.copied.append(pass.copied);
        self.beyond.append(pass.beyond);
        self.used_clusters = self.used_clusters.max(pass.used_clusters);
    }

    /// The report of it, with these findings instead of its own but for what QEMU does not look for.
    pub fn into_report_of(self, findings: Found) -> Report {
        let state = Self {
            walked: findings,
            compared: Found::default(),
            copied: Found::default(),
            ..self
        };
        state.into_report(Found::default())
    }

    /// The report of it, with findings that were made before it.
    pub fn into_report(self, before: Found) -> Report {
        let mut report = Report {
            mapped: self.mapped,
            total_clusters: self.total_clusters,
            image_end_offset: self.used_clusters.saturating_mul(self.cluster_size),
            needs_rebuild: self.needs_rebuild,
            ..Report::default()
        };
        for found in [before, self.walked, self.compared, self.copied, self.beyond] {
            report.take(found);
        }
        report
    }
}

/// The clusters of a file that are checked: those in it, and one that may be reached from its last.
pub(in crate::qcow2) fn clusters_of(header: &Header, file_len: u64) -> Result<u64> {
    let clusters = header.cluster_bits.clusters(file_len) + 1;
    if clusters > MOST_CLUSTERS {
        return Err(Error::new(
            ErrorKind::TooLarge,
            "the image file is too large to be checked",
        ));
    }
    Ok(clusters)
}

/// Counts and compares, in as many passes as memory asks for.
pub(in crate::qcow2) fn examine(
    storage: &dyn Storage,
    roots: &Roots,
    options: &CheckOptions<'_>,
) -> Result<State> {
    Ok(examine_counting(storage, roots, options)?.0)
}

/// What a check has counted of all clusters.
#[derive(Debug)]
pub(in crate::qcow2) struct Counted {
    /// The refcounts on disk.
    pub refcounts: Refcounts,
    /// The references to each cluster.
    pub counts: Counts,
}

/// As [`examine`], and keeps what was counted, where one pass was enough.
pub(in crate::qcow2) fn examine_counting(
    storage: &dyn Storage,
    roots: &Roots,
    options: &CheckOptions<'_>,
) -> Result<(State, Option<Counted>)> {
    let header = &roots.header;
    let file_len = storage.len()?;
    let all = clusters_of(header, file_len)?;
    let mut state = State {
        total_clusters: header.cluster_bits.clusters(header.virtual_size),
        used_clusters: 1,
        cluster_size: header.cluster_bits.size(),
        ..State::default()
    };
    if let Some(backing) = header
        .backing
        .as_ref()
        .filter(|name| name.end() > header.cluster_bits.size())
    {
        let offset = backing.offset;
        state
            .beyond
            .push(&Room::new(1), FindingKind::BackingNameOutside { offset });
    }
    let table = refcounts::read_table(storage, header)?;
    let mut first = 0;
    let mut end = all.min(PASS_CLUSTERS);
    let mut kept = None;
    while first < all {
        // A pass that ran out of memory is done again for fewer clusters; what it found does not count.
        let room = Room::new(options.findings.saturating_sub(state.kept()));
        let range = Range { first, end, all };
        match pass(storage, roots, &table, range, file_len, &room, options)? {
            Ok(pass) => {
                state.append(pass.state, first == 0);
                kept = (first == 0 && pass.end == all).then_some(pass.counted);
                first = pass.end;
                end = all.min(first.saturating_add(PASS_CLUSTERS));
            }
            Err(less) => end = less,
        }
    }
    Ok((state, kept))
}

/// What a pass found, what it counted, and where it stopped.
struct Pass {
    state: State,
    counted: Counted,
    end: u64,
}

/// The clusters of a pass, and how many there are in all.
#[derive(Clone, Copy)]
struct Range {
    first: u64,
    end: u64,
    all: u64,
}

/// One pass, or up to where one would not need too much memory.
fn pass(
    storage: &dyn Storage,
    roots: &Roots,
    table: &[u64],
    range: Range,
    file_len: u64,
    room: &Room,
    options: &CheckOptions<'_>,
) -> Result<Result<Pass, u64>> {
    let header = &roots.header;
    let (budget, threads) = (options.memory / 3, options.threads.max(1));
    let Range { first, end, all } = range;
    let refcounts = Refcounts::read(
        storage,
        header,
        table.to_vec(),
        (first, end, all),
        budget,
        threads,
    )?;
    let end = refcounts.counts.end();
    let counts = Counts::new(first, end, max_of_order(header.refcount_order), budget);
    let tables = Counts::new(first, end, u64::MAX, budget);
    let mut walk = Walk::new(storage, file_len, roots, &counts, room, threads);
    walk.refcounts = Some(&refcounts);
    walk.tables = Some(&tables);
    walk.watch = options.watch;
    let mut walked = walk.all()?;
    walk.rest(&mut walked.found)?;
    let mut state = State::default();
    state.needs_rebuild |= compare::blocks(&walk, &refcounts, &mut walked.found);
    let less = counts.end().min(tables.end());
    if less < end {
        return Ok(Err(less));
    }
    let clusters = walk.clusters.load(Ordering::Relaxed);
    compare::all(&refcounts, &counts, clusters, room, &mut state);
    state.needs_rebuild |= state.compared_needs_rebuild;
    overlap::examine(roots, &counts, &tables, room, &mut state.beyond);
    state.walked = walked.found;
    state.copied = walked.copied;
    state.mapped = walked.mapped;
    Ok(Ok(Pass {
        state,
        counted: Counted { refcounts, counts },
        end,
    }))
}
