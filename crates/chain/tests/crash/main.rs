//! Operations on chains are cut off from power at every point, and run out of space at every block.
//!
//! Whatever is left, every image opens and is sound but for leaks, every image that is to stay shows its guest what it did, the one that is
//! written shows each sector old or new, and the same operation once more finishes the job.

#![cfg(test)]

mod cases;
mod cuts;
mod full;
mod lab;
