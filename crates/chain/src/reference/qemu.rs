//! What QEMU 10 makes of a string, as far as it differs from what libvirt 11.3 makes of it.
//!
//! libvirt tells QEMU what to open, so where the two differ a guest sees one thing under libvirt and another when
//! `qemu-img` follows the header. The QEMU side was measured with QEMU 10.0.2.

use super::protocol::{Protocol, Transport};
use super::source::{Location, Source};
use super::{LostKind, Reading, Reference, without_credentials};

/// A sentence where libvirt 11.3 and QEMU 10 would open different things for the same recorded string.
pub fn differs_from_qemu(text: &str, overlay: &Source) -> Option<String> {
    let libvirt = Reference::parse(text, Reading::Libvirt);
    let qemu = Reference::parse(text, Reading::Catena);
    let mut sentences = Vec::new();
    match (&libvirt, &qemu) {
        (Err(_), Err(_)) => return None,
        (Err(refusal), Ok(qemu)) => {
            if refuses(text, qemu, overlay).is_some() {
                return None;
            }
            sentences.push(format!(
                "libvirt refuses it ({refusal}), QEMU opens {}",
                show(&as_qemu(qemu, overlay))
            ));
        }
        (Ok(libvirt), Err(refusal)) => {
            sentences.push(format!(
                "libvirt opens {}, QEMU refuses it ({refusal})",
                show(&libvirt.resolve(overlay))
            ));
        }
        (Ok(libvirt), Ok(qemu)) => {
            let (ours, theirs) = (libvirt.resolve(overlay), as_qemu(qemu, overlay));
            if let Some(why) = refuses(text, qemu, overlay) {
                sentences.push(format!("libvirt accepts {}, but {why}", show(&ours)));
            } else if ours.key() != theirs.key() || ours.type_name() != theirs.type_name() {
                sentences.push(format!("libvirt opens {}, QEMU {}", show(&ours), show(&theirs)));
            }
            if libvirt.has_lost(LostKind::Credentials) {
                sentences.push(
                    "libvirt ends the chain here because of the inline credentials, QEMU uses them"
                        .to_owned(),
                );
            }
            let lost = libvirt
                .lost()
                .iter()
                .filter(|lost| lost.kind == LostKind::Location);
            sentences.extend(lost.map(|lost| lost.why.clone()));
        }
    }
    let relative = qemu
        .ok()
        .filter(|qemu| qemu.is_relative() && qemu.relative_name().is_none());
    if let Some(path) = relative
        .as_ref()
        .and_then(|qemu| qemu.unresolved().path().map(ToOwned::to_owned))
    {
        sentences.push(format!(
            "'{}' is looked for in the working directory of whoever opens it, the root for a QEMU that libvirt \
             starts, and not beside the overlay",
            path.display()
        ));
    }
    (!sentences.is_empty()).then(|| sentences.join("; "))
}

/// What QEMU opens: only a plain relative name is relative to the overlay.
fn as_qemu(reference: &Reference, overlay: &Source) -> Source {
    match reference.relative_name() {
        Some(_) => reference.resolve(overlay),
        None => reference.unresolved(),
    }
}

fn show(source: &Source) -> String {
    match source.to_recorded() {
        Ok(recorded) => format!("'{}'", without_credentials(&recorded)),
        Err(_) => format!("'{}'", source.key()),
    }
}

/// Why QEMU refuses a string that can be read.
fn refuses(text: &str, reference: &Reference, overlay: &Source) -> Option<String> {
    if reference.relative_name().is_some() {
        let above = overlay.network()?;
        let has_directory = matches!(
            above.protocol,
            Protocol::Http
                | Protocol::Https
                | Protocol::Ftp
                | Protocol::Ftps
                | Protocol::Gluster
                | Protocol::Ssh
                | Protocol::Nfs
        );
        return (!has_directory).then(|| {
            format!(
                "QEMU finds no directory for a relative name beside an overlay on '{}'",
                above.protocol
            )
        });
    }
    let source = reference.unresolved();
    let Location::Network(network) = &source.location else {
        return None;
    };
    let protocol = network.protocol;
    if !protocol.qemu_speaks() {
        return Some(format!("QEMU 10 has no '{protocol}' driver"));
    }
    if text.starts_with("json:") {
        return None;
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let known = matches!(
            scheme,
            "nbd"
                | "nbd+tcp"
                | "nbd+unix"
                | "gluster"
                | "gluster+unix"
                | "iscsi"
                | "http"
                | "https"
                | "ftp"
                | "ftps"
                | "ssh"
                | "nfs"
        );
        if !known {
            return Some(format!("QEMU knows no '{scheme}://'"));
        }
        if protocol == Protocol::Nbd {
            let unix = network.hosts.iter().any(|host| host.transport == Transport::Unix);
            let query = rest.split_once('?').map(|(_, query)| query);
            let socket = query.is_some_and(|query| query.starts_with("socket=") && !query.contains('&'));
            if unix != socket || (query.is_some() && !unix) {
                return Some("QEMU finds its query invalid".to_owned());
            }
        }
    }
    if protocol == Protocol::Rbd && network.volume.is_none() {
        return Some("QEMU demands a Ceph pool".to_owned());
    }
    if protocol == Protocol::Iscsi && !network.name.as_deref().unwrap_or_default().contains('/') {
        return Some("QEMU demands a LUN".to_owned());
    }
    None
}
