//! Counting the instructions of the hot paths, and comparing them with those on record.
//!
//! Instructions do not depend on how busy a machine is, so that a check may fail by them. valgrind counts, as it does for gungraun; but only
//! what is executed in our own program is added up. What the C library has depends on the processor (it has a `memcpy` for each), and is
//! not ours.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, output, root};

/// Where the counts are on record.
const RECORD: &str = "benches/counts.txt";
/// By what part a count may lie above the one on record. Hash maps with random keys make for less than a
/// hundredth, code that the compiler lays out otherwise for a few.
const TOLERANCE: f64 = 0.1;

/// Counts all paths. With `record` they go on record; without, one that lies above its record is an error.
pub fn counts(record: bool) -> Result<()> {
    crate::run::run(cargo().args([
        "build",
        "--release",
        "-p",
        "catena-benches",
        "--bin",
        "catena-counts",
    ]))?;
    let program = root().join("target/release/catena-counts");
    let names = output(&mut Command::new(&program))?;
    let mut counted = BTreeMap::new();
    for name in names.lines() {
        counted.insert(name.to_owned(), count(&program, name)?);
    }
    let path = root().join(RECORD);
    if record {
        return std::fs::write(&path, to_text(&counted)).context(RECORD);
    }
    let recorded = from_text(&std::fs::read_to_string(&path).context(RECORD)?)?;
    compare(&counted, &recorded)
}

/// The instructions of one path.
fn count(program: &Path, name: &str) -> Result<u64> {
    let out = root().join(format!("target/counts-{name}.out"));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
        .arg("--toggle-collect=catena_counts::measured")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg(name);
    output(&mut valgrind)?;
    let profile = std::fs::read_to_string(&out).with_context(|| out.display().to_string())?;
    std::fs::remove_file(&out)?;
    let own = own_instructions(&profile, "catena-counts");
    if own == 0 {
        bail!("nothing was counted of {name}: is `catena_counts::measured` still what calls it?");
    }
    Ok(own)
}

/// Adds up what callgrind's profile says was executed in an object of that name itself, not in what it called.
fn own_instructions(profile: &str, object: &str) -> u64 {
    let mut objects: BTreeMap<&str, bool> = BTreeMap::new();
    let (mut own, mut called, mut sum) = (false, false, 0);
    for line in profile.lines() {
        if let Some(named) = line.strip_prefix("ob=").or_else(|| line.strip_prefix("cob=")) {
            // A name is given once, `(1) name`, and then only its number.
            let (number, name) = named.split_once(' ').unwrap_or((named, ""));
            let is_own = *objects.entry(number).or_insert_with(|| name.ends_with(object));
            if line.starts_with("ob=") {
                own = is_own;
            }
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // The line after a call is what was spent in there.
            if !std::mem::take(&mut called) && own {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok());
                sum += cost.unwrap_or(0);
            }
        }
    }
    sum
}

fn compare(counted: &BTreeMap<String, u64>, recorded: &BTreeMap<String, u64>) -> Result<()> {
    let mut worse = Vec::new();
    for (name, now) in counted {
        let Some(before) = recorded.get(name) else {
            bail!("{name} is not on record: `cargo xtask counts --record` writes {RECORD} anew");
        };
        let change = *now as f64 / *before as f64 - 1.0;
        eprintln!("xtask: {name}: {now} instructions, {:+.1} %", change * 100.0);
        if change > TOLERANCE {
            worse.push(format!("{name} by {:.1} %", change * 100.0));
        }
    }
    if !worse.is_empty() {
        bail!(
            "more instructions than on record: {}. Where that is the price of something better, `cargo xtask counts --record` writes \
             {RECORD} anew: commit it, and say why",
            worse.join(", ")
        );
    }
    Ok(())
}

fn to_text(counts: &BTreeMap<String, u64>) -> String {
    let mut text = String::from(
        "# Instructions of the hot paths, as `cargo xtask counts` counts them; `cargo xtask counts --record` writes this file.\n",
    );
    for (name, count) in counts {
        let _ = writeln!(text, "{name} {count}");
    }
    text
}

fn from_text(text: &str) -> Result<BTreeMap<String, u64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, count) = line.split_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), count.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{compare, from_text, own_instructions, to_text};

    #[test]
    fn only_what_runs_in_the_object_itself_counts() {
        let profile = "events: Ir\n\nob=(1) /x/catena-counts\nfn=(1) a\n10 100\n+1 20\ncob=(2) /lib/libc.so.6\ncfn=(2) memcpy\n\
                       calls=1 0\n11 5000\n* 3\nob=(2)\nfn=(2)\n1 5000\nob=(1)\nfn=(3) b\n5 1\ntotals: 5124\n";
        assert_eq!(own_instructions(profile, "catena-counts"), 124);
        assert_eq!(own_instructions(profile, "libc.so.6"), 5000);
    }

    #[test]
    fn a_count_far_above_its_record_fails() {
        let of = |text: &str| from_text(text).unwrap();
        let recorded = of("# words\na 1000\nb 1000\n");
        assert_eq!(from_text(&to_text(&recorded)).unwrap(), recorded);
        compare(&of("a 1040\nb 10\n"), &recorded).unwrap();
        let error = compare(&of("a 1100\nb 1000\n"), &recorded).unwrap_err();
        assert!(error.to_string().contains("a by 10.0 %"), "{error}");
        assert!(compare(&of("c 1\n"), &recorded).is_err());
    }
}
