//! What XML says and what is there: the two combined into one chain by libvirt's rules, and where they disagree.
//!
//! libvirt believes the layers that XML gives and reads the header of the last of them alone; an empty `<backingStore/>`
//! there ends the chain. That nothing compares XML with the headers is what [`disagreements`] is for.

use crate::model::{Below, Disk, Document, Layer as XmlLayer, Place};
use crate::volumes;
use catena::chain::{Chain, End, Layer};
use catena::detect::quoted;
use catena::doctor::{Code, Cure, Finding, Severity};
use catena::reference::{Location, Source};
use catena::{Policy, Start, Stated, StatedLayer, detect, detect_stated};
use catena_format::Format;
use catena_storage::Storage;
use std::path::Path;

impl Disk {
    /// What the document says of the chain, as detection takes it.
    ///
    /// # Errors
    ///
    /// A sentence, where a layer is no image that could be found without libvirt.
    pub fn stated(&self) -> Result<Stated, String> {
        let layers = self
            .layers
            .iter()
            .map(XmlLayer::stated)
            .collect::<Result<_, _>>()?;
        Ok(Stated {
            layers,
            closed: matches!(self.below, Below::Closed(_)),
        })
    }

    /// The chain as libvirt would have it: what the document gives, and below it what the headers say.
    ///
    /// # Errors
    ///
    /// As [`Disk::stated`].
    pub fn chain(&self, policy: &Policy) -> Result<Chain, String> {
        Ok(detect_stated(&self.stated()?, policy))
    }
}

impl XmlLayer {
    fn stated(&self) -> Result<StatedLayer, String> {
        let source = match &self.place {
            Place::Image(source) => source.clone(),
            Place::Empty => return Err("the drive is empty".to_owned()),
            Place::Volume {
                found: Some(source), ..
            } => source.clone(),
            Place::Volume { pool, volume, .. } => {
                return Err(format!(
                    "where volume '{volume}' of pool '{pool}' is, libvirt alone knows; --connect asks it"
                ));
            }
            Place::VhostUser { path } => {
                return Err(format!("another process serves the disk at '{}'", path.display()));
            }
            Place::VhostVdpa { dev } => {
                return Err(format!("the vDPA device '{}' is the disk", dev.display()));
            }
        };
        if self.details.fd_group.is_some() {
            return Err("the image is passed to libvirt as an open file".to_owned());
        }
        Ok(StatedLayer {
            source,
            format: self.real_format(),
            data_file: self.data_store.as_ref().and_then(|store| store.source().cloned()),
        })
    }

    /// The format its bytes are in: libvirt's raw with encryption is a LUKS container.
    pub fn real_format(&self) -> Format {
        let format = self.format.unwrap_or(Format::Raw);
        let luks = self.details.encryption.as_ref().is_some_and(|encryption| {
            encryption.format.starts_with("luks") && encryption.engine.as_deref() != Some("librbd")
        });
        if luks && format == Format::Raw {
            Format::Luks
        } else {
            format
        }
    }
}

/// Where the chain that XML gives and the headers of its images disagree. `chain` is the disk's, from [`Disk::chain`].
pub fn disagreements(disk: &Disk, chain: &Chain, policy: &Policy) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, (given, layer)) in disk.layers.iter().zip(&chain.layers).enumerate() {
        let at = || (number, layer.name());
        if let Place::Volume { capacity, .. } = given.place {
            findings.extend(volumes::size(number, capacity, layer));
        }
        data_store(disk, number, given, layer, &mut findings);
        slice(number, layer, &mut findings);
        let Some(below) = disk.layers.get(number + 1) else {
            if let (Below::Closed(_), Some(recorded)) = (&disk.below, &layer.description.backing) {
                let link = without_credentials(&recorded.name);
                findings.push(Finding::new(
                    Code::XmlHidesBacking,
                    Severity::Error,
                    at(),
                    format!("the XML ends the chain here, and the header records the backing image '{link}'"),
                    "libvirt tells QEMU that there is none, and the guest sees zeros instead of what is below",
                    Cure::advice("let libvirt look for it ('catena xml strip'), or write the whole chain ('catena xml pin')"),
                ));
            }
            continue;
        };
        if !layer.format.can_have_backing() {
            findings.push(Finding::new(
                Code::XmlBackingUnused,
                Severity::Error,
                at(),
                format!("the XML gives a backing image to this layer, whose format {} has none", layer.format),
                format!(
                    "libvirt refuses it (storage format '{}' does not support backing store), or does not use it without \
                     a word",
                    layer.format.libvirt()
                ),
                Cure::advice("give the format that the image is in, or take the backing image out of the XML"),
            ));
            continue;
        }
        if layer.file.is_some() {
            backing(disk, number, layer, below, policy, &mut findings);
        }
    }
    findings
}

pub(crate) fn without_credentials(text: &str) -> String {
    catena::reference::without_credentials(text).into_owned()
}

/// The image and format below a layer, in XML and in the header.
fn backing(
    disk: &Disk,
    number: usize,
    layer: &Layer,
    below: &XmlLayer,
    policy: &Policy,
    findings: &mut Vec<Finding>,
) {
    let Some(given) = below.source() else { return };
    let mut find = |code, severity, cause: String, consequence: &str, cure| {
        findings.push(Finding::new(
            code,
            severity,
            (number, layer.name()),
            cause,
            consequence,
            cure,
        ));
    };
    let Some(recorded) = &layer.description.backing else {
        find(
            Code::XmlBackingDiffers,
            Severity::Warning,
            format!("the XML gives the backing image '{given}', and the header records none"),
            "under libvirt the guest sees what is below, with qemu-img nobody does",
            rebase(layer, given, below.real_format()),
        );
        return;
    };
    let link = without_credentials(&recorded.name);
    let found = layer
        .backing_reference()
        .map(|reference| reference.resolve(&layer.source));
    if !found.as_ref().is_ok_and(|found| is_same(found, given, policy)) {
        let elsewhere = found.ok().and_then(|found| {
            disk.layers
                .iter()
                .position(|other| other.source().is_some_and(|other| is_same(&found, other, policy)))
        });
        let order = elsewhere.map_or_else(String::new, |place| {
            format!(", which the XML has as layer {place}: the order is another")
        });
        find(
            Code::XmlBackingDiffers,
            Severity::Error,
            format!("the XML gives the backing image '{given}', and the header records '{link}'{order}"),
            "libvirt believes the XML: its guest sees another disk than qemu-img shows",
            rebase(layer, given, below.real_format()).saying(
                "if the XML is right, record its image; if the header is right: 'catena xml set-backing'",
            ),
        );
        return;
    }
    let word = recorded.format.as_deref().filter(|word| !word.is_empty());
    let format = word.and_then(Format::from_recorded);
    if let (Some(word), Some(format)) = (word, format)
        && format != below.real_format()
    {
        let plain = |format| matches!(format, Format::Raw | Format::Iso);
        let harmless = plain(format) && plain(below.real_format());
        find(
            Code::XmlFormatDiffers,
            if harmless {
                Severity::Warning
            } else {
                Severity::Error
            },
            format!(
                "the XML gives the backing image '{given}' as {}, and the header records the format '{word}'",
                below.real_format()
            ),
            "libvirt believes the XML: its guest sees another disk than qemu-img shows",
            Cure::advice(
                "find out which it is ('catena info'), then correct the XML ('catena xml replace --format') or the header \
                 ('catena relink')",
            ),
        );
    }
}

/// The command that makes the header say what the XML says.
fn rebase(layer: &Layer, given: &Source, format: Format) -> Cure {
    let (Some(path), Ok(name)) = (layer.path(), given.to_recorded()) else {
        return Cure::none();
    };
    Cure::command([
        "catena".into(),
        "rebase".into(),
        path.as_os_str().to_owned(),
        "--backing".into(),
        name.into(),
        "--backing-format".into(),
        format.as_str().into(),
        "--unsafe".into(),
    ])
}

/// The part of an image that the XML gives, against the image's end.
fn slice(number: usize, layer: &Layer, findings: &mut Vec<Finding>) {
    let (Some(slice), Some(file)) = (layer.source.slice, &layer.file) else {
        return;
    };
    let (Some(size), Ok(len)) = (slice.size, file.storage.len()) else {
        return;
    };
    if slice.offset.checked_add(size).is_none_or(|end| end > len) {
        findings.push(Finding::new(
            Code::XmlSliceBeyondEnd,
            Severity::Error,
            (number, layer.name()),
            format!(
                "the XML gives {size} bytes from {} of the image, which ends at {len}",
                slice.offset
            ),
            "QEMU does not open it",
            Cure::advice("correct the <slice> in the XML, or let the image grow"),
        ));
    }
}

/// The data file, in XML and in the header.
fn data_store(disk: &Disk, number: usize, given: &XmlLayer, layer: &Layer, findings: &mut Vec<Finding>) {
    let recorded = layer.description.data_file.as_ref();
    let explicit = number + 1 < disk.layers.len() || matches!(disk.below, Below::Closed(_));
    match (&given.data_store, recorded) {
        (None, Some(file)) if explicit => {
            let name = without_credentials(file.name.as_deref().unwrap_or_default());
            findings.push(Finding::new(
                Code::XmlDataStoreMissing,
                Severity::Warning,
                (number, layer.name()),
                format!("the image keeps its data in '{name}', and the XML gives the chain without that file"),
                "libvirt reads no header of a chain that XML gives: the file gets no label, and QEMU may not open it",
                Cure::advice("'catena xml complete' writes it into the XML"),
            ));
        }
        (Some(store), recorded) => {
            let Some(source) = store.source() else { return };
            let differs = |what: String| {
                Finding::new(
                    Code::XmlDataStoreDiffers,
                    Severity::Error,
                    (number, layer.name()),
                    format!("the XML gives the data file '{source}', and {what}"),
                    "QEMU is told to use the one in the XML, in which the image's data is not",
                    Cure::advice("correct the <dataStore> in the XML"),
                )
            };
            match recorded {
                None if layer.file.is_some() => findings.push(differs("the image has none".to_owned())),
                Some(file) => {
                    let name = file.name.clone().unwrap_or_default();
                    let found = catena::Reference::parse(&name, catena::Reading::Catena)
                        .map(|reference| reference.resolve(&layer.source));
                    let object = found.as_ref().is_ok_and(|found| {
                        found.key() == source.key() || same_file(found.path(), source.path())
                    });
                    if !object {
                        let name = without_credentials(&name);
                        findings.push(differs(format!("the header records '{name}'")));
                    }
                }
                None => {}
            }
        }
        _ => {}
    }
}

/// Whether two sources are one image. What the policy does not let be reached is compared by name alone.
pub(crate) fn is_same(recorded: &Source, given: &Source, policy: &Policy) -> bool {
    if recorded.slice != given.slice {
        return false;
    }
    if recorded.key() == given.key() {
        return true;
    }
    recorded.path().is_some_and(|path| policy.reaches(path)) && same_file(recorded.path(), given.path())
}

fn same_file(one: Option<&Path>, other: Option<&Path>) -> bool {
    let real = |path: Option<&Path>| path.and_then(|path| path.canonicalize().ok());
    real(one).is_some_and(|one| real(other) == Some(one))
}

/// What is wrong with overlays that a snapshot names and that exist: they are to be reused, and libvirt does not look what
/// they record. `domain` is the document with the domain's disks, which may be the snapshot's own.
pub fn snapshot_disagreements(
    snapshot: &Document,
    domain: &Document,
    policy: &Policy,
) -> Vec<(String, Finding)> {
    let mut found = Vec::new();
    for snapshot in &snapshot.snapshot_disks {
        let Some(source) = snapshot.layer.as_ref().and_then(XmlLayer::source) else {
            continue;
        };
        let Some(base) = domain
            .disk(&snapshot.name)
            .and_then(Disk::active)
            .and_then(XmlLayer::source)
        else {
            continue;
        };
        if !matches!(source.location, Location::File(_) | Location::Block(_))
            || !source.path().is_some_and(Path::exists)
        {
            continue;
        }
        let format = snapshot
            .layer
            .as_ref()
            .and_then(|layer| layer.format)
            .unwrap_or(Format::Qcow2);
        let start = Start {
            source: source.clone(),
            format: Some(format),
        };
        let chain = detect(&start, policy);
        let Some(overlay) = chain.active() else {
            if let End::Broken(broken) = &chain.end {
                found.push((
                    snapshot.name.clone(),
                    Finding::new(
                        Code::Unreadable,
                        Severity::Error,
                        (0, source.to_string()),
                        format!(
                            "the overlay that the snapshot names cannot be read: {}",
                            broken.error
                        ),
                        "libvirt does not start a guest on it",
                        Cure::none(),
                    ),
                ));
            }
            continue;
        };
        let recorded = overlay
            .backing_reference()
            .ok()
            .map(|reference| reference.resolve(&overlay.source));
        if recorded
            .as_ref()
            .is_some_and(|recorded| is_same(recorded, base, policy))
        {
            continue;
        }
        let what = recorded.map_or_else(
            || "records no backing image".to_owned(),
            |recorded| format!("records the backing image '{recorded}'"),
        );
        let command = format!(
            "catena rebase {} --backing {} --backing-format FORMAT --unsafe",
            quoted(source.to_string()),
            quoted(base.to_string())
        );
        found.push((
            snapshot.name.clone(),
            Finding::new(
                Code::XmlSnapshotBaseDiffers,
                Severity::Error,
                (0, source.to_string()),
                format!("the overlay {what}, and the disk's active layer is '{base}'"),
                "libvirt, told to reuse the overlay, does not look: with QEMU's next start the guest sees another disk",
                Cure::advice(format!("if the snapshot is right: {command}")),
            ),
        ));
    }
    found
}
