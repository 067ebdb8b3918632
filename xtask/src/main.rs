//! The chores of the workspace, as `cargo xtask CHORE`.
//!
//! Each chore is a module; this file only names them. A chore prints the commands it runs, fails with the first that
//! fails, and never asks anything.

mod bench;
mod checks;
mod counts;
mod crash;
mod fuzz;
mod packages;
mod run;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const HELP: &str = "\
Chores of the Catena workspace

  cargo xtask ci                               everything a change must pass: fmt, clippy, docs, deny, fuzz, counts, test
  cargo xtask test                             install what the tests need (as root, where there is apt), run them all
  cargo xtask install                          only install what the tests need
  cargo xtask fmt | clippy | docs | deny       one of the checks
  cargo xtask fuzz [--seconds N] [TARGET...]   build the fuzz targets and run them, all by default, each N seconds (60)
  cargo xtask crash [--cuts N]                 cut images off from power at N points of generated histories (1000000)
  cargo xtask bench [ARGUMENT...]              time Catena beside QEMU's tools and other libraries (--help tells more)
  cargo xtask counts [--record]                count the instructions of the hot paths, and compare with those on record
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match chore(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    if name == "fuzz" {
        let (seconds, targets) = fuzz_arguments(rest)?;
        return fuzz::fuzz(fuzz::Effort::Seconds(seconds), &targets);
    }
    if name == "crash" {
        return crash::crash(crash_arguments(rest)?);
    }
    if name == "bench" {
        return bench::bench(rest);
    }
    if name == "counts" {
        return match rest {
            [] => counts::counts(false),
            [option] if option == "--record" => counts::counts(true),
            _ => bail!("`counts` takes `--record` or nothing"),
        };
    }
    if let Some(extra) = rest.first() {
        bail!("`{name}` takes no argument, but got `{extra}`");
    }
    match name.as_str() {
        "ci" => checks::ci(),
        "test" => checks::test(),
        "install" => packages::install(),
        "fmt" => checks::fmt(),
        "clippy" => checks::clippy(),
        "docs" => checks::docs(),
        "deny" => checks::deny(),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => bail!("there is no chore `{name}`; `cargo xtask` lists them"),
    }
}

fn fuzz_arguments(arguments: &[String]) -> Result<(u32, Vec<String>)> {
    let mut seconds = 60;
    let mut targets = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--seconds" {
            let value = rest.next().context("--seconds needs a number")?;
            seconds = value.parse().with_context(|| format!("--seconds {value}"))?;
        } else if argument.starts_with('-') {
            bail!("`fuzz` has no option `{argument}`");
        } else {
            targets.push(argument.clone());
        }
    }
    Ok((seconds, targets))
}

fn crash_arguments(arguments: &[String]) -> Result<usize> {
    match arguments {
        [] => Ok(1_000_000),
        [option, cuts] if option == "--cuts" => cuts.parse().with_context(|| format!("--cuts {cuts}")),
        _ => bail!("`crash` takes `--cuts N`"),
    }
}

#[cfg(test)]
mod tests {
    use super::{crash_arguments, fuzz_arguments};

    fn parse(line: &str) -> anyhow::Result<(u32, Vec<String>)> {
        fuzz_arguments(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn fuzzes_everything_for_a_minute_unless_told_otherwise() {
        assert_eq!(parse("").unwrap(), (60, vec![]));
        assert_eq!(parse("--seconds 5 qcow2").unwrap(), (5, vec!["qcow2".to_owned()]));
        assert_eq!(
            parse("qcow2 vmdk --seconds 7").unwrap(),
            (7, vec!["qcow2".to_owned(), "vmdk".to_owned()])
        );
    }

    #[test]
    fn refuses_fuzz_options_it_does_not_know() {
        assert!(parse("--second 5").is_err());
        assert!(parse("--seconds").is_err());
        assert!(parse("--seconds soon").is_err());
    }

    #[test]
    fn cuts_a_million_times_unless_told_otherwise() {
        let parse =
            |line: &str| crash_arguments(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse("").unwrap(), 1_000_000);
        assert_eq!(parse("--cuts 5").unwrap(), 5);
        assert!(parse("--cuts").is_err() && parse("5").is_err() && parse("--cuts many").is_err());
    }
}
