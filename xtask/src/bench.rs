//! Timing Catena beside its peers.

use crate::run::{cargo, root, run};
use anyhow::Result;

/// Builds the command as users have it, and times it; `arguments` are the timing program's.
pub fn bench(arguments: &[String]) -> Result<()> {
    run(cargo().args(["build", "--release", "-p", "catena-cli", "-p", "catena-benches"]))?;
    let release = root().join("target/release");
    let mut bench = std::process::Command::new(release.join("catena-bench"));
    run(bench.arg("--catena").arg(release.join("catena")).args(arguments))
}
