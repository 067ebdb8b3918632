//! `qemu-img check`: looks for damage, and mends it.
//!
//! Each fault is a line on standard error as it is found; what they come to is on standard output.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::Purpose;
use super::options::{Cache, cache_mode};
use super::program::{self, Failure, Program, Result, error, output_is_json, usage};
use super::qdict::{Object, Value};
use catena_engine::qcow2::check::{CheckOptions, Report, Totals, check};
use catena_engine::qcow2::metadata::{Repair, repair};
use catena_storage::Storage;
use std::io::Write;

const OPTIONS: Options = Options {
    short: "hf:r:T:qU",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        long("cache", 'T', Argument),
        long("repair", 'r', Argument),
        word("output", Argument),
        long("force-share", 'U', Nothing),
        word("object", Argument),
    ],
};

/// The image is of a format that has nothing to check.
const NOT_SUPPORTED: u8 = 63;

#[derive(Debug, Default)]
struct Request {
    image: ImageArgs,
    quiet: bool,
    json: bool,
    repair: Option<Repair>,
    cache: Option<String>,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut request = Request::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('r') => request.repair = Some(what_to_repair(&value)?),
            Key::Letter('T') => request.cache = Some(value),
            Key::Letter('q') => request.quiet = true,
            Key::Word("output") => request.json = output_is_json(&value)?,
            _ => request.image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    if let Some(mode) = &request.cache {
        cache_mode(mode, Cache::Source)?;
    }
    request.image.check()?;
    let opened = request.image.open(
        program,
        name,
        Purpose {
            write: request.repair.is_some(),
            check: true,
            ..Purpose::default()
        },
    )?;
    if opened.driver() != "qcow2" {
        return Err(Failure::Error(
            "This image format does not support checks".to_owned(),
            NOT_SUPPORTED,
        ));
    }
    examine(program, &request, &opened.held, name)
}

fn what_to_repair(value: &str) -> Result<Repair> {
    match value {
        "leaks" => Ok(Repair::Leaks),
        "all" => Ok(Repair::All),
        other => Err(usage(format!(
            "--repair (-r) expects 'leaks' or 'all' not '{other}'"
        ))),
    }
}

fn examine(program: &Program, request: &Request, storage: &dyn Storage, name: &str) -> Result<u8> {
    let options = CheckOptions::default();
    let mut out = String::new();
    let mut mended = Totals::default();
    let report = match request.repair {
        None => {
            let report = check(storage, &options).map_err(|why| failed(&why))?;
            print_lines(&report, false);
            report
        }
        Some(what) => {
            let repaired = repair(storage, what, &options).map_err(|why| failed(&why))?;
            print_lines(&repaired.report, true);
            if repaired.failed {
                return Err(error("Check failed: Input/output error"));
            }
            mended = repaired.report.totals;
            if mended.corruptions_fixed + mended.leaks_fixed == 0 {
                repaired.report
            } else {
                out.push_str(&format!(
                    "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\nDouble checking the fixed image now...\n",
                    mended.leaks_fixed, mended.corruptions_fixed
                ));
                let again = check(storage, &options).map_err(|why| failed(&why))?;
                print_lines(&again, true);
                again
            }
        }
    };
    let result = Outcome::of(&report, mended);
    if report.totals.check_errors > 0 {
        program.say("Check failed");
    }
    match (request.quiet, request.json) {
        (true, _) => out.clear(),
        (false, true) => out = result.json(name),
        (false, false) => result.write_lines(&mut out),
    }
    program::print(&out);
    Ok(result.status())
}

fn failed(why: &catena::Error) -> Failure {
    error(format!("Check failed: {}", super::errno::word(why)))
}

/// The lines of what was found, on standard error.
pub fn print_lines(report: &Report, writable: bool) {
    // There may be a hundred thousand of them, and what is not gathered is written line by line.
    let mut err = std::io::BufWriter::new(std::io::stderr().lock());
    for line in report
        .findings
        .iter()
        .filter_map(|finding| finding.qemu_line(writable))
    {
        // When standard error is gone there is nobody to tell.
        let _ = writeln!(err, "{line}");
    }
}

/// What is told in the end: what was found last, and what was mended before.
#[derive(Debug)]
struct Outcome {
    totals: Totals,
    mended: Totals,
    image_end_offset: u64,
    total_clusters: u64,
    allocated: u64,
    fragmented: u64,
    compressed: u64,
}

impl Outcome {
    fn of(report: &Report, mended: Totals) -> Self {
        Self {
            totals: report.totals,
            mended,
            image_end_offset: report.image_end_offset,
            total_clusters: report.total_clusters,
            allocated: report.mapped.allocated,
            fragmented: report.mapped.fragmented,
            compressed: report.mapped.compressed,
        }
    }

    fn json(&self, name: &str) -> String {
        let mut object = Object::new()
            .with("filename", name)
            .with("format", "qcow2")
            .with("check-errors", self.totals.check_errors);
        for (key, number) in [
            ("image-end-offset", self.image_end_offset),
            ("corruptions", self.totals.corruptions),
            ("leaks", self.totals.leaks),
            ("corruptions-fixed", self.mended.corruptions_fixed),
            ("leaks-fixed", self.mended.leaks_fixed),
            ("total-clusters", self.total_clusters),
            ("allocated-clusters", self.allocated),
            ("fragmented-clusters", self.fragmented),
            ("compressed-clusters", self.compressed),
        ] {
            if number > 0 {
                object.set(key, number);
            }
        }
        format!("{}\n", Value::from(object).to_pretty_json())
    }

    fn write_lines(&self, out: &mut String) {
        let Totals {
            corruptions,
            leaks,
            check_errors,
            ..
        } = self.totals;
        if corruptions + leaks + check_errors == 0 {
            out.push_str("No errors were found on the image.\n");
        }
        if corruptions > 0 {
            out.push_str(&format!(
                "\n{corruptions} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n"
            ));
        }
        if leaks > 0 {
            out.push_str(&format!(
                "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n"
            ));
        }
        if check_errors > 0 {
            out.push_str(&format!(
                "\n{check_errors} internal errors have occurred during the check.\n"
            ));
        }
        if self.total_clusters > 0 && self.allocated > 0 {
            let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
            out.push_str(&format!(
                "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
                self.allocated,
                self.total_clusters,
                percent(self.allocated, self.total_clusters),
                percent(self.fragmented, self.allocated),
                percent(self.compressed, self.allocated),
            ));
        }
        if self.image_end_offset > 0 {
            out.push_str(&format!("Image end offset: {}\n", self.image_end_offset));
        }
    }

    fn status(&self) -> u8 {
        match self.totals {
            totals if totals.check_errors > 0 => 1,
            totals if totals.corruptions > 0 => 2,
            totals if totals.leaks > 0 => 3,
            _ => 0,
        }
    }
}
