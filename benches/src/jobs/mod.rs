//! What is timed, one file per family. A goal is by how much Catena is meant to be better: a contender's time by Catena's.

mod metadata;
mod moving;
mod reads;
mod single;

use crate::job::Job;

/// All jobs, with images of so many bytes where they are of one layer.
pub fn all(data: u64) -> Vec<Job> {
    let mut jobs = Vec::new();
    jobs.extend(reads::jobs());
    jobs.extend(single::jobs());
    jobs.extend(metadata::jobs(data));
    jobs.extend(moving::jobs(data));
    jobs
}
