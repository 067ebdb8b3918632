//! Guest clusters whose entry somebody is about to change.
//!
//! Each claim is a run, and there are about as many at once as requests under way, so that looking through all of them is quick however
//! long the runs are. Claims never overlap.

use std::ops::Range;

/// The runs that are claimed.
#[derive(Debug, Default)]
pub(super) struct Claims(Vec<Range<u64>>);

impl Claims {
    /// Claims a run, none of which is claimed.
    pub(super) fn add(&mut self, clusters: Range<u64>) {
        self.0.push(clusters);
    }

    /// Gives up a run as it was claimed.
    pub(super) fn remove(&mut self, clusters: &Range<u64>) {
        if let Some(index) = self.0.iter().position(|claimed| claimed == clusters) {
            self.0.swap_remove(index);
        }
    }

    /// The first cluster of a run that is claimed.
    pub(super) fn first_in(&self, clusters: &Range<u64>) -> Option<u64> {
        let overlaps = |claimed: &&Range<u64>| claimed.start < clusters.end && clusters.start < claimed.end;
        let firsts = self.0.iter().filter(overlaps);
        firsts.map(|claimed| claimed.start.max(clusters.start)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_claimed_cluster_of_a_run_is_found() {
        let mut claims = Claims::default();
        assert_eq!(claims.first_in(&(0..u64::MAX)), None);
        claims.add(20..30);
        claims.add(10..15);
        assert_eq!(claims.first_in(&(0..10)), None);
        assert_eq!(claims.first_in(&(0..100)), Some(10));
        assert_eq!(claims.first_in(&(12..13)), Some(12));
        assert_eq!(claims.first_in(&(15..100)), Some(20));
        claims.remove(&(10..15));
        assert_eq!(claims.first_in(&(0..100)), Some(20));
        claims.remove(&(20..30));
        assert_eq!(claims.first_in(&(0..100)), None);
    }
}
