//! Cutting images off from power, far more often than the tests do.

use crate::run::{cargo, run};
use anyhow::Result;

/// Runs the crash histories over so many cuts, other ones than the tests make, in a build as users have it: those of single images, and
/// a fiftieth as many of operations on chains.
pub fn crash(cuts: usize) -> Result<()> {
    let mut test = cargo();
    test.args([
        "test",
        "--release",
        "-p",
        "catena-engine",
        "-p",
        "catena",
        "--test",
        "crash",
    ]);
    test.args(["survive", "--", "--nocapture"]);
    run(test.env("CATENA_CRASH_CUTS", cuts.to_string()))
}
