//! Findings as they come in: counted all, kept up to a bound.

use super::finding::{Finding, FindingKind, Outcome, Severity};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many findings may still be kept by everybody together.
#[derive(Debug)]
pub(in crate::qcow2) struct Room(AtomicUsize);

impl Room {
    /// Room for so many.
    pub fn new(findings: usize) -> Self {
        Self(AtomicUsize::new(findings))
    }

    fn take(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

/// Findings in the order of the search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::qcow2) struct Found {
    /// Those that are kept.
    pub kept: Vec<Finding>,
    /// How many are not.
    pub more: u64,
    /// How many of each kind there are.
    pub totals: Totals,
}

/// How many findings there are, as QEMU counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Contradictions that are still there.
    pub corruptions: u64,
    /// Leaked clusters that are still there.
    pub leaks: u64,
    /// What could not be examined.
    pub check_errors: u64,
    /// Contradictions that were mended.
    pub corruptions_fixed: u64,
    /// Leaked clusters that were given back.
    pub leaks_fixed: u64,
    /// Contradictions that QEMU does not look for.
    pub beyond_qemu: u64,
}

impl Totals {
    /// Adds up two parts of a check.
    pub(in crate::qcow2) fn add(&mut self, other: Self) {
        for (to, from) in [
            (&mut self.corruptions, other.corruptions),
            (&mut self.leaks, other.leaks),
            (&mut self.check_errors, other.check_errors),
            (&mut self.corruptions_fixed, other.corruptions_fixed),
            (&mut self.leaks_fixed, other.leaks_fixed),
            (&mut self.beyond_qemu, other.beyond_qemu),
        ] {
            *to = to.saturating_add(from);
        }
    }
}

impl Found {
    /// Takes note of a fault.
    pub fn push(&mut self, room: &Room, kind: FindingKind) {
        self.note(room, Finding::new(kind));
    }

    /// Takes note of a finding, mended or not.
    pub fn note(&mut self, room: &Room, finding: Finding) {
        let totals = &mut self.totals;
        let counter = match (finding.severity(), finding.outcome) {
            _ if finding.beyond_qemu() => Some(&mut totals.beyond_qemu),
            (Severity::Corruption, Outcome::Found) => Some(&mut totals.corruptions),
            (Severity::Corruption, Outcome::Repaired) => Some(&mut totals.corruptions_fixed),
            (Severity::Leak, Outcome::Found) => Some(&mut totals.leaks),
            (Severity::Leak, Outcome::Repaired) => Some(&mut totals.leaks_fixed),
            (Severity::Error, _) => Some(&mut totals.check_errors),
            (Severity::Note, _) => None,
        };
        if let Some(counter) = counter {
            *counter += 1;
        }
        if room.take() {
            self.kept.push(finding);
        } else {
            self.more += 1;
        }
    }

    /// Puts what was found later behind.
    pub fn append(&mut self, mut later: Self) {
        self.kept.append(&mut later.kept);
        self.more += later.more;
        self.totals.add(later.totals);
    }
}
