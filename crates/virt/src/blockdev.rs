//! The nodes that libvirt gives QEMU for a disk: names, order, keys and values as libvirt 11.3 has them, or 9.0.
//!
//! Per layer, from the base up: the data file, the storage node, a slice node where the layer is a part of an object, and
//! a format node. Since QEMU 9 libvirt gives a plain raw layer no format node; [`Generation::V9`] is the old shape. What
//! is above refers to a layer by its uppermost node.

use crate::generation::Generation;
use crate::model::{CacheMode, Details, Device, Discard, Encryption, ThrottleGroup, Zeroes};
use crate::numbered::{Running, RunningLayer, RunningStore};
use catena::reference::{Location, Network, Protocol, Source};
use catena_format::Format;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The longest name of a node that QEMU takes.
const MAX_NODE_NAME: usize = 31;
/// Where libvirt looks for TLS certificates unless it is told otherwise.
const TLS_DIR: &str = "/etc/pki/qemu";
/// Where the helper for reservations listens that libvirt does not run itself, unless it is told otherwise.
const PR_HELPER: &str = "/run/qemu-pr-helper.sock";
/// How much QEMU says of what it does on a Gluster server, unless libvirt is told otherwise.
const GLUSTER_DEBUG: u32 = 4;
/// What is asked of a CD-ROM drive of the host's: the number of its sort of device.
const CDROM_MAJOR: u64 = 11;

/// What is said beside the disk.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whose shapes.
    pub generation: Generation,
    /// Files that hold secrets, by the uuid or usage of libvirt's.
    pub secrets: BTreeMap<String, PathBuf>,
}

/// Nodes and what they need, in the order in which QEMU must get them.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Secrets, TLS credentials, helpers for reservations, throttle groups. Those of one name are one, whichever disks
    /// have them.
    pub objects: Vec<Value>,
    /// The nodes.
    pub nodes: Vec<Value>,
    /// The node that the guest's device is attached to.
    pub drive: String,
}

/// Why a disk has no nodes: a sentence, libvirt's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BlockdevError(String);

type Result<T> = std::result::Result<T, BlockdevError>;
type Node = Map<String, Value>;

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(BlockdevError(message.into()))
}

/// The nodes of a disk.
///
/// # Errors
///
/// What libvirt refuses when it starts a guest; a secret that nobody gave; a throttle group that the document does not have.
pub fn tree(disk: &Running<'_>, options: &Options) -> Result<Tree> {
    let mut builder = Builder::new(disk, options);
    let mut below = match disk.terminated {
        true => Below::Nothing,
        false => Below::Unknown,
    };
    for (number, layer) in disk.layers.iter().enumerate().rev() {
        let name = builder.layer(layer, number == 0, &below)?;
        below = Below::Node(name);
    }
    let Below::Node(mut drive) = below else {
        return refuse(format!("'{}' has no layers", disk.disk.name()));
    };
    if disk.disk.driver.copy_on_read {
        let name = format!("libvirt-CoR-{}", disk.disk.name());
        builder.tree.nodes.push(json!({
            "driver": "copy-on-read", "node-name": name, "file": drive, "discard": "unmap",
        }));
        drive = name;
    }
    for filter in &disk.filters {
        let Some(group) = filter.group else {
            return refuse(format!("throttle group '{}' not found", filter.name));
        };
        if !group.limits.is_empty() {
            builder.object(group.object());
        }
        let name = format!("libvirt-{}-filter", filter.index);
        builder.tree.nodes.push(json!({
            "driver": "throttle", "node-name": name, "throttle-group": ThrottleGroup::id(filter.name), "file": drive,
        }));
        drive = name;
    }
    for name in builder.tree.nodes.iter().filter_map(node_name) {
        if name.len() > MAX_NODE_NAME {
            return refuse(format!("node-name '{name}' too long for qemu"));
        }
    }
    builder.tree.drive = drive;
    Ok(builder.tree)
}

fn node_name(node: &Value) -> Option<&str> {
    node.get("node-name")?.as_str()
}

impl Tree {
    /// The nodes as one, each in the place where its name stood: what follows `json:` in a file name.
    ///
    /// # Errors
    ///
    /// Where a node needs an object, which a file name cannot hold.
    pub fn nested(&self) -> Result<Value> {
        if let Some(object) = self.objects.first() {
            let id = object.get("id").and_then(Value::as_str).unwrap_or_default();
            return refuse(format!(
                "the nodes need the object '{id}', which a file name cannot hold"
            ));
        }
        let mut done: BTreeMap<&str, Value> = BTreeMap::new();
        // Each refers to earlier ones alone.
        for node in &self.nodes {
            let (Some(name), Some(fields)) = (node_name(node), node.as_object()) else {
                continue;
            };
            let mut inner = Map::new();
            for (key, value) in fields {
                // Whoever opens the name says whether it is for writing.
                if key == "node-name" || (key == "read-only" && *value == Value::Bool(false)) {
                    continue;
                }
                let child = match (key.as_str(), value.as_str()) {
                    ("backing", Some(child)) => done.remove(child).map(in_a_format),
                    ("file" | "data-file", Some(child)) => done.remove(child),
                    _ => None,
                };
                inner.insert(key.clone(), child.unwrap_or_else(|| value.clone()));
            }
            done.insert(name, Value::Object(inner));
        }
        done.remove(self.drive.as_str())
            .ok_or_else(|| BlockdevError("the disk has no nodes".to_owned()))
    }
}

/// A backing node in a file name must be of a format: QEMU adds the recorded one to what has none.
fn in_a_format(node: Value) -> Value {
    if node.get("file").is_some() {
        node
    } else {
        json!({"driver": "raw", "read-only": true, "file": node})
    }
}

/// What is below a layer.
enum Below {
    /// Nothing.
    Nothing,
    /// Something, or not: QEMU follows the header by itself.
    Unknown,
    /// This node.
    Node(String),
}

/// What a node is among those of its layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The uppermost, to which others refer.
    Effective,
    /// Below another of the same layer.
    Under,
}

struct Builder<'a> {
    disk: &'a Running<'a>,
    options: &'a Options,
    tree: Tree,
    cache: Option<Value>,
    discard: Option<&'static str>,
    zeroes: Option<&'static str>,
}

impl<'a> Builder<'a> {
    fn new(disk: &'a Running<'a>, options: &'a Options) -> Self {
        let driver = &disk.disk.driver;
        let cache = match driver.cache {
            CacheMode::Default if disk.disk.shareable && !disk.disk.readonly => CacheMode::None,
            cache => cache,
        };
        let cache = match cache {
            CacheMode::Default => None,
            CacheMode::None | CacheMode::Directsync => Some((true, false)),
            CacheMode::Writethrough | CacheMode::Writeback => Some((false, false)),
            CacheMode::Unsafe => Some((false, true)),
        };
        let discard = driver.discard.map(|discard| match discard {
            Discard::Ignore => "ignore",
            Discard::Unmap => "unmap",
        });
        let zeroes = driver.detect_zeroes.map(|zeroes| match zeroes {
            Zeroes::Off => "off",
            Zeroes::Unmap if discard == Some("unmap") => "unmap",
            Zeroes::On | Zeroes::Unmap => "on",
        });
        Self {
            disk,
            options,
            tree: Tree::default(),
            cache: cache.map(|(direct, no_flush)| json!({"direct": direct, "no-flush": no_flush})),
            discard,
            zeroes,
        }
    }

    fn is_old(&self) -> bool {
        self.options.generation == Generation::V9
    }

    /// Adds a layer's nodes, and gives the name of the uppermost.
    fn layer(&mut self, layer: &RunningLayer, top: bool, below: &Below) -> Result<String> {
        let store = match &layer.store {
            // 9.0 knows no data files.
            Some(store) if !self.is_old() => Some(self.store(store, top)?),
            _ => None,
        };
        let readonly = !top || self.disk.disk.readonly;
        let index = layer.index;
        let plain = layer.format == Format::Raw && layer.encryption().is_none();
        let with_format = self.is_old() || !plain;
        let old_slice = self.is_old() && plain;
        let slice = layer.source.slice.filter(|_| !old_slice);
        let storage = format!("libvirt-{index}-storage");
        let mut role = if with_format || slice.is_some() {
            Role::Under
        } else {
            Role::Effective
        };
        let uppermost = if with_format {
            format!("libvirt-{index}-format")
        } else {
            storage.clone()
        };
        let node = self.storage(&layer.source, &layer.details, (&storage, &uppermost))?;
        self.push(node, role, readonly, top);
        let mut effective = storage;
        if let Some(slice) = slice {
            role = if with_format { Role::Under } else { Role::Effective };
            let name = format!("libvirt-{index}-slice-sto");
            let mut node = Node::new();
            node.insert("driver".into(), "raw".into());
            if self.is_old() {
                node.insert("node-name".into(), name.as_str().into());
            }
            node.insert("file".into(), effective.into());
            node.insert("offset".into(), slice.offset.into());
            node.insert("size".into(), slice.size.unwrap_or_default().into());
            if !self.is_old() {
                node.insert("node-name".into(), name.as_str().into());
            }
            self.push(node, role, readonly, top);
            effective = name;
        }
        if with_format {
            return self.format(layer, (top, readonly), &effective, store, below);
        }
        Ok(effective)
    }

    /// A data file: raw, and always without a format node.
    fn store(&mut self, store: &RunningStore, top: bool) -> Result<String> {
        let name = format!("libvirt-{}-storage", store.index);
        let node = self.storage(&store.source, &store.details, (&name, &name))?;
        self.push(node, Role::Effective, store.readonly, top);
        Ok(name)
    }

    /// Adds a protocol or slice node, with what all such nodes have.
    fn push(&mut self, mut node: Node, role: Role, readonly: bool, top: bool) {
        let cache = self.cache.clone().map(|cache| ("cache".to_owned(), cache));
        if self.is_old() && node.get("driver") != Some(&json!("raw")) {
            node.extend(cache.clone());
        }
        match role {
            Role::Under => {
                node.insert("auto-read-only".into(), true.into());
                node.insert("discard".into(), "unmap".into());
            }
            Role::Effective => {
                node.insert("read-only".into(), readonly.into());
                node.extend(self.discard.map(|discard| ("discard".to_owned(), discard.into())));
                let zeroes = self.zeroes.filter(|_| top);
                node.extend(zeroes.map(|zeroes| ("detect-zeroes".to_owned(), zeroes.into())));
            }
        }
        if !self.is_old() {
            node.extend(cache);
        }
        self.tree.nodes.push(Value::Object(node));
    }

    fn format(
        &mut self,
        layer: &RunningLayer,
        (top, readonly): (bool, bool),
        file: &str,
        store: Option<String>,
        below: &Below,
    ) -> Result<String> {
        let name = format!("libvirt-{}-format", layer.index);
        let mut node = Node::new();
        node.insert("node-name".into(), name.as_str().into());
        node.insert("read-only".into(), readonly.into());
        node.extend(self.discard.map(|discard| ("discard".to_owned(), discard.into())));
        let zeroes = self.zeroes.filter(|_| top);
        node.extend(zeroes.map(|zeroes| ("detect-zeroes".to_owned(), zeroes.into())));
        node.extend(self.cache.clone().map(|cache| ("cache".to_owned(), cache)));
        let secret = match layer.encryption() {
            Some(encryption) => {
                let id = format!("libvirt-{}-format-encryption-secret0", layer.index);
                let secret = encryption.secrets.first();
                self.secret(&id, secret.map(secret_name), "raw")?;
                Some((encryption.format.clone(), id))
            }
            None => None,
        };
        let driver = match layer.format {
            Format::Raw if secret.is_some() => "luks",
            Format::Raw | Format::Fat => "raw",
            Format::Luks => {
                return refuse(format!(
                    "'{}' is a LUKS container, and no <encryption> in XML names its secret",
                    layer.source
                ));
            }
            Format::Iso | Format::Dir | Format::Cow => {
                return refuse(format!("mishandled storage format '{}'", layer.format.libvirt()));
            }
            format => format.as_str(),
        };
        node.insert("driver".into(), driver.into());
        match (layer.format, secret) {
            (Format::Raw, Some((_, id))) => {
                node.insert("key-secret".into(), id.into());
            }
            (Format::Qcow2 | Format::Qcow, Some((format, id))) => {
                node.insert("encrypt".into(), json!({"format": format, "key-secret": id}));
            }
            _ => {}
        }
        if let (Format::Raw, Some(slice), true) = (layer.format, layer.source.slice, self.is_old())
            && layer.encryption().is_none()
        {
            node.insert("offset".into(), slice.offset.into());
            node.insert("size".into(), slice.size.unwrap_or_default().into());
        }
        if layer.format == Format::Qcow2 {
            node.extend(
                layer
                    .cache_size
                    .map(|bytes| ("cache-size".to_owned(), bytes.into())),
            );
            let unref = self.disk.disk.driver.discard_no_unref;
            node.extend(unref.map(|unref| ("discard-no-unref".to_owned(), unref.into())));
            node.extend(store.map(|store| ("data-file".to_owned(), store.into())));
        }
        node.insert("file".into(), file.into());
        let has_backing = matches!(
            layer.format,
            Format::Qcow2 | Format::Qcow | Format::Qed | Format::Vmdk | Format::Cow
        );
        match below {
            Below::Node(_) if !has_backing => {
                return refuse(format!(
                    "storage format '{}' does not support backing store",
                    layer.format.libvirt()
                ));
            }
            Below::Node(below) => {
                node.insert("backing".into(), below.as_str().into());
            }
            Below::Nothing if has_backing => {
                node.insert("backing".into(), Value::Null);
            }
            Below::Nothing | Below::Unknown => {}
        }
        self.tree.nodes.push(Value::Object(node));
        Ok(name)
    }

    /// A protocol node as far as its place and its name, which is followed by that of the format node over it, if there
    /// is one.
    fn storage(
        &mut self,
        source: &Source,
        details: &Details,
        (name, uppermost): (&str, &str),
    ) -> Result<Node> {
        let mut shown = source.clone();
        let mut cookies = Vec::new();
        if let Location::Network(network) = &mut shown.location {
            cookies = std::mem::take(&mut network.cookies);
        }
        let properties = shown
            .qemu_properties()
            .map_err(|error| BlockdevError(error.to_string()))?;
        let Value::Object(mut node) = properties else {
            return refuse("the place has no properties");
        };
        if let Location::File(_) | Location::Block(_) = &source.location {
            let io = self.disk.disk.driver.io.as_deref().filter(|io| *io != "default");
            node.extend(io.map(|io| ("aio".to_owned(), io.into())));
        }
        if let Location::Dir(_) = &source.location {
            node.insert("floppy".into(), (self.disk.disk.device == Device::Floppy).into());
            node.insert("rw".into(), false.into());
        }
        if let Location::Block(path) = &source.location
            && self.disk.disk.device == Device::Cdrom
            && is_cdrom(path)
        {
            node.insert("driver".into(), "host_cdrom".into());
        }
        if let Some(reservations) = &details.reservations {
            let (id, path) = match &reservations.socket {
                Some(path) => (format!("pr-helper-{name}"), path.as_str()),
                None => ("pr-helper0".to_owned(), PR_HELPER),
            };
            self.object(json!({"qom-type": "pr-manager-helper", "id": id, "path": path}));
            node.insert("pr-manager".into(), id.into());
        }
        if let Some(network) = source.network() {
            if let Some(encryption) = &details.encryption
                && encryption.engine.as_deref() == Some("librbd")
            {
                node.insert("encrypt".into(), self.of_cluster(encryption, uppermost)?);
            }
            self.network(network, details, &cookies, name, &mut node)?;
        }
        node.insert("node-name".into(), name.into());
        Ok(node)
    }

    /// What a server needs to know of us.
    fn network(
        &mut self,
        network: &Network,
        details: &Details,
        cookies: &[(String, String)],
        name: &str,
        node: &mut Node,
    ) -> Result<()> {
        // In libvirt's order these stand behind who we are.
        let [verify, timeout, readahead] =
            ["sslverify", "timeout", "readahead"].map(|key| node.shift_remove(key));
        let mut put = |key: &str, value: Value| {
            node.insert(key.to_owned(), value);
        };
        if details.tls == Some(true) {
            let id = format!("obj{name}_tls0");
            self.object(json!({
                "qom-type": "tls-creds-x509", "id": id, "dir": TLS_DIR, "endpoint": "client", "verify-peer": true,
            }));
            put("tls-creds", id.into());
            if let Some(host) = &details.tls_hostname {
                put("tls-hostname", host.as_str().into());
            }
        }
        if network.protocol == Protocol::Gluster {
            put("debug", GLUSTER_DEBUG.into());
        }
        if network.protocol == Protocol::Nbd && network.reconnect_delay > 0 {
            put("reconnect-delay", network.reconnect_delay.into());
        }
        if let Some(auth) = &details.auth {
            let id = format!("{name}-auth-secret0");
            let (user, secret) = match network.protocol {
                Protocol::Rbd => ("user", "key-secret"),
                Protocol::Iscsi => ("user", "password-secret"),
                Protocol::Http | Protocol::Https | Protocol::Ftp | Protocol::Ftps => {
                    ("username", "password-secret")
                }
                protocol => return refuse(format!("'{protocol}' takes no <auth>")),
            };
            put(user, auth.user.as_str().into());
            let format = if network.protocol == Protocol::Rbd {
                put("auth-client-required", json!(["cephx", "none"]));
                "base64"
            } else {
                "raw"
            };
            put(secret, id.as_str().into());
            self.secret(&id, Some(secret_name(&auth.secret)), format)?;
        }
        if let Some(iqn) = &details.initiator {
            put("initiator-name", iqn.as_str().into());
        }
        if let Some(verify) = verify {
            put("sslverify", verify);
        }
        if !cookies.is_empty() {
            let id = format!("{name}-httpcookie-secret0");
            let cookies: Vec<_> = cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            self.object(json!({"qom-type": "secret", "id": id, "data": cookies.join("; ")}));
            put("cookie-secret", id.into());
        }
        for (key, value) in [("timeout", timeout), ("readahead", readahead)] {
            if let Some(value) = value {
                put(key, value);
            }
        }
        Ok(())
    }

    /// The encryption that a Ceph cluster undoes: of the image, and of those it was made from.
    fn of_cluster(&mut self, encryption: &Encryption, base: &str) -> Result<Value> {
        let mut encrypt = Value::Null;
        for (number, secret) in encryption.secrets.iter().enumerate().rev() {
            let id = format!("{base}-encryption-secret{number}");
            self.secret(&id, Some(secret_name(secret)), "raw")?;
            let mut outer = Node::new();
            outer.insert("format".into(), encryption.format.as_str().into());
            outer.insert("key-secret".into(), id.into());
            if !encrypt.is_null() {
                outer.insert("parent".into(), encrypt);
            }
            encrypt = Value::Object(outer);
        }
        Ok(encrypt)
    }

    /// Adds an object, once.
    fn object(&mut self, object: Value) {
        if !self.tree.objects.contains(&object) {
            self.tree.objects.push(object);
        }
    }

    /// An object that holds a secret, which QEMU reads from a file.
    fn secret(&mut self, id: &str, name: Option<&str>, format: &str) -> Result<()> {
        let Some(name) = name else {
            return refuse(format!(
                "the encryption of '{}' names no secret",
                self.disk.disk.name()
            ));
        };
        let Some(file) = self.options.secrets.get(name) else {
            return refuse(format!(
                "the secret '{name}' of '{}' is libvirt's; a file that holds it can be given with --secret {name}=FILE",
                self.disk.disk.name()
            ));
        };
        let file = file
            .to_str()
            .ok_or_else(|| BlockdevError(format!("the name '{}' is not text", file.display())))?;
        self.tree
            .objects
            .push(json!({"qom-type": "secret", "id": id, "file": file, "format": format}));
        Ok(())
    }
}

/// Whether it is a CD-ROM drive of the host's.
fn is_cdrom(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|metadata| (metadata.rdev() >> 8) & 0xfff == CDROM_MAJOR)
}

fn secret_name(secret: &crate::model::SecretUse) -> &str {
    match secret {
        crate::model::SecretUse::Uuid(name) | crate::model::SecretUse::Usage(name) => name,
    }
}
