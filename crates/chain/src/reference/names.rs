//! Every reference but `json:`: plain names, QEMU's prefixes, URIs and colon forms, told apart in libvirt's order.

use super::error::ReferenceError;
use super::lost::Losses;
use super::source::Location;
use super::{Reading, colon, uri};

/// Whether a text is a file name to libvirt and QEMU alike: no colon stands before the first slash.
pub(super) fn looks_like_file(text: &str) -> bool {
    match text.find([':', '/']) {
        Some(at) => text.as_bytes().get(at) == Some(&b'/'),
        None => true,
    }
}

/// What a text that is not `json:` names. Relative names are taken as they are.
pub(super) fn parse(text: &str, reading: Reading, losses: &mut Losses) -> Result<Location, ReferenceError> {
    if looks_like_file(text) {
        return Ok(Location::File(text.into()));
    }
    if let Some(rest) = text.strip_prefix("fat:") {
        return Ok(Location::Dir(match reading {
            Reading::Libvirt => rest.into(),
            Reading::Catena => fat(rest, losses)?.into(),
        }));
    }
    let named = |name: &str| match name {
        "" => Err(ReferenceError::malformed(format!("'{text}' names no file"))),
        name => Ok(name.into()),
    };
    let is_uri = match reading {
        Reading::Libvirt => text.contains("://"),
        // A colon form may hold anything further on, so only the first colon decides.
        Reading::Catena => {
            if let Some(name) = text.strip_prefix("file:") {
                return named(name).map(Location::File);
            }
            for prefix in ["host_device:", "host_cdrom:"] {
                if let Some(name) = text.strip_prefix(prefix) {
                    return named(name).map(Location::Block);
                }
            }
            if text.starts_with("nvme://") {
                return match uri::parse_nvme(text) {
                    Some(nvme) => Ok(Location::Nvme(nvme)),
                    None => Err(ReferenceError::malformed(format!(
                        "'{text}' is not nvme://ADDRESS/NAMESPACE"
                    ))),
                };
            }
            text.split_once(':')
                .is_some_and(|(_, rest)| rest.starts_with("//"))
        }
    };
    let network = if is_uri {
        uri::parse(text, reading, losses)?
    } else {
        colon::parse(text, reading, losses)?
    };
    Ok(Location::Network(Box::new(network)))
}

/// The folder of QEMU's `fat:[OPTION:]…FOLDER`, which is what follows the last colon.
fn fat<'a>(rest: &'a str, losses: &mut Losses) -> Result<&'a str, ReferenceError> {
    let (options, folder) = rest.rsplit_once(':').unwrap_or(("", rest));
    for option in options.split(':').filter(|option| !option.is_empty()) {
        if matches!(option, "floppy" | "rw" | "12" | "16" | "32") {
            losses.location(option, "it changes the disk that QEMU makes of the folder");
        } else {
            losses.location(
                option,
                "QEMU takes only what follows the last colon for the folder, libvirt all of it",
            );
        }
    }
    if folder.is_empty() {
        return Err(ReferenceError::malformed("'fat:' names no folder"));
    }
    Ok(folder)
}
