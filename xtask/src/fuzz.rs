//! Building and running the fuzz targets.
//!
//! Without cargo-fuzz, and on the stable toolchain: coverage is the compiler's own instrumentation, switched on by flags
//! that are stable. What that gives up is AddressSanitizer, which the crates under test, being without `unsafe`, do not
//! need. Debug assertions and overflow checks are on: a wrapped sum is a finding.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, root, run};

/// What cargo-fuzz passes, less the sanitizer.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
    // Each unit instrumented by itself would compare and count less.
    "-Ccodegen-units=1",
];

/// Hostile input must be refused within these; a correct parser of headers stays far below both.
const MEMORY_MIB: u32 = 512;
const SECONDS_PER_INPUT: u32 = 10;

/// How long a target runs.
#[derive(Clone, Copy, Debug)]
pub enum Effort {
    /// So many seconds, from another random seed each time.
    Seconds(u32),
    /// So many inputs from one seed: the same every time, as a check must be that others wait for.
    Inputs(u32),
}

/// Builds the targets (all, if none is named) and runs them one after the other.
///
/// Inputs that found new code are kept in `fuzz/corpus/TARGET`, those that failed in `fuzz/artifacts/TARGET`. A target
/// plants its seeds in the corpus by itself: none are stored in the tree.
pub fn fuzz(effort: Effort, targets: &[String]) -> Result<()> {
    let manifest = root().join("fuzz/Cargo.toml");
    let known = known_targets(&manifest)?;
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        bail!(
            "there is no fuzz target `{unknown}`; there are: {}",
            known.join(", ")
        );
    }
    let targets = if targets.is_empty() { &known } else { targets };
    let host = host()?;
    let mut build = cargo();
    // Naming the target machine keeps the flags away from build scripts and procedural macros.
    build
        .args(["build", "--release", "--target", &host, "--manifest-path"])
        .arg(&manifest);
    build.arg("--target-dir").arg(root().join("fuzz/target"));
    for target in targets {
        build.args(["--bin", target]);
    }
    run(build.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))?;
    for target in targets {
        run_target(target, &host, effort)?;
    }
    Ok(())
}

fn run_target(target: &str, host: &str, effort: Effort) -> Result<()> {
    let fuzz = root().join("fuzz");
    let corpus = fuzz.join("corpus").join(target);
    let artifacts = fuzz.join("artifacts").join(target);
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new(fuzz.join("target").join(host).join("release").join(target));
    match effort {
        Effort::Seconds(seconds) => command.arg(format!("-max_total_time={seconds}")),
        Effort::Inputs(inputs) => command.arg(format!("-runs={inputs}")).arg("-seed=1"),
    };
    command.arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    command.arg(format!("-timeout={SECONDS_PER_INPUT}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-print_final_stats=1", "-verbosity=0"]);
    command.arg(&corpus).env("CATENA_FUZZ_SEEDS", &corpus);
    run(&mut command).with_context(|| format!("the failing input, if any, is in {}", artifacts.display()))
}

/// The names of the binaries in the fuzz workspace.
fn known_targets(manifest: &Path) -> Result<Vec<String>> {
    let mut command = cargo();
    command
        .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
        .arg(manifest);
    let metadata: Value = serde_json::from_str(&output(&mut command)?).context("cargo metadata")?;
    let packages = metadata
        .get("packages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let targets = packages
        .filter_map(|package| package.get("targets")?.as_array())
        .flatten();
    let mut names: Vec<String> = targets
        .filter(|target| target.pointer("/kind/0").and_then(Value::as_str) == Some("bin"))
        .filter_map(|target| target.get("name")?.as_str().map(str::to_owned))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// The machine that rustc builds for when not told.
fn host() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}
