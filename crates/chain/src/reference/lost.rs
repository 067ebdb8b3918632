//! What a recorded string says that the [`Source`](super::Source) made of it does not carry.

use std::fmt;

/// What the loss is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostKind {
    /// Inline credentials. libvirt's parser answers 1, and its chain walker stops there, leaving the chain open.
    Credentials,
    /// Something that changes where the bytes come from, or which bytes they are.
    Location,
    /// A setting of how the bytes are reached, which names no other bytes.
    Setting,
}

impl LostKind {
    /// One word for machines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Location => "location",
            Self::Setting => "setting",
        }
    }
}

/// One thing that was not carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What it is about.
    pub kind: LostKind,
    /// The key or part of the string.
    pub key: String,
    /// A lower-case sentence: what is lost and why.
    pub why: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What is lost, gathered while parsing.
#[derive(Debug, Default)]
pub(super) struct Losses(Vec<Lost>);

impl Losses {
    fn push(&mut self, kind: LostKind, key: &str, why: String) {
        if !self.0.iter().any(|lost| lost.kind == kind && lost.key == key) {
            self.0.push(Lost {
                kind,
                key: key.to_owned(),
                why,
            });
        }
    }

    pub(super) fn credentials(&mut self, key: &str) {
        self.push(
            LostKind::Credentials,
            key,
            format!(
                "'{key}' is an inline credential, which libvirt does not take over; its chain ends here, open-ended"
            ),
        );
    }

    pub(super) fn location(&mut self, key: &str, why: impl fmt::Display) {
        self.push(LostKind::Location, key, format!("'{key}' is not carried: {why}"));
    }

    pub(super) fn setting(&mut self, key: &str, why: impl fmt::Display) {
        self.push(LostKind::Setting, key, format!("'{key}' is not carried: {why}"));
    }

    pub(super) fn into_vec(self) -> Vec<Lost> {
        self.0
    }
}
