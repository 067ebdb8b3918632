//! `catena check`: what is wrong inside an image, or inside each layer of a chain, and its repair.

mod chain;

use super::change::{ChangeArgs, ChildrenArgs, stopped};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::ImageArgs;
use crate::text;
use anstyle::{AnsiColor, Style};
use catena::ErrorKind;
use catena::detect::quoted;
use catena::open::Sharing;
use catena::ops::check::{self, Plan};
use catena_engine::qcow2::check::{Outcome, Severity, Totals};
use catena_engine::qcow2::{CheckOptions, Repair, Report};
use clap::ValueEnum;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// It could not be checked.
const FAILED: u8 = 1;
/// The image contradicts itself.
const CORRUPT: u8 = 2;
/// Space is lost, and nothing else.
const LEAKS: u8 = 3;
/// The format has nothing to check.
const NOT_CHECKED: u8 = 63;
/// Findings that are told unless all are asked for.
const TOLD: usize = 20;

const BAD: Style = AnsiColor::Red.on_default();
const LOST: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All metadata of the image is read once: what refers to a cluster, and how
often. Nothing is written unless --repair says so; then everything is checked
first, and what has one right answer is given it. Repair is safe at every
instant: the image is never worse than it was. The layers below are looked at
with --chain alone, each by itself; they are mended from the lowest up.

Exit status, as that of 'qemu-img check':
  0  nothing is wrong, or not any more; with --chain, in no layer
  1  it could not be checked
  2  the image is corrupt
  3  space is lost (leaked clusters), and nothing else is wrong
 63  the format has nothing to check

Examples:
  catena check vm.qcow2
  catena check vm.qcow2 --repair leaks
  catena check vm.qcow2 --repair all --dry-run
  catena check vm.qcow2 --chain")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Mend what has one right answer
    #[arg(short, long, value_enum, value_name = "WHAT")]
    repair: Option<What>,
    /// Check each layer of the chain, not the image alone
    #[arg(long)]
    chain: bool,
    /// Print every finding, not only the first ones
    #[arg(long)]
    all: bool,
    /// Check although another process may be writing the image: what is found may be half written
    #[arg(short = 'U', long, conflicts_with = "repair")]
    force_share: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Space that is lost
    Leaks,
    /// Everything
    All,
}

/// The object; what `qemu-img check` leaves out is left out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Json {
    filename: String,
    format: &'static str,
    check_errors: u64,
    corruptions: u64,
    corruptions_fixed: u64,
    leaks: u64,
    leaks_fixed: u64,
    /// Contradictions that qemu-img does not look for.
    other_corruptions: u64,
    image_end_offset: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    fragmented_clusters: u64,
    compressed_clusters: u64,
    findings: Vec<JsonFinding>,
    more_findings: u64,
}

#[derive(Debug, Serialize)]
struct JsonFinding {
    severity: &'static str,
    text: String,
    repaired: bool,
}

/// Checks, and repairs.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = check::Request {
        start: args.image.start(),
        sharing: if args.force_share {
            Sharing::Force
        } else {
            Sharing::Locked
        },
        repair: args.repair.map(|what| match what {
            What::Leaks => Repair::Leaks,
            What::All => Repair::All,
        }),
        children: args.children.children(),
        options: CheckOptions::default(),
    };
    if args.chain {
        return chain::run(args, &request);
    }
    let progress = args.change.progress("checking");
    let plan = match check::plan(&request, &args.image.policy()?, &progress) {
        Ok(plan) => plan,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Ok(CommandError::from(error).report_as(NOT_CHECKED));
        }
        Err(error) => return Err(error.into()),
    };
    let repaired = if args.change.is_dry_run() {
        None
    } else {
        plan.execute(&progress).map_err(stopped)?
    };
    drop(progress);
    let report = repaired
        .as_ref()
        .map_or(plan.report(), |repaired| &repaired.report);
    if !args.change.is_quiet() {
        let mut out = output::stdout();
        match args.output {
            Output::Human => tell(args, &plan, report, &mut out)?,
            Output::Json => output::json(&json(plan.name(), report), &mut out)?,
        }
        out.flush()?;
    }
    Ok(ExitCode::from(status(report.totals)))
}

fn status(totals: Totals) -> u8 {
    if totals.check_errors > 0 {
        FAILED
    } else if totals.corruptions + totals.beyond_qemu > 0 {
        CORRUPT
    } else if totals.leaks > 0 {
        LEAKS
    } else {
        0
    }
}

fn tell(args: &Args, plan: &Plan, report: &Report, out: &mut impl Write) -> io::Result<()> {
    tell_findings(args, report, "", out)?;
    let name = plan.name();
    writeln!(out, "{}: {}", text::printable(&name), summary(report))?;
    out.flush()?;
    hint(args, report.totals, report.is_sound(), &name, "");
    Ok(())
}

/// What the findings amount to, and what the image is made of.
fn summary(report: &Report) -> String {
    format!(
        "{}; {} of {} clusters are allocated, {} fragmented, {} compressed",
        amount(report.totals),
        report.mapped.allocated,
        report.total_clusters,
        text::percent(report.mapped.fragmented, report.mapped.allocated),
        text::percent(report.mapped.compressed, report.mapped.allocated),
    )
}

fn tell_findings(args: &Args, report: &Report, indent: &str, out: &mut impl Write) -> io::Result<()> {
    let told = if args.all { usize::MAX } else { TOLD };
    for finding in report.findings.iter().take(told) {
        let style = match (finding.outcome, finding.severity()) {
            (Outcome::Repaired, _) => GOOD,
            (_, Severity::Corruption | Severity::Error) => BAD,
            (_, Severity::Leak) => LOST,
            (_, Severity::Note) => Style::new(),
        };
        let done = if finding.outcome == Outcome::Repaired {
            " (mended)"
        } else {
            ""
        };
        for line in finding.to_string().lines() {
            writeln!(out, "{indent}{style}{}{style:#}{done}", text::printable(line))?;
        }
    }
    let more = report.findings.len().saturating_sub(told) as u64 + report.more;
    if more > 0 {
        let how = if args.all { "" } else { "; --all prints them" };
        writeln!(out, "{indent}and {}{how}", text::count(more, "more finding"))?;
    }
    Ok(())
}

/// What the findings amount to.
fn amount(totals: Totals) -> String {
    let parts: Vec<String> = [
        (totals.corruptions + totals.beyond_qemu, "corruption", ""),
        (totals.leaks, "leaked cluster", ""),
        (totals.check_errors, "error", " while checking"),
        (totals.corruptions_fixed, "corruption", " mended"),
        (totals.leaks_fixed, "leaked cluster", " given back"),
    ]
    .into_iter()
    .filter(|(number, _, _)| *number > 0)
    .map(|(number, noun, behind)| format!("{}{behind}", text::count(number, noun)))
    .collect();
    if parts.is_empty() {
        "nothing is wrong".to_owned()
    } else {
        parts.join(", ")
    }
}

/// Says what mends it. Where standard error is gone, nobody is there to be told.
fn hint(args: &Args, totals: Totals, sound: bool, name: &str, option: &str) {
    if status(totals) == 0 {
        return;
    }
    let tried = args.repair == Some(What::All) && !args.change.is_dry_run();
    let hint = if tried {
        "what is left has no one right answer; 'catena convert --salvage' saves what can be read".to_owned()
    } else {
        let what = if sound { "leaks" } else { "all" };
        format!(
            "to mend it: catena check{option} --repair {what} {}",
            quoted(name)
        )
    };
    let _ = writeln!(anstream::stderr(), "hint: {hint}");
}

fn json(filename: String, report: &Report) -> Json {
    let totals = report.totals;
    Json {
        filename,
        format: "qcow2",
        check_errors: totals.check_errors,
        corruptions: totals.corruptions,
        corruptions_fixed: totals.corruptions_fixed,
        leaks: totals.leaks,
        leaks_fixed: totals.leaks_fixed,
        other_corruptions: totals.beyond_qemu,
        image_end_offset: report.image_end_offset,
        total_clusters: report.total_clusters,
        allocated_clusters: report.mapped.allocated,
        fragmented_clusters: report.mapped.fragmented,
        compressed_clusters: report.mapped.compressed,
        findings: report
            .findings
            .iter()
            .map(|finding| JsonFinding {
                severity: match finding.severity() {
                    Severity::Corruption => "corruption",
                    Severity::Leak => "leak",
                    Severity::Error => "error",
                    Severity::Note => "note",
                },
                text: finding.to_string(),
                repaired: finding.outcome == Outcome::Repaired,
            })
            .collect(),
        more_findings: report.more,
    }
}
