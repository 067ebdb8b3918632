//! `catena doctor`: what is wrong with chains, what comes of it, what cures it; and, if asked, the cure.
//!
//! Nothing is changed without `--fix`, and with it only headers, in ways that no guest can tell.

use super::facts::FindingFacts;
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{parse_format, warn_probed};
use crate::text;
use anstyle::{AnsiColor, Style};
use catena::doctor::{Code, Finding, Mend, Options, Report, Severity, User, mends, survey};
use catena::{End, Format, Policy};
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const HEAD: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();

/// Exit status where there is nothing worse than warnings.
pub(super) const WARNINGS: u8 = 3;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  nothing worse than notes
  1  errors were found, or it could not be done
  2  the command line is wrong
  3  warnings were found, and no errors

Examples:
  catena doctor vm.qcow2
  catena doctor /var/lib/libvirt/images
  catena doctor --as-user libvirt-qemu vm.qcow2
      may the guest's process open all of it?
  catena doctor --search /srv/images vm.qcow2
      where has the base gone?
  catena doctor --fix --dry-run vm.qcow2

docs/findings.md explains every finding.")]
pub struct Args {
    /// Active images of chains, or folders, of which every image is examined
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<PathBuf>,
    /// The active images' format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// What may be opened and believed because an image says so: 'libvirt', 'strict' or a policy file
    #[arg(long, default_value = "libvirt")]
    policy: String,
    /// Also tell whether this user may open everything: a name or number, with ':' and a group if need be
    #[arg(long, value_name = "USER", value_parser = parse_user)]
    as_user: Option<User>,
    /// A folder in which to look for images that have moved, and in all below it; may be given again
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Mend what can be mended without any guest seeing a difference
    #[arg(long)]
    fix: bool,
    /// Say what --fix would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    /// Accepted because other verbs have it: to look takes no locks, so images in use are examined anyway
    #[arg(short = 'U', long, conflicts_with = "fix")]
    force_share: bool,
}

fn parse_user(text: &str) -> Result<User, String> {
    User::find(text).map_err(|error| error.full())
}

/// The JSON form.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    targets: Vec<TargetJson>,
    errors: usize,
    warnings: usize,
    notes: usize,
    /// What `--fix` did, or with `--dry-run` would do; in the order in which it is done.
    fixes: &'a [Attempt],
}

#[derive(Debug, Serialize)]
struct TargetJson {
    target: String,
    /// How many layers were found.
    layers: usize,
    /// `terminated`, `open_ended` or `broken`.
    end: &'static str,
    findings: Vec<FindingJson>,
}

#[derive(Debug, Serialize)]
struct FindingJson {
    #[serde(flatten)]
    facts: FindingFacts,
    /// Whether `--fix` cures it.
    fixable: bool,
}

/// One header that was to be changed.
#[derive(Debug, Serialize)]
struct Attempt {
    image: String,
    cures: Vec<&'static str>,
    /// What changes; `None` where it was refused before that was known.
    plan: Option<String>,
    done: bool,
    error: Option<String>,
}

/// Examines, mends if asked, and tells.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = Policy::load(&args.policy)?;
    let options = Options::new(&policy)
        .user(args.as_user.clone())
        .search(args.search.iter().cloned());
    let mut reports = survey(&args.targets, args.format, &options);
    for report in reports
        .iter()
        .filter(|report| args.targets.contains(&report.target))
    {
        warn_probed(&report.chain);
    }
    let mut attempts = Vec::new();
    if args.fix || args.dry_run {
        attempts = mends(&reports)
            .iter()
            .map(|mend| attempt(mend, &policy, args.dry_run))
            .collect();
    }
    if attempts.iter().any(|attempt| attempt.done) {
        reports = again(&reports, survey(&args.targets, args.format, &options));
    }
    match args.output {
        Output::Human => {
            let mut out = output::stdout();
            human(&mut out, &reports, &attempts, args.dry_run)?;
            out.flush()?;
        }
        Output::Json => {
            let mut out = output::stdout();
            output::json(&answer(&reports, &attempts), &mut out)?;
            out.flush()?;
        }
    }
    let worst = reports.iter().flat_map(|report| &report.findings);
    let worst = worst.map(|finding| finding.severity).max();
    let failed = attempts.iter().any(|attempt| attempt.error.is_some());
    Ok(match worst {
        _ if failed => ExitCode::FAILURE,
        Some(Severity::Error) => ExitCode::FAILURE,
        Some(Severity::Warning) => ExitCode::from(WARNINGS),
        _ => ExitCode::SUCCESS,
    })
}

fn attempt(mend: &Mend, policy: &Policy, dry_run: bool) -> Attempt {
    let mut attempt = Attempt {
        image: mend.fix.image.display().to_string(),
        cures: mend.codes.iter().map(|code| code.as_str()).collect(),
        plan: None,
        done: false,
        error: None,
    };
    let outcome = mend.plan(policy).and_then(|plan| {
        attempt.plan = Some(plan.to_string());
        if !dry_run {
            plan.execute()?;
            attempt.done = true;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        attempt.error = Some(match error.hint() {
            Some(hint) => format!("{} ({hint})", error.full()),
            None => error.full(),
        });
    }
    attempt
}

/// What remains after mending, without what mending itself looks like: a backing image that is younger than its overlay.
fn again(before: &[Report], mut after: Vec<Report>) -> Vec<Report> {
    let is_old = |target: &PathBuf, finding: &Finding| {
        let mut same = before.iter().filter(|report| report.target == *target);
        same.any(|report| {
            let known = |old: &Finding| old.code == finding.code && old.name == finding.name;
            report.findings.iter().any(known)
        })
    };
    for report in &mut after {
        let target = report.target.clone();
        report
            .findings
            .retain(|finding| finding.code != Code::BaseNewer || is_old(&target, finding));
    }
    after
}

fn human(out: &mut impl Write, reports: &[Report], attempts: &[Attempt], dry_run: bool) -> io::Result<()> {
    for attempt in attempts {
        let plan = attempt.plan.as_deref().unwrap_or(&attempt.image);
        let plan = text::printable(plan);
        match &attempt.error {
            Some(error) => writeln!(out, "{RED}not fixed{RED:#} {plan}: {}", text::printable(error))?,
            None if dry_run => writeln!(out, "{CYAN}would fix{CYAN:#} {plan}")?,
            None => writeln!(out, "{GREEN}fixed{GREEN:#} {plan}")?,
        }
    }
    for report in reports {
        let name = text::printable(&report.target.display().to_string());
        let layers = text::count(report.chain.layers.len() as u64, "layer");
        let said = match report.findings.as_slice() {
            [] => "nothing to report".to_owned(),
            findings => counts(findings.iter()),
        };
        writeln!(out, "{HEAD}{name}{HEAD:#}: {layers}, {said}")?;
        for finding in &report.findings {
            write_finding(out, finding)?;
        }
    }
    if reports.len() > 1 {
        let all = reports.iter().flat_map(|report| &report.findings);
        let chains = text::count(reports.len() as u64, "chain");
        writeln!(out, "{chains}: {}", counts(all))?;
    } else if reports.is_empty() {
        writeln!(out, "there are no images")?;
    }
    Ok(())
}

/// `1 error, 2 warnings, no notes` without what there is none of.
fn counts<'a>(findings: impl Iterator<Item = &'a Finding>) -> String {
    let mut numbers = [0; 3];
    for finding in findings {
        if let Some(number) = numbers.get_mut(match finding.severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Note => 2,
        }) {
            *number += 1;
        }
    }
    let words: Vec<_> = numbers
        .into_iter()
        .zip(["error", "warning", "note"])
        .filter(|(number, _)| *number > 0)
        .map(|(number, noun)| text::count(number, noun))
        .collect();
    match words.as_slice() {
        [] => "nothing to report".to_owned(),
        words => words.join(", "),
    }
}

/// Writes a finding: what is wrong, what comes of it, what cures it.
pub(super) fn write_finding(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let style = match finding.severity {
        Severity::Error => RED,
        Severity::Warning => YELLOW,
        Severity::Note => CYAN,
    };
    writeln!(
        out,
        "  {style}{}{style:#} {HEAD}{}{HEAD:#} {QUIET}layer {}, {}{QUIET:#}",
        finding.severity,
        finding.code,
        finding.layer,
        text::printable(&finding.name)
    )?;
    write_sentence(out, "", &finding.cause)?;
    write_sentence(out, "", &finding.consequence)?;
    if let Some(advice) = &finding.cure.advice {
        write_sentence(out, "cure: ", advice)?;
    }
    for line in finding.cure.command_lines() {
        // Quoted, it can be printed, and is what the shell takes.
        writeln!(out, "    $ {line}")?;
    }
    Ok(())
}

/// A sentence, in lines of the terminal; whole where there is none, so that it can be searched for.
fn write_sentence(out: &mut impl Write, head: &str, sentence: &str) -> io::Result<()> {
    let sentence = text::printable(&format!("{head}{sentence}"));
    if !output::is_terminal() {
        return writeln!(out, "    {sentence}");
    }
    for line in text::wrap(&sentence, output::width().saturating_sub(4)) {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

fn answer<'a>(reports: &'a [Report], attempts: &'a [Attempt]) -> Answer<'a> {
    let number = |severity| {
        let all = reports.iter().flat_map(|report| &report.findings);
        all.filter(|finding| finding.severity == severity).count()
    };
    Answer {
        targets: reports.iter().map(target_json).collect(),
        errors: number(Severity::Error),
        warnings: number(Severity::Warning),
        notes: number(Severity::Note),
        fixes: attempts,
    }
}

fn target_json(report: &Report) -> TargetJson {
    TargetJson {
        target: report.target.display().to_string(),
        layers: report.chain.layers.len(),
        end: match report.chain.end {
            End::Terminated => "terminated",
            End::OpenEnded(_) => "open_ended",
            End::Broken(_) => "broken",
        },
        findings: report
            .findings
            .iter()
            .map(|finding| FindingJson {
                facts: FindingFacts::of(finding),
                fixable: finding.cure.fix.is_some(),
            })
            .collect(),
    }
}
