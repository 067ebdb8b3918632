//! `<source>` of type network: an object on a server.

use super::element::{Element, Result, number};
use crate::error::XmlErrorKind;
use catena::reference::{Host, Network, Protocol, Transport};

pub(super) fn read(source: Element<'_, '_>) -> Result<Network> {
    let word = source.required("protocol")?;
    let protocol = Protocol::from_name(word).ok_or_else(|| source.invalid("protocol", word))?;
    let mut network = Network::new(protocol);
    let name = source.attribute("name");
    if name.is_none() && protocol != Protocol::Nbd {
        return Err(source.malformed("missing name for disk source"));
    }
    network.name = name.map(str::to_owned);
    if let (Some(name), Protocol::Rbd | Protocol::Gluster) = (name, protocol) {
        let (volume, image) = name
            .split_once('/')
            .filter(|(volume, image)| !volume.is_empty() && !image.is_empty())
            .ok_or_else(|| {
                source.malformed(format!("can't split path '{name}' into pool name and image name"))
            })?;
        network.volume = Some(volume.to_owned());
        network.name = Some(image.to_owned());
    }
    if protocol == Protocol::Iscsi
        && let Some(name) = &mut network.name
        && !name.contains('/')
    {
        name.push_str("/0");
    }
    let (http, curl) = (
        matches!(protocol, Protocol::Http | Protocol::Https),
        matches!(
            protocol,
            Protocol::Http | Protocol::Https | Protocol::Ftp | Protocol::Ftps
        ),
    );
    network.query = source.attribute("query").filter(|_| http).map(str::to_owned);
    for element in source.children("host") {
        network.hosts.push(host(element, protocol)?);
    }
    network.snapshot = source.child_attribute("snapshot", "name").map(str::to_owned);
    network.config_file = source.child_attribute("config", "file").map(str::to_owned);
    if let Some(ssl) = source.child("ssl")
        && matches!(protocol, Protocol::Https | Protocol::Ftps)
    {
        network.ssl_verify = ssl.yes_no("verify")?;
    }
    if http && let Some(cookies) = source.child("cookies") {
        network.cookies = read_cookies(cookies)?;
    }
    let whole = |child: &'static str, attribute: &'static str| match source.child_attribute(child, attribute)
    {
        None => Ok(0),
        Some(text) => number(text).ok_or_else(|| source.malformed("invalid readahead size or timeout")),
    };
    if curl {
        network.readahead = whole("readahead", "size")?;
        network.timeout = whole("timeout", "seconds")?;
    }
    match protocol {
        Protocol::Nbd => {
            if let Some(reconnect) = source.child("reconnect") {
                network.reconnect_delay = reconnect.number("delay")?.unwrap_or_default();
            }
        }
        Protocol::Nfs => {
            network.nfs_user = source.child_attribute("identity", "user").map(str::to_owned);
            network.nfs_group = source.child_attribute("identity", "group").map(str::to_owned);
        }
        Protocol::Ssh => read_ssh(source, &mut network)?,
        _ => {}
    }
    Ok(network)
}

fn host(element: Element<'_, '_>, protocol: Protocol) -> Result<Host> {
    let word = element
        .choice("transport", &["tcp", "unix", "rdma", "fd"])?
        .unwrap_or("tcp");
    let mut host = Host {
        transport: Transport::from_name(word).unwrap_or_default(),
        ..Host::default()
    };
    let socket = element.attribute("socket");
    match host.transport {
        Transport::Fd => return Err(element.malformed("transport 'fd' is now allowed")),
        Transport::Unix => {
            host.socket = Some(
                socket
                    .ok_or_else(|| element.malformed("missing socket for unix transport"))?
                    .to_owned(),
            );
            return Ok(host);
        }
        Transport::Tcp | Transport::Rdma => {}
        other => return Err(element.malformed(format!("transport '{other}' is not known"))),
    }
    if socket.is_some() {
        return Err(element.malformed(format!("transport '{word}' does not support socket attribute")));
    }
    let name = element
        .attribute("name")
        .ok_or_else(|| element.malformed("missing name for host"))?;
    host.name = Some(name.to_owned());
    host.port = match element.attribute("port") {
        None => protocol.default_port(),
        Some(text) => {
            let argument = |message| element.error(XmlErrorKind::InvalidArgument, message);
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let port: u64 = text
                .parse()
                .ok()
                .filter(|_| plain)
                .ok_or_else(|| argument(format!("failed to parse port number '{text}'")))?;
            let port = u16::try_from(port).map_err(|_| argument(format!("port '{text}' out of range")))?;
            if port == 0 {
                protocol.default_port()
            } else {
                Some(port)
            }
        }
    };
    Ok(host)
}

fn read_cookies(element: Element<'_, '_>) -> Result<Vec<(String, String)>> {
    let mut cookies: Vec<(String, String)> = Vec::new();
    for cookie in element.children("cookie") {
        let name = cookie
            .filled("name")
            .ok_or_else(|| cookie.malformed("missing cookie name"))?;
        let value = cookie.text();
        if value.is_empty() {
            return Err(cookie.malformed(format!("missing value for cookie '{name}'")));
        }
        let control = |c: char| c <= ' ' || c == '\u{7f}';
        if name.contains(|c| control(c) || "()<>@,;:\\\"/[]?={}".contains(c)) {
            return Err(cookie.malformed(format!("cookie name '{name}' contains invalid characters")));
        }
        let quoted = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(&value);
        if quoted.contains(|c| control(c) || "\",;\\".contains(c)) {
            return Err(cookie.malformed(format!("value of cookie '{name}' contains invalid characters")));
        }
        if cookies.iter().any(|(earlier, _)| earlier == name) {
            return Err(cookie.malformed(format!("duplicate cookie '{name}'")));
        }
        cookies.push((name.to_owned(), value));
    }
    Ok(cookies)
}

fn read_ssh(source: Element<'_, '_>, network: &mut Network) -> Result<()> {
    if let Some(known) = source.child("knownHosts") {
        network.ssh.known_hosts = Some(known.required("path")?.to_owned());
    }
    if let Some(identity) = source.child("identity") {
        network.ssh.user = identity.attribute("username").map(str::to_owned);
        network.ssh.keyfile = identity.attribute("keyfile").map(str::to_owned);
        network.ssh.agent = identity.attribute("agentsock").map(str::to_owned);
        if network.ssh.keyfile.is_none() && network.ssh.agent.is_none() {
            return Err(
                identity.malformed("element 'identity' requires either 'keyfile' or 'agentsock' attribute")
            );
        }
    }
    Ok(())
}
