//! `catena snapshot --domain`: an external snapshot of all disks of a domain that does not run.
//!
//! Overlays are made, all or none, and then the domain's document is replaced, which makes them its active layers. Whatever
//! cuts it off between two steps, the document names a chain that shows the guest what it saw; the same command finishes, or
//! `catena resume`. Only a document that libvirt keeps is not in the journal: libvirt is told when the overlays are there.

use super::change::ChangeArgs;
use super::operation::Operation;
use super::snapshot_request::RequestArgs;
use crate::domain::{self, Definition};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::PolicyArgs;
use crate::text::printable;
use catena::detect::quoted;
use catena::ops::overlays::{self, Overlay};
use catena::ops::script::interrupted;
use catena::ops::{Observer, folder_of};
use catena::{Error, ErrorKind, Format, Policy};
use catena_virt::snapshot::{Snapshot, check_showable, select};
use catena_virt::{Below, Disk, Document};
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct DomainArgs {
    /// Take an external snapshot of all disks of a domain that does not run: a file with its XML, which is rewritten, or
    /// a name that libvirt knows
    #[arg(long, value_name = "FILE|NAME", required_unless_present_any = ["all", "images", "raw"])]
    domain: Option<String>,
    /// Which libvirt knows the domain, as virsh takes it
    #[arg(long, value_name = "URI")]
    connect: Option<String>,
    #[command(flatten)]
    pub(super) request: RequestArgs,
    /// Write the new document there, and leave the domain's as it is; '-' is standard output
    #[arg(long, value_name = "FILE")]
    output_xml: Option<PathBuf>,
    #[command(flatten)]
    pub(super) policy: PolicyArgs,
    #[command(flatten)]
    pub(super) change: ChangeArgs,
}

/// Takes it.
pub fn run(args: &DomainArgs) -> Result<ExitCode, CommandError> {
    let name = args.domain.as_deref().unwrap_or_default();
    let (document, home) = find(args, name)?;
    let request = args.request.request(None);
    let snapshot = select(&document, &request)?;
    let journal = Begun::of(&snapshot, &home);
    let mut begun = interrupted(&[&journal.folder], overlays::OPERATION, &journal.words)?;
    let policy = args.policy.load()?;
    let mut manner = args.change.manner("taking a snapshot", &policy, Output::Human);
    // The document is no report.
    manner.quiet &= manner.dry_run || home != Home::Stdout;
    if !matches!(home, Home::File(_)) {
        // The document is not in it.
        begun = manner.finish_first(begun)?;
    }
    manner.perform(begun, || plan(&document, &snapshot, home, &journal, &policy))
}

/// Where a snapshot has its journal, and how that knows it.
struct Begun {
    folder: PathBuf,
    words: String,
}

impl Begun {
    fn of(snapshot: &Snapshot<'_>, home: &Home) -> Self {
        let overlays: Vec<_> = { snapshot.external() }
            .map(|(_, overlay)| overlay.path.as_path())
            .collect();
        let first = overlays.first().copied().unwrap_or(Path::new(""));
        Self {
            folder: folder_of(first),
            words: format!("{} {home:?} {overlays:?}", snapshot.name),
        }
    }
}

/// Where the new document goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Home {
    /// To the file that the old one is in.
    File(PathBuf),
    /// To libvirt, under the domain's name.
    Libvirt { connect: Option<String>, name: String },
    /// To another file.
    Other(PathBuf),
    /// To standard output.
    Stdout,
}

fn find(args: &DomainArgs, name: &str) -> Result<(Document, Home), CommandError> {
    let path = Path::new(name);
    let is_file = name == "-" || (args.connect.is_none() && path.exists());
    let (document, home) = if is_file {
        let cannot = |error| catena_storage::Error::from_io(error, "find").with_path(path);
        let home = match name {
            "-" => Home::Stdout,
            // Through links, to where the document is.
            _ => Home::File(path.canonicalize().map_err(cannot)?),
        };
        (domain::read(path)?, home)
    } else {
        let connect = args.connect.as_deref();
        stands_still(connect, name)?;
        let home = Home::Libvirt {
            connect: args.connect.clone(),
            name: name.to_owned(),
        };
        (domain::ask(connect, name, Definition::Whole)?, home)
    };
    if document.kind != catena_virt::Kind::Domain {
        return Err(
            Error::new(ErrorKind::Conflict, "the document describes no domain")
                .with_path(path)
                .into(),
        );
    }
    let home = match args.output_xml.as_deref() {
        None => home,
        Some(path) if path.as_os_str() == "-" => Home::Stdout,
        Some(path) => Home::Other(path.to_owned()),
    };
    Ok((document, home))
}

/// Refuses a domain that runs, or will go on with what it had in memory: both would write on below the overlays.
fn stands_still(connect: Option<&str>, name: &str) -> Result<(), CommandError> {
    let conflict = |message: String, hint: String| Error::new(ErrorKind::Conflict, message).with_hint(hint);
    let state = domain::asked(connect, &["domstate"], name)?;
    if !matches!(state.trim(), "shut off" | "crashed") {
        return Err(conflict(
            format!("domain '{name}' is {}", state.trim()),
            format!("of a domain that runs, libvirt takes it: virsh snapshot-create-as {name} --disk-only"),
        )
        .into());
    }
    let facts = domain::asked(connect, &["dominfo"], name)?;
    let saved = facts.lines().find_map(|line| line.strip_prefix("Managed save:"));
    if saved.is_some_and(|saved| saved.trim() == "yes") {
        return Err(conflict(
            format!("domain '{name}' was saved with its memory, and goes on with the disks it had"),
            format!("start it once, or drop its memory: virsh managedsave-remove {name}"),
        )
        .into());
    }
    let checkpoints = domain::asked(connect, &["checkpoint-list", "--name"], name)?;
    if !checkpoints.trim().is_empty() {
        return Err(conflict(
            "support for offline external snapshots while checkpoint exists was not yet implemented"
                .to_owned(),
            format!("virsh checkpoint-list {name}"),
        )
        .into());
    }
    Ok(())
}

/// A snapshot, decided. What the overlays stand on is locked.
#[derive(Debug)]
struct Plan {
    name: String,
    overlays: overlays::Plan,
    /// The disks that get new active layers.
    raised: Vec<Raised>,
    home: Home,
    before: String,
    after: String,
}

/// A disk that gets a new active layer.
#[derive(Debug)]
struct Raised {
    disk: String,
    old: PathBuf,
    format: Format,
    new: PathBuf,
    /// Whether the XML says what is below.
    explicit: bool,
}

fn plan(
    document: &Document,
    snapshot: &Snapshot<'_>,
    home: Home,
    journal: &Begun,
    policy: &Policy,
) -> Result<Plan, CommandError> {
    let mut wanted = Vec::new();
    let mut raised = Vec::new();
    let mut rest = snapshot.clone();
    if snapshot.external().next().is_none() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "internal snapshots of a domain are not taken here",
        )
        .with_hint("catena snapshot create IMAGE NAME takes one of an image; virsh snapshot-create-as takes those of a domain")
        .into());
    }
    for (disk, overlay) in snapshot.external() {
        check_showable(disk)?;
        if overlay.format != Format::Qcow2 {
            let message = format!("overlays of format '{}' are not made here", overlay.format);
            return Err(Error::new(ErrorKind::Unsupported, message).into());
        }
        let (base, format) = below(disk, &overlay.path, policy)?;
        if disk.active().and_then(|layer| layer.source()?.path()) == Some(&overlay.path) {
            // That far it came before.
            rest.disks.retain(|other| other.disk.span != disk.span);
        } else {
            raised.push(Raised {
                disk: disk.name().to_owned(),
                old: base.clone(),
                format,
                new: overlay.path.clone(),
                explicit: disk.given() > 0 || matches!(disk.below, Below::Closed(_)),
            });
        }
        wanted.push(Overlay::naming(overlay.path.clone(), base, format)?);
    }
    let after = rest.domain(document)?;
    // What libvirt would refuse must not become the domain.
    Document::parse(after.clone()).map_err(|error| Error::new(ErrorKind::Conflict, error.to_string()))?;
    let before = document.text();
    let mut overlays = overlays::plan(&wanted, (&journal.folder, &journal.words), policy)
        .map_err(|error| named(error, snapshot))?;
    if let Home::File(path) = &home {
        overlays.replace(path, before, &after);
    }
    Ok(Plan {
        name: snapshot.name.clone(),
        overlays,
        raised,
        home,
        before: before.to_owned(),
        after,
    })
}

/// What a disk's overlay stands on: its active layer, or what is below that where it is the overlay already.
fn below(disk: &Disk, overlay: &Path, policy: &Policy) -> Result<(PathBuf, Format), CommandError> {
    let conflict = |message: String| Error::new(ErrorKind::Conflict, message);
    let chain = disk.chain(policy).map_err(|why| {
        conflict(format!(
            "disk '{}' has no chain that could be seen: {why}",
            disk.name()
        ))
    })?;
    chain.check_complete()?;
    let is_there = chain.active().and_then(|layer| layer.path()) == Some(overlay);
    if !is_there && chain.layers.len() >= catena_virt::limits::MAX_LAYERS {
        let message = format!(
            "backing chains more than {} layers deep are not supported for disk '{}'",
            catena_virt::limits::MAX_LAYERS,
            disk.name()
        );
        return Err(Error::new(ErrorKind::TooDeep, message).into());
    }
    let base = chain.layers.get(usize::from(is_there));
    match base.and_then(|layer| Some((layer.path()?.to_owned(), layer.format))) {
        Some(base) => Ok(base),
        None => Err(exists(disk.name(), overlay).into()),
    }
}

/// The error for an overlay whose name is taken, as libvirt says it.
fn named(error: Error, snapshot: &Snapshot<'_>) -> Error {
    let of = snapshot
        .external()
        .find(|(_, overlay)| error.path() == Some(&overlay.path));
    match of {
        Some((disk, overlay)) if error.kind() == ErrorKind::Conflict => exists(disk.name(), &overlay.path),
        _ => error,
    }
}

fn exists(disk: &str, overlay: &Path) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "external snapshot file for disk {disk} already exists and is not a block device: {}",
            overlay.display()
        ),
    )
    .with_hint("give the snapshot another name with --name, or the overlay with --disk")
}

impl Operation for Plan {
    fn execute(&mut self, policy: &Policy, observer: &dyn Observer) -> catena::Result<()> {
        self.overlays.execute(policy, observer)?;
        match &self.home {
            Home::File(_) | Home::Stdout => Ok(()),
            Home::Libvirt { connect, name } => {
                if self.after == self.before {
                    return Ok(());
                }
                self.define(connect.as_deref(), name).map_err(|error| {
                    let kept = "the overlays are there, and nothing stands on them: run the same command again, or delete them";
                    match error {
                        CommandError::Failed(error) if error.hint().is_none() => error.with_hint(kept),
                        CommandError::Failed(error) => *error,
                        CommandError::Output(error) => {
                            Error::new(ErrorKind::Io, "virsh cannot be told").with_source(error).with_hint(kept)
                        }
                    }
                })
            }
            Home::Other(path) => std::fs::write(path, &self.after).map_err(|error| {
                catena_storage::Error::from_io(error, "write")
                    .with_path(path)
                    .into()
            }),
        }
    }

    fn tell(&self, done: bool, out: &mut dyn Write) -> io::Result<()> {
        if done && self.home == Home::Stdout {
            return out.write_all(self.after.as_bytes());
        }
        let lines = self.to_string();
        { lines.lines() }.try_for_each(|line| writeln!(out, "{}", printable(line)))
    }

    fn tell_json(&self, _done: bool, mut out: &mut dyn Write) -> io::Result<()> {
        let overlays = self.overlays.missing().map(|path| path.display().to_string());
        output::json(&Vec::from_iter(overlays), &mut out)
    }
}

impl Plan {
    fn define(&self, connect: Option<&str>, name: &str) -> Result<(), CommandError> {
        stands_still(connect, name)?;
        let now = domain::ask(connect, name, Definition::Whole)?;
        if now.text() != self.before {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("somebody else has changed domain '{name}' meanwhile"),
            )
            .into());
        }
        domain::define(connect, &self.after)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.raised.is_empty() && self.overlays.is_empty() {
            return write!(
                f,
                "the domain stands on snapshot '{}' already, and nothing was written since",
                self.name
            );
        }
        f.write_str(&self.overlays.lines().join("\n"))?;
        let disks: Vec<_> = self.raised.iter().map(|raised| raised.disk.as_str()).collect();
        let (home, start, end) = match &self.home {
            Home::File(path) => (
                path.display().to_string(),
                format!("catena xml replace {}", quoted(path)),
                " --in-place".to_owned(),
            ),
            Home::Libvirt { connect, name } => {
                let connect = connect
                    .as_ref()
                    .map(|uri| format!(" --connect {}", quoted(uri)))
                    .unwrap_or_default();
                (
                    format!("domain '{name}'"),
                    format!(
                        "virsh{connect} dumpxml --inactive --security-info {} | catena xml replace -",
                        quoted(name)
                    ),
                    format!(" | virsh{connect} define /dev/stdin"),
                )
            }
            Home::Other(path) => return write!(f, "\n{}: the domain on them", path.display()),
            Home::Stdout => return Ok(()),
        };
        write!(f, "\n{home}: stands on them with {}", disks.join(", "))?;
        for raised in &self.raised {
            if raised.explicit {
                write!(
                    f,
                    "\nto go back: put what its <backingStore> has in the place of the <source> of {}",
                    raised.disk
                )?;
            } else {
                write!(
                    f,
                    "\nto go back: {start} --disk {} --image {} --format {}{end}",
                    quoted(&raised.disk),
                    quoted(&raised.old),
                    raised.format.libvirt(),
                )?;
            }
            write!(f, "; then delete {}", quoted(&raised.new))?;
        }
        Ok(())
    }
}
