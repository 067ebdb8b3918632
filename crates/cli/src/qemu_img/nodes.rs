//! What a word of the command line or a recorded string names: a file, or a tree of block drivers over one.
//!
//! A plain name, `file:NAME`, `json:{…}` and `--image-opts` all become a [`Node`]. Nothing is opened here; what a tree cannot be is
//! said in QEMU's words. Errors here are what follows `Could not open '…': `.

use super::keyval;
use super::qdict::{DUPLICATE, Object, Value};
use super::size;

/// An image to open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The format's driver; the image is probed where `None`.
    pub driver: Option<String>,
    /// The file's name.
    pub filename: String,
    /// The file's driver, where it was given.
    pub protocol: Option<String>,
    /// The part of the file that is the image.
    pub offset: Option<u64>,
    /// How long that part is.
    pub size: Option<u64>,
    /// What it stands on, where the image's header does not decide.
    pub backing: Backing,
    /// Whether it may be written; `None` where that was not said.
    pub read_only: Option<bool>,
    /// Whether it may be shared with writers.
    pub force_share: Option<bool>,
    /// Drivers around the image that hand its bytes through, outermost first.
    pub filters: Vec<String>,
    /// The name where it is more than the file's: `json:{…}`.
    pub long_name: Option<String>,
    /// The file itself, without any format.
    pub bare: bool,
    /// What QEMU warns of.
    pub deprecated: Option<&'static str>,
    /// What was given for the data file.
    pub data_file: Option<Box<Node>>,
}

/// What an image stands on.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Backing {
    /// What its header says, in the format that the header or the command line says.
    #[default]
    Recorded,
    /// What its header names, in this format.
    Format(String),
    /// Nothing.
    Nothing,
    /// This.
    Node(Box<Node>),
}

/// Formats and protocols that QEMU knows, beside raw and qcow2.
const OTHER_DRIVERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "copy-before-write",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "http",
    "https",
    "iscsi",
    "iser",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];
/// Filters that hand the bytes of their `file` through.
const FILTERS: &[&str] = &["copy-on-read", "throttle", "preallocate", "compress"];
/// Protocols that are files of this host.
const FILES: &[&str] = &["file", "host_device", "host_cdrom"];
/// Protocols by which a name may start.
const PROTOCOLS: &[&str] = &[
    "file",
    "host_device",
    "host_cdrom",
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "ssh",
    "http",
    "https",
    "ftp",
    "ftps",
    "rbd",
    "iscsi",
    "iser",
    "nfs",
    "gluster",
    "gluster+tcp",
    "gluster+unix",
    "gluster+rdma",
    "fat",
    "null-co",
    "null-aio",
    "nvme",
    "blkdebug",
    "blkverify",
    "json",
];
/// Options that any block driver takes.
const GENERIC: &[&str] = &[
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "discard",
    "detect-zeroes",
    "force-share",
    "cache",
    "cache.direct",
    "cache.no-flush",
    "active",
];
/// Options of qcow2 that change nothing in what a guest sees.
const QCOW2: &[&str] = &[
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "discard-no-unref",
    "overlap-check",
    "overlap-check.template",
    "overlap-check.main-header",
    "overlap-check.active-l1",
    "overlap-check.active-l2",
    "overlap-check.refcount-table",
    "overlap-check.refcount-block",
    "overlap-check.snapshot-table",
    "overlap-check.inactive-l1",
    "overlap-check.inactive-l2",
    "overlap-check.bitmap-directory",
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
    "cache-clean-interval",
];
/// Options of files that change nothing in what is read.
const FILE: &[&str] = &[
    "aio",
    "aio-max-batch",
    "locking",
    "pr-manager",
    "drop-cache",
    "x-check-cache-dropped",
];

/// Whether a driver is known, be it one that cannot be opened here.
pub fn is_driver(name: &str) -> bool {
    matches!(name, "raw" | "qcow2")
        || FILTERS.contains(&name)
        || FILES.contains(&name)
        || OTHER_DRIVERS.contains(&name)
}

/// The sentence for a driver that cannot be opened.
pub fn unknown_driver(name: &str) -> String {
    format!("Unknown driver '{name}'")
}

/// The protocol that a name starts with, by QEMU's rule: a colon before any slash.
pub fn protocol_of(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    let (protocol, rest) = name.split_at_checked(at)?;
    rest.starts_with(':').then_some(protocol)
}

/// The name without `file:`, as QEMU's file driver takes it: where the rest would be taken for another protocol, a `./` says
/// that it is a file.
fn strip_file(name: &str) -> String {
    match name.strip_prefix("file:") {
        Some(rest) if protocol_of(rest).is_some() => format!("./{rest}"),
        Some(rest) => rest.to_owned(),
        None => name.to_owned(),
    }
}

impl Node {
    /// A name, with the format that `-f` gives.
    pub fn named(name: &str, format: Option<&str>) -> Result<Self, String> {
        if let Some(json) = name.strip_prefix("json:") {
            let mut tree = json_tree(json)?;
            if let Some(format) = format {
                tree.set("driver", format);
            }
            return Self::from_tree(&tree);
        }
        let mut node = Self {
            driver: format.map(str::to_owned),
            ..Self::default()
        };
        if let Some(format) = format
            && !is_driver(format)
        {
            return Err(unknown_driver(format));
        }
        match protocol_of(name) {
            None => {}
            Some("file") => {}
            Some(protocol) if FILES.contains(&protocol) => {
                node.protocol = Some(protocol.to_owned());
            }
            Some(protocol) if PROTOCOLS.contains(&protocol) => return Err(unknown_driver(protocol)),
            Some(protocol) => return Err(format!("Unknown protocol '{protocol}'")),
        }
        if name.is_empty() {
            return Err("The 'file' block driver requires a file name".to_owned());
        }
        let stripped = match &node.protocol {
            Some(protocol) => name
                .strip_prefix(protocol.as_str())
                .and_then(|name| name.strip_prefix(':'))
                .unwrap_or(name)
                .to_owned(),
            None => strip_file(name),
        };
        node.filename = stripped;
        if let Some(format) = format
            && FILES.contains(&format)
        {
            node.bare = true;
            node.protocol = Some(format.to_owned());
            node.driver = None;
        } else if let Some(format) = format
            && FILTERS.contains(&format)
        {
            node.filters.push(format.to_owned());
            node.driver = None;
            node.bare = true;
        }
        Ok(node)
    }

    /// What `--image-opts` says.
    pub fn from_options(text: &str) -> Result<Self, String> {
        let mut tree = Object::new();
        // A word alone in the first place is a node's name.
        let first = text.split(',').next().unwrap_or_default();
        let text = match first.contains('=') {
            true => text.to_owned(),
            false => format!("file={text}"),
        };
        for (key, value) in keyval::parse(&text) {
            keyval::place(&mut tree, &key, Value::Text(value));
        }
        Self::from_tree(&tree)
    }

    /// A tree of options.
    pub fn from_tree(tree: &Object) -> Result<Self, String> {
        let mut tree = spread(tree);
        let shown = tree.clone();
        let driver = text(&tree, "driver");
        let mut node = Self {
            read_only: flag(&tree, "read-only")?,
            force_share: flag(&tree, "force-share")?,
            ..Self::default()
        };
        if let Some(driver) = &driver {
            if FILES.contains(&driver.as_str()) {
                node.file(&mut tree)?;
                node.bare = true;
                return Ok(node);
            }
            if FILTERS.contains(&driver.as_str()) {
                return node.filter(driver, &mut tree);
            }
            if !is_driver(driver) {
                return Err(unknown_driver(driver));
            }
            if OTHER_DRIVERS.contains(&driver.as_str()) {
                return Err(unknown_driver(driver));
            }
        }
        let Some(file) = tree.take("file") else {
            return Err(match driver {
                None => "Must specify either driver or file".to_owned(),
                Some(_) => "A block device must be specified for \"file\"".to_owned(),
            });
        };
        let file = match file {
            Value::Object(file) => file,
            Value::Text(name) => return Err(format!("Cannot find device='{name}' nor node-name='{name}'")),
            _ => return Err("A block device must be specified for \"file\"".to_owned()),
        };
        let mut long = node.over(file)?;
        node.driver = driver;
        for key in ["offset", "size"] {
            if let Some(value) = tree.take(key) {
                if node.driver.as_deref() != Some("raw") {
                    return Err(unsupported(node.driver.as_deref().unwrap_or("raw"), key));
                }
                long = true;
                let bytes = bytes(key, &value)?;
                match key {
                    "offset" => node.offset = Some(bytes),
                    _ => node.size = Some(bytes),
                }
            }
        }
        match tree.take("backing") {
            None => {}
            Some(Value::Null) => node.backing = Backing::Nothing,
            Some(Value::Text(name)) if name.is_empty() => {
                node.deprecated =
                    Some("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
                node.backing = Backing::Nothing;
            }
            Some(Value::Text(name)) => {
                return Err(format!("Cannot find device='{name}' nor node-name='{name}'"));
            }
            Some(Value::Object(backing)) => {
                let only_driver = backing.members().all(|(key, _)| key == "driver");
                node.backing = match backing.text("driver") {
                    Some(driver) if only_driver => Backing::Format(driver.to_owned()),
                    _ => Backing::Node(Box::new(Self::from_tree(&backing)?)),
                };
            }
            Some(_) => return Err("Invalid parameter type for 'backing', expected: object".to_owned()),
        }
        if let Some(Value::Object(data_file)) = tree.take("data-file") {
            node.data_file = Some(Box::new(Self::from_tree(&with_driver(data_file))?));
        }
        let known: &[&[&str]] = match node.driver.as_deref() {
            Some("qcow2") => &[GENERIC, QCOW2, &["encrypt"]],
            _ => &[GENERIC],
        };
        if let Some((key, _)) = tree
            .members()
            .find(|(key, _)| !known.iter().any(|known| known.contains(key)))
        {
            return Err(unsupported(node.driver.as_deref().unwrap_or("raw"), key));
        }
        if long {
            node.long_name = Some(format!("json:{}", Value::from(named_tree(shown)).to_json()));
        }
        Ok(node)
    }

    /// The file, or the raw node over it, that an image is in. Tells whether the name alone no longer says which.
    fn over(&mut self, mut file: Object) -> Result<bool, String> {
        match text(&file, "driver").as_deref() {
            Some("raw") => {
                let inner = Self::from_tree(&file)?;
                self.filename = inner.filename;
                self.protocol = inner.protocol;
                (self.offset, self.size) = (inner.offset, inner.size);
                Ok(true)
            }
            Some(driver) if FILTERS.contains(&driver) => {
                let driver = driver.to_owned();
                let inner = Self::default().filter(&driver, &mut file)?;
                *self = Self {
                    read_only: self.read_only,
                    force_share: self.force_share,
                    ..inner
                };
                self.bare = false;
                Ok(true)
            }
            _ => {
                self.file(&mut file)?;
                Ok(false)
            }
        }
    }

    fn filter(mut self, driver: &str, tree: &mut Object) -> Result<Self, String> {
        if driver == "throttle" && tree.get("throttle-group").is_none() {
            return Err("Please specify a throttle group".to_owned());
        }
        let Some(Value::Object(file)) = tree.take("file") else {
            return Err("A block device must be specified for \"file\"".to_owned());
        };
        let inner = Self::from_tree(&with_driver(file))?;
        if driver == "compress" && inner.driver.as_deref() != Some("qcow2") {
            let under = inner.driver.clone().unwrap_or_else(|| "file".to_owned());
            return Err(format!(
                "Compression is not supported for underlying format: {under}"
            ));
        }
        let read_only = self.read_only;
        self = inner;
        self.read_only = self.read_only.or(read_only);
        self.filters.insert(0, driver.to_owned());
        Ok(self)
    }

    /// A file by its options.
    fn file(&mut self, tree: &mut Object) -> Result<(), String> {
        let driver = text(tree, "driver");
        if let Some(driver) = &driver
            && !FILES.contains(&driver.as_str())
        {
            return Err(unknown_driver(driver));
        }
        let name = match tree.take("filename") {
            Some(Value::Text(name)) if !name.is_empty() => name,
            _ => {
                let driver = driver.as_deref().unwrap_or("file");
                return Err(format!("The '{driver}' block driver requires a file name"));
            }
        };
        if let Some((key, _)) = tree
            .members()
            .find(|(key, _)| !GENERIC.contains(key) && !FILE.contains(key))
        {
            let driver = driver.as_deref().unwrap_or("file");
            return Err(format!(
                "Block protocol '{driver}' doesn't support the option '{key}'"
            ));
        }
        if driver.is_none() {
            let inner = Self::named(&name, None)?;
            self.filename = inner.filename;
            self.protocol = inner.protocol;
        } else {
            self.filename = name;
            self.protocol = driver;
        }
        Ok(())
    }

    /// The name by which QEMU shows it.
    pub fn shown(&self) -> String {
        self.long_name.clone().unwrap_or_else(|| self.filename.clone())
    }
}

/// A file below a filter, which is a file where nothing else is said.
fn with_driver(mut tree: Object) -> Object {
    if tree.get("driver").is_none() && tree.get("file").is_none() {
        tree.set("driver", "file");
    }
    tree
}

fn unsupported(driver: &str, key: &str) -> String {
    format!("Block format '{driver}' does not support the option '{key}'")
}

fn text(tree: &Object, key: &str) -> Option<String> {
    tree.text(key).map(str::to_owned)
}

fn flag(tree: &Object, key: &str) -> Result<Option<bool>, String> {
    match tree.get(key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(Value::Text(text)) => keyval::on_off(key, text).map(Some),
        Some(_) => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

fn bytes(key: &str, value: &Value) -> Result<u64, String> {
    match value {
        Value::Number(number) => u64::try_from(*number)
            .map_err(|_| format!("Value '{number}' is out of range for parameter '{key}'")),
        Value::Text(text) => size::parse(text).map_err(|_| keyval::not_a_size(key)),
        _ => Err(keyval::not_a_size(key)),
    }
}

/// Members whose names have dots, put where the dots say.
fn spread(tree: &Object) -> Object {
    let mut spread = Object::new();
    for (key, value) in tree.members() {
        match value {
            Value::Object(inner) => {
                for (inner_key, value) in self::spread(inner).members() {
                    keyval::place(&mut spread, &format!("{key}.{inner_key}"), value.clone());
                }
            }
            value => keyval::place(&mut spread, key, value.clone()),
        }
    }
    spread
}

/// The tree as QEMU names an image by it: every file says its driver.
fn named_tree(mut tree: Object) -> Object {
    if let Some(Value::Object(file)) = tree.take("file") {
        tree.set("file", named_tree(file));
    } else if tree.get("filename").is_some() && tree.get("driver").is_none() {
        tree.set("driver", "file");
    }
    for key in [
        "node-name",
        "read-only",
        "auto-read-only",
        "discard",
        "detect-zeroes",
        "force-share",
        "cache",
    ] {
        tree.take(key);
    }
    tree
}

/// What is behind `json:`.
fn json_tree(text: &str) -> Result<Object, String> {
    let wrong = |what: &str| format!("Could not parse the JSON options: {what}");
    if text.trim().is_empty() {
        return Err(wrong("Expecting a JSON value"));
    }
    let quoted = double_quoted(text);
    let mut values = serde_json::Deserializer::from_str(&quoted).into_iter::<Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) if error.is_eof() => return Err(wrong("JSON parse error, premature EOI")),
        Some(Err(error)) if error.to_string().starts_with(DUPLICATE) => {
            return Err(wrong("JSON parse error, duplicate key"));
        }
        _ => {
            let keyword = bare_word(&quoted);
            return Err(wrong(&format!("JSON parse error, invalid keyword '{keyword}'")));
        }
    };
    if !quoted
        .get(values.byte_offset()..)
        .unwrap_or_default()
        .trim()
        .is_empty()
    {
        return Err(wrong("Expecting at most one JSON value"));
    }
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("Invalid JSON object given".to_owned()),
    }
}

/// The first word outside of strings that means nothing.
fn bare_word(text: &str) -> &str {
    let outside = text.split('"').step_by(2);
    let mut words = outside.flat_map(|part| part.split(|c: char| !c.is_ascii_lowercase() && c != '-'));
    words
        .find(|word| !word.is_empty() && !["true", "false", "null"].contains(word))
        .unwrap_or_default()
}

/// JSON whose strings may be in single quotes, with double ones.
fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        match quote {
            None => {
                if c == '"' || c == '\'' {
                    quote = Some(c);
                    out.push('"');
                } else {
                    out.push(c);
                }
            }
            Some(_) if escaped => {
                escaped = false;
                if c == '\'' {
                    out.pop();
                }
                out.push(c);
            }
            Some(open) => {
                escaped = c == '\\';
                if c == open {
                    quote = None;
                    out.push('"');
                } else if c == '"' {
                    out.push_str("\\\"");
                } else {
                    out.push(c);
                }
            }
        }
    }
    out
}

/// A recorded name as seen from the image that records it: beside it, unless it is from the root or has a protocol.
pub fn beside(overlay: &str, name: &str) -> String {
    if name.starts_with('/') || protocol_of(name).is_some() {
        return strip_file(name);
    }
    let overlay = strip_file(overlay);
    match overlay.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}
