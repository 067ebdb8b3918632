//! The old forms with colons: `nbd:HOST:PORT:exportname=NAME` and `rbd:POOL/IMAGE@SNAP:KEY=VALUE:…`.

use super::Reading;
use super::error::ReferenceError;
use super::lost::Losses;
use super::protocol::Protocol;
use super::source::{Host, Network};

/// What a colon form names.
pub(super) fn parse(text: &str, reading: Reading, losses: &mut Losses) -> Result<Network, ReferenceError> {
    let Some((word, _)) = text.split_once(':') else {
        return Err(ReferenceError::malformed(format!(
            "invalid backing protocol string '{text}'"
        )));
    };
    match Protocol::from_name(word) {
        None => Err(ReferenceError::unknown(format!(
            "invalid backing protocol '{word}'"
        ))),
        Some(Protocol::Nbd) => nbd(text),
        Some(Protocol::Rbd) => rbd(text, reading, losses),
        Some(Protocol::Sheepdog) => Err(ReferenceError::unsupported(format!(
            "backing store parser is not implemented for protocol {word}"
        ))),
        Some(_) => Err(ReferenceError::malformed(format!(
            "malformed backing store path for protocol {word}"
        ))),
    }
}

/// A port by its decimal text; 0 is none.
pub(super) fn port(text: &str) -> Result<Option<u16>, ReferenceError> {
    let digits = text.trim_ascii_start();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ReferenceError::malformed(format!(
            "failed to parse port number '{text}'"
        )));
    }
    match digits.parse::<u16>() {
        Ok(port) => Ok(Some(port).filter(|port| *port != 0)),
        // Only the range is left to be wrong; numbers too long for libvirt to read fail a step earlier there.
        Err(_) if digits.parse::<u32>().is_err() => Err(ReferenceError::malformed(format!(
            "failed to parse port number '{text}'"
        ))),
        Err(_) => Err(ReferenceError::malformed(format!("port '{text}' out of range"))),
    }
}

fn nbd(text: &str) -> Result<Network, ReferenceError> {
    let malformed = || ReferenceError::malformed(format!("malformed nbd string '{text}'"));
    let mut network = Network::new(Protocol::Nbd);
    let address = match text.split_once(":exportname=") {
        Some((address, export)) => {
            network.name = Some(export.to_owned());
            address
        }
        None => text,
    };
    let address = address
        .strip_prefix("nbd:")
        .filter(|rest| !rest.is_empty())
        .ok_or_else(malformed)?;
    let host = if let Some(socket) = address.strip_prefix("unix:") {
        if socket.is_empty() {
            return Err(malformed());
        }
        Host::unix(socket)
    } else {
        let (name, digits) = match address.strip_prefix('[') {
            Some(rest) => rest.split_once("]:"),
            None => address.split_once(':'),
        }
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(malformed)?;
        Host::tcp(name, port(digits)?)
    };
    network.hosts.push(host);
    Ok(network)
}

/// What `rbd:…` names; the prefix may be absent.
pub(super) fn rbd(text: &str, reading: Reading, losses: &mut Losses) -> Result<Network, ReferenceError> {
    let body = text.strip_prefix("rbd:").unwrap_or(text);
    let mut network = Network::new(Protocol::Rbd);
    // libvirt looks for plain separators in the name, QEMU for unescaped ones.
    let split = |text: &str, at: char| match reading {
        Reading::Libvirt => text.split_once(at).map_or_else(
            || (text.to_owned(), None),
            |(a, b)| (a.to_owned(), Some(b.to_owned())),
        ),
        Reading::Catena => split_unescaped(text, at),
    };
    let plain = |text: &str| match reading {
        Reading::Libvirt => text.to_owned(),
        Reading::Catena => unescape(text),
    };
    let (name, options) = split(body, ':');
    let (name, snapshot) = split(&name, '@');
    network.snapshot = snapshot.as_deref().map(plain);
    match split(&name, '/') {
        (pool, Some(image)) => {
            network.volume = Some(plain(&pool));
            network.name = Some(plain(&image));
        }
        (image, None) => network.name = Some(plain(&image)),
    }
    let mut options = options;
    let mut user = false;
    while let Some(rest) = options.take().filter(|rest| !rest.is_empty()) {
        let (option, tail) = split_unescaped(&rest, ':');
        if option.starts_with("id=") {
            if user {
                return Err(ReferenceError::malformed(format!(
                    "duplicate 'id' found in '{}'",
                    network.name.as_deref().unwrap_or_default()
                )));
            }
            user = true;
            losses.setting("id", "libvirt reads the user name and drops it");
        } else if let Some(list) = option.strip_prefix("mon_host=") {
            add_monitors(list, &mut network.hosts)?;
        } else if let Some(file) = option.strip_prefix("conf=") {
            network.config_file = Some(plain(file));
        } else {
            let key = option.split('=').next().unwrap_or_default();
            losses.setting(key, "libvirt ignores this Ceph option");
        }
        options = tail;
    }
    Ok(network)
}

/// Splits at the first `at` that no backslash protects. Escapes stay as they are.
fn split_unescaped(text: &str, at: char) -> (String, Option<String>) {
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == at {
            let (head, tail) = text.split_at_checked(index).unwrap_or((text, ""));
            return (head.to_owned(), tail.strip_prefix(at).map(str::to_owned));
        }
    }
    (text.to_owned(), None)
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, chars.clone().next()) {
            ('\\', Some(next)) => {
                plain.push(next);
                chars.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}

/// Adds the monitors of a list whose separators are an escaped comma, semicolon or space.
fn add_monitors(list: &str, hosts: &mut Vec<Host>) -> Result<(), ReferenceError> {
    let mut rest = list;
    while !rest.is_empty() {
        let cut = ["\\,", "\\;", "\\ "]
            .into_iter()
            .filter_map(|separator| rest.split_once(separator))
            .min_by_key(|(head, _)| head.len());
        let (one, tail) = cut.unwrap_or((rest, ""));
        hosts.push(monitor(one)?);
        rest = tail;
    }
    Ok(())
}

fn monitor(text: &str) -> Result<Host, ReferenceError> {
    let (name, digits) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix("\\:")),
        None => match text.split_once("\\:") {
            Some((name, digits)) => (name, Some(digits)),
            None => (text, None),
        },
    };
    let port = match digits {
        Some(digits) => port(digits)?,
        None => None,
    };
    Ok(Host::tcp(name.replace("\\:", ":"), port))
}
