//! `--object`: what is defined beside the images. Secrets are understood and checked; there is nothing yet that uses them.

use super::keyval;
use super::program::{Failure, Result, error};
use std::collections::HashSet;

/// What may be defined, as QEMU lists it.
const TYPES: &[&str] = &[
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "main-loop",
    "pr-manager-helper",
    "secret",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];
/// Types of other programs than qemu-img, which know the same list of names.
const ELSEWHERE: &[&str] = &[
    "iothread",
    "memory-backend-ram",
    "memory-backend-file",
    "rng-random",
    "can-bus",
    "input-linux",
    "filter-dump",
    "cryptodev-backend",
];

/// The objects that were defined.
#[derive(Debug, Default)]
pub struct Objects {
    names: HashSet<String>,
}

impl Objects {
    /// Defines one.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let (first, rest) = text.split_once(',').unwrap_or((text, ""));
        if first == "help" || first == "?" {
            let list: String = TYPES.iter().map(|name| format!("  {name}\n")).collect();
            super::program::print(&format!("List of user creatable objects:\n{list}"));
            return Err(Failure::Silent(0));
        }
        let kind = first.strip_prefix("qom-type=").unwrap_or(first);
        if ELSEWHERE.contains(&kind) {
            return Err(error(format!("invalid object type: {kind}")));
        }
        if !TYPES.contains(&kind) {
            return Err(error(format!(
                "Parameter 'qom-type' does not accept value '{kind}'"
            )));
        }
        let fields = keyval::parse(rest);
        let get = |name: &str| {
            fields
                .iter()
                .rev()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let Some(id) = get("id") else {
            return Err(error("Parameter 'id' is missing"));
        };
        if kind == "secret" {
            secret(&fields, &get)?;
        }
        if !self.names.insert(id.to_owned()) {
            return Err(error(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        Ok(())
    }
}

fn secret<'a>(fields: &[(String, String)], get: &impl Fn(&str) -> Option<&'a str>) -> Result<()> {
    const KNOWN: &[&str] = &["id", "data", "file", "format", "keyid", "iv"];
    if let Some(format) = get("format")
        && !["raw", "base64"].contains(&format)
    {
        return Err(error(format!(
            "Parameter 'format' does not accept value '{format}'"
        )));
    }
    if let Some((key, _)) = fields.iter().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
        return Err(error(format!("Parameter '{key}' is unexpected")));
    }
    match (get("data"), get("file")) {
        (Some(_), Some(_)) => Err(error("'file' and 'data' are mutually exclusive")),
        (None, None) => Err(error("Either 'file' or 'data' must be provided")),
        (None, Some(file)) => match std::fs::metadata(file) {
            Ok(_) => Ok(()),
            Err(failed) => Err(error(format!(
                "Unable to read {file}: Failed to open file “{file}”: {}",
                super::open::system_word(&failed)
            ))),
        },
        _ => Ok(()),
    }
}
