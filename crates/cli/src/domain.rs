//! The document that a verb is about: a file of XML, or a domain that a running libvirt knows.

use crate::error::CommandError;
use catena::{Error, ErrorKind};
use catena_virt::{Document, Generation, Volume, XmlError};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which of a domain's definitions is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// What it has now: of a running one, what it runs with.
    Current,
    /// What it starts with next time.
    Inactive,
    /// The same with the passwords in it, so that it can be defined anew.
    Whole,
}

/// The libvirt whose ways are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Version {
    /// libvirt 11.3 beside QEMU 9 or later
    #[default]
    #[value(name = "11.3")]
    V11,
    /// libvirt 9.0
    #[value(name = "9.0")]
    V9,
}

impl From<Version> for Generation {
    fn from(version: Version) -> Self {
        match version {
            Version::V11 => Self::V11,
            Version::V9 => Self::V9,
        }
    }
}

/// Reads a document from a file, as [`read`] does, and has libvirt say where the volumes are that it names, if it is to be
/// asked.
pub fn read_with_volumes(path: &Path, connect: Option<&str>) -> Result<Document, CommandError> {
    let mut document = read(path)?;
    if connect.is_some() {
        document.find_volumes(|pool, name| volume(connect, pool, name))?;
    }
    Ok(document)
}

/// What libvirt says of a volume.
fn volume(connect: Option<&str>, pool: &str, volume: &str) -> Result<Option<Volume>, CommandError> {
    let arguments = [format!("--pool={pool}"), format!("--vol={volume}")];
    let text = virsh(connect, &["vol-dumpxml"], &arguments)?
        .map_err(|said| Error::new(ErrorKind::NotFound, said))?;
    Ok(parse(text, Path::new(volume))?.volume)
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
    Document::parse(text).map_err(|error| refused(&error, from))
}

fn refused(error: &XmlError, from: &Path) -> CommandError {
    let place = PathBuf::from(format!("{}:{}:{}", from.display(), error.line, error.column));
    Error::new(ErrorKind::Conflict, error.to_string())
        .with_path(place)
        .into()
}

/// The folder of a storage pool that a running libvirt knows.
pub fn pool(connect: Option<&str>, name: &str) -> Result<PathBuf, CommandError> {
    let text = virsh(connect, &["pool-dumpxml"], &[format!("--pool={name}")])?
        .map_err(|said| Error::new(ErrorKind::NotFound, said))?;
    let folder = catena_virt::pool_folder(&text).map_err(|error| refused(&error, Path::new(name)))?;
    let none = || {
        Error::new(
            ErrorKind::Unsupported,
            format!("the pool '{name}' has no folder on this host"),
        )
    };
    Ok(folder.ok_or_else(none)?)
}

/// Runs virsh: what it wrote, or its errors.
fn virsh(
    connect: Option<&str>,
    command: &[&str],
    arguments: &[String],
) -> Result<Result<String, String>, CommandError> {
    let mut virsh = Command::new("virsh");
    virsh.arg("--quiet");
    if let Some(uri) = connect {
        virsh.args(["--connect", uri]);
    }
    let output = virsh
        .args(command)
        .args(arguments)
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
    if output.status.success() {
        return Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("error: "))
        .collect();
    Ok(Err(errors.join(": ")))
}

/// Asks a running libvirt for a domain, and where the volumes are that it names.
pub fn ask(connect: Option<&str>, name: &str, definition: Definition) -> Result<Document, CommandError> {
    let command: &[&str] = match definition {
        Definition::Current => &["dumpxml"],
        Definition::Inactive => &["dumpxml", "--inactive"],
        Definition::Whole => &["dumpxml", "--inactive", "--security-info"],
    };
    let mut document = parse(asked(connect, command, name)?, Path::new(name))?;
    // Of a disk whose volume is gone, that is said where its chain would stand.
    document.find_volumes(|pool, name| Ok::<_, CommandError>(volume(connect, pool, name).ok().flatten()))?;
    Ok(document)
}

/// Whether a domain runs.
pub fn runs(document: &Document) -> bool {
    // libvirt numbers what runs.
    let root = document.text().split_once("<domain").map_or("", |(_, rest)| rest);
    root.split('>').next().is_some_and(|tag| tag.contains(" id="))
}

/// What virsh answers to a command about a domain.
pub fn asked(connect: Option<&str>, command: &[&str], name: &str) -> Result<String, CommandError> {
    let said = virsh(connect, command, &[format!("--domain={name}")])?;
    Ok(said.map_err(|said| {
        let hint = format!("there is no file '{name}' either; --connect says which libvirt to ask");
        Error::new(ErrorKind::NotFound, said).with_hint(hint)
    })?)
}

/// Has libvirt know a domain by this document.
pub fn define(connect: Option<&str>, text: &str) -> Result<(), CommandError> {
    let cannot = |error| Error::new(ErrorKind::Io, "cannot pass the document to virsh").with_source(error);
    // It may have passwords in it: nobody else may read a temporary file.
    let mut file = tempfile::NamedTempFile::new().map_err(cannot)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(cannot)?;
    let file = format!("--file={}", file.path().display());
    virsh(connect, &["define"], &[file])?.map_err(|said| Error::new(ErrorKind::Conflict, said))?;
    Ok(())
}
