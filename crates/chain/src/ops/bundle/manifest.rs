//! The manifest: what is in a bundle, told before anything else.
//!
//! What is read from one is held against everything that a bundle can be before it is believed.

use super::names::is_plain;
use super::{hex, spans, tape};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The manifest's name in the bundle, and that of the digests at its end.
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const DIGESTS: &str = "digests.json";
/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Most bytes of a manifest.
pub(super) const MOST_BYTES: u64 = 16 << 20;
/// Most layers: as many as a chain has.
const MOST_LAYERS: usize = 10_000;

/// What is in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format: 1.
    pub catena_bundle: u32,
    /// The layers, the lowest first: each stands on the one before it.
    pub layers: Vec<BundledLayer>,
    /// The files, in the order of the bundle: each layer's image, and its data file behind it.
    pub files: Vec<BundledFile>,
    /// What the lowest layer stands on; `None` where that needs no other image.
    pub since: Option<Since>,
    /// The BLAKE3 of what the guest of the uppermost layer sees, as `catena hash` tells it; `None` where it is encrypted.
    pub view: Option<String>,
}

/// A layer in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledLayer {
    /// Its image's name.
    pub name: String,
    /// The format that it is in, in QEMU's words.
    pub format: String,
    /// Bytes its guest sees.
    pub virtual_size: u64,
    /// The name of the file that its data is in, where that is another one.
    pub data_file: Option<String>,
}

/// A file in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledFile {
    /// Its name: plain, without folders.
    pub name: String,
    /// Its bytes.
    pub length: u64,
    /// Those of them that are in the bundle, with the list of where they belong if it has holes.
    pub stored: u64,
    /// Whether it has holes.
    pub sparse: bool,
    /// Who may do what with it, as `chmod` takes it.
    pub mode: u32,
}

/// What the lowest layer of a bundle stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    /// The name by which the lowest layer records it.
    pub name: String,
    /// Its format, in QEMU's words.
    pub format: String,
    /// Bytes its guest sees.
    pub virtual_size: u64,
    /// The BLAKE3 of what its guest sees.
    pub view: String,
}

impl Manifest {
    pub(super) fn new(layers: Vec<BundledLayer>, files: Vec<BundledFile>, since: Option<Since>) -> Self {
        Self {
            catena_bundle: VERSION,
            layers,
            files,
            since,
            view: None,
        }
    }

    /// The uppermost layer.
    pub fn top(&self) -> Option<&BundledLayer> {
        self.layers.last()
    }

    /// Bytes of all files in the bundle.
    pub fn stored(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum: u64, file| sum.saturating_add(file.stored))
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        encode(self)
    }

    /// Reads one, and holds it against what a bundle can be.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            if let Ok(Version { catena_bundle }) = serde_json::from_slice(bytes)
                && catena_bundle != VERSION
            {
                return Error::new(
                    ErrorKind::Unsupported,
                    format!("it is of version {catena_bundle}, and {VERSION} is known"),
                );
            }
            wrong(&format!("the manifest cannot be read: {error}"))
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        if self.catena_bundle != VERSION {
            return Err(wrong("its version and its content disagree"));
        }
        if self.layers.is_empty() || self.layers.len() > MOST_LAYERS {
            return Err(wrong("it has no layers, or more than a chain can have"));
        }
        self.check_layers()?;
        self.check_files()?;
        if let Some(since) = &self.since {
            is_plain(&since.name)
                .then_some(())
                .ok_or_else(|| not_plain(&since.name))?;
            format_of(&since.format)?;
        }
        let since = self.since.as_ref().map(|since| &since.view);
        match since
            .into_iter()
            .chain(&self.view)
            .all(|digest| is_digest(digest))
        {
            true => Ok(()),
            false => Err(wrong("a digest in its manifest is none")),
        }
    }

    fn check_layers(&self) -> Result<()> {
        for (index, layer) in self.layers.iter().enumerate() {
            let format = format_of(&layer.format)?;
            let over_another = index > 0 || self.since.is_some();
            if format != Format::Qcow2 && (over_another || layer.data_file.is_some()) {
                return Err(wrong(&format!("a {format} image in it would need another file")));
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<()> {
        let named = self
            .layers
            .iter()
            .flat_map(|layer| std::iter::once(&layer.name).chain(&layer.data_file));
        if !named.eq(self.files.iter().map(|file| &file.name)) {
            return Err(wrong("its files are not those of its layers"));
        }
        let mut seen = BTreeSet::new();
        for file in &self.files {
            if !is_plain(&file.name) {
                return Err(not_plain(&file.name));
            }
            if !seen.insert(&file.name) {
                return Err(wrong("two files in it have the same name"));
            }
            let possible = match file.sparse {
                true => {
                    file.stored >= tape::BLOCK && file.stored <= file.length.saturating_add(spans::MOST_BYTES)
                }
                false => file.stored == file.length,
            };
            if !possible || i64::try_from(file.length).is_err() || file.mode > 0o777 {
                return Err(wrong(&format!("what it says of '{}' cannot be", file.name)));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Version {
    catena_bundle: u32,
}

/// The digests at the end: of the manifest and of every file, in the order of the bundle, each of the bytes in the bundle.
#[derive(Debug, Default, Serialize)]
pub(super) struct Digests {
    blake3: Vec<FileDigest>,
}

#[derive(Debug, Serialize)]
struct FileDigest {
    name: String,
    digest: String,
}

impl Digests {
    pub fn add(&mut self, name: &str, digest: blake3::Hash) {
        self.blake3.push(FileDigest {
            name: name.to_owned(),
            digest: hex(digest.as_bytes()),
        });
    }

    pub fn encode(&self) -> Result<Vec<u8>> {
        encode(self)
    }

    /// The first file that has another digest in somebody else's list.
    pub fn first_other(&self, list: &[u8]) -> Option<&str> {
        let list = String::from_utf8_lossy(list);
        let other = self.blake3.iter().find(|file| !list.contains(&file.digest));
        other.map(|file| file.name.as_str())
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(ErrorKind::Io, format!("it cannot be written as JSON: {error}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A format that bundles carry: those of images that need no other file but what the manifest knows.
pub(super) fn format_of(word: &str) -> Result<Format> {
    match Format::from_qemu(word) {
        Some(format) if is_carried(format) => Ok(format),
        _ => Err(wrong("an image in it is of a format that bundles do not carry")),
    }
}

/// Whether bundles carry images of a format.
pub(super) fn is_carried(format: Format) -> bool {
    matches!(format, Format::Raw | Format::Iso | Format::Luks | Format::Qcow2)
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn not_plain(name: &str) -> Error {
    wrong(&format!("'{}' in it is no plain name", name.escape_debug()))
}

/// The error for a bundle that is none.
pub(super) fn wrong(why: &str) -> Error {
    Error::new(
        ErrorKind::InvalidFormat,
        format!("this is no sound bundle: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str| BundledFile {
            name: name.to_owned(),
            length: 4096,
            stored: 4096,
            sparse: false,
            mode: 0o644,
        };
        let layer = |name: &str, format: &str| BundledLayer {
            name: name.to_owned(),
            format: format.to_owned(),
            virtual_size: 4096,
            data_file: None,
        };
        Manifest::new(
            vec![layer("base.raw", "raw"), layer("vm.qcow2", "qcow2")],
            vec![file("base.raw"), file("vm.qcow2")],
            None,
        )
    }

    fn refused(change: impl FnOnce(&mut Manifest)) -> String {
        let mut manifest = manifest();
        change(&mut manifest);
        let error = Manifest::decode(&manifest.encode().unwrap()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = manifest();
        assert_eq!(Manifest::decode(&written.encode().unwrap()).unwrap(), written);
    }

    #[test]
    fn names_that_lead_out_of_a_folder_are_refused() {
        let long = "x".repeat(300);
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            ".bashrc",
            "-rf",
            "nbd:x",
            "a\nb",
            "a\0b",
            "a\\b",
            "manifest.json",
            "digests.json",
            &long,
        ] {
            refused(|manifest| {
                manifest.layers[0].name = name.to_owned();
                manifest.files[0].name = name.to_owned();
            });
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(refused(|manifest| manifest.catena_bundle = 2).contains("version"));
        refused(|manifest| manifest.layers.clear());
        refused(|manifest| manifest.files[1].name = "other".to_owned());
        refused(|manifest| manifest.layers[0].format = "vmdk".to_owned());
        refused(|manifest| manifest.layers[1].format = "raw".to_owned());
        refused(|manifest| manifest.files[0].length = 1);
        refused(|manifest| {
            manifest.files[0].length = u64::MAX;
            manifest.files[0].stored = u64::MAX;
        });
        refused(|manifest| manifest.files[0].mode = 0o4755);
        refused(|manifest| manifest.view = Some("0".to_owned()));
        refused(|manifest| {
            manifest.layers[1].name = "base.raw".to_owned();
            manifest.files[1].name = "base.raw".to_owned();
        });
    }
}
