//! Clusters that are free, given out.

use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::check::counts::Counts;
use catena_format::qcow2::ClusterBits;

/// Clusters that nothing refers to before a change. What is given out counts as used from then on.
#[derive(Debug)]
pub(super) struct Space {
    /// One for each cluster that is used.
    used: Counts,
    cluster_bits: ClusterBits,
    /// Clusters below are all used.
    cursor: u64,
    /// One past the last cluster that is used or given out.
    end: u64,
    /// No cluster from here on can be given out.
    limit: u64,
}

/// Consecutive clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) struct Run {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Space {
    /// Space in which `used` says what is not free. `end` is one past the last used cluster; clusters from there on are
    /// free without end, though `used` holds only so many.
    pub fn new(used: Counts, cluster_bits: ClusterBits, end: u64) -> Self {
        Self {
            used,
            cluster_bits,
            cursor: 0,
            end,
            // Offsets are kept in 56 bits.
            limit: (1 << 56) >> cluster_bits.get(),
        }
    }

    /// Takes a run of clusters: `most`, or fewer where there is a hole that small.
    pub fn take(&mut self, most: u64) -> Result<Run> {
        if let Some((first, count)) = self
            .used
            .zeros(self.cursor, most)
            .filter(|(first, _)| *first < self.end)
        {
            let count = count.min(self.end - first);
            self.used.add(first, count, |_| ());
            self.cursor = first + count;
            return Ok(Run { first, count });
        }
        self.cursor = self.end;
        self.append(most)
    }

    /// Takes so many clusters in one run.
    pub fn take_all(&mut self, count: u64) -> Result<Run> {
        let mut from = self.cursor;
        while let Some((first, found)) = self
            .used
            .zeros(from, count)
            .filter(|(first, _)| *first < self.end)
        {
            if found >= count && first + count <= self.end {
                self.used.add(first, count, |_| ());
                return Ok(Run { first, count });
            }
            from = first + found.max(1);
        }
        self.append(count)
    }

    fn append(&mut self, count: u64) -> Result<Run> {
        let first = self.end;
        let end = first.checked_add(count).filter(|end| *end <= self.limit);
        self.end =
            end.ok_or_else(|| Error::new(ErrorKind::TooLarge, "the image file would become too large"))?;
        self.used.add(first, count, |_| ());
        Ok(Run { first, count })
    }

    /// Whether a cluster was used before the change or has been given out.
    pub fn used(&self) -> &Counts {
        &self.used
    }

    /// One past the last cluster that is used or given out.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes of a run, and where it begins.
    pub fn place(&self, run: Run) -> (u64, u64) {
        (
            run.first << self.cluster_bits.get(),
            run.count << self.cluster_bits.get(),
        )
    }
}
