//! The document that a verb is about: a file of XML, or a domain that a running libvirt knows.

use crate::error::CommandError;
use catena::{Error, ErrorKind};
use catena_virt::Document;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which of a domain's definitions is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// What it has now: of a running one, what it runs with.
    Current,
    /// What it starts with next time.
    Inactive,
}

/// Reads a document from a file; `-` is standard input.
pub fn read(path: &Path) -> Result<Document, CommandError> {
    let io = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        Error::new(kind, "cannot read the XML")
            .with_path(path)
            .with_source(error)
    };
    // One byte more than is parsed shows that there is more.
    let limit = catena_virt::limits::MAX_BYTES as u64 + 1;
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::Read::read_to_string(
            &mut std::io::Read::take(std::io::stdin().lock(), limit),
            &mut text,
        )
        .map_err(io)?;
    } else {
        let file = std::fs::File::open(path).map_err(io)?;
        std::io::Read::read_to_string(&mut std::io::Read::take(file, limit), &mut text).map_err(io)?;
    }
    parse(text, path)
}

/// Understands a text that came from there.
fn parse(text: String, from: &Path) -> Result<Document, CommandError> {
    Document::parse(text).map_err(|error| {
        let place = PathBuf::from(format!("{}:{}:{}", from.display(), error.line, error.column));
        Error::new(ErrorKind::Conflict, error.to_string())
            .with_path(place)
            .into()
    })
}

/// Asks a running libvirt for a domain, through virsh.
pub fn ask(connect: Option<&str>, name: &str, definition: Definition) -> Result<Document, CommandError> {
    let mut virsh = Command::new("virsh");
    virsh.arg("--quiet");
    if let Some(uri) = connect {
        virsh.args(["--connect", uri]);
    }
    virsh.arg("dumpxml");
    if definition == Definition::Inactive {
        virsh.arg("--inactive");
    }
    let output = virsh
        .arg(format!("--domain={name}"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Error::new(
                ErrorKind::NotFound,
                "cannot run virsh, through which libvirt is asked",
            )
            .with_source(error)
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = said
            .lines()
            .filter_map(|line| line.strip_prefix("error: "))
            .collect();
        let hint = format!("there is no file '{name}' either; --connect says which libvirt to ask");
        return Err(Error::new(ErrorKind::NotFound, errors.join(": "))
            .with_hint(hint)
            .into());
    }
    parse(
        String::from_utf8_lossy(&output.stdout).into_owned(),
        Path::new(name),
    )
}

/// Whether a domain runs.
pub fn runs(document: &Document) -> bool {
    // libvirt numbers what runs.
    let root = document.text().split_once("<domain").map_or("", |(_, rest)| rest);
    root.split('>').next().is_some_and(|tag| tag.contains(" id="))
}
