//! Bundles that somebody made up, every digest right.

use super::import::{self, Bundle};
use super::manifest::{BundledFile, BundledLayer, DIGESTS, Digests, MANIFEST, Manifest};
use super::tape;
use crate::ops::Silent;
use crate::policy::Policy;
use catena_engine::{ErrorKind, Result};
use catena_format::qcow2::{CreateOptions, NewImage};
use std::io::Cursor;

/// A bundle of one image, as its manifest describes it.
fn made_up(layer: BundledLayer, content: &[u8]) -> Vec<u8> {
    let file = BundledFile {
        name: layer.name.clone(),
        length: content.len() as u64,
        stored: content.len() as u64,
        sparse: false,
        mode: 0o777,
    };
    let header = tape::header(&file.name, file.stored, file.mode, None);
    let manifest = Manifest::new(vec![layer], vec![file.clone()], None)
        .encode()
        .unwrap();
    let mut digests = Digests::default();
    digests.add(MANIFEST, blake3::hash(&manifest));
    digests.add(&file.name, blake3::hash(content));
    let digests = digests.encode().unwrap();
    let mut out = Vec::new();
    for (header, bytes) in [
        (small(MANIFEST, &manifest), manifest.as_slice()),
        (header, content),
        (small(DIGESTS, &digests), &digests),
    ] {
        out.extend(header);
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend(tape::END);
    out
}

fn small(name: &str, bytes: &[u8]) -> Vec<u8> {
    tape::header(name, bytes.len() as u64, 0o644, None)
}

fn qcow2(name: &str, virtual_size: u64) -> BundledLayer {
    BundledLayer {
        name: name.to_owned(),
        format: "qcow2".to_owned(),
        virtual_size,
        data_file: None,
    }
}

fn image(backing: Option<&str>) -> Vec<u8> {
    let image = NewImage::lay_out(&CreateOptions {
        backing: backing.map(|name| (name.as_bytes().to_vec(), b"raw".to_vec())),
        ..CreateOptions::new(1 << 20).unwrap()
    })
    .unwrap();
    let mut bytes = vec![0; usize::try_from(image.len).unwrap()];
    for (offset, piece) in image.writes {
        let start = usize::try_from(offset).unwrap();
        bytes[start..start + piece.len()].copy_from_slice(&piece);
    }
    bytes
}

fn restored(bundle: Vec<u8>) -> Result<Vec<String>> {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("restored");
    let request = import::Request {
        folder: folder.clone(),
        ..import::Request::default()
    };
    let bundle = Bundle {
        name: "bundle".to_owned(),
        input: Box::new(Cursor::new(bundle)),
    };
    let come = import::import(&request, vec![bundle], &Policy::default(), &Silent);
    let around = std::fs::read_dir(parent.path()).unwrap().count();
    assert_eq!(
        around,
        usize::from(come.is_ok()),
        "nothing is left, and nothing is beside it"
    );
    come.map(|come| come.layers.into_iter().map(|layer| layer.name).collect())
}

#[test]
fn an_image_that_names_what_its_manifest_does_not_is_refused() {
    assert_eq!(
        restored(made_up(qcow2("a.qcow2", 1 << 20), &image(None))).unwrap(),
        ["a.qcow2"]
    );
    for bundle in [
        made_up(qcow2("a.qcow2", 1 << 20), &image(Some("/etc/passwd"))),
        made_up(qcow2("a.qcow2", 2 << 20), &image(None)),
        made_up(qcow2("a.qcow2", 1 << 20), b"no image"),
    ] {
        restored(bundle).unwrap_err();
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["../a.qcow2", "/tmp/a.qcow2", "a/../../b", ".a", ""] {
        let refused = restored(made_up(qcow2(name, 1 << 20), &image(None))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidFormat, "{name}");
    }
}

#[test]
fn no_bundle_asks_for_memory_or_space_that_it_does_not_fill() {
    // A manifest, and a file, that say they are very long.
    let endless = tape::header(MANIFEST, 8 << 30, 0o644, None);
    assert_eq!(restored(endless).unwrap_err().kind(), ErrorKind::InvalidFormat);
    let long = tape::header(MANIFEST, 15 << 20, 0o644, None);
    assert_eq!(restored(long).unwrap_err().kind(), ErrorKind::Corrupt);
    let mut vast = made_up(qcow2("a.qcow2", 1 << 20), &image(None));
    vast.truncate(2048);
    assert_eq!(restored(vast).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn files_are_nobody_elses_to_run() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let request = import::Request {
        folder: folder.path().to_owned(),
        ..import::Request::default()
    };
    let bundle = Bundle {
        name: "bundle".to_owned(),
        input: Box::new(Cursor::new(made_up(qcow2("a.qcow2", 1 << 20), &image(None)))),
    };
    import::import(&request, vec![bundle], &Policy::default(), &Silent).unwrap();
    let mode = folder
        .path()
        .join("a.qcow2")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o133, 0, "{mode:o}");
}
