//! Timing Catena beside its peers.

use crate::run::{cargo, root, run};
use anyhow::Result;

/// Builds the command as users have it, and times it; `arguments` are the timing program's.
///
/// The peers are a workspace of their own, whose libraries nothing else needs. They share the target folder, and with it what both build.
pub fn bench(arguments: &[String]) -> Result<()> {
    let target = root().join("target");
    run(cargo().args(["build", "--release", "-p", "catena-cli", "-p", "catena-benches"]))?;
    run(cargo()
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(root().join("benches/peers/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target))?;
    let release = target.join("release");
    run(std::process::Command::new(release.join("catena-bench"))
        .arg("--catena")
        .arg(release.join("catena"))
        .arg("--peers")
        .arg(release.join("catena-peers"))
        .args(arguments))
}
