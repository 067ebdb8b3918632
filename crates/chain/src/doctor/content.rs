//! The state of an image: what its header and the tables that it points to say.

use super::{Code, Cure, Examination, Severity};
use crate::chain::Layer;
use catena_engine::StorageBytes;
use catena_format::qcow2::{Autoclear, Bitmap, Compatible, Header, Incompatible, L1Entry, Snapshot};
use catena_format::{Bytes, Encryption};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Names listed before "and so many more".
const NAMES: usize = 5;

pub(super) fn check(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    encrypted(examination, number, layer);
    odd(examination, number, layer);
    if let Some(header) = &layer.header {
        bits(examination, number, layer, header);
        snapshots(examination, number, layer, header);
        bitmaps(examination, number, layer, header);
        if examination.is_full() {
            truncated(examination, number, layer, header);
        }
    }
}

fn check_command(layer: &Layer) -> Cure {
    Cure::command([
        "qemu-img".into(),
        "check".into(),
        "-f".into(),
        layer.format.to_string().into(),
        "-r".into(),
        "all".into(),
        layer.word(),
    ])
    .saying("while no guest uses it, and with a copy at hand")
}

fn bits(examination: &mut Examination<'_>, number: usize, layer: &Layer, header: &Header) {
    let at = || (number, layer.name());
    if header.incompatible.contains(Incompatible::CORRUPT) {
        examination.find(
            Code::Corrupt,
            Severity::Error,
            at(),
            "the image is marked corrupt: whoever wrote to it last met metadata that contradicts itself",
            "it can be read, with results that nobody vouches for, and is not written; a guest does not start from it",
            check_command(layer),
        );
    }
    if header.incompatible.contains(Incompatible::DIRTY) {
        examination.find(
            Code::Dirty,
            Severity::Warning,
            at(),
            "the image is marked dirty: it is open, or was not closed cleanly, and its refcounts may be stale",
            "its data can be read; the first to open it for writing rebuilds the refcounts, which takes a while and destroys \
             the evidence of what happened",
            check_command(layer),
        );
    }
    let unknown = header.unknown_incompatible();
    if !unknown.is_empty() {
        let names: Vec<_> = unknown.into_iter().map(|(_, name)| name).collect();
        examination.find(
            Code::UnknownFeature,
            Severity::Error,
            at(),
            format!(
                "the image needs features that are not known here: {}",
                names.join(", ")
            ),
            "neither Catena nor any QEMU that does not know them can open it",
            Cure::advice("use the version of QEMU that made it"),
        );
    }
    if examination.first + number > 0 && header.compatible.contains(Compatible::LAZY_REFCOUNTS) {
        let mut cure = Cure::none();
        if !header.incompatible.contains(Incompatible::DIRTY) {
            cure = Cure::command([
                "qemu-img".into(),
                "amend".into(),
                "-f".into(),
                "qcow2".into(),
                "-o".into(),
                "lazy_refcounts=off".into(),
                layer.word(),
            ])
            .saying("if you commit to it often");
        }
        examination.find(
            Code::LazyRefcounts,
            Severity::Note,
            at(),
            "the backing image has lazy refcounts, which only help an image that is written",
            "a commit into it that is interrupted leaves it dirty, and in need of a repair before it can be written again",
            cure,
        );
    }
}

fn odd(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    let outside = layer
        .header
        .as_ref()
        .and_then(|header| Some(header.backing.as_ref()?.end() > header.cluster_bits.size()))
        .unwrap_or(false);
    for oddity in &layer.description.oddities {
        // That one has a code of its own.
        if outside && oddity.contains("outside the first cluster") {
            continue;
        }
        examination.find(
            Code::HeaderOdd,
            Severity::Warning,
            (number, layer.name()),
            oddity.clone(),
            "other programs may read the image differently",
            Cure::advice(
                "find out what wrote it; a copy made with 'qemu-img convert' has a header without oddities",
            ),
        );
    }
}

fn encrypted(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    let at = || (number, layer.name());
    match &layer.description.encryption {
        None => {}
        Some(Encryption::Luks(_)) => examination.find(
            Code::Encrypted,
            Severity::Note,
            at(),
            "the data is encrypted with LUKS",
            "the domain XML must name the secret for every such layer, and an overlay over it is not encrypted unless it is \
             made so",
            Cure::none(),
        ),
        Some(Encryption::Aes) => examination.find(
            Code::Encrypted,
            Severity::Warning,
            at(),
            "the data is encrypted in the old AES-CBC way",
            "it is weak, and QEMU's system emulators do not open it any more",
            Cure::command([
                "qemu-img".into(),
                "convert".into(),
                "--object".into(),
                "secret,id=old,file=OLD".into(),
                "--object".into(),
                "secret,id=new,file=NEW".into(),
                "--image-opts".into(),
                aes_options(layer),
                "-O".into(),
                "qcow2".into(),
                "-o".into(),
                "encrypt.format=luks,encrypt.key-secret=new".into(),
                "NEW.qcow2".into(),
            ])
            .saying("with the passphrases in the files OLD and NEW; the copy has no backing image"),
        ),
        Some(Encryption::LuksUnreadable(why)) => examination.find(
            Code::Encrypted,
            Severity::Error,
            at(),
            format!("the image says that it is encrypted with LUKS, but its LUKS header cannot be read: {why}"),
            "without that header nobody can read the data, whatever the passphrase",
            Cure::advice("restore the header from a backup of the image"),
        ),
    }
}

/// What `--image-opts` takes for an image in the old encryption.
fn aes_options(layer: &Layer) -> OsString {
    let driver = layer.format;
    let options = format!("driver={driver},encrypt.format=aes,encrypt.key-secret=old,file.filename=");
    let mut bytes = options.into_bytes();
    for byte in layer.word().into_vec() {
        bytes.push(byte);
        // In a list of options a comma is written twice.
        if byte == b',' {
            bytes.push(byte);
        }
    }
    OsString::from_vec(bytes)
}

fn list(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(NAMES).map(|name| format!("'{name}'")).collect();
    match names.len().saturating_sub(NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn snapshots(examination: &mut Examination<'_>, number: usize, layer: &Layer, header: &Header) {
    let count = header.snapshot_count;
    if count == 0 {
        return;
    }
    let mut which = String::new();
    if examination.is_full()
        && let Some(bytes) = bytes_of(layer)
    {
        match Snapshot::read_all(header, &bytes) {
            Ok(snapshots) => {
                let names: Vec<_> = snapshots.into_iter().map(|snapshot| snapshot.name).collect();
                which = format!(": {}", list(&names));
            }
            Err(error) => {
                return examination.find(
                    Code::Unreadable,
                    Severity::Error,
                    (number, layer.name()),
                    format!("the table of its {count} internal snapshots cannot be read: {error}"),
                    "QEMU does not open the image",
                    check_command(layer),
                );
            }
        }
    }
    examination.find(
        Code::InternalSnapshots,
        Severity::Note,
        (number, layer.name()),
        format!("the image has {count} internal snapshot{}{which}", if count == 1 { "" } else { "s" }),
        "they are of this file alone: a copy or a merge of the chain leaves them behind, and they go when the file goes",
        Cure::none(),
    );
}

fn bitmaps(examination: &mut Examination<'_>, number: usize, layer: &Layer, header: &Header) {
    let Some(extension) = header.bitmaps() else {
        return;
    };
    let at = || (number, layer.name());
    let count = extension.count;
    if !header.autoclear.contains(Autoclear::BITMAPS) {
        return examination.find(
            Code::BitmapInconsistent,
            Severity::Warning,
            at(),
            "the image has persistent bitmaps, but was written since by a program that does not keep them",
            "they do not say any more what has changed: an incremental backup by them would miss data",
            Cure::advice("take a full backup; QEMU drops the bitmaps when it opens the image for writing"),
        );
    }
    let mut which = String::new();
    if examination.is_full()
        && let Some(bytes) = bytes_of(layer)
    {
        match Bitmap::read_all(header, &bytes) {
            Ok(bitmaps) => {
                let names: Vec<_> = bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
                which = format!(": {}", list(&names));
                for bitmap in bitmaps.into_iter().filter(|bitmap| bitmap.in_use) {
                    examination.find(
                        Code::BitmapInconsistent,
                        Severity::Warning,
                        at(),
                        format!("the bitmap '{}' is open, or its writer was killed before it could save it", bitmap.name),
                        "unless a guest is running, it does not say any more what has changed, and QEMU refuses to use it",
                        Cure::command(["qemu-img".into(), "bitmap".into(), "-f".into(), "qcow2".into(), "--remove".into(), layer.word(), bitmap.name.into()])
                            .saying("unless a guest is running, and take a full backup"),
                    );
                }
            }
            Err(error) => {
                return examination.find(
                    Code::BitmapInconsistent,
                    Severity::Error,
                    at(),
                    format!("the directory of its {count} bitmaps cannot be read: {error}"),
                    "QEMU does not open the image for writing",
                    check_command(layer),
                );
            }
        }
    }
    examination.find(
        Code::Bitmaps,
        Severity::Note,
        at(),
        format!("the image has {count} persistent bitmap{}{which}", if count == 1 { "" } else { "s" }),
        "a copy or a merge of the chain leaves them behind unless it is told to keep them, and the next incremental backup \
         needs them",
        Cure::none(),
    );
}

fn bytes_of(layer: &Layer) -> Option<StorageBytes<'_>> {
    StorageBytes::new(&layer.file.as_ref()?.storage).ok()
}

/// Tables, and what they point to directly, that lie past the end of the file. The header's checks bound the tables.
fn truncated(examination: &mut Examination<'_>, number: usize, layer: &Layer, header: &Header) {
    let Some(bytes) = bytes_of(layer) else {
        return;
    };
    let len = bytes.len();
    let l1_bytes = u64::from(header.l1_entries) * 8;
    let refcount_bytes = u64::from(header.refcount_table_clusters) * header.cluster_bits.size();
    let beyond = |offset: u64, size: u64| size > 0 && offset.saturating_add(size) > len;
    let what = if beyond(header.l1_offset, l1_bytes) {
        Some("its L1 table lies past the end of the file".to_owned())
    } else if beyond(header.refcount_table_offset, refcount_bytes) {
        Some("its refcount table lies past the end of the file".to_owned())
    } else {
        let l1 = entries(&bytes, header.l1_offset, l1_bytes);
        let l2_tables = l1.filter_map(|entry| L1Entry(entry).offset());
        let lost_l2 = l2_tables.filter(|offset| *offset >= len).count();
        let table = entries(&bytes, header.refcount_table_offset, refcount_bytes);
        let lost_blocks = table.filter(|offset| *offset != 0 && *offset >= len).count();
        match (lost_l2, lost_blocks) {
            (0, 0) => None,
            (0, blocks) => Some(format!(
                "{blocks} of its refcount blocks lie past the end of the file"
            )),
            (tables, _) => Some(format!("{tables} of its L2 tables lie past the end of the file")),
        }
    };
    if let Some(what) = what {
        examination.find(
            Code::Truncated,
            Severity::Error,
            (number, layer.name()),
            format!("{what}, which has {len} bytes"),
            "the file was cut short, as by a copy that was interrupted; data is missing",
            Cure::advice(
                "copy it again or restore it from a backup; a repair would only make the loss permanent",
            ),
        );
    }
}

/// The 64-bit entries of a table whose size has been checked.
fn entries(bytes: &dyn Bytes, offset: u64, size: u64) -> impl Iterator<Item = u64> + use<> {
    let table = usize::try_from(size)
        .ok()
        .and_then(|size| bytes.read_exact(offset, size).ok())
        .unwrap_or_default();
    let (chunks, _) = table.as_chunks::<8>();
    let entries: Vec<_> = chunks.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
    entries.into_iter()
}
