//! References of the form `scheme[+transport]://[user@]host[:port]/path[?query]`.
//!
//! The grammar is RFC 3986's, as libvirt's XML library enforces it. QEMU's library lets more characters pass in the
//! path, and so does [`Reading::Catena`]. What the parts mean is libvirt's `virStorageSourceParseBackingURI`.

use super::error::ReferenceError;
use super::lost::Losses;
use super::protocol::{Protocol, Transport};
use super::source::{Host, Network, Nvme};
use super::{Reading, colon};
use percent_encoding::percent_decode_str;

/// The parts of a URI.
struct Uri<'a> {
    scheme: &'a str,
    user: bool,
    user_name: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    path: String,
    query: Option<&'a str>,
}

/// What a URI names.
pub(super) fn parse(text: &str, reading: Reading, losses: &mut Losses) -> Result<Network, ReferenceError> {
    let uri = split(text, reading).ok_or_else(|| {
        ReferenceError::malformed(format!("failed to parse backing file location '{text}'"))
    })?;
    let (scheme, transport) = match uri.scheme.split_once('+') {
        Some((scheme, transport)) => (scheme, Some(transport)),
        None => (uri.scheme, None),
    };
    let protocol = Protocol::from_name(scheme)
        .ok_or_else(|| ReferenceError::unknown(format!("invalid backing protocol '{scheme}'")))?;
    let mut host = Host {
        name: uri.host,
        port: uri.port,
        ..Host::default()
    };
    if let Some(transport) = transport {
        host.transport = Transport::from_name(transport).ok_or_else(|| {
            ReferenceError::unknown(format!("invalid protocol transport type '{transport}'"))
        })?;
    }
    let mut network = Network::new(protocol);
    if let Some(query) = uri.query {
        if protocol.keeps_query() {
            network.query = Some(query.to_owned());
        } else if reading == Reading::Libvirt {
            match query.strip_prefix("socket=") {
                Some(socket) => host.socket = Some(socket.to_owned()),
                None => losses.location("query", format_args!("libvirt drops the query '{query}'")),
            }
        } else {
            read_query(query, &mut network, &mut host, losses)?;
        }
    }
    name_object(&mut network, &uri.path)?;
    network.hosts.push(host);
    if uri.user {
        losses.credentials("user");
        if protocol == Protocol::Ssh && reading == Reading::Catena {
            network.ssh.user = uri.user_name;
        }
    }
    Ok(network)
}

/// Like [`parse`] for a URI in a field that belongs to one protocol.
pub(super) fn parse_for(
    text: &str,
    protocol: Protocol,
    reading: Reading,
    losses: &mut Losses,
) -> Result<Network, ReferenceError> {
    let network = parse(text, reading, losses)?;
    if network.protocol != protocol {
        return Err(ReferenceError::malformed(format!(
            "expected protocol '{protocol}' but got '{}' in URI JSON volume definition",
            network.protocol
        )));
    }
    Ok(network)
}

/// QEMU's `nvme://0000:01:00.0/1`, which libvirt does not read.
pub(super) fn parse_nvme(text: &str) -> Option<Nvme> {
    let (device, namespace) = text.strip_prefix("nvme://")?.split_once('/')?;
    let namespace = namespace.parse().ok().filter(|namespace| *namespace != 0)?;
    nvme(device, namespace)
}

/// An NVMe namespace by PCI address text.
pub(super) fn nvme(device: &str, namespace: u64) -> Option<Nvme> {
    let (domain, rest) = device.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let nvme = Nvme {
        domain: hex(domain)?,
        bus: u8::try_from(hex(bus)?).ok()?,
        slot: u8::try_from(hex(slot)?).ok()?,
        function: u8::try_from(hex(function)?).ok()?,
        namespace,
    };
    (nvme.slot < 32 && nvme.function < 8).then_some(nvme)
}

/// Fills in the name, and the volume where the protocol has one: the path without one leading slash.
fn name_object(network: &mut Network, path: &str) -> Result<(), ReferenceError> {
    let path = path.strip_prefix('/').unwrap_or(path);
    match network.protocol {
        Protocol::Nbd if path.is_empty() => {}
        Protocol::Gluster => match path.split_once('/') {
            Some((volume, name)) if !volume.is_empty() => {
                network.volume = Some(volume.to_owned());
                network.name = Some(name.to_owned());
            }
            _ => {
                return Err(ReferenceError::malformed(format!(
                    "missing volume name or file name in gluster source path '{path}'"
                )));
            }
        },
        _ => network.name = Some(path.to_owned()),
    }
    Ok(())
}

/// What QEMU reads from the query of a protocol whose names have none.
fn read_query(
    query: &str,
    network: &mut Network,
    host: &mut Host,
    losses: &mut Losses,
) -> Result<(), ReferenceError> {
    for pair in query.split(['&', ';']).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| {
            ReferenceError::malformed(format!("the value of '{key}' in the query '{query}' is not text"))
        })?;
        match (network.protocol, key) {
            (_, "socket") => host.socket = Some(value),
            (Protocol::Nfs, "uid") => network.nfs_user = Some(format!("+{value}")),
            (Protocol::Nfs, "gid") => network.nfs_group = Some(format!("+{value}")),
            (Protocol::Ssh, "host_key_check") if value == "no" => network.ssh.host_key_unchecked = true,
            (Protocol::Ftp | Protocol::Ftps | Protocol::Tftp, _) => {
                losses.location(
                    "query",
                    format_args!("libvirt has no place for the query '{query}'"),
                );
            }
            _ => losses.setting(key, "libvirt has no place for this part of the query"),
        }
    }
    Ok(())
}

/// Splits a URI by RFC 3986. `None` where it breaks the grammar.
fn split(text: &str, reading: Reading) -> Option<Uri<'_>> {
    let strict = reading == Reading::Libvirt;
    let (scheme, rest) = text.split_once(':')?;
    let mut letters = scheme.chars();
    if !letters.next()?.is_ascii_alphabetic()
        || !letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    {
        return None;
    }
    let (rest, fragment) = rest
        .split_once('#')
        .map_or((rest, ""), |(rest, tail)| (rest, tail));
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let mut uri = Uri {
        scheme,
        user: false,
        user_name: None,
        host: None,
        port: None,
        path: String::new(),
        query,
    };
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at_checked(at)?,
                None => (rest, ""),
            };
            read_authority(authority, &mut uri)?;
            path
        }
        None => rest,
    };
    let fits = |part: &str, extra: &str| {
        if strict {
            all_legal(part, extra)
        } else {
            !part.chars().any(char::is_control) && percents_are_whole(part)
        }
    };
    if !fits(path, ":@/") || !fits(query.unwrap_or_default(), ":@/?") || !fits(fragment, ":@/?") {
        return None;
    }
    uri.path = decode(path)?;
    Some(uri)
}

/// Reads `[user@]host[:port]`.
fn read_authority(authority: &str, uri: &mut Uri<'_>) -> Option<()> {
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => {
            if !all_legal(user, ":") {
                return None;
            }
            uri.user = true;
            uri.user_name =
                decode(user.split(':').next().unwrap_or_default()).filter(|name| !name.is_empty());
            host
        }
        None => authority,
    };
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return None,
        };
        (address.to_owned(), port)
    } else {
        let (name, port) = match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        };
        if !all_legal(name, "") {
            return None;
        }
        (decode(name)?, port)
    };
    if let Some(port) = port {
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // A port of a server without a name is forgotten; one beyond the range of ports is no port.
        let port = colon::port(port).ok()?;
        uri.port = port.filter(|_| !name.is_empty());
    }
    uri.host = Some(name).filter(|name| !name.is_empty());
    Some(())
}

/// Whether a part holds only unreserved characters, sub-delimiters, whole percent escapes and the `extra` ones.
fn all_legal(part: &str, extra: &str) -> bool {
    percents_are_whole(part)
        && part.chars().all(|c| {
            c.is_ascii_alphanumeric()
                || matches!(
                    c,
                    '-' | '.'
                        | '_'
                        | '~'
                        | '!'
                        | '$'
                        | '&'
                        | '\''
                        | '('
                        | ')'
                        | '*'
                        | '+'
                        | ','
                        | ';'
                        | '='
                        | '%'
                )
                || extra.contains(c)
        })
}

fn percents_are_whole(part: &str) -> bool {
    part.split('%').skip(1).all(|tail| {
        let mut digits = tail.bytes();
        matches!((digits.next(), digits.next()), (Some(a), Some(b)) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
    })
}

/// Undoes percent escapes. `None` where the bytes are not UTF-8 or hold a NUL, which ends a name early in C.
fn decode(part: &str) -> Option<String> {
    let text = percent_decode_str(part).decode_utf8().ok()?;
    (!text.contains('\0')).then(|| text.into_owned())
}
