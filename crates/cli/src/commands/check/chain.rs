//! `catena check --chain`: each layer with its own report, and what all of them amount to.

use super::{Args, FAILED, Json, NOT_CHECKED, Output, amount, hint, json, status, summary, tell_findings};
use crate::commands::change::stopped;
use crate::commands::facts::ErrorFacts;
use crate::error::{CommandError, write_error};
use crate::output;
use crate::text;
use catena::chain::End;
use catena::ops::check::{self, ChainPlan, Verdict};
use catena::{Error, Layer};
use catena_engine::qcow2::check::Totals;
use catena_engine::qcow2::{Repaired, Report};
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

/// What findings of a layer stand behind.
const INDENT: &str = "      ";

/// The object that is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct JsonChain {
    filename: String,
    layers: Vec<JsonLayer>,
    check_errors: u64,
    corruptions: u64,
    corruptions_fixed: u64,
    leaks: u64,
    leaks_fixed: u64,
    other_corruptions: u64,
    /// Layers that could not be checked or must not be mended.
    failed_layers: u64,
    /// Why the chain does not go on below the last of these layers, where it should.
    broken: Option<ErrorFacts>,
}

#[derive(Debug, Serialize)]
struct JsonLayer {
    index: usize,
    filename: String,
    format: &'static str,
    /// What was found; nothing where the format has nothing to check, or it could not be.
    report: Option<Json>,
    error: Option<ErrorFacts>,
}

/// A layer, and what is to be told of it.
struct Told<'a> {
    layer: &'a Layer,
    report: Option<&'a Report>,
    error: Option<&'a Error>,
}

/// Checks the layers, and repairs them.
pub(super) fn run(args: &Args, request: &check::Request) -> Result<ExitCode, CommandError> {
    let progress = args.change.progress("checking");
    let policy = args.image.policy()?;
    let plan = check::plan_chain(request, &policy, &progress)?;
    let repaired = if args.change.is_dry_run() {
        Vec::new()
    } else {
        plan.execute(&progress).map_err(stopped)?
    };
    drop(progress);
    let told = told(&plan, &repaired);
    let totals = totals(&told);
    let failed = told.iter().filter(|told| told.error.is_some()).count() as u64;
    let broken = match &plan.chain().end {
        End::Broken(broken) => Some(&broken.error),
        End::Terminated | End::OpenEnded(_) => None,
    };
    if !args.change.is_quiet() {
        let mut out = output::stdout();
        match args.output {
            Output::Human => tell(args, &told, totals, &mut out)?,
            Output::Json => output::json(
                &JsonChain {
                    filename: args.image.image.display().to_string(),
                    layers: told.iter().enumerate().map(json_layer).collect(),
                    check_errors: totals.check_errors,
                    corruptions: totals.corruptions,
                    corruptions_fixed: totals.corruptions_fixed,
                    leaks: totals.leaks,
                    leaks_fixed: totals.leaks_fixed,
                    other_corruptions: totals.beyond_qemu,
                    failed_layers: failed,
                    broken: broken.map(ErrorFacts::of),
                },
                &mut out,
            )?,
        }
        out.flush()?;
    }
    // Where standard error is gone, nobody is there to be told.
    for error in told.iter().filter_map(|told| told.error).chain(broken) {
        let _ = write_error(&mut anstream::stderr(), error);
    }
    if !args.change.is_quiet() && args.output == Output::Human {
        let sound = totals.corruptions + totals.beyond_qemu + totals.check_errors == 0;
        hint(
            args,
            totals,
            sound,
            &args.image.image.display().to_string(),
            " --chain",
        );
    }
    Ok(ExitCode::from(if failed > 0 || broken.is_some() {
        FAILED
    } else if told.iter().all(|told| told.report.is_none()) {
        NOT_CHECKED
    } else {
        status(totals)
    }))
}

/// What is to be told of each layer: after a repair, what that left.
fn told<'a>(plan: &'a ChainPlan, repaired: &'a [Option<catena::Result<Repaired>>]) -> Vec<Told<'a>> {
    let outcomes = repaired.iter().map(Option::as_ref).chain(std::iter::repeat(None));
    plan.layers()
        .zip(outcomes)
        .map(|((layer, verdict), outcome)| {
            let (report, error) = match (verdict, outcome) {
                (_, Some(Ok(repaired))) => (Some(&repaired.report), None),
                (Verdict::Checked(plan), Some(Err(error))) => (Some(plan.report()), Some(error)),
                (Verdict::Checked(plan), None) => (Some(plan.report()), None),
                (Verdict::Failed(error), _) | (_, Some(Err(error))) => (None, Some(error)),
                (Verdict::NothingToCheck, None) => (None, None),
            };
            Told { layer, report, error }
        })
        .collect()
}

fn totals(told: &[Told<'_>]) -> Totals {
    let mut sum = Totals::default();
    for report in told.iter().filter_map(|told| told.report) {
        let totals = report.totals;
        sum.corruptions += totals.corruptions;
        sum.leaks += totals.leaks;
        sum.check_errors += totals.check_errors;
        sum.beyond_qemu += totals.beyond_qemu;
        sum.corruptions_fixed += totals.corruptions_fixed;
        sum.leaks_fixed += totals.leaks_fixed;
    }
    sum
}

fn tell(args: &Args, told: &[Told<'_>], totals: Totals, out: &mut impl Write) -> io::Result<()> {
    for (index, told) in told.iter().enumerate() {
        let said = match (told.report, told.error) {
            (Some(report), _) => summary(report),
            (None, Some(error)) => error.message().to_owned(),
            (None, None) => format!("{} images have nothing to check", told.layer.format),
        };
        let name = told.layer.name();
        writeln!(
            out,
            "{index:>4}  {}: {}",
            text::printable(&name),
            text::printable(&said)
        )?;
        if let Some(report) = told.report {
            tell_findings(args, report, INDENT, out)?;
        }
    }
    let layers = text::count(told.len() as u64, "layer");
    writeln!(out, "{layers}: {}", amount(totals))?;
    out.flush()
}

fn json_layer((index, told): (usize, &Told<'_>)) -> JsonLayer {
    let filename = told.layer.name();
    JsonLayer {
        index,
        report: told.report.map(|report| json(filename.clone(), report)),
        filename,
        format: told.layer.format.as_str(),
        error: told.error.map(ErrorFacts::of),
    }
}
