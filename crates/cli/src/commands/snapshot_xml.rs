//! `catena snapshot-xml`: libvirt's `<domainsnapshot>` of external snapshots, written and looked at.

use super::doctor::{WARNINGS, write_finding};
use super::facts::FindingFacts;
use super::snapshot_request::{RequestArgs, now};
use crate::domain::{self, Definition};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::printable;
use catena::doctor::{Finding, Severity};
use catena::{Error, ErrorKind};
use catena_virt::snapshot::{Taken, select};
use catena_virt::{Document, Kind, snapshot_disagreements};
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Disks take part as libvirt has it: those that are read only or empty do not,
nor those of which the domain says snapshot='no'. An overlay that is not named
is called as the image below it, with the snapshot's name for its suffix.

Exit status of --check:
  0  every overlay stands on its disk's active layer, or is not there yet
  1  errors were found, or it could not be done
  2  the command line is wrong
  3  warnings were found, and no errors

Examples:
  catena snapshot-xml vm.xml --name monday > monday.xml
  virsh snapshot-create vm monday.xml --disk-only
  catena snapshot-xml --check monday.xml --domain vm")]
pub struct Args {
    /// The domain: a file with its XML, or a name that libvirt knows
    #[arg(required_unless_present = "check")]
    target: Option<String>,
    /// Which libvirt knows the domain, as virsh takes it
    #[arg(long, value_name = "URI")]
    connect: Option<String>,
    #[command(flatten)]
    request: RequestArgs,
    /// What the snapshot is about, in words
    #[arg(long)]
    description: Option<String>,
    /// As libvirt keeps it of a snapshot that was taken, with the domain as it is: for
    /// 'virsh snapshot-create --redefine'
    #[arg(long)]
    taken: bool,
    /// Look at a <domainsnapshot>: which overlay stands on which image, and what is wrong with them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["target", "name", "disks", "description", "taken"])]
    check: Option<PathBuf>,
    /// The domain that --check looks at, where the snapshot has none in it: a file or a name
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "target")]
    domain: Option<String>,
    /// How --check prints it
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        conflicts_with = "target"
    )]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// A snapshot that was looked at, as JSON has it.
#[derive(Debug, Serialize)]
struct Checked {
    snapshot: Option<String>,
    disks: Vec<CheckedDisk>,
}

/// A disk of it.
#[derive(Debug, Serialize)]
struct CheckedDisk {
    disk: String,
    /// `no`, `internal`, `external` or `manual`, where it is said.
    mode: Option<String>,
    /// The overlay, where it is named.
    overlay: Option<String>,
    /// Whether it is there.
    exists: bool,
    /// The disk's active layer, where the domain has the disk.
    base: Option<String>,
    findings: Vec<FindingFacts>,
}

/// Writes it, or looks at it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    if let Some(file) = &args.check {
        return check(args, file);
    }
    let document = find(args, args.target.as_deref().unwrap_or_default())?;
    let request = args.request.request(args.description.as_deref());
    let snapshot = select(&document, &request)?;
    let taken = args.taken.then(|| Taken {
        at: now(),
        domain: &document,
    });
    let mut out = output::stdout();
    out.write_all(snapshot.xml(taken).as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn find(args: &Args, name: &str) -> Result<Document, CommandError> {
    let path = Path::new(name);
    let document = if name == "-" || (args.connect.is_none() && path.exists()) {
        domain::read(path)?
    } else {
        domain::ask(args.connect.as_deref(), name, Definition::Inactive)?
    };
    if document.kind == Kind::Domain {
        return Ok(document);
    }
    Err(
        Error::new(ErrorKind::Conflict, "the document describes no domain")
            .with_path(path)
            .into(),
    )
}

fn check(args: &Args, file: &Path) -> Result<ExitCode, CommandError> {
    let document = domain::read(file)?;
    if document.kind != Kind::Snapshot {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the document describes no snapshot of a domain",
        )
        .with_path(file)
        .into());
    }
    let domain = match args.domain.as_deref() {
        Some(name) => Some(find(args, name)?),
        None => None,
    };
    let domain = domain.as_ref().unwrap_or(&document);
    let found = snapshot_disagreements(&document, domain, &args.policy.load()?);
    let mut disks = Vec::new();
    for disk in &document.snapshot_disks {
        let source = disk.layer.as_ref().and_then(|layer| layer.source());
        let base = domain.disk(&disk.name).and_then(|disk| disk.active()?.source());
        let findings = found.iter().filter(|(name, _)| *name == disk.name);
        disks.push(CheckedDisk {
            disk: disk.name.clone(),
            mode: disk.mode.clone(),
            overlay: source.map(ToString::to_string),
            exists: source.and_then(|source| source.path()).is_some_and(Path::exists),
            base: base.map(ToString::to_string),
            findings: findings.map(|(_, finding)| FindingFacts::of(finding)).collect(),
        });
    }
    let checked = Checked {
        snapshot: document.name.clone(),
        disks,
    };
    let mut out = output::stdout();
    match args.output {
        Output::Human => human(&checked, &found, &mut out)?,
        Output::Json => output::json(&checked, &mut out)?,
    }
    out.flush()?;
    let worst = found.iter().map(|(_, finding)| finding.severity).max();
    Ok(match worst {
        Some(Severity::Error) => ExitCode::FAILURE,
        Some(Severity::Warning) => ExitCode::from(WARNINGS),
        _ => ExitCode::SUCCESS,
    })
}

fn human(checked: &Checked, found: &[(String, Finding)], out: &mut impl Write) -> io::Result<()> {
    for disk in &checked.disks {
        let base = disk.base.as_deref().map(printable);
        let base = base.as_deref().unwrap_or("a disk that the domain does not have");
        let name = printable(&disk.disk);
        match (&disk.overlay, disk.mode.as_deref()) {
            (Some(overlay), _) => {
                let there = if disk.exists {
                    ""
                } else {
                    ", which is not there yet"
                };
                writeln!(out, "{name}: {}{there}, on {base}", printable(overlay))?;
            }
            (None, Some("no")) => writeln!(out, "{name}: not in the snapshot")?,
            (None, Some("internal")) => writeln!(out, "{name}: within {base}")?,
            (None, Some("manual")) => writeln!(out, "{name}: left to the user, on {base}")?,
            (None, _) => writeln!(out, "{name}: an overlay that libvirt names, on {base}")?,
        }
        for (_, finding) in found.iter().filter(|(name, _)| *name == disk.disk) {
            write_finding(out, finding)?;
        }
    }
    Ok(())
}
