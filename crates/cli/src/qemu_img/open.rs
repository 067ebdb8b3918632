//! Opening images as qemu-img does: what is probed, what is locked, and the sentences for what is wrong.
//!
//! Whether something may be opened and believed is decided by Catena's policy alone, and all data is read through its chain. Here
//! is only how QEMU would have said why not.

use super::header;
use super::measure::SnapshotName;
use super::nodes::{self, Backing, Node};
use super::program::{Failure, Program};
use super::snapshots;
use catena::{Break, Chain, End, Format, Layer, LayerFile, Policy, Source, Stack, Start, detect};
use catena_engine::StorageBytes;
use catena_format::recognise;
use catena_storage::{LocalFile, LockMode, OpenOptions, Permission, Permissions, Storage};
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Purpose {
    /// To be written.
    pub write: bool,
    /// Whether writers may be there (`-U`).
    pub shared: bool,
    /// Only to tell about the image itself, not about what it stands on, nor to read its data.
    pub alone: bool,
    /// Its data is not read, so that no key is needed.
    pub no_io: bool,
    /// To be checked: damage does not matter.
    pub check: bool,
}

/// How an image is named on a command line.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The word.
    pub word: &'a str,
    /// `-f`.
    pub format: Option<&'a str>,
    /// `--image-opts`.
    pub options: bool,
}

/// An open image with what it stands on.
#[derive(Debug)]
pub struct Opened {
    /// How it was named.
    pub node: Node,
    /// Its layers; one alone where nothing below was to be opened.
    pub chain: Chain,
    /// QEMU's names of the layers.
    pub names: Vec<String>,
    /// Holds the lock of the active image.
    pub held: LocalFile,
}

impl Opened {
    /// The active layer.
    pub fn top(&self) -> Result<&Layer, Failure> {
        self.chain
            .active()
            .ok_or_else(|| super::program::error("the image has no layers"))
    }

    /// The disk, which is mostly read from end to end.
    pub fn disk(&self) -> Result<Stack, Failure> {
        // Locks are taken already.
        self.chain
            .open(catena::open::Sharing::Force)
            .map(Stack::for_walking)
            .map_err(|error| super::program::error(error.full()))
    }

    /// The disk as it was when a snapshot was taken. An error is the sentence alone.
    pub fn snapshot(&self, snapshot: &SnapshotName) -> Result<Stack, String> {
        let none = || "Can't find snapshot".to_owned();
        let layer = self.chain.active().ok_or_else(none)?;
        let (Some(header), Some(file)) = (&layer.header, &layer.file) else {
            return Err(
                "Block format 'raw' used by device '' does not support temporarily loading internal snapshots".to_owned(),
            );
        };
        let bytes = StorageBytes::new(&file.storage).map_err(|error| error.to_string())?;
        let all = snapshots::read(header, &bytes).map_err(|error| error.to_string())?;
        let found = match snapshot {
            SnapshotName::Either(text) => {
                let by_id = all.iter().find(|one| one.id == *text);
                by_id.or_else(|| all.iter().find(|one| one.name == *text))
            }
            SnapshotName::Exact { id, name } => all.iter().find(|one| {
                let same =
                    |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
                same(id, &one.id) && same(name, &one.name)
            }),
        };
        let found = found.ok_or_else(none)?;
        if let Some((text, _)) = snapshots::l1_fault(header, found) {
            return Err(text.to_owned());
        }
        self.chain
            .open_snapshot(&found.id, catena::open::Sharing::Force)
            .map(Stack::for_walking)
            .map_err(|error| error.full())
    }

    /// Fails where the image cannot be found again by its name alone: what it is on is told by the command line.
    pub fn is_by_its_name(&self) -> Result<(), Failure> {
        match self.node.data_file {
            None => Ok(()),
            Some(_) => Err(super::program::error(
                "a data file other than the recorded one is not supported here",
            )),
        }
    }

    /// The driver of the active image.
    pub fn driver(&self) -> &'static str {
        match self.chain.active().map(|layer| layer.format) {
            Some(Format::Qcow2) => "qcow2",
            _ => "raw",
        }
    }
}

/// Opens an image, or fails as qemu-img does.
pub fn open(program: &Program, named: Named<'_>, purpose: Purpose) -> Result<Opened, Failure> {
    if named.options && named.format.is_some() {
        return Err(super::program::error(
            "--image-opts and --format are mutually exclusive",
        ));
    }
    let node = if named.options {
        Node::from_options(named.word)
    } else {
        Node::named(named.word, named.format)
    };
    if let Ok(node) = &node
        && let Some(text) = node.deprecated
    {
        program.say(format!("warning: {text}"));
    }
    let opened = node.and_then(|node| open_node(node, purpose));
    opened.map_err(|text| super::program::error(format!("Could not open '{}': {text}", named.word)))
}

/// Opens what a node names. An error is what follows `Could not open '…': `.
pub fn open_node(node: Node, purpose: Purpose) -> Result<Opened, String> {
    let shared = purpose.shared || node.force_share == Some(true);
    if shared && purpose.write {
        return Err("force-share=on can only be used with read-only images".to_owned());
    }
    if purpose.write && node.read_only == Some(true) {
        return Err("Block node is read-only".to_owned());
    }
    if !purpose.write && node.filters.iter().any(|filter| filter == "copy-on-read") {
        return Err("Block node is read-only".to_owned());
    }
    let file = open_file(&node.filename, node.protocol.as_deref(), purpose.write)?;
    let format = match node.driver.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw") => Format::Raw,
        Some(other) => return Err(nodes::unknown_driver(other)),
        None if node.bare => Format::Raw,
        None => probe(&file, &node, purpose)?,
    };
    lock(&file, &node.filename, format, shared, purpose.write, 0)?;
    if format == Format::Qcow2
        && let Some(text) = header::fault(&file, purpose.write, purpose.check)
    {
        return Err(text);
    }
    if format == Format::Qcow2 {
        super::settle::settle(&file, purpose.write, purpose.check)?;
    }
    check_slice(&file, &node)?;
    let mut source = Source::file(&node.filename);
    if node.offset.is_some() || node.size.is_some() {
        if format != Format::Raw {
            return Err("a part of a file as a qcow2 image is not supported".to_owned());
        }
        source.slice = Some(catena::reference::Slice {
            offset: node.offset.unwrap_or_default(),
            size: node.size,
        });
    }
    let policy = Policy::qemu();
    let start = Start {
        source,
        format: Some(format),
    };
    let mut chain = detect(&start, &policy);
    if chain.layers.is_empty() {
        return Err(chain
            .broken()
            .map_or_else(String::new, |broken| broken.error.full()));
    }
    if let Some(given) = &node.data_file {
        give_data_file(&mut chain, given)?;
    }
    let mut names = vec![node.shown()];
    if purpose.alone {
        return Ok(Opened {
            node,
            chain,
            names,
            held: file,
        });
    }
    let Some(link) = backing_link(&chain, &node) else {
        truncate(&mut chain);
        if !purpose.no_io {
            finish(&chain, &names)?;
        }
        return Ok(Opened {
            node,
            chain,
            names,
            held: file,
        });
    };
    let below = match link {
        Below::Recorded => None,
        Below::Node(node) => Some(*node),
    };
    if let Some(below) = below {
        truncate(&mut chain);
        let purpose = Purpose {
            write: false,
            ..purpose
        };
        let under =
            open_node(below, purpose).map_err(|text| format!("Could not open backing file: {text}"))?;
        chain.layers.extend(under.chain.layers);
        names.extend(under.names);
    } else {
        for layer in chain.layers.iter().skip(1) {
            let text = layer
                .link
                .as_ref()
                .map(|link| link.text.as_str())
                .unwrap_or_default();
            names.push(backing_name(
                names.last().map(String::as_str).unwrap_or_default(),
                text,
            ));
        }
        for (depth, (layer, name)) in chain.layers.iter().zip(&names).enumerate().skip(1) {
            if let Some(file) = &layer.file {
                lock(&file.storage, name, layer.format, shared, false, depth)
                    .map_err(|text| under_backings(depth, &text))?;
            }
        }
        if let End::Broken(broken) = &chain.end {
            let depth = chain.layers.len();
            let text = why_broken(broken, names.last().map(String::as_str).unwrap_or_default());
            return Err(under_backings(depth, &text));
        }
        chain
            .check_complete()
            .map_err(|error| under_backings(chain.layers.len(), &error.full()))?;
    }
    if !purpose.no_io {
        finish(&chain, &names)?;
    }
    Ok(Opened {
        node,
        chain,
        names,
        held: file,
    })
}

/// The data file that the user names takes the place of the recorded one.
fn give_data_file(chain: &mut Chain, given: &Node) -> Result<(), String> {
    let Some(layer) = chain.layers.first_mut() else {
        return Ok(());
    };
    let Some(data_file) = &mut layer.data_file else {
        return Err("'data-file' can only be set for images with an external data file".to_owned());
    };
    if given.offset.is_some() || given.size.is_some() || given.driver.as_deref() == Some("qcow2") {
        return Err("a part of a file as a data file is not supported".to_owned());
    }
    let file = open_file(&given.filename, given.protocol.as_deref(), false)?;
    let file = LayerFile::new(file).map_err(|error| error.full())?;
    let is_own = layer
        .file
        .as_ref()
        .is_some_and(|own| own.identity.object() == file.identity.object());
    if is_own {
        return Err("the data file is the image itself".to_owned());
    }
    data_file.source = Some(Source::file(&given.filename));
    data_file.file = Ok(file);
    Ok(())
}

/// How QEMU names the image that a recorded string leads to.
pub fn backing_name(overlay: &str, recorded: &str) -> String {
    let named = match recorded.strip_prefix("json:") {
        Some(_) => Node::named(recorded, None).ok(),
        None => None,
    };
    match named {
        Some(node) => node.shown(),
        None => nodes::beside(overlay, recorded),
    }
}

fn under_backings(depth: usize, text: &str) -> String {
    format!("{}{text}", "Could not open backing file: ".repeat(depth))
}

enum Below {
    Recorded,
    Node(Box<Node>),
}

fn backing_link(chain: &Chain, node: &Node) -> Option<Below> {
    let active = chain.active()?;
    let recorded = active
        .description
        .backing
        .as_ref()
        .map(|backing| backing.name.clone());
    match (&node.backing, recorded) {
        (Backing::Nothing, _) | (Backing::Recorded | Backing::Format(_), None) => None,
        (Backing::Node(node), _) => Some(Below::Node(node.clone())),
        (Backing::Recorded, Some(_)) => Some(Below::Recorded),
        (Backing::Format(format), Some(name)) => {
            let name = nodes::beside(&node.filename, &name);
            Some(Below::Node(Box::new(Node {
                driver: Some(format.clone()),
                filename: name,
                ..Node::default()
            })))
        }
    }
}

fn truncate(chain: &mut Chain) {
    chain.layers.truncate(1);
    chain.end = End::Terminated;
}

/// What can only be seen once all layers are there: data files and encryption.
fn finish(chain: &Chain, names: &[String]) -> Result<(), String> {
    for (depth, (layer, _)) in chain.layers.iter().zip(names).enumerate() {
        let fault = layer_fault(layer);
        if let Some(text) = fault {
            return Err(under_backings(depth, &text));
        }
    }
    Ok(())
}

fn layer_fault(layer: &Layer) -> Option<String> {
    if let Some(header) = &layer.header {
        use catena_format::qcow2::{Autoclear, CryptMethod};
        if header.crypt != CryptMethod::None {
            return Some("Parameter 'encrypt.key-secret' is required for cipher".to_owned());
        }
        let is_raw = header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA);
        if is_raw && !header.has_data_file() {
            return Some("data-file-raw requires a data file".to_owned());
        }
    }
    let data_file = layer.data_file.as_ref()?;
    let error = data_file.file.as_ref().err()?;
    if data_file.text.is_empty() {
        return Some("'data-file' is required for this image".to_owned());
    }
    let own = layer
        .path()
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let name = nodes::beside(&own, &data_file.text);
    Some(match open_file(&name, None, false) {
        Err(text) => text,
        Ok(_) => error.full(),
    })
}

/// The sentence for the layer at which a chain breaks.
pub fn why_broken(broken: &Break, overlay: &str) -> String {
    let Some(link) = &broken.link else {
        return broken.error.full();
    };
    let recorded = link.format.as_deref().filter(|word| !word.is_empty());
    if let Some(word) = recorded
        && !nodes::is_driver(word)
    {
        return nodes::unknown_driver(word);
    }
    let name = match Node::named(&link.text, recorded) {
        Err(text) => return text,
        Ok(node) if link.text.starts_with("json:") => node.filename,
        Ok(_) => nodes::beside(overlay, &link.text),
    };
    let file = match open_file(&name, None, false) {
        Err(text) => return text,
        Ok(file) => file,
    };
    if recorded == Some("qcow2")
        && let Some(text) = header::fault(&file, false, false)
    {
        return text;
    }
    broken.error.full()
}

/// Opens a file, or says what QEMU's file driver says.
pub fn open_file(name: &str, protocol: Option<&str>, write: bool) -> Result<LocalFile, String> {
    let system = |error: &std::io::Error| format!("Could not open '{name}': {}", system_word(error));
    let path = Path::new(name);
    let kind = path.metadata().map_err(|error| system(&error))?.file_type();
    let is_device = kind.is_block_device() || kind.is_char_device();
    match protocol {
        Some("host_device" | "host_cdrom") if !is_device => {
            return Err(format!(
                "'host_device' driver requires '{name}' to be either a character or block device"
            ));
        }
        _ if kind.is_dir() => return Err(format!("'file' driver requires '{name}' to be a regular file")),
        _ => {}
    }
    let options = OpenOptions::new().write(write).lock(LockMode::None);
    LocalFile::open(path, &options).map_err(|error| match error.io() {
        Some(io) => system(io),
        None => error.to_string(),
    })
}

/// The system's word for an error, as C's `strerror` gives it.
pub fn system_word(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((word, _)) => word.to_owned(),
        None => text,
    }
}

/// The format of an image of which nobody said it.
fn probe(file: &LocalFile, node: &Node, purpose: Purpose) -> Result<Format, String> {
    let found = StorageBytes::new(file)
        .ok()
        .and_then(|bytes| recognise::probe_as_qemu(&bytes, Some(&node.filename)).ok());
    match found {
        Some(Format::Qcow2) => Ok(Format::Qcow2),
        Some(Format::Raw) | None => {
            if purpose.write {
                warn_of_raw(&node.filename);
            }
            Ok(Format::Raw)
        }
        Some(other) => Err(nodes::unknown_driver(other.qemu().unwrap_or(other.as_str()))),
    }
}

/// What QEMU says where an image without a known header is to be written.
pub fn warn_of_raw(name: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
         Specify the 'raw' format explicitly to remove the restrictions."
    );
}

/// Takes the locks that QEMU takes.
pub fn lock(
    file: &LocalFile,
    name: &str,
    format: Format,
    shared: bool,
    write: bool,
    depth: usize,
) -> Result<(), String> {
    if shared {
        return Ok(());
    }
    let permissions = match (format, write) {
        (Format::Raw, false) if depth == 0 => Permissions::READ_SHARED,
        (Format::Raw, true) => Permissions {
            held: Permissions::WRITE.held,
            not_shared: Permission::empty(),
        },
        (_, true) => Permissions::WRITE,
        _ => Permissions::READ,
    };
    file.set_lock(LockMode::Exact(permissions))
        .map(drop)
        .map_err(|error| {
            let detail = error.detail().unwrap_or_default();
            match detail.split_once(" lock:") {
                Some((what, _)) => format!("{what} lock\nIs another process using the image [{name}]?"),
                None => error.to_string(),
            }
        })
}

fn check_slice(file: &LocalFile, node: &Node) -> Result<(), String> {
    let len = file.len().map_err(|error| error.to_string())?;
    let offset = node.offset.unwrap_or_default();
    if offset > len {
        return Err(format!(
            "Offset ({offset}) cannot be greater than size of the containing file ({len})"
        ));
    }
    if let Some(size) = node.size {
        if size > len - offset {
            return Err(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the containing file ({len})"
            ));
        }
        if size % 512 != 0 {
            return Err("Specified size is not multiple of 512".to_owned());
        }
    }
    Ok(())
}
