//! The protocol drivers of a `json:` reference: which fields each needs, takes and drops.

use super::error::ReferenceError;
use super::json::Fields;
use super::lost::Losses;
use super::protocol::{Protocol, Transport};
use super::source::{Host, Location, Network};
use super::{Reading, colon, names, uri};
use serde_json::Value;

type Parsed<T = Location> = Result<T, ReferenceError>;

/// What a protocol driver's object names. `text` is the whole JSON text, for messages.
pub(super) fn parse(text: &str, driver: &str, fields: &Fields<'_>, losses: &mut Losses) -> Parsed {
    let network = match driver {
        "file" => return file(fields, losses).map(|name| Location::File(name.into())),
        "host_device" | "host_cdrom" => {
            return file(fields, losses).map(|name| Location::Block(name.into()));
        }
        "nvme" => return nvme(fields, losses),
        "vvfat" if fields.reading == Reading::Catena => return vvfat(fields, losses),
        "http" | "https" | "ftp" | "ftps" | "tftp" => curl(text, driver, fields, losses),
        "gluster" => gluster(fields, losses),
        "iscsi" => iscsi(fields, losses),
        "nbd" => nbd(fields, losses),
        "sheepdog" => sheepdog(fields, losses),
        "ssh" => ssh(fields, losses),
        "rbd" => rbd(fields, losses),
        "nfs" => nfs(fields, losses),
        "vxhs" => vxhs(fields, losses),
        _ => Err(ReferenceError::unsupported(format!(
            "missing parser implementation for JSON backing volume driver '{driver}'"
        ))),
    };
    network.map(|network| Location::Network(Box::new(network)))
}

/// What an object without a driver names by its `filename` alone, as QEMU finds the driver for it.
pub(super) fn by_filename(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Option<Location>> {
    let Some(name) = fields.str("filename") else {
        return Ok(None);
    };
    fields.rest(&["filename"], &[], losses);
    names::parse(name, Reading::Catena, losses).map(Some)
}

fn file(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<String> {
    let name = fields.str("filename").ok_or_else(|| {
        ReferenceError::missing("missing 'filename' field in JSON backing volume definition")
    })?;
    fields.rest(&["filename"], &[], losses);
    // QEMU's file drivers take the name of their own protocol off the front.
    let plain = match fields.reading {
        Reading::Libvirt => name,
        Reading::Catena => ["file:", "host_device:", "host_cdrom:"]
            .into_iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name),
    };
    if plain.is_empty() && fields.reading == Reading::Catena {
        return Err(ReferenceError::malformed("the 'filename' field is empty"));
    }
    Ok(plain.to_owned())
}

fn nvme(fields: &Fields<'_>, losses: &mut Losses) -> Parsed {
    let device = fields
        .str("device")
        .filter(|device| uri::nvme(device, 1).is_some())
        .ok_or_else(|| ReferenceError::missing("missing or malformed 'device' field of 'nvme' storage"))?;
    let namespace = fields.number("namespace").ok().flatten().filter(|n| *n != 0);
    let nvme = namespace
        .and_then(|namespace| uri::nvme(device, namespace))
        .ok_or_else(|| ReferenceError::missing("missing or malformed 'namespace' field of 'nvme' storage"))?;
    fields.rest(&["device", "namespace"], &[], losses);
    Ok(Location::Nvme(nvme))
}

fn vvfat(fields: &Fields<'_>, losses: &mut Losses) -> Parsed {
    let dir = fields
        .str("dir")
        .filter(|dir| !dir.is_empty())
        .ok_or_else(|| ReferenceError::missing("missing 'dir' field of 'vvfat' storage"))?;
    for key in ["floppy", "rw", "label", "fat-type"] {
        let set = match fields.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(value) => value.as_u64() != Some(0),
        };
        if set {
            losses.location(key, "it changes the disk that QEMU makes of the folder");
        }
    }
    fields.rest(&["dir", "floppy", "rw", "label", "fat-type"], &[], losses);
    Ok(Location::Dir(dir.into()))
}

fn curl(text: &str, driver: &str, fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let url = fields
        .str("url")
        .or_else(|| {
            (fields.reading == Reading::Catena)
                .then(|| fields.str("filename"))
                .flatten()
        })
        .ok_or_else(|| ReferenceError::missing("missing 'url' in JSON backing volume definition"))?;
    let malformed = |key: &str| {
        ReferenceError::malformed(format!(
            "malformed '{key}' field in backing store definition '{text}'"
        ))
    };
    let mut known = vec!["url", "filename", "readahead", "timeout"];
    let mut verify = None;
    if matches!(driver, "https" | "ftps") {
        known.push("sslverify");
        verify = match fields.get("sslverify") {
            None => None,
            Some(Value::Bool(verify)) => Some(*verify),
            Some(Value::String(word)) if word == "off" => Some(false),
            Some(Value::String(word)) if word == "on" && fields.reading == Reading::Catena => Some(true),
            Some(_) => return Err(malformed("sslverify")),
        };
    }
    let mut cookies = Vec::new();
    if matches!(driver, "http" | "https") {
        known.push("cookie");
        cookies = match fields.get("cookie") {
            None => Vec::new(),
            Some(Value::String(list)) => read_cookies(list, text)?,
            Some(_) => {
                return Err(ReferenceError::malformed(format!(
                    "wrong format of 'cookie' field in backing store definition '{text}'"
                )));
            }
        };
    }
    let readahead = fields.number("readahead").map_err(|()| malformed("readahead"))?;
    let timeout = fields.number("timeout").map_err(|()| malformed("timeout"))?;
    // The driver is one of the five words that name the protocol.
    let protocol = Protocol::from_name(driver).unwrap_or(Protocol::Http);
    let mut network = uri::parse_for(url, protocol, fields.reading, losses)?;
    network.ssl_verify = verify;
    network.cookies = cookies;
    network.readahead = readahead.unwrap_or(0);
    network.timeout = timeout.unwrap_or(0);
    fields.rest(&known, &[], losses);
    Ok(network)
}

fn read_cookies(list: &str, text: &str) -> Parsed<Vec<(String, String)>> {
    list.split(';')
        .map(|cookie| match cookie.trim_start().split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(ReferenceError::malformed(format!(
                "malformed http cookie '{cookie}' in backing store definition '{text}'"
            ))),
        })
        .collect()
}

/// The port field. libvirt takes a JSON number for an absent port.
fn port(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Option<u16>> {
    let text = match (fields.reading, fields.get("port")) {
        (Reading::Libvirt, Some(Value::String(text))) => text.clone(),
        (Reading::Libvirt, Some(value)) => {
            losses.location(
                "port",
                format_args!("libvirt wants a string, ignores {value} and uses the default port"),
            );
            return Ok(None);
        }
        (Reading::Catena, Some(_)) => fields
            .text("port")
            .ok_or_else(|| ReferenceError::malformed("the 'port' field is neither a string nor a number"))?,
        (_, None) => return Ok(None),
    };
    colon::port(&text)
}

fn inet(fields: Option<&Fields<'_>>, losses: &mut Losses) -> Parsed<Host> {
    let fields = fields.ok_or_else(no_server)?;
    let name = fields.str("host").ok_or_else(|| {
        ReferenceError::missing("missing hostname for tcp backing server in JSON backing volume definition")
    })?;
    let host = Host::tcp(name, port(fields, losses)?);
    fields.rest(&["host", "port", "type"], &[], losses);
    Ok(host)
}

fn no_server() -> ReferenceError {
    ReferenceError::missing("missing remote server specification in JSON backing volume definition")
}

fn socket_address(fields: Option<&Fields<'_>>, losses: &mut Losses) -> Parsed<Host> {
    let given = fields.ok_or_else(no_server)?;
    match given.str("type") {
        None => Err(ReferenceError::missing(
            "missing socket address type in JSON backing volume definition",
        )),
        Some("tcp" | "inet") => inet(fields, losses),
        Some("unix") => {
            let socket = given.str("path").or_else(|| given.str("socket")).ok_or_else(|| {
                ReferenceError::missing(
                    "missing socket path for udp backing server in JSON backing volume definition",
                )
            })?;
            given.rest(&["path", "socket", "type"], &["abstract"], losses);
            Ok(Host {
                transport: Transport::Unix,
                socket: Some(socket.to_owned()),
                ..Host::default()
            })
        }
        Some(other) => Err(ReferenceError::unsupported(format!(
            "backing store protocol '{other}' is not yet supported"
        ))),
    }
}

fn gluster(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let known = ["filename", "volume", "path", "server"];
    fields.rest(&known, &[], losses);
    if let Some(text) = fields.str("filename") {
        return uri::parse_for(text, Protocol::Gluster, fields.reading, losses);
    }
    let servers = fields.get("server").and_then(Value::as_array);
    let (Some(volume), Some(path), Some(servers)) = (fields.str("volume"), fields.str("path"), servers)
    else {
        return Err(ReferenceError::missing(
            "missing 'volume', 'path' or 'server' attribute in JSON backing definition for gluster volume",
        ));
    };
    if servers.is_empty() {
        return Err(ReferenceError::missing(
            "at least 1 server is necessary in JSON backing definition for gluster volume",
        ));
    }
    let mut network = Network::new(Protocol::Gluster);
    network.volume = Some(volume.to_owned());
    network.name = Some(path.to_owned());
    for server in servers {
        let server = server.as_object().map(|map| Fields::new(map, fields.reading));
        network.hosts.push(socket_address(server.as_ref(), losses)?);
    }
    Ok(network)
}

fn iscsi(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let known = [
        "filename",
        "transport",
        "portal",
        "target",
        "lun",
        "user",
        "password",
    ];
    fields.rest(&known, &[], losses);
    if let Some(text) = fields.str("filename") {
        return uri::parse_for(text, Protocol::Iscsi, fields.reading, losses);
    }
    if fields.str("transport") != Some("tcp") {
        return Err(ReferenceError::unsupported(
            "only TCP transport is supported for iSCSI volumes",
        ));
    }
    let portal = fields
        .str("portal")
        .ok_or_else(|| ReferenceError::missing("missing 'portal' address in iSCSI backing definition"))?;
    let target = fields
        .str("target")
        .ok_or_else(|| ReferenceError::missing("missing 'target' in iSCSI backing definition"))?;
    let lun = fields.text("lun").unwrap_or_else(|| "0".to_owned());
    let host = match portal.rsplit_once(':') {
        Some((name, digits)) if !digits.contains(']') => Host::tcp(name, colon::port(digits)?),
        _ => Host::tcp(portal, None),
    };
    let mut network = Network::new(Protocol::Iscsi);
    network.name = Some(format!("{target}/{lun}"));
    network.hosts.push(host);
    for key in ["user", "password"] {
        if fields.str(key).is_some() {
            losses.credentials(key);
        }
    }
    Ok(network)
}

fn nbd(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let server = fields.object("server");
    let host = match (&server, fields.str("path"), fields.str("host")) {
        (Some(server), ..) => socket_address(Some(server), losses)?,
        (None, Some(path), _) => Host::unix(path),
        (None, None, Some(name)) => Host::tcp(name, port(fields, losses)?),
        (None, None, None) => {
            return Err(ReferenceError::missing(
                "missing host specification of NBD server in JSON backing volume definition",
            ));
        }
    };
    let mut network = Network::new(Protocol::Nbd);
    network.name = fields.str("export").map(str::to_owned);
    network.hosts.push(host);
    fields.rest(&["server", "path", "host", "port", "export"], &[], losses);
    Ok(network)
}

fn sheepdog(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    fields.rest(&["filename", "vdi", "server"], &["tag", "snap-id"], losses);
    if let Some(text) = fields.str("filename") {
        if text.contains("://") {
            return uri::parse_for(text, Protocol::Sheepdog, fields.reading, losses);
        }
        return Err(ReferenceError::missing(
            "missing sheepdog URI in JSON backing volume definition",
        ));
    }
    let vdi = fields
        .str("vdi")
        .ok_or_else(|| ReferenceError::missing("missing sheepdog vdi name"))?;
    let mut network = Network::new(Protocol::Sheepdog);
    network.name = Some(vdi.to_owned());
    network
        .hosts
        .push(socket_address(fields.object("server").as_ref(), losses)?);
    Ok(network)
}

fn ssh(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let server = fields.object("server");
    let (Some(path), true) = (
        fields.str("path"),
        server.is_some() || fields.str("host").is_some(),
    ) else {
        return Err(ReferenceError::missing(
            "missing host/server or path of SSH JSON backing volume definition",
        ));
    };
    let host = match (&server, fields.str("host")) {
        (None, Some(name)) => Host::tcp(name, port(fields, losses)?),
        _ => inet(server.as_ref(), losses)?,
    };
    let mut network = Network::new(Protocol::Ssh);
    network.name = Some(path.to_owned());
    network.hosts.push(host);
    network.ssh.user = fields.str("user").map(str::to_owned);
    let mut known = vec!["path", "server", "host", "port", "user", "host_key_check"];
    let mut unchecked = fields.str("host_key_check") == Some("no");
    let mode = fields.object("host-key-check");
    if fields.reading == Reading::Catena && mode.as_ref().and_then(|mode| mode.str("mode")) == Some("none") {
        known.push("host-key-check");
        unchecked = true;
    }
    network.ssh.host_key_unchecked = unchecked;
    fields.rest(&known, &[], losses);
    Ok(network)
}

fn rbd(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let known = ["filename", "pool", "image", "conf", "snapshot", "server"];
    if let Some(text) = fields.str("filename") {
        fields.rest(&known, &["namespace", "encrypt"], losses);
        return colon::rbd(text, fields.reading, losses);
    }
    let (Some(pool), Some(image)) = (fields.str("pool"), fields.str("image")) else {
        return Err(ReferenceError::missing(
            "missing pool or image name in ceph backing volume JSON specification",
        ));
    };
    let mut network = Network::new(Protocol::Rbd);
    network.volume = Some(pool.to_owned());
    network.name = Some(image.to_owned());
    network.snapshot = fields.str("snapshot").map(str::to_owned);
    network.config_file = fields.str("conf").map(str::to_owned);
    for server in fields
        .get("server")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let server = server.as_object().map(|map| Fields::new(map, fields.reading));
        network.hosts.push(inet(server.as_ref(), losses)?);
    }
    match (fields.reading, fields.str("namespace")) {
        // As in the colon form, where libvirt takes the namespace for part of the image's name.
        (Reading::Catena, Some(namespace)) if !namespace.is_empty() => {
            network.name = Some(format!("{namespace}/{image}"));
            let known = [&known[..], &["namespace"]].concat();
            fields.rest(&known, &["encrypt"], losses);
        }
        _ => fields.rest(&known, &["namespace", "encrypt"], losses),
    }
    Ok(network)
}

fn nfs(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let server = fields.object("server").ok_or_else(|| {
        ReferenceError::missing("missing 'server' attribute in JSON backing definition for NFS volume")
    })?;
    let id = |key| match fields.get(key) {
        Some(Value::Number(number)) => number.as_i64().and_then(|id| i32::try_from(id).ok()),
        Some(Value::String(digits)) if fields.reading == Reading::Catena => digits.parse().ok(),
        _ => None,
    };
    let (user, group) = (id("user"), id("group"));
    // libvirt demands both, QEMU neither; what is there must be a number.
    let missing = |key, id: Option<i32>| {
        id.is_none() && (fields.reading == Reading::Libvirt || fields.get(key).is_some())
    };
    if missing("user", user) || missing("group", group) {
        return Err(ReferenceError::missing(
            "missing 'user' or 'group' attribute in JSON backing definition for NFS volume",
        ));
    }
    let path = fields.str("path").ok_or_else(|| {
        ReferenceError::missing("missing 'path' attribute in JSON backing definition for NFS volume")
    })?;
    let mut network = Network::new(Protocol::Nfs);
    network.name = Some(path.to_owned());
    network.nfs_user = user.map(|id| format!("+{id}"));
    network.nfs_group = group.map(|id| format!("+{id}"));
    network.hosts.push(inet(Some(&server), losses)?);
    fields.rest(&["server", "user", "group", "path"], &[], losses);
    Ok(network)
}

fn vxhs(fields: &Fields<'_>, losses: &mut Losses) -> Parsed<Network> {
    let (Some(id), Some(server)) = (fields.str("vdisk-id"), fields.object("server")) else {
        return Err(ReferenceError::missing(
            "missing 'vdisk-id' or 'server' attribute in JSON backing definition for VxHS volume",
        ));
    };
    let mut network = Network::new(Protocol::Vxhs);
    network.name = Some(id.to_owned());
    network.hosts.push(inet(Some(&server), losses)?);
    fields.rest(&["vdisk-id", "server"], &[], losses);
    Ok(network)
}
