//! Bundles: layers of a chain in one file that streams, each with its digest and how it stands on the next.
//!
//! A bundle is a tar archive, which `tar` unpacks to a chain that opens: what the images in it record of each other are names
//! in one folder. It is never more lenient than the one way in which it is written: whoever reads one knows every byte of it
//! from its manifest but the images' own, and those by their digests. docs/bundle.md draws it.

pub mod export;
pub mod import;
mod manifest;
mod names;
mod read;
mod spans;
pub(super) mod staging;
mod tape;
#[cfg(test)]
mod tests;

pub use manifest::{BundledFile, BundledLayer, Manifest, Since};

use catena_engine::{Disk, Error, ErrorKind, Result};
use catena_format::qcow2::{Extension, Header};

use super::hash::{self, hash};
use super::observer::Observer;
use super::relink::{self, NewBacking};
use crate::stamp::Renewal;

/// Bytes that are read and written at once.
const PIECE: usize = 1 << 20;

/// The digest of what a guest sees, as the manifest has it.
fn view_of(disk: &dyn Disk, observer: &dyn Observer) -> Result<String> {
    let request = hash::Request {
        blake3: true,
        sha256: false,
    };
    let digests = hash(disk, request, observer)?;
    let digest = digests
        .blake3
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "the digest was not computed"))?;
    Ok(hex(&digest))
}

/// A header that records these names, and everything else as it did.
fn with_names(
    header: &Header,
    backing: Option<&NewBacking>,
    data_file: Option<&str>,
    renewal: Renewal<'_>,
) -> Result<Header> {
    let mut new = relink::changed(header, backing)?;
    renewal.apply(header, &mut new);
    if let Some(data_file) = data_file {
        for extension in &mut new.extensions {
            if let Extension::DataFile(name) = extension {
                *name = data_file.as_bytes().to_vec();
            }
        }
    }
    Ok(new)
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
