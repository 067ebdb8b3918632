//! The checks that a change must pass, one function each.

use std::process::Command;

use anyhow::Result;

use crate::run::{cargo, find, run};
use crate::{counts, fuzz, packages};

/// How many inputs [`ci`] runs through each fuzz target: enough for its seeds, and for what is one mutation away from them.
const SMOKE_INPUTS: u32 = 5000;

/// Everything, the cheap and talkative first, and the tests last: the closing lines are the test runner's.
pub fn ci() -> Result<()> {
    fmt()?;
    packages::install()?;
    clippy()?;
    docs()?;
    deny()?;
    fuzz::fuzz(fuzz::Effort::Inputs(SMOKE_INPUTS), &[])?;
    counts::counts(false)?;
    test()
}

/// Is every file as rustfmt would write it?
pub fn fmt() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
}

/// Clippy over everything that compiles, warnings being errors.
pub fn clippy() -> Result<()> {
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))
}

/// The documentation of our own crates, warnings being errors.
pub fn docs() -> Result<()> {
    run(cargo()
        .args(["doc", "--workspace", "--all-features", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

/// Licences, banned crates and sources, by the rules in `deny.toml`.
///
/// Without advisories: they come from a Git repository that a build without network lacks, and an advisory is news
/// about the world, not about the change that is checked.
pub fn deny() -> Result<()> {
    if find("cargo-deny").is_none() {
        // Unoptimised, for it runs once and building it costs more: under two minutes on two cores.
        run(cargo().args(["install", "--locked", "--profile", "dev", "cargo-deny@0.20.2"]))?;
    }
    for manifest in ["Cargo.toml", "benches/peers/Cargo.toml"] {
        run(cargo()
            .args(["deny", "--all-features", "--config", "deny.toml"])
            .args(["--manifest-path", manifest])
            .args(["check", "licenses", "bans", "sources"]))?;
    }
    Ok(())
}

/// What proptest takes its seed from.
const SEED: &str = "PROPTEST_RNG_SEED";
/// What makes a test fail that this machine lacks something for, and that would pass without having done its work.
const NOTHING_LEFT_OUT: &str = "CATENA_TEST_NOTHING_LEFT_OUT";

/// The whole test suite, after installing what it needs. Nothing is skipped.
///
/// The examples in the documentation go first: a workspace may have none, and the last lines should count tests.
pub fn test() -> Result<()> {
    packages::install()?;
    run(cargo().args(["test", "--workspace", "--all-features", "--doc"]))?;
    run(runner().env(NOTHING_LEFT_OUT, "1"))
}

/// nextest, which runs the tests of all crates side by side, or else cargo's own runner.
fn runner() -> Command {
    let mut command = cargo();
    if find("cargo-nextest").is_some() {
        command.args([
            "nextest",
            "run",
            "--workspace",
            "--all-features",
            "--no-fail-fast",
        ]);
    } else {
        command.args([
            "test",
            "--workspace",
            "--all-features",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ]);
    }
    // What fails here fails again, wherever it is run. `cargo nextest run` by hand draws other cases each time.
    if std::env::var_os(SEED).is_none() {
        command.env(SEED, "1");
    }
    command
}
