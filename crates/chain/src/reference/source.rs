//! Where a layer lives: libvirt's storage source reduced to location.
//!
//! A source is a value. It opens nothing, and says nothing about whether anything is there.

use super::protocol::{Protocol, Transport};
use catena_format::Format;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

/// Where a layer lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The object.
    pub location: Location,
    /// The part of the object that is the layer; all of it where `None`.
    pub slice: Option<Slice>,
    /// The format a `json:` reference wraps around the object, where it names one.
    pub format: Option<Format>,
}

/// The object a layer lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// A file by name. A recorded name may turn out to be a block device or a folder once it is looked at.
    File(PathBuf),
    /// A block device by name.
    Block(PathBuf),
    /// A folder shown as a FAT disk.
    Dir(PathBuf),
    /// An object of a network server.
    Network(Box<Network>),
    /// A namespace of an NVMe controller driven from user space.
    Nvme(Nvme),
}

/// An object of a network server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// The object's name: path, export, image, `target/lun`. `None` for an NBD server's default export.
    pub name: Option<String>,
    /// Gluster volume or Ceph pool.
    pub volume: Option<String>,
    /// The servers, in order.
    pub hosts: Vec<Host>,
    /// The query of an http or https URL, not decoded.
    pub query: Option<String>,
    /// Ceph snapshot.
    pub snapshot: Option<String>,
    /// Ceph configuration file.
    pub config_file: Option<String>,
    /// Whether the server's certificate is verified, where the reference says.
    pub ssl_verify: Option<bool>,
    /// Cookies, name and value, quotes kept.
    pub cookies: Vec<(String, String)>,
    /// Read-ahead in bytes; 0 is unset.
    pub readahead: u64,
    /// Timeout in seconds; 0 is unset.
    pub timeout: u64,
    /// NBD reconnect delay in seconds; 0 is unset.
    pub reconnect_delay: u64,
    /// Who to be on an SSH server, and how to trust it.
    pub ssh: Ssh,
    /// NFS user, a name or `+` and a number.
    pub nfs_user: Option<String>,
    /// NFS group, a name or `+` and a number.
    pub nfs_group: Option<String>,
}

impl Network {
    /// An object with nothing known but the protocol.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            name: None,
            volume: None,
            hosts: Vec::new(),
            query: None,
            snapshot: None,
            config_file: None,
            ssl_verify: None,
            cookies: Vec::new(),
            readahead: 0,
            timeout: 0,
            reconnect_delay: 0,
            ssh: Ssh::default(),
            nfs_user: None,
            nfs_group: None,
        }
    }

    /// The name as libvirt prints it: with the volume before it where there is one.
    pub fn full_name(&self) -> Option<String> {
        match (&self.volume, &self.name) {
            (Some(volume), name) => Some(format!("{volume}/{}", name.as_deref().unwrap_or_default())),
            (None, name) => name.clone(),
        }
    }
}

/// Details of an SSH connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ssh {
    /// The user. libvirt keeps the one of a recorded string to itself and does not print it.
    pub user: Option<String>,
    /// Whether the recorded string switches the check of the host key off.
    pub host_key_unchecked: bool,
    /// File of known host keys.
    pub known_hosts: Option<String>,
    /// File of the private key.
    pub keyfile: Option<String>,
    /// Socket of the key agent.
    pub agent: Option<String>,
}

/// A server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// How it is reached.
    pub transport: Transport,
    /// Name or address, IPv6 without brackets (but an iSCSI portal keeps them, as in libvirt).
    pub name: Option<String>,
    /// Port; filled in from [`Protocol::default_port`] by the parser.
    pub port: Option<u16>,
    /// Path of the Unix socket.
    pub socket: Option<String>,
}

impl Host {
    /// A TCP server.
    pub fn tcp(name: impl Into<String>, port: Option<u16>) -> Self {
        Self {
            name: Some(name.into()),
            port,
            ..Self::default()
        }
    }

    /// A Unix socket.
    pub fn unix(socket: impl Into<String>) -> Self {
        Self {
            transport: Transport::Unix,
            socket: Some(socket.into()),
            ..Self::default()
        }
    }
}

/// The address of an NVMe namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nvme {
    /// PCI domain.
    pub domain: u32,
    /// PCI bus.
    pub bus: u8,
    /// PCI slot, below 32.
    pub slot: u8,
    /// PCI function, below 8.
    pub function: u8,
    /// Namespace, from 1.
    pub namespace: u64,
}

impl Nvme {
    /// The PCI address as QEMU takes it, `0000:01:00.0`.
    pub fn device(&self) -> String {
        format!(
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.domain, self.bus, self.slot, self.function
        )
    }
}

/// A part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// First byte.
    pub offset: u64,
    /// Length in bytes; to the end of the object where `None`.
    pub size: Option<u64>,
}

impl From<Location> for Source {
    fn from(location: Location) -> Self {
        Self {
            location,
            slice: None,
            format: None,
        }
    }
}

impl From<Network> for Source {
    fn from(network: Network) -> Self {
        Location::Network(Box::new(network)).into()
    }
}

impl Source {
    /// A file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Location::File(path.into()).into()
    }

    /// A block device.
    pub fn block(path: impl Into<PathBuf>) -> Self {
        Location::Block(path.into()).into()
    }

    /// The name in this host's file system: of a file, a block device or a folder.
    pub fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::File(path) | Location::Block(path) | Location::Dir(path) => Some(path),
            Location::Network(_) | Location::Nvme(_) => None,
        }
    }

    /// The network object, where it is one.
    pub fn network(&self) -> Option<&Network> {
        match &self.location {
            Location::Network(network) => Some(network),
            _ => None,
        }
    }

    /// libvirt's word for the type: `file`, `block`, `dir`, `network`, `nvme`.
    pub fn type_name(&self) -> &'static str {
        match &self.location {
            Location::File(_) => "file",
            Location::Block(_) => "block",
            Location::Dir(_) => "dir",
            Location::Network(_) => "network",
            Location::Nvme(_) => "nvme",
        }
    }

    /// Whether libvirt takes both for the same place: type, path or name, volume, snapshot, protocol, hosts in
    /// order, NVMe address. Format, slice, query, cookies and the like are not compared.
    pub fn same_location(&self, other: &Self) -> bool {
        match (&self.location, &other.location) {
            (Location::Network(a), Location::Network(b)) => {
                a.protocol == b.protocol
                    && a.name == b.name
                    && a.volume == b.volume
                    && a.snapshot == b.snapshot
                    && a.hosts == b.hosts
            }
            (Location::Nvme(a), Location::Nvme(b)) => a == b,
            // As text: to the path type, `/a` equals `/./a`.
            _ => {
                self.type_name() == other.type_name()
                    && self.path().map(Path::as_os_str) == other.path().map(Path::as_os_str)
            }
        }
    }

    /// A string that two sources share when their text names the same bytes: for a set that detects loops.
    ///
    /// Compares more than [`Source::same_location`] does (slice and query tell objects apart) and is kinder to
    /// spelling (`//`, `/./`, the default port, the case of a host name). It does not look at the disk, so it does
    /// not see through links or `..`.
    pub fn key(&self) -> String {
        let mut key = match &self.location {
            Location::File(path) | Location::Block(path) | Location::Dir(path) => {
                // One spelling for the same file however it is typed, byte by byte.
                let mut plain = PathBuf::new();
                plain.extend(
                    path.components()
                        .filter(|component| !matches!(component, Component::CurDir)),
                );
                format!("path:{}", escaped(&plain))
            }
            Location::Nvme(nvme) => format!("nvme:{}/{}", nvme.device(), nvme.namespace),
            Location::Network(network) => network_key(network),
        };
        if let Some(slice) = self.slice {
            let size = slice
                .size
                .map_or_else(|| "end".to_owned(), |size| size.to_string());
            // A String takes whatever is written to it.
            let _ = write!(key, "[{}+{size}]", slice.offset);
        }
        key
    }

    /// The source as JSON: `type`, then what the type has, then `slice` and `format`. Absent values are left out,
    /// bytes of a name that are not UTF-8 are replaced.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("type".into(), self.type_name().into());
        match &self.location {
            Location::File(path) | Location::Block(path) | Location::Dir(path) => {
                map.insert("path".into(), path.to_string_lossy().into());
            }
            Location::Nvme(nvme) => {
                map.insert("device".into(), nvme.device().into());
                map.insert("namespace".into(), nvme.namespace.into());
            }
            Location::Network(network) => network_json(network, &mut map),
        }
        if let Some(slice) = self.slice {
            map.insert(
                "slice".into(),
                json!({"offset": slice.offset, "size": slice.size}),
            );
        }
        if let Some(format) = self.format {
            map.insert("format".into(), format.as_str().into());
        }
        Value::Object(map)
    }
}

impl serde::Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

fn escaped(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().escape_ascii().to_string()
}

fn network_key(network: &Network) -> String {
    let hosts: Vec<String> = network
        .hosts
        .iter()
        .map(|host| {
            let port = host.port.or_else(|| network.protocol.default_port());
            match host.transport {
                Transport::Unix => format!("unix={:?}", host.socket.as_deref().unwrap_or_default()),
                other => format!(
                    "{other}={:?}:{}",
                    host.name.as_deref().unwrap_or_default().to_ascii_lowercase(),
                    port.unwrap_or_default()
                ),
            }
        })
        .collect();
    format!(
        "{}:{}/{:?}?{:?}@{:?}#{:?}",
        network.protocol,
        hosts.join(","),
        network.full_name(),
        network.query,
        network.snapshot,
        network.config_file
    )
}

fn network_json(network: &Network, map: &mut Map<String, Value>) {
    fn put(map: &mut Map<String, Value>, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            map.insert(key.to_owned(), value.into());
        }
    }
    put(map, "protocol", Some(network.protocol.as_str()));
    put(map, "name", network.name.as_deref());
    put(map, "volume", network.volume.as_deref());
    let hosts = network.hosts.iter().map(|host| {
        let mut entry = Map::new();
        put(&mut entry, "transport", Some(host.transport.as_str()));
        put(&mut entry, "name", host.name.as_deref());
        if let Some(port) = host.port {
            entry.insert("port".into(), port.into());
        }
        put(&mut entry, "socket", host.socket.as_deref());
        Value::Object(entry)
    });
    map.insert("hosts".into(), hosts.collect());
    put(map, "query", network.query.as_deref());
    put(map, "snapshot", network.snapshot.as_deref());
    put(map, "config_file", network.config_file.as_deref());
    if let Some(verify) = network.ssl_verify {
        map.insert("ssl_verify".into(), verify.into());
    }
    if !network.cookies.is_empty() {
        // What they say may let somebody in.
        let cookies = network
            .cookies
            .iter()
            .map(|(name, _)| json!({"name": name, "value": "***"}));
        map.insert("cookies".into(), cookies.collect());
    }
    for (key, value) in [
        ("readahead", network.readahead),
        ("timeout", network.timeout),
        ("reconnect_delay", network.reconnect_delay),
    ] {
        if value != 0 {
            map.insert(key.into(), value.into());
        }
    }
    put(map, "ssh_user", network.ssh.user.as_deref());
    if network.ssh.host_key_unchecked {
        map.insert("ssh_host_key_unchecked".into(), true.into());
    }
    put(map, "ssh_known_hosts", network.ssh.known_hosts.as_deref());
    put(map, "ssh_keyfile", network.ssh.keyfile.as_deref());
    put(map, "ssh_agent", network.ssh.agent.as_deref());
    put(map, "nfs_user", network.nfs_user.as_deref());
    put(map, "nfs_group", network.nfs_group.as_deref());
}
