//! Detection: following an image's references to the end of its chain, by libvirt's rules.
//!
//! Every header on the way is read once and nothing else. What an image names is opened only as the [`Policy`]
//! allows, and what was opened stays open, so that what was looked at is what will be read. Detection does not fail:
//! how far it came and why it stopped is its result.

use crate::chain::{Break, Chain, Consent, DataFileLayer, End, Layer, LayerFile, Link, OpenEnd, Origin};
use crate::policy::{Policy, Role, Unrecorded};
use crate::reference::{Location, LostKind, Reading, Reference, ReferenceError, Source, without_credentials};
use crate::stated::{Stated, StatedLayer};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::describe::{self, RecordedReference};
use catena_format::{Bytes, Description, Format, qcow2, recognise};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use rustix::process::{getegid, geteuid};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The page that libvirt's errors point at.
const HELP: &str = "https://libvirt.org/kbase/backing_chains.html";

/// What is known of a chain before it is looked at.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where the active layer is.
    pub source: Source,
    /// Its format; probed where `None`.
    pub format: Option<Format>,
}

impl Start {
    /// A file the user names. A format the user gives is believed.
    pub fn at(path: impl Into<PathBuf>, format: Option<Format>) -> Self {
        Self {
            source: Source::file(path),
            format,
        }
    }
}

/// Follows a chain to its end.
pub fn detect(start: &Start, policy: &Policy) -> Chain {
    walk(start, &Stated::default(), policy)
}

/// Follows a chain of which the upper layers are stated, by libvirt's rules for XML: they are what is stated, and the
/// walk goes on below the last of them unless the chain is closed there.
///
/// The policy is not asked about what is stated, only about what images name. Nothing stated is an empty chain.
pub fn detect_stated(stated: &Stated, policy: &Policy) -> Chain {
    match stated.layers.first() {
        Some(active) => {
            let start = Start {
                source: active.source.clone(),
                format: Some(active.format),
            };
            walk(&start, stated, policy)
        }
        None => Chain::without_layers(End::Terminated),
    }
}

fn walk(start: &Start, stated: &Stated, policy: &Policy) -> Chain {
    let mut walk = Walk {
        policy,
        stated,
        chain: Chain {
            changed_base: policy.changed_base(),
            ..Chain::without_layers(End::Terminated)
        },
        seen: HashMap::new(),
    };
    let opened = if stated.layers.is_empty() {
        open_active(start).map(Some)
    } else {
        open_stated(&start.source)
    };
    let mut next = match opened {
        Ok(opened) => Next {
            source: start.source.clone(),
            link: None,
            opened,
            belief: Belief::of(start),
        },
        Err(error) => {
            let error = access_error(error, &start.source, None);
            walk.chain.end = broken(error, None, Some(start.source.clone()), None);
            return walk.chain;
        }
    };
    loop {
        match walk.step(next) {
            Ok(following) => next = following,
            Err(end) => {
                walk.chain.end = end;
                return walk.chain;
            }
        }
    }
}

/// What is known about a layer's format before its header is read.
#[derive(Clone, Copy, Debug)]
enum Belief {
    /// It is this, and why.
    Known(Format, Origin),
    /// It may be probed, whatever comes out.
    Probe(Consent),
    /// It may be probed, and must turn out a leaf unless the policy trusts it.
    Unrecorded,
}

impl Belief {
    fn of(start: &Start) -> Self {
        start.format.map_or(Self::Probe(Consent::UserArgument), |format| {
            Self::Known(format, Origin::Specified)
        })
    }
}

/// A layer that is about to be looked at.
struct Next {
    source: Source,
    link: Option<Link>,
    opened: Option<LayerFile>,
    belief: Belief,
}

struct Walk<'a> {
    policy: &'a Policy,
    stated: &'a Stated,
    chain: Chain,
    /// The objects and places passed, and the layer each is.
    seen: HashMap<String, usize>,
}

impl Walk<'_> {
    /// Looks at a layer, adds it to the chain, and opens what it names.
    fn step(&mut self, next: Next) -> Result<Next, End> {
        let layer = self.look(next)?;
        self.chain.layers.push(layer);
        self.follow()
    }

    fn look(&mut self, next: Next) -> Result<Layer, End> {
        let Next {
            source,
            link,
            opened,
            belief,
        } = next;
        let fail = |error, probed| broken(error, link.clone(), Some(source.clone()), probed);
        let Some(file) = opened else {
            // Not on this host: what is recorded is believed, and the walk ends here.
            let Belief::Known(format, origin) = belief else {
                let reason = format!("'{source}' is not on this host, so it cannot be probed");
                return Err(fail(self.unrecorded_error(link.as_ref(), &reason, None), None));
            };
            return Ok(Layer {
                source: source.clone(),
                link: link.clone(),
                format,
                origin,
                description: Description::new(format),
                header: None,
                file: None,
                data_file: None,
            });
        };
        let bytes = StorageBytes::new(&file.storage).map_err(|error| fail(error.into(), None))?;
        let bytes = bytes.with_head();
        let (format, origin) = match belief {
            Belief::Known(format, origin) => (format, origin),
            Belief::Probe(consent) => (
                self.probe(&bytes, &source, Some(consent))
                    .map_err(|error| fail(error, None))?,
                Origin::Probed(consent),
            ),
            Belief::Unrecorded => {
                let format = self
                    .probe(&bytes, &source, None)
                    .map_err(|error| match error.kind() {
                        ErrorKind::FormatUnknown => {
                            fail(self.unrecorded_error(link.as_ref(), error.message(), None), None)
                        }
                        _ => fail(error, None),
                    })?;
                let description =
                    describe::describe(format, &bytes).unwrap_or_else(|_| Description::new(format));
                let Some(consent) = self.may_believe(&description, &source, &file) else {
                    let error = self.unrecorded_error(
                        link.as_ref(),
                        &criteria(&source, format, &description),
                        Some(format),
                    );
                    return Err(fail(error, Some((format, description))));
                };
                (format, Origin::Probed(consent))
            }
        };
        let (description, header) = read_header(format, &bytes).map_err(|error| {
            let error = Error::from(error).with_path(source.to_string());
            fail(self.header_error(error, format, origin, &bytes), None)
        })?;
        let stated = self.stated.layers.get(self.chain.layers.len());
        let data_file = match stated.and_then(|stated| stated.data_file.as_ref()) {
            Some(stated) => Some(open_stated_data_file(stated, &file)),
            None => description
                .data_file
                .as_ref()
                .map(|_| self.open_data_file(&source, &file, &description, header.as_ref())),
        };
        Ok(Layer {
            source: source.clone(),
            link: link.clone(),
            format,
            origin,
            description,
            header,
            file: Some(file),
            data_file,
        })
    }

    /// The format that everybody who probes the image would find: QEMU, libvirt, and who looks for all formats at once.
    ///
    /// An image the user names is probed as QEMU probes it; libvirt never does.
    fn probe(&self, bytes: &dyn Bytes, source: &Source, consent: Option<Consent>) -> Result<Format> {
        let unclear = |message: String| {
            Error::new(ErrorKind::FormatUnknown, message)
                .with_path(source.to_string())
                .with_hint("somebody must say which one it is: --format for the active image, a recorded format for others")
        };
        let matches = recognise::recognise(bytes)?;
        if matches.len() > 1 {
            let names: Vec<_> = matches.iter().map(|format| format.as_str()).collect();
            return Err(unclear(format!(
                "the image looks like several formats at once: {}",
                names.join(", ")
            )));
        }
        let name = source.path().and_then(Path::to_str);
        let qemu = recognise::probe_as_qemu(bytes, name)?;
        if consent == Some(Consent::UserArgument) {
            // QEMU knows LUKS 1 alone; nobody is shown the ciphertext of the other by mistake.
            return Ok(if matches == [Format::Luks] {
                Format::Luks
            } else {
                qemu
            });
        }
        let libvirt = recognise::probe_as_libvirt(bytes)?;
        let agree = match (qemu, libvirt) {
            // An ISO image is raw under a name of libvirt's, a LUKS container is raw with encryption to it.
            (Format::Raw, Format::Iso) | (Format::Luks, Format::Raw) => true,
            (qemu, libvirt) => qemu == libvirt,
        };
        if agree {
            Ok(qemu)
        } else {
            Err(unclear(format!(
                "the image is {qemu} to QEMU, but {libvirt} to libvirt"
            )))
        }
    }

    /// Why a probed backing image that says this of itself may be believed; `None` where it may not.
    fn may_believe(&self, description: &Description, source: &Source, file: &LayerFile) -> Option<Consent> {
        if self.policy.unrecorded() == Unrecorded::Leaf && description.is_leaf() {
            return Some(Consent::Leaf);
        }
        // Trust that cannot be established is no trust.
        let trusted = self
            .policy
            .trusts(source.path()?, &file.storage)
            .is_ok_and(|trusted| trusted);
        trusted.then_some(Consent::Trusted)
    }

    /// Opens what the last layer of the chain names.
    fn follow(&mut self) -> Result<Next, End> {
        let number = self.chain.layers.len() - 1;
        let Some(overlay) = self.chain.layers.last() else {
            return Err(End::Terminated);
        };
        for key in overlay.keys() {
            self.seen.insert(key, number);
        }
        if let Some(stated) = self.stated.layers.get(number + 1) {
            return self.go_to(stated);
        }
        if self.stated.closed {
            return Err(End::Terminated);
        }
        if overlay.file.is_none() {
            return Err(End::OpenEnded(OpenEnd::NotTraversable));
        }
        let Some(recorded) = &overlay.description.backing else {
            return Err(End::Terminated);
        };
        let link = Link {
            text: recorded.name.clone(),
            format: recorded.format.clone(),
        };
        let fail = |error, source| Err(broken(error, Some(link.clone()), source, None));

        let reference = match overlay.backing_reference() {
            Ok(reference) => reference,
            Err(error) => return fail(error.with_path(overlay.name()), None),
        };
        if reference.has_lost(LostKind::Credentials) {
            return Err(End::OpenEnded(OpenEnd::Credentials(link)));
        }
        let mut source = reference.resolve(&overlay.source);
        if let Err(error) = self.policy.check(&link.shown(), &source, Role::Backing) {
            return fail(error.with_path(overlay.name()), Some(source));
        }
        if self.chain.layers.len() >= self.policy.depth() {
            let error = Error::new(ErrorKind::TooDeep, nested_too_deeply(&self.chain)).with_hint(format!(
                "the policy '{}' allows {} layers",
                self.policy.name(),
                self.policy.depth()
            ));
            return fail(error, Some(source));
        }
        let opened = match open_named(&mut source, self.policy) {
            Ok(opened) => opened,
            Err(error) => {
                // libvirt's sentence names where it began to look.
                let began = self.stated.layers.len().saturating_sub(1);
                let top = self.chain.layers.get(began).map(|layer| &layer.source);
                return fail(access_error(error, &source, top), Some(source));
            }
        };
        let keys = keys(&source, opened.as_ref());
        if let Some(earlier) = keys.iter().find_map(|key| self.seen.get(key)) {
            let error = Error::new(ErrorKind::Loop, nested_too_deeply(&self.chain)).with_hint(format!(
                "'{source}' is layer {earlier} of this chain again; record the right one: catena rebase {} --backing \
                 IMAGE --backing-format FORMAT --unsafe",
                quoted(overlay.word())
            ));
            return fail(error, Some(source));
        }
        match self.belief(overlay, &source, &link) {
            Ok(belief) => Ok(Next {
                source,
                link: Some(link),
                opened,
                belief,
            }),
            Err(error) => fail(error, Some(source)),
        }
    }

    /// Opens a layer that is stated.
    fn go_to(&self, stated: &StatedLayer) -> Result<Next, End> {
        let source = stated.source.clone();
        let fail = |error| Err(broken(error, None, Some(source.clone()), None));
        let opened = match open_stated(&source) {
            Ok(opened) => opened,
            Err(error) => {
                return fail(access_error(error, &source, None));
            }
        };
        if let Some(earlier) = keys(&source, opened.as_ref())
            .iter()
            .find_map(|key| self.seen.get(key))
        {
            let error = Error::new(ErrorKind::Loop, nested_too_deeply(&self.chain))
                .with_hint(format!("'{source}' is layer {earlier} of this chain again"));
            return fail(error);
        }
        Ok(Next {
            source,
            link: None,
            opened,
            belief: Belief::Known(stated.format, Origin::Specified),
        })
    }

    /// What the overlay lets us believe of its backing's format.
    fn belief(&self, overlay: &Layer, source: &Source, link: &Link) -> Result<Belief> {
        if let Some(format) = source.format {
            return Ok(Belief::Known(format, Origin::Recorded));
        }
        match link.format.as_deref().filter(|word| !word.is_empty()) {
            Some(word) => match Format::from_recorded(word) {
                Some(format) => Ok(Belief::Known(format, Origin::Recorded)),
                None => Err(Error::new(
                    ErrorKind::FormatUnknown,
                    format!(
                        "'{word}', recorded as the format of backing image '{}', is no format",
                        link.shown()
                    ),
                )
                .with_path(overlay.name())
                .with_hint(relink_hint(overlay))),
            },
            None => Ok(match overlay.format {
                // These formats differ from their own kind only: the parent of a VMDK is a VMDK.
                format @ (Format::Vmdk | Format::Vpc | Format::Vhdx | Format::Vdi | Format::Parallels) => {
                    Belief::Known(format, Origin::Recorded)
                }
                Format::Qed if self.policy.unrecorded() == Unrecorded::Leaf => Belief::Probe(Consent::Qed),
                _ => Belief::Unrecorded,
            }),
        }
    }

    /// libvirt's error for a backing image of unrecorded format, with the reason and the cure.
    fn unrecorded_error(&self, link: Option<&Link>, reason: &str, probed: Option<Format>) -> Error {
        let overlay = self.chain.layers.last();
        let text = link.map(Link::shown).unwrap_or_default();
        let overlay_name = overlay.map(Layer::name).unwrap_or_default();
        let overlay_word = overlay.map(Layer::word).unwrap_or_default();
        let message = format!(
            "format of backing image '{text}' of image '{overlay_name}' was not specified in the image metadata (See {HELP} for troubleshooting)"
        );
        let format = probed.map_or("FORMAT", Format::as_str);
        let command = format!(
            "catena relink {} --backing {} --backing-format {format}",
            quoted(&overlay_word),
            quoted(&*text)
        );
        Error::new(ErrorKind::FormatUnknown, message)
            .with_hint(format!("{reason}; if you trust it, record its format: {command}"))
    }

    /// Says more about a header that cannot be read where somebody vouched for its format.
    fn header_error(&self, error: Error, format: Format, origin: Origin, bytes: &dyn Bytes) -> Error {
        if error.kind() != ErrorKind::InvalidFormat {
            return error;
        }
        let found = match recognise::recognise(bytes).as_deref() {
            Ok([]) => "it looks raw".to_owned(),
            Ok(matches) => {
                let names: Vec<_> = matches.iter().map(|format| format.as_str()).collect();
                format!("it looks like {}", names.join(", "))
            }
            Err(_) => return error,
        };
        let who = match origin {
            Origin::Recorded => "its overlay records",
            Origin::Specified => "you gave",
            Origin::Probed(_) => return error,
        };
        error.with_hint(format!("{who} the format {format}, but {found}"))
    }

    fn open_data_file(
        &self,
        owner: &Source,
        owner_file: &LayerFile,
        description: &Description,
        header: Option<&qcow2::Header>,
    ) -> DataFileLayer {
        let recorded = description
            .data_file
            .as_ref()
            .and_then(|file| file.name.clone())
            .unwrap_or_default();
        let mut layer = DataFileLayer {
            text: recorded,
            source: None,
            file: Err(Error::new(
                ErrorKind::BadReference,
                format!("invalid empty data-file definition in '{owner}'"),
            )),
        };
        if layer.text.is_empty() {
            return layer;
        }
        let name = header
            .and_then(qcow2::Header::data_file_name)
            .unwrap_or(layer.text.as_bytes());
        match Reference::parse_bytes(name, Reading::Catena) {
            Ok(reference) => {
                let mut source = reference.resolve(owner);
                layer.file = self
                    .policy
                    .check(&layer.shown(), &source, Role::DataFile)
                    .and_then(|()| open_named(&mut source, self.policy))
                    .and_then(|file| {
                        let unreachable =
                            || Error::new(ErrorKind::Unsupported, "the data file is not on this host");
                        file.ok_or_else(unreachable)
                    })
                    .and_then(|file| {
                        // The guest would read its image's metadata, and write it.
                        if file.identity.same_object(&owner_file.identity) {
                            return Err(Error::new(ErrorKind::Loop, "the data file is the image itself"));
                        }
                        Ok(file)
                    })
                    .map_err(|error| error.with_path(source.to_string()));
                layer.source = Some(source);
            }
            Err(error) => {
                layer.file = Err(Error::new(
                    ErrorKind::BadReference,
                    format!("can't use data file definition '{}'", layer.shown()),
                )
                .with_source(error));
            }
        }
        layer
    }
}

impl Layer {
    /// What the image records about its backing, understood.
    ///
    /// Formats with several names for one parent are tried in the order in which they are trusted.
    pub fn backing_reference(&self) -> Result<Reference> {
        let bad = |error: ReferenceError| {
            Error::new(ErrorKind::BadReference, error.to_string()).with_hint(relink_hint(self))
        };
        let Some(backing) = &self.description.backing else {
            return Err(Error::new(
                ErrorKind::BadReference,
                "the image has no backing image",
            ));
        };
        let names = recorded_names(self.format, backing, self.header.as_ref());
        if names.first().is_none_or(Vec::is_empty) && self.format != Format::Qcow2 {
            let id = backing.parent_id.map_or_else(String::new, |id| format!(" {id}"));
            return Err(Error::new(
                ErrorKind::BadReference,
                format!("the parent image{id} is known by its identity alone, not by a name"),
            ));
        }
        reference_by_names(&names, &self.source).map_err(bad)
    }

    fn keys(&self) -> Vec<String> {
        keys(&self.source, self.file.as_ref())
    }
}

/// The names by which an image's backing image may be found, as bytes, the most trusted first.
pub(crate) fn recorded_names(
    format: Format,
    backing: &RecordedReference,
    header: Option<&qcow2::Header>,
) -> Vec<Vec<u8>> {
    match header.and_then(|header| header.backing.as_ref()) {
        Some(exact) => vec![exact.name.clone()],
        None => std::iter::once(&backing.name)
            .chain(&backing.alternatives)
            .map(|name| windows_to_local(format, name).into_bytes())
            .collect(),
    }
}

/// The reference that the first of these names makes; the first that leads somewhere, where that one does not.
pub(crate) fn reference_by_names(names: &[Vec<u8>], overlay: &Source) -> Result<Reference, ReferenceError> {
    let mut references = names
        .iter()
        .map(|name| Reference::parse_bytes(name, Reading::Catena));
    let first = references
        .next()
        .unwrap_or_else(|| Reference::parse("", Reading::Catena))?;
    let exists = |reference: &Reference| {
        reference
            .resolve(overlay)
            .path()
            .is_some_and(|path| path.symlink_metadata().is_ok())
    };
    if names.len() < 2 || exists(&first) {
        return Ok(first);
    }
    Ok(references.filter_map(Result::ok).find(exists).unwrap_or(first))
}

/// A VHD or VHDX names its parent as Windows does: backslashes separate folders, and `.\` starts a relative name.
fn windows_to_local(format: Format, name: &str) -> String {
    match format {
        Format::Vpc | Format::Vhdx => name.replace('\\', "/"),
        _ => name.to_owned(),
    }
}

/// The strings by which the same place or object is known again.
fn keys(source: &Source, file: Option<&LayerFile>) -> Vec<String> {
    let slice = source.slice;
    let object = file.map(|file| format!("object {:?} {slice:?}", file.identity.object()));
    object.into_iter().chain(std::iter::once(source.key())).collect()
}

fn broken(
    error: Error,
    link: Option<Link>,
    source: Option<Source>,
    probed: Option<(Format, Description)>,
) -> End {
    End::Broken(Box::new(Break {
        error,
        link,
        source,
        probed,
    }))
}

fn nested_too_deeply(chain: &Chain) -> String {
    let top = chain.active().map(Layer::name).unwrap_or_default();
    format!("backing store for {top} is self-referential or too deeply nested")
}

/// Which of the page's three criteria for recording a probed format hold.
fn criteria(source: &Source, format: Format, description: &Description) -> String {
    let raw = if format == Format::Raw {
        "it looks raw"
    } else {
        "it is not raw"
    };
    let leaf = match (&description.backing, &description.data_file) {
        (None, None) => "it names no backing image".to_owned(),
        (Some(backing), _) => format!(
            "it names the backing image '{}'",
            without_credentials(&backing.name)
        ),
        (None, Some(file)) => format!(
            "it names the data file '{}'",
            without_credentials(file.name.as_deref().unwrap_or_default())
        ),
    };
    format!(
        "'{source}' looks like {format}. A probed format may be recorded if the image is raw ({raw}), or names no other \
         image ({leaf}), or can be trusted because no guest could write it (nothing says so)"
    )
}

fn relink_hint(overlay: &Layer) -> String {
    format!(
        "record the right one: catena relink {} --backing IMAGE --backing-format FORMAT",
        quoted(overlay.word())
    )
}

/// A word as a shell takes it, in characters that can be printed.
///
/// What is no text, or would steer a terminal, is written as bash's `$'…'` has it, byte by byte.
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let bytes = word.as_ref().as_bytes();
    if let Ok(text) = str::from_utf8(bytes)
        && !text.chars().any(steers)
    {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            return text.to_owned();
        }
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!(r"\x{byte:02x}"))
            .collect::<String>()
    };
    let mut quoted = "$'".to_owned();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => quoted.push_str(r"\n"),
                '\t' => quoted.push_str(r"\t"),
                '\'' | '\\' => quoted.extend(['\\', c]),
                c if steers(c) => quoted.push_str(&hex(c.encode_utf8(&mut [0; 4]).as_bytes())),
                c => quoted.push(c),
            }
        }
        quoted.push_str(&hex(chunk.invalid()));
    }
    quoted.push('\'');
    quoted
}

/// Whether a character does something else than to be seen: controls, and what reorders or breaks a line.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// The active image, which the user named: no policy is asked.
fn open_active(start: &Start) -> Result<LayerFile> {
    let Some(path) = start.source.path() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("'{}' is not on this host", start.source),
        ));
    };
    LayerFile::new(LocalFile::open(path, &OpenOptions::new().lock(LockMode::None))?)
}

/// An image that is stated: no policy is asked. `None` where it is not a file or block device of this host.
fn open_stated(source: &Source) -> Result<Option<LayerFile>> {
    match &source.location {
        Location::File(path) | Location::Block(path) => {
            let file = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None))?;
            LayerFile::new(file).map(Some)
        }
        _ => Ok(None),
    }
}

fn open_stated_data_file(source: &Source, owner: &LayerFile) -> DataFileLayer {
    let file = open_stated(source).and_then(|file| match file {
        Some(file) if file.identity.same_object(&owner.identity) => {
            Err(Error::new(ErrorKind::Loop, "the data file is the image itself"))
        }
        Some(file) => Ok(file),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "the data file is not on this host",
        )),
    });
    DataFileLayer {
        text: source.to_string(),
        source: Some(source.clone()),
        file: file.map_err(|error| error.with_path(source.to_string())),
    }
}

/// Opens what a reference leads to; `None` where that is not a file or block device of this host.
///
/// A name that turns out a block device changes the source's type, as in libvirt.
fn open_named(source: &mut Source, policy: &Policy) -> Result<Option<LayerFile>> {
    let Location::File(path) = &source.location else {
        return Ok(None);
    };
    let file = policy.open(path)?;
    if file.is_block_device() {
        source.location = Location::Block(path.clone());
    }
    Ok(Some(LayerFile::new(file)?))
}

impl LayerFile {
    /// Of a file that is open to be read.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] where the system does not tell which file it is.
    pub fn new(storage: LocalFile) -> Result<Self> {
        let unknown = || Error::new(ErrorKind::Io, "the system does not tell which file it is");
        let identity = storage.identity().ok_or_else(unknown)?;
        let allocated = storage.allocated()?;
        Ok(Self {
            storage,
            identity,
            allocated,
        })
    }
}

/// libvirt's sentence for an image that cannot be opened.
fn access_error(error: Error, source: &Source, top: Option<&Source>) -> Error {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let message = match top {
        None => format!("Cannot access storage file '{source}' (as uid:{uid}, gid:{gid})"),
        Some(top) => {
            format!("Cannot access backing file '{source}' of storage file '{top}' (as uid:{uid}, gid:{gid})")
        }
    };
    let system = std::error::Error::source(&error);
    // What cannot be a name is the name of nothing.
    let unnamed = system
        .and_then(|system| system.downcast_ref::<std::io::Error>())
        .is_some_and(|system| system.kind() == std::io::ErrorKind::InvalidFilename);
    let kind = if unnamed {
        ErrorKind::NotFound
    } else {
        error.kind()
    };
    match kind {
        ErrorKind::NotFound | ErrorKind::Denied => {
            let system = system.map(ToString::to_string);
            let message = system.map_or(message.clone(), |system| format!("{message}: {system}"));
            Error::new(kind, message).with_hint(match kind {
                ErrorKind::NotFound => "'catena doctor' searches for where it may have gone",
                _ => "'catena doctor --as-user USER' tells which file or directory is in the way",
            })
        }
        _ => error,
    }
}

pub(crate) fn read_header(
    format: Format,
    bytes: &dyn Bytes,
) -> catena_format::Result<(Description, Option<qcow2::Header>)> {
    if format == Format::Qcow2 {
        let header = qcow2::Header::read(bytes)?;
        return Ok((qcow2::description(&header, bytes), Some(header)));
    }
    Ok((describe::describe(format, bytes)?, None))
}
