//! Reading documents. What libvirt 11.3 refuses about disks is refused in its words; of the rest of a domain nothing is
//! asked.

mod check;
mod disk;
mod element;
mod network;
mod security;
mod source;
mod throttle;

use crate::error::{XmlError, XmlErrorKind};
use crate::limits;
use crate::model::{Document, Kind, SnapshotDisk, Volume};
use element::{Element, Result};
use roxmltree::{Node, ParsingOptions};
use std::path::PathBuf;

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    ///
    /// Where it is no XML, is about something else, or says of a disk what libvirt refuses.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let (kind, mut document) = with_root(&text, |root| {
            let kind = match root.name() {
                "domain" => Kind::Domain,
                "disk" => Kind::Disk,
                "domainsnapshot" => Kind::Snapshot,
                "volume" => Kind::Volume,
                other => {
                    return Err(root.malformed(format!(
                        "unexpected root element <{other}>, expecting <domain>, <disk>, <domainsnapshot> or <volume>"
                    )));
                }
            };
            Ok((kind, read(kind, root)?))
        })?;
        document.kind = kind;
        document.text = text;
        Ok(document)
    }
}

/// The folder in which a storage pool keeps its volumes, by what libvirt says of the pool; for pools of devices, the one that has
/// their nodes. `None` where it has none on this host.
///
/// # Errors
///
/// Where the text is no XML, or about something else.
pub fn pool_folder(text: &str) -> Result<Option<PathBuf>> {
    with_root(text, |root| {
        if root.name() != "pool" {
            return Err(root.malformed(format!(
                "unexpected root element <{}>, expecting <pool>",
                root.name()
            )));
        }
        let path = root.child("target").and_then(|target| target.child("path"));
        Ok(path
            .map(|path| path.text().into())
            .filter(|path: &PathBuf| path.is_absolute()))
    })
}

/// Parses a text and reads its root element.
fn with_root<T>(text: &str, read: impl FnOnce(Element<'_, '_>) -> Result<T>) -> Result<T> {
    if let Some((at, message)) = limits::exceeded(text) {
        return Err(not_xml(text, at, message));
    }
    // Each element has at least four bytes.
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: u32::try_from(limits::MAX_BYTES).unwrap_or(u32::MAX),
        ..ParsingOptions::default()
    };
    let xml = roxmltree::Document::parse_with_options(text, options).map_err(|error| XmlError {
        kind: XmlErrorKind::NotXml,
        line: error.pos().row,
        column: error.pos().col,
        message: error.to_string(),
    })?;
    if let Some(at) = empty_prefix(&xml) {
        return Err(not_xml(text, at, "a name begins with a colon".to_owned()));
    }
    read(Element::new(xml.root_element()))
}

/// Where a name begins with a colon: the parser takes it for what is behind that, and libvirt does not.
fn empty_prefix(xml: &roxmltree::Document<'_>) -> Option<usize> {
    let names = xml.descendants().filter(Node::is_element).flat_map(|element| {
        let attributes = element.attributes().map(|attribute| attribute.range().start);
        std::iter::once(element.range().start + 1).chain(attributes)
    });
    let colon = |at: &usize| xml.input_text().as_bytes().get(*at) == Some(&b':');
    names.into_iter().find(colon)
}

fn not_xml(text: &str, at: usize, message: String) -> XmlError {
    let before = text.get(..at).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
    XmlError {
        kind: XmlErrorKind::NotXml,
        message,
        line: count(before.matches('\n').count()),
        column: count(line.chars().count()),
    }
}

fn read(kind: Kind, root: Element<'_, '_>) -> Result<Document> {
    let mut document = Document {
        text: String::new(),
        kind,
        name: root.child("name").map(Element::text),
        disks: Vec::new(),
        snapshot_disks: Vec::new(),
        volume: None,
        seclabels: Vec::new(),
        throttle_groups: Vec::new(),
    };
    if kind == Kind::Domain {
        document.throttle_groups = throttle::groups(root)?;
    }
    let elements: Vec<_> = match kind {
        Kind::Disk => vec![root],
        Kind::Domain => domain_disks(root),
        Kind::Snapshot => root.child("domain").map(domain_disks).unwrap_or_default(),
        Kind::Volume => Vec::new(),
    };
    // All are read before any is judged, as libvirt does it.
    for element in &elements {
        document.disks.push(disk::read(*element)?);
    }
    for place in document.order() {
        let (Some(disk), Some(element)) = (document.disks.get_mut(place), elements.get(place)) else {
            continue;
        };
        check::disk(disk, *element)?;
        // A disk alone may be of a domain that has them.
        if kind == Kind::Domain {
            throttle::check(disk, *element, &document.throttle_groups)?;
        }
    }
    match kind {
        Kind::Snapshot => {
            let disks = root
                .child("disks")
                .into_iter()
                .flat_map(|disks| disks.children("disk"));
            document.snapshot_disks = disks.map(snapshot_disk).collect::<Result<_>>()?;
        }
        Kind::Volume => document.volume = Some(volume(root)?),
        Kind::Domain => {
            document.seclabels = security::labels(root)?;
            for (disk, element) in document.disks.iter().zip(&elements) {
                security::check(disk, &document.seclabels, *element)?;
            }
        }
        Kind::Disk => {}
    }
    Ok(document)
}

fn domain_disks<'a, 'i>(domain: Element<'a, 'i>) -> Vec<Element<'a, 'i>> {
    let devices = domain.children("devices");
    devices
        .flat_map(|devices| devices.children("disk").collect::<Vec<_>>())
        .collect()
}

fn snapshot_disk(element: Element<'_, '_>) -> Result<SnapshotDisk> {
    let name = element
        .attribute("name")
        .ok_or_else(|| element.malformed("missing name from disk snapshot element"))?;
    let mode = element.choice("snapshot", &["default", "no", "internal", "external", "manual"])?;
    let layer = match element.child("source") {
        Some(source) => Some(source::snapshot_layer(element, source)?),
        None => None,
    };
    Ok(SnapshotDisk {
        name: name.to_owned(),
        mode: mode.map(str::to_owned),
        layer,
    })
}

fn volume(root: Element<'_, '_>) -> Result<Volume> {
    let format = |of: Element<'_, '_>| -> Result<Option<catena_format::Format>> {
        let Some(element) = of.child("format") else {
            return Ok(None);
        };
        let Some(word) = element.attribute("type") else {
            return Ok(None);
        };
        catena_format::Format::from_libvirt(word)
            .map(Some)
            .ok_or_else(|| element.malformed(format!("unknown volume format type {word}")))
    };
    let backing = match root.child("backingStore") {
        Some(store) => match store.child("path").map(Element::text) {
            Some(path) => Some((path.into(), format(store)?)),
            None => None,
        },
        None => None,
    };
    if root.child("name").is_none() {
        return Err(root.malformed("missing volume name element"));
    }
    let capacity = match root.child("capacity") {
        Some(capacity) => Some(capacity.scaled("malformed capacity element")?),
        None if backing.is_some() => None,
        None => return Err(root.malformed("missing capacity element")),
    };
    let target = root.child("target");
    Ok(Volume {
        block: root.attribute("type") == Some("block"),
        capacity,
        path: target
            .and_then(|target| target.child("path"))
            .map(|path| path.text().into()),
        format: target.map_or(Ok(None), format)?,
        encryption: target
            .and_then(|target| target.child("encryption")?.attribute("format"))
            .map(str::to_owned),
        backing,
    })
}
