//! Facts in the form in which several verbs print them.

use catena::doctor::{Finding, Severity};
use catena_format::Encryption;
use catena_storage::{Hold, Permission};
use serde::Serialize;
use std::path::Path;

/// An error as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorFacts {
    pub kind: String,
    pub message: String,
    pub path: Option<String>,
    pub offset: Option<u64>,
    pub causes: Vec<String>,
    pub hint: Option<String>,
}

impl ErrorFacts {
    /// Takes an error apart.
    pub fn of(error: &catena::Error) -> Self {
        let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
        Self {
            kind: kind_word(error.kind()),
            message: error.message().to_owned(),
            path: error.path().map(|path| path.display().to_string()),
            offset: error.offset(),
            causes: causes.map(ToString::to_string).collect(),
            hint: error.hint().map(str::to_owned),
        }
    }

    /// The sentence with its place and those underneath, on one line.
    pub fn full(&self) -> String {
        let place = self
            .path
            .iter()
            .map(|path| format!("{path}: "))
            .collect::<String>();
        let offset = self
            .offset
            .map(|offset| format!(" (at offset {offset:#x})"))
            .unwrap_or_default();
        let causes: String = self.causes.iter().map(|cause| format!(": {cause}")).collect();
        format!("{place}{}{offset}{causes}", self.message)
    }
}

/// A finding of the doctor as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub struct FindingFacts {
    pub code: &'static str,
    pub severity: &'static str,
    pub layer: usize,
    pub name: String,
    pub cause: String,
    pub consequence: String,
    pub advice: Option<String>,
    /// As a shell takes them.
    pub commands: Vec<String>,
}

impl FindingFacts {
    /// Takes a finding apart.
    pub fn of(finding: &Finding) -> Self {
        Self {
            code: finding.code.as_str(),
            severity: finding.severity.as_str(),
            layer: finding.layer,
            name: finding.name.clone(),
            cause: finding.cause.clone(),
            consequence: finding.consequence.clone(),
            advice: finding.cure.advice.clone(),
            commands: finding.cure.command_lines().collect(),
        }
    }

    /// Whether something is wrong, and not merely doubtful.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error.as_str()
    }
}

/// The kind's name as JSON has it: `NotFound` is `not_found`.
fn kind_word(kind: catena::ErrorKind) -> String {
    let mut word = String::new();
    for c in format!("{kind:?}").chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

/// How an image is encrypted, in a few words.
pub fn encryption(encryption: &Encryption) -> String {
    match encryption {
        Encryption::Aes => "AES (legacy)".to_owned(),
        Encryption::Luks(luks) => match &luks.cipher {
            Some(cipher) => format!("LUKS{} {cipher}", luks.version),
            None => format!("LUKS{}", luks.version),
        },
        Encryption::LuksUnreadable(why) => format!("LUKS, whose header cannot be read: {why}"),
    }
}

/// The processes that write an image; none where that cannot be found out.
pub fn writers(path: &Path) -> Vec<String> {
    let holders = catena_storage::holders(path).unwrap_or_default();
    let writing = holders.iter().filter(|holder| match holder.hold {
        Hold::Locked(permissions) => permissions.held.contains(Permission::WRITE),
        _ => true,
    });
    writing.map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_stable_names() {
        assert_eq!(kind_word(catena::ErrorKind::NotFound), "not_found");
        assert_eq!(kind_word(catena::ErrorKind::Io), "io");
    }
}
