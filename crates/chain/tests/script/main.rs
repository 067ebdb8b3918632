//! Operations on several files, killed at every point at which they can be stopped, and by everything else that comes between.
//!
//! Whatever is left, every image shows its guest what it did; the same goes on to its end, or back to where it began.

#![cfg(test)]

mod headers;
mod housekeeping;
mod imports;
mod journals;
mod lab;
mod moves;
mod moves_killed;
mod overlays;
mod steps;
