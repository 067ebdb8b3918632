//! `catena access`: what libvirt grants QEMU of a chain's files, whether QEMU's user can open them, and if asked, that it
//! can.

mod fragment;
mod model;
mod text;

use super::change::stopped;
use super::show::domain::no_disk;
use crate::domain::{self, Definition};
use crate::error::CommandError;
use crate::output;
use crate::target::{PolicyArgs, parse_format, warn_probed};
use crate::text::printable;
use catena::detect::quoted;
use catena::doctor::User;
use catena::{Chain, Error, ErrorKind, Format, Policy, Source, Start, detect};
use catena_virt::access::{self, AccessError, Grant, Host, change, undo};
use catena_virt::{Disk, Document};
use clap::ValueEnum;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where it is written down how files were, unless another file is named.
const UNDO_FILE: &str = "catena-access-undo.json";

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0  once libvirt has started the guest, its user can open every file
  1  something stands in the way, or it could not be done
  2  the command line is wrong

Examples:
  catena access vm.qcow2
  catena access --domain vm.xml --disk vda --output json
  catena access --domain vm --output apparmor
  catena access vm.qcow2 --user alice --apply acl --dry-run
  catena access vm.qcow2 --user alice --apply acl
  catena access --undo catena-access-undo.json

--apply grants what is lacking and nothing more: lower layers become readable,
never writable. How everything was is written down before anything changes.")]
pub struct Args {
    /// The active image of the chain: a file or block device
    #[arg(required_unless_present_any = ["domain", "undo"])]
    target: Option<PathBuf>,
    /// The active image's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format, conflicts_with = "domain")]
    format: Option<Format>,
    /// The guest only reads the disk
    #[arg(long, conflicts_with = "domain")]
    read_only: bool,
    /// The disks of a domain: a file of XML ('-' is standard input), or the name of a domain that libvirt knows
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "target")]
    domain: Option<String>,
    /// This disk of the domain alone, by its target
    #[arg(long, conflicts_with = "target")]
    disk: Option<String>,
    /// Which libvirt to ask for a domain, as virsh takes it
    #[arg(long, value_name = "URI", conflicts_with = "target")]
    connect: Option<String>,
    /// As whom QEMU runs: USER or USER:GROUP; else what /etc/libvirt/qemu.conf says
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Whether libvirt gives files to that user; else what /etc/libvirt/qemu.conf says
    #[arg(long, value_name = "YES|NO", value_parser = parse_yes_no)]
    dynamic_ownership: Option<bool>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    /// Make every file accessible, as if libvirt gave none away
    #[arg(long, value_enum, value_name = "MEANS", conflicts_with = "output")]
    apply: Option<Means>,
    /// Say what --apply would change, and change nothing
    #[arg(long, requires = "apply", conflicts_with = "output")]
    dry_run: bool,
    /// Where --apply writes down how everything was: a new file
    #[arg(long, value_name = "FILE", default_value = UNDO_FILE)]
    undo_file: PathBuf,
    /// Put back everything that --apply changed, by the file that it wrote
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "target", "format", "read_only", "domain", "disk", "connect", "user", "dynamic_ownership", "output", "apply",
            "dry_run", "undo_file",
        ]
    )]
    undo: Option<PathBuf>,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text to read
    #[default]
    Human,
    /// One object; docs/json.md describes it
    Json,
    /// Rules for the guest's AppArmor profile
    Apparmor,
    /// Commands that set SELinux labels
    Selinux,
    /// Commands that set owners and modes, where something is lacking
    Chown,
    /// Commands that set access control lists, where something is lacking
    Setfacl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Means {
    /// Owners, groups and modes of files
    Dac,
    /// Access control lists, of directories on the way too
    Acl,
}

fn parse_yes_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("it is neither 'yes' nor 'no'".to_owned()),
    }
}

/// What there is to tell of a disk.
struct Found {
    disk: String,
    files: Vec<Grant>,
    /// Why there is no chain.
    no_chain: Option<String>,
    /// Where it breaks.
    broken: Option<String>,
}

/// Tells it, or does it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    if let Some(file) = &args.undo {
        return put_back(file);
    }
    let mut host = Host::this(args.user.as_deref()).map_err(|error| refused(&error))?;
    if let Some(dynamic) = args.dynamic_ownership {
        host.dynamic_ownership = dynamic;
    }
    let policy = args.policy.load()?;
    let (found, ids) = match (&args.domain, &args.target) {
        (Some(name), _) => {
            let document = read(args, name)?;
            let ids = access::process(&document.seclabels, &host).map_err(|error| refused(&error))?;
            (of_document(args, &document, &policy, &host)?, ids)
        }
        (None, target) => {
            let target = target.as_deref().unwrap_or(Path::new(""));
            (vec![of_image(args, target, &policy, &host)?], host.ids)
        }
    };
    let user = User::of_process(ids.uid, ids.gid);
    if let Some(means) = args.apply {
        return apply(args, means, &found, &user);
    }
    let mut out = output::stdout();
    let grants = || found.iter().flat_map(|disk| &disk.files);
    let good = match args.output {
        Output::Human | Output::Json => {
            let shown = model::Shown::of(args, &found, &user, &host);
            if args.output == Output::Json {
                output::json(&shown, &mut out)?;
            } else {
                text::draw(&shown, &mut out)?;
            }
            shown.accessible
        }
        Output::Apparmor => {
            fragment::apparmor(grants(), &mut out)?;
            true
        }
        Output::Selinux => {
            fragment::selinux(grants(), &mut out)?;
            true
        }
        Output::Chown | Output::Setfacl => {
            let how = match args.output {
                Output::Chown => change::How::Owners,
                _ => change::How::Lists,
            };
            let plan = plan(&found, &user, how)?;
            fragment::commands(&plan, &mut out)?;
            plan.left.is_empty()
        }
    };
    out.flush()?;
    let whole = found.iter().all(|disk| disk.broken.is_none());
    Ok(status(good && whole))
}

fn status(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn refused(error: &AccessError) -> CommandError {
    Error::new(ErrorKind::Conflict, error.to_string())
        .with_hint("--user says as whom QEMU runs")
        .into()
}

fn read(args: &Args, name: &str) -> Result<Document, CommandError> {
    if name == "-" || (args.connect.is_none() && Path::new(name).exists()) {
        domain::read(Path::new(name))
    } else {
        domain::ask(args.connect.as_deref(), name, Definition::Current)
    }
}

fn of_document(
    args: &Args,
    document: &Document,
    policy: &Policy,
    host: &Host,
) -> Result<Vec<Found>, CommandError> {
    let chosen: Vec<&Disk> = match &args.disk {
        None => document.disks.iter().collect(),
        Some(name) => vec![document.disk(name).ok_or_else(|| no_disk(name, document))?],
    };
    let mut found = Vec::new();
    for disk in chosen {
        found.push(match disk.chain(policy) {
            Ok(chain) => of_chain(
                disk,
                &chain,
                document.name.as_deref(),
                policy,
                (&document.seclabels, host),
            )?,
            Err(why) => Found {
                disk: disk.name().to_owned(),
                files: Vec::new(),
                no_chain: Some(why),
                broken: None,
            },
        });
    }
    Ok(found)
}

fn of_image(args: &Args, target: &Path, policy: &Policy, host: &Host) -> Result<Found, CommandError> {
    let whole = std::path::absolute(target)
        .map_err(|error| Error::new(ErrorKind::Io, error.to_string()).with_path(target))?;
    let chain = detect(&Start::at(&whole, args.format), policy);
    warn_probed(&chain);
    let format = chain.active().map(|active| active.format).or(args.format);
    let mut disk = Disk::of_image(Source::file(whole), format.unwrap_or(Format::Raw));
    disk.readonly = args.read_only;
    let mut found = of_chain(&disk, &chain, None, policy, (&[], host))?;
    found.disk = target.display().to_string();
    Ok(found)
}

fn of_chain(
    disk: &Disk,
    chain: &Chain,
    domain: Option<&str>,
    policy: &Policy,
    (labels, host): (&[catena_virt::DomainLabel], &Host),
) -> Result<Found, CommandError> {
    let mut files = access::grants(disk, chain, labels, host).map_err(|error| refused(&error))?;
    let beside = access::beside(disk, chain, domain, policy, labels, host);
    files.extend(beside.map_err(|error| refused(&error))?);
    Ok(Found {
        disk: disk.name().to_owned(),
        files,
        no_chain: None,
        broken: chain.broken().map(|broken| broken.error.full()),
    })
}

fn plan(found: &[Found], user: &User, how: change::How) -> Result<change::Plan, CommandError> {
    let grants: Vec<Grant> = found.iter().flat_map(|disk| disk.files.iter().cloned()).collect();
    Ok(change::plan(&grants, user, how)?)
}

fn apply(args: &Args, means: Means, found: &[Found], user: &User) -> Result<ExitCode, CommandError> {
    let how = match means {
        Means::Dac => change::How::Owners,
        Means::Acl => change::How::Lists,
    };
    let plan = plan(found, user, how)?;
    let mut out = output::stdout();
    fragment::commands(&plan, &mut out)?;
    if !args.dry_run && !plan.is_empty() {
        plan.execute(&args.undo_file).map_err(stopped)?;
        writeln!(
            out,
            "# to put everything back: catena access --undo {}",
            quoted(&args.undo_file)
        )?;
    }
    out.flush()?;
    Ok(status(plan.left.is_empty()))
}

fn put_back(file: &Path) -> Result<ExitCode, CommandError> {
    let undone = undo::undo(file)?;
    let mut out = output::stdout();
    let shown = |path: &Path| printable(&path.display().to_string());
    for path in &undone.restored {
        writeln!(out, "{}: put back", shown(path))?;
    }
    for path in &undone.unchanged {
        writeln!(out, "{}: nothing to put back", shown(path))?;
    }
    for (path, why) in &undone.left {
        writeln!(out, "{}: left as it is: {}", shown(path), printable(why))?;
    }
    out.flush()?;
    Ok(status(undone.left.is_empty()))
}
