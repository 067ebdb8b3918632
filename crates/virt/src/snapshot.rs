//! External snapshots of a domain's disks: which disks libvirt would take, what it would call the overlays, the
//! `<domainsnapshot>`, and the domain that stands on the overlays.
//!
//! The rules and sentences are those of libvirt 11.3 for a domain that does not run. Nothing here writes.

use crate::edit::{Edit, EditError};
use crate::model::{Device, Disk, Document, Layer, Place};
use catena::reference::{Location, Source, XmlElement, escape_xml};
use catena_format::Format;
use std::path::{Path, PathBuf};

/// Why there is no such snapshot: a sentence, libvirt's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(String);

type Result<T> = std::result::Result<T, SnapshotError>;

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(SnapshotError(message.into()))
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The snapshot's name.
    pub name: String,
    /// What the user says of it.
    pub description: Option<String>,
    /// What is to be done about single disks.
    pub disks: Vec<Wish>,
}

/// What is to be done about a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The disk, by its target or path.
    pub disk: String,
    /// How, where it is said.
    pub mode: Option<Mode>,
    /// The overlay, where it is named.
    pub overlay: Option<PathBuf>,
    /// Its format, where it is said.
    pub format: Option<Format>,
}

/// How a disk takes part in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    No,
    /// Within its image.
    Internal,
    /// By an overlay.
    External,
    /// The user takes care of it.
    Manual,
}

/// A snapshot, decided.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// Its name.
    pub name: String,
    /// What the user says of it.
    pub description: Option<String>,
    /// The domain's disks, in order.
    pub disks: Vec<Selected<'a>>,
}

/// A disk of a snapshot.
#[derive(Clone, Debug)]
pub struct Selected<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// How it takes part.
    pub mode: Mode,
    /// The overlay of an external one.
    pub overlay: Option<Overlay>,
}

/// A new active layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its file; absolute.
    pub path: PathBuf,
    /// Its format: qcow2 or QED.
    pub format: Format,
}

/// What a `<domainsnapshot>` has beside what a user gives: as libvirt keeps it of a snapshot that was taken.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// When, in seconds since 1970.
    pub at: u64,
    /// The domain as it was before.
    pub domain: &'a Document,
}

impl Mode {
    /// libvirt's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Internal => "internal",
            Self::External => "external",
            Self::Manual => "manual",
        }
    }

    /// By libvirt's word.
    pub fn from_libvirt(word: &str) -> Option<Self> {
        [Self::No, Self::Internal, Self::External, Self::Manual]
            .into_iter()
            .find(|mode| mode.as_str() == word)
    }
}

/// Decides which disks take part, and what their overlays are called.
///
/// # Errors
/// A sentence, where libvirt would take no such snapshot of a domain that does not run.
pub fn select<'a>(document: &'a Document, request: &Request) -> Result<Snapshot<'a>> {
    check_name(&request.name)?;
    let mut wishes: Vec<(&Wish, &Disk)> = Vec::new();
    for wish in &request.disks {
        let Some(disk) = document.disk(&wish.disk) else {
            return refuse(format!("no disk named '{}'", wish.disk));
        };
        if wishes.iter().any(|(_, other)| other.span == disk.span) {
            return refuse(format!("disk '{}' specified twice", wish.disk));
        }
        wishes.push((wish, disk));
    }
    let mut snapshot = Snapshot {
        name: request.name.clone(),
        description: request.description.clone(),
        disks: Vec::new(),
    };
    for disk in &document.disks {
        let wish = wishes
            .iter()
            .find(|(_, other)| other.span == disk.span)
            .map(|(wish, _)| *wish);
        let mode = mode(disk, wish);
        let overlay = match mode {
            Mode::External => Some(overlay(disk, wish, &snapshot)?),
            _ => None,
        };
        snapshot.disks.push(Selected { disk, mode, overlay });
    }
    let has = |mode| snapshot.disks.iter().any(|selected| selected.mode == mode);
    match (has(Mode::Internal), has(Mode::External)) {
        (true, true) => refuse("mixing internal and external targets for a snapshot is not yet supported"),
        (false, false) => refuse("nothing selected for snapshot"),
        _ => Ok(snapshot),
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.contains('/') {
        return refuse(format!("invalid snapshot name '{name}': name can't contain '/'"));
    }
    if name.starts_with('.') {
        return refuse(format!(
            "invalid snapshot name '{name}': name can't start with '.'"
        ));
    }
    let mut escaped = String::new();
    if name.is_empty() || !escape_xml(name, &mut escaped) {
        return refuse(format!("invalid snapshot name '{name}'"));
    }
    Ok(())
}

fn mode(disk: &Disk, wish: Option<&Wish>) -> Mode {
    if let Some(mode) = wish.and_then(|wish| wish.mode) {
        return mode;
    }
    if wish.is_some_and(|wish| wish.overlay.is_some()) {
        return Mode::External;
    }
    let is_empty = disk.active().is_none_or(|layer| layer.place == Place::Empty);
    if is_empty && wish.is_none() {
        return Mode::No;
    }
    match disk.snapshot {
        Some(mode) => mode,
        None if disk.readonly => Mode::No,
        None => Mode::External,
    }
}

/// The overlay of a disk, if it may have one.
fn overlay(disk: &Disk, wish: Option<&Wish>, others: &Snapshot<'_>) -> Result<Overlay> {
    let name = disk.name();
    let format = wish.and_then(|wish| wish.format).unwrap_or(Format::Qcow2);
    if !matches!(format, Format::Qcow2 | Format::Qed) {
        return refuse(format!(
            "external snapshot format for disk {name} is unsupported: {}",
            format.libvirt()
        ));
    }
    let path = match wish.and_then(|wish| wish.overlay.clone()) {
        Some(path) if !path.is_absolute() => {
            return refuse(format!(
                "disk snapshot image path '{}' must be absolute",
                path.display()
            ));
        }
        Some(path) => path,
        None => generated(disk, &others.name)?,
    };
    let same = |other: &&Selected<'_>| {
        let overlay = other.overlay.as_ref();
        overlay.is_some_and(|overlay| overlay.path == path)
    };
    if let Some(other) = others.disks.iter().find(same) {
        return refuse(format!(
            "cannot generate external snapshot name for disk '{name}': collision with disk '{}'",
            other.disk.name()
        ));
    }
    if disk.shareable {
        return refuse(format!(
            "shared access for disk '{name}' requires use of supported storage format"
        ));
    }
    match disk.active().map(|layer| &layer.place) {
        Some(Place::Image(source)) => match &source.location {
            Location::File(_) | Location::Block(_) => {}
            Location::Network(network) => {
                return refuse(format!(
                    "external inactive snapshots are not supported on 'network' disks using '{}' protocol",
                    network.protocol.as_str()
                ));
            }
            _ => return unsupported(source.type_name()),
        },
        Some(_) => return unsupported(disk.active().map_or("file", Layer::type_name)),
        None => {}
    }
    Ok(Overlay { path, format })
}

fn unsupported<T>(kind: &str) -> Result<T> {
    refuse(format!(
        "external inactive snapshots are not supported on '{kind}' disks"
    ))
}

/// What libvirt calls an overlay that nobody names: as the image below, with the snapshot's name for its suffix.
fn generated(disk: &Disk, snapshot: &str) -> Result<PathBuf> {
    let name = disk.name();
    let path = match disk.active().map(|layer| &layer.place) {
        Some(Place::Image(source)) => match &source.location {
            Location::File(path) if is_regular(path) => path,
            _ => {
                return refuse(format!(
                    "source for disk '{name}' is not a regular file; refusing to generate external snapshot name"
                ));
            }
        },
        Some(Place::Empty) | None => {
            return refuse(format!(
                "cannot generate external snapshot name for disk '{name}' without source"
            ));
        }
        Some(_) => {
            return refuse(format!(
                "source for disk '{name}' is not a regular file; refusing to generate external snapshot name"
            ));
        }
    };
    let file = path.file_name().unwrap_or_default();
    let Some(file) = file.to_str() else {
        return refuse(format!(
            "the name '{}' has bytes that XML cannot hold",
            path.display()
        ));
    };
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    Ok(path.with_file_name(format!("{stem}.{snapshot}")))
}

fn is_regular(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

impl Snapshot<'_> {
    /// The disks that get an overlay, and which.
    pub fn external(&self) -> impl Iterator<Item = (&Disk, &Overlay)> {
        self.disks
            .iter()
            .filter_map(|selected| Some((selected.disk, selected.overlay.as_ref()?)))
    }

    /// The `<domainsnapshot>`, complete as libvirt makes it, for `virsh snapshot-create --disk-only`; with what is known of a
    /// snapshot that was taken, for `virsh snapshot-create --redefine`.
    pub fn xml(&self, taken: Option<Taken<'_>>) -> String {
        let mut root = XmlElement::new("domainsnapshot");
        root.child_text(&XmlElement::new("name"), &self.name);
        if let Some(description) = &self.description {
            root.child_text(&XmlElement::new("description"), description);
        }
        if let Some(taken) = taken {
            root.child_text(&XmlElement::new("state"), "shutoff");
            root.child_text(&XmlElement::new("creationTime"), &taken.at.to_string());
        }
        root.leaf("memory", "snapshot", Some("no"));
        let mut disks = XmlElement::new("disks");
        for selected in &self.disks {
            let mut disk = XmlElement::new("disk");
            disk.attribute("name", selected.disk.name());
            disk.attribute("snapshot", selected.mode.as_str());
            if let Some(overlay) = &selected.overlay {
                let source = overlay.source();
                disk.attribute("type", source.type_name());
                disk.leaf("driver", "type", Some(overlay.format.libvirt()));
                disk.child(&source.to_libvirt_element());
            }
            disks.child(&disk);
        }
        root.child(&disks);
        let text = root.finish();
        match (taken, text.strip_suffix("</domainsnapshot>\n")) {
            (Some(taken), Some(open)) => {
                // Byte by byte what it is: it may have lines that must not be indented.
                let domain = taken.domain.root();
                format!("{open}  {domain}\n</domainsnapshot>\n")
            }
            _ => text,
        }
    }

    /// The domain with the overlays for active layers, and its images below them.
    ///
    /// # Errors
    /// Where the document cannot be changed so.
    pub fn domain(&self, document: &Document) -> std::result::Result<String, EditError> {
        let mut edit = Edit::new(document);
        for (disk, overlay) in self.external() {
            edit.put_over(disk, &overlay.source(), overlay.format)?;
        }
        edit.finish()
    }
}

impl Overlay {
    /// As XML names it.
    pub fn source(&self) -> Source {
        Source::file(&self.path)
    }
}

/// Why an overlay of a disk would not show the guest what it sees, or not at all, although libvirt makes it.
///
/// # Errors
/// A sentence.
pub fn check_showable(disk: &Disk) -> Result<()> {
    let name = disk.name();
    if disk.device == Device::Lun {
        return refuse("external active snapshots are not supported on scsi passthrough devices");
    }
    let Some(active) = disk.active() else {
        return Ok(());
    };
    if active.details.encryption.is_some() {
        return refuse(format!(
            "disk '{name}' is encrypted, and what its guest writes would not be encrypted in the overlay"
        ));
    }
    if active.source().is_some_and(|source| source.slice.is_some()) {
        return refuse(format!(
            "disk '{name}' is a part of its image (<slices>), and the overlay would stand on the whole"
        ));
    }
    if disk.mirror.is_some() {
        return refuse(format!("disk '{name}' is being copied (<mirror>)"));
    }
    Ok(())
}
