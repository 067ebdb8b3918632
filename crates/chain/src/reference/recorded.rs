//! A source written as a string that an overlay can record: a plain name, a URI or `json:`, as libvirt chooses.
//!
//! Credentials, TLS and caching are never written. Reading the string again gives the same location; a block device
//! comes back as a file, since a plain name does not say which it is.

use super::error::ReferenceError;
use super::names::looks_like_file;
use super::protocol::{Protocol, Transport};
use super::source::{Host, Location, Network, Source};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a URI's path escapes: everything but what may stand there.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/');

/// What a host name in a URI escapes.
const HOST: &AsciiSet = &PATH.add(b':').add(b'@').add(b'/');

impl Source {
    /// The string to record for this source. The inner format of a `json:` wrapper is not part of it: an overlay
    /// records the format beside the string.
    ///
    /// # Errors
    ///
    /// Where no string says it: a name that is not UTF-8, a protocol no hypervisor writes, a missing server.
    pub fn to_recorded(&self) -> Result<String, ReferenceError> {
        if let Some(slice) = self.slice {
            let mut raw = object(json!({"driver": "raw", "offset": slice.offset}));
            if let Some(size) = slice.size {
                raw.insert("size".into(), size.into());
            }
            raw.insert("file".into(), self.qemu_properties()?);
            return Ok(format!("json:{}", json!({"file": raw})));
        }
        let plain = match &self.location {
            Location::File(path) | Location::Block(path) => Some(plain_name(path)?),
            Location::Dir(path) => {
                let name = text(path)?;
                // QEMU takes what follows the last colon for the folder.
                (!name.contains(':') && !name.is_empty()).then(|| format!("fat:{name}"))
            }
            Location::Network(network) => uri(network),
            Location::Nvme(_) => None,
        };
        match plain {
            Some(plain) => Ok(plain),
            None => Ok(format!("json:{}", json!({"file": self.qemu_properties()?}))),
        }
    }

    /// QEMU's properties of the protocol node that reaches the object, the driver first. Slices are not part of it.
    ///
    /// # Errors
    ///
    /// As [`Source::to_recorded`].
    pub fn qemu_properties(&self) -> Result<Value, ReferenceError> {
        Ok(match &self.location {
            Location::File(path) => json!({"driver": "file", "filename": text(path)?}),
            Location::Block(path) => json!({"driver": "host_device", "filename": text(path)?}),
            Location::Dir(path) => json!({"driver": "vvfat", "dir": text(path)?, "floppy": false}),
            Location::Nvme(nvme) => {
                json!({"driver": "nvme", "device": nvme.device(), "namespace": nvme.namespace})
            }
            Location::Network(network) => Value::Object(network_properties(network)?),
        })
    }
}

fn unsupported(message: impl Into<String>) -> ReferenceError {
    ReferenceError::unsupported(message.into())
}

fn text(path: &Path) -> Result<&str, ReferenceError> {
    path.to_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| unsupported(format!("the name '{}' is empty or not UTF-8", path.display())))
}

/// A plain name that is read as one, whatever colons it holds.
fn plain_name(path: &Path) -> Result<String, ReferenceError> {
    let name = text(path)?;
    Ok(if looks_like_file(name) {
        name.to_owned()
    } else {
        format!("./{name}")
    })
}

/// The URI of an object on one TCP server that needs nothing a URI cannot say.
fn uri(network: &Network) -> Option<String> {
    let [host] = network.hosts.as_slice() else {
        return None;
    };
    let name = network.full_name();
    if !network.protocol.written_as_uri()
        || host.transport != Transport::Tcp
        || host.socket.is_some()
        || network.ssl_verify.is_some()
        || !network.cookies.is_empty()
        || network.readahead != 0
        || network.timeout != 0
        || network.reconnect_delay != 0
        // An empty export is not the same as none, and a query cannot hold everything.
        || (network.protocol == Protocol::Nbd && name.as_deref() == Some(""))
        || network.query.as_deref().is_some_and(|query| query.contains('#'))
    {
        return None;
    }
    let server = host.name.as_deref()?;
    // libvirt keeps the brackets of an iSCSI portal in the name; in a URI they are punctuation.
    let bare = server
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(server);
    let server = if bare.contains(':') {
        // Nothing can be escaped between the brackets.
        let address = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
        format!("[{}]", Some(bare).filter(|bare| bare.chars().all(address))?)
    } else {
        utf8_percent_encode(bare, HOST).to_string()
    };
    let mut uri = format!("{}://{server}", network.protocol);
    if let Some(port) = host.port {
        uri.push_str(&format!(":{port}"));
    }
    if let Some(name) = name {
        uri.push('/');
        uri.extend(utf8_percent_encode(&name, PATH));
    }
    if let Some(query) = &network.query {
        uri.push('?');
        uri.push_str(query);
    }
    Some(uri)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A monitor of a Ceph cluster: QEMU must be told a port, and 0 is the usual one.
fn monitor(host: &Host) -> Result<Value, ReferenceError> {
    let mut address = address(host, false)?;
    if let Some(fields) = address.as_object_mut()
        && !fields.contains_key("port")
    {
        fields.insert("port".into(), "0".into());
    }
    Ok(address)
}

/// An NFS server, in libvirt's order of keys.
fn nfs_server(host: &Host) -> Result<Value, ReferenceError> {
    let mut address = address(host, true)?;
    if let Some(fields) = address.as_object_mut()
        && let Some(kind) = fields.shift_remove("type")
    {
        fields.insert("type".into(), kind);
    }
    Ok(address)
}

/// A server as QEMU's socket address; without the type where the driver takes only TCP.
fn address(host: &Host, with_type: bool) -> Result<Value, ReferenceError> {
    let mut map = Map::new();
    match host.transport {
        Transport::Unix if with_type => {
            map.insert("type".into(), "unix".into());
            let socket = host
                .socket
                .as_deref()
                .ok_or_else(|| unsupported("a Unix server without a socket cannot be recorded"))?;
            map.insert("path".into(), socket.into());
        }
        Transport::Tcp => {
            if with_type {
                map.insert("type".into(), "inet".into());
            }
            let name = host
                .name
                .as_deref()
                .ok_or_else(|| unsupported("a server without a name cannot be recorded"))?;
            map.insert("host".into(), name.into());
            if let Some(port) = host.port {
                map.insert("port".into(), port.to_string().into());
            }
        }
        other => {
            return Err(unsupported(format!(
                "a server reached by '{other}' cannot be recorded"
            )));
        }
    }
    Ok(Value::Object(map))
}

fn network_properties(network: &Network) -> Result<Map<String, Value>, ReferenceError> {
    let protocol = network.protocol;
    let one = || match network.hosts.as_slice() {
        [host] => Ok(host),
        _ => Err(unsupported(format!(
            "protocol '{protocol}' accepts only one host"
        ))),
    };
    let name = network.name.as_deref().unwrap_or_default();
    let mut map = object(json!({"driver": protocol.as_str()}));
    let mut put = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    match protocol {
        Protocol::Nbd => {
            put("server", address(one()?, true)?);
            if let Some(name) = &network.name {
                put("export", name.as_str().into());
            }
        }
        Protocol::Gluster => {
            put("volume", network.volume.as_deref().unwrap_or_default().into());
            put("path", name.into());
            let servers: Result<Vec<_>, _> = network.hosts.iter().map(|host| address(host, true)).collect();
            put("server", servers?.into());
        }
        Protocol::Rbd => {
            let pool = network
                .volume
                .as_deref()
                .ok_or_else(|| unsupported("a Ceph image without a pool cannot be recorded"))?;
            put("pool", pool.into());
            put("image", name.into());
            for (key, value) in [("snapshot", &network.snapshot), ("conf", &network.config_file)] {
                if let Some(value) = value {
                    put(key, value.as_str().into());
                }
            }
            if !network.hosts.is_empty() {
                let servers: Result<Vec<_>, _> = network.hosts.iter().map(monitor).collect();
                put("server", servers?.into());
            }
        }
        Protocol::Iscsi => {
            let host = one()?;
            let (target, lun) = name
                .rsplit_once('/')
                .ok_or_else(|| unsupported("an iSCSI name without a LUN cannot be recorded"))?;
            if host.transport != Transport::Tcp {
                return Err(unsupported("only TCP transport is supported for iSCSI volumes"));
            }
            let mut portal = host.name.clone().unwrap_or_default();
            if portal.contains(':') {
                portal = format!("[{portal}]");
            }
            if let Some(port) = host.port {
                portal.push_str(&format!(":{port}"));
            }
            put("portal", portal.into());
            put("target", target.into());
            // QEMU has a number there.
            let number: Option<u32> = lun.parse().ok();
            put("lun", number.map_or_else(|| lun.into(), Value::from));
            put("transport", "tcp".into());
        }
        Protocol::Http | Protocol::Https | Protocol::Ftp | Protocol::Ftps | Protocol::Tftp => {
            let plain = Network {
                hosts: network.hosts.clone(),
                name: network.name.clone(),
                query: network.query.clone(),
                ..Network::new(protocol)
            };
            let url = uri(&plain).ok_or_else(|| {
                unsupported(format!(
                    "protocol '{protocol}' needs one host whose name a URL can hold"
                ))
            })?;
            put("url", url.into());
            if let Some(verify) = network.ssl_verify {
                put("sslverify", verify.into());
            }
            if !network.cookies.is_empty() {
                let cookies: Vec<String> = network
                    .cookies
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                put("cookie", cookies.join("; ").into());
            }
            for (key, value) in [("timeout", network.timeout), ("readahead", network.readahead)] {
                if value != 0 {
                    put(key, value.into());
                }
            }
        }
        Protocol::Ssh => {
            put("path", name.into());
            put("server", address(one()?, false)?);
            if let Some(user) = &network.ssh.user {
                put("user", user.as_str().into());
            }
            if network.ssh.host_key_unchecked {
                put("host-key-check", json!({"mode": "none"}));
            }
        }
        Protocol::Nfs => {
            put("server", nfs_server(one()?)?);
            put("path", name.into());
            for (key, id) in [("user", &network.nfs_user), ("group", &network.nfs_group)] {
                if let Some(id) = id {
                    let number: i32 = id
                        .strip_prefix('+')
                        .unwrap_or(id)
                        .parse()
                        .map_err(|_| unsupported(format!("the NFS {key} '{id}' is not a number")))?;
                    put(key, number.into());
                }
            }
        }
        Protocol::Vxhs => {
            put("vdisk-id", name.into());
            put("server", address(one()?, false)?);
        }
        Protocol::Sheepdog => return Err(unsupported("unsupported disk protocol 'sheepdog'")),
    }
    Ok(map)
}
