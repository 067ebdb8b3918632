//! Formats: which are recorded, what the words mean to whom, and whether the images are in them.

use super::links::plain_recording_cure;
use super::{Code, Cure, Examination, Severity, as_unsafe, libvirt_walk, recording, recording_cure};
use crate::chain::{Consent, Layer, Link, Origin};
use catena_engine::StorageBytes;
use catena_format::{Format, recognise};

/// What libvirt 11.3 makes of a format word it does not have.
const LIBVIRT_RAW: &str = "libvirt 9.10 and later opens the backing image as raw, so that the guest sees the container \
                           instead of its contents";

pub(super) fn check(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    look_alike(examination, number, layer);
    let below = examination.chain.layers.get(number + 1);
    if let Some(backing) = below {
        not_recorded(examination, number, layer, backing);
        unseen(examination, number, layer);
    }
    word(examination, number, layer, below);
}

/// An accepted backing image whose format nobody recorded.
fn not_recorded(examination: &mut Examination<'_>, number: usize, overlay: &Layer, backing: &Layer) {
    let Origin::Probed(consent) = backing.origin else {
        return;
    };
    let format = backing.format;
    let text = backing.link.as_ref().map(Link::shown).unwrap_or_default();
    let why = match consent {
        Consent::Leaf => "is accepted because the image names no other file",
        Consent::Trusted => "is accepted because the policy trusts the image",
        Consent::Qed => "is accepted because QED leaves it to be probed",
        Consent::UserArgument => return,
    };
    let consequence = if backing.description.is_leaf() {
        "whoever can write the backing image decides what it is taken for, and once it looks like an overlay libvirt \
         refuses the chain"
    } else {
        "libvirt refuses the chain: format of backing image was not specified in the image metadata"
    };
    let mut cure = recording_cure(overlay, format);
    if let Some(fix) = recording(overlay, format) {
        cure = cure.by(fix);
    }
    examination.find(
        Code::FormatNotRecorded,
        Severity::Warning,
        (number, overlay.name()),
        format!(
            "the format of the backing image '{text}' is not recorded; probed, it is {format}, which {why}"
        ),
        consequence,
        cure,
    );
}

/// A recorded format that libvirt's walk through the extensions does not come to.
fn unseen(examination: &mut Examination<'_>, number: usize, overlay: &Layer) {
    let (Some(header), Some(file)) = (&overlay.header, &overlay.file) else {
        return;
    };
    let recorded = header.backing_format().is_some_and(|word| !word.is_empty());
    let Ok(bytes) = StorageBytes::new(&file.storage) else {
        return;
    };
    let seen = libvirt_walk::look(header, &bytes.with_head());
    if !recorded || !seen.backing || seen.backing_format {
        return;
    }
    let Some(backing) = examination.chain.layers.get(number + 1) else {
        return;
    };
    let mut cure = recording_cure(overlay, backing.format);
    if let Some(fix) = recording(overlay, backing.format) {
        cure = cure.by(fix);
    }
    examination.find(
        Code::FormatUnseen,
        Severity::Warning,
        (number, overlay.name()),
        "the format of the backing image is recorded behind other header extensions, where libvirt up to 11.3 does not \
         find it",
        "libvirt up to 11.3 treats the format as not recorded, and refuses the chain unless the backing image is its last",
        cure.saying("writing the header again puts the format first"),
    );
}

/// A recorded word that QEMU and libvirt understand differently.
fn word(examination: &mut Examination<'_>, number: usize, overlay: &Layer, below: Option<&Layer>) {
    let Some(word) = overlay
        .description
        .backing
        .as_ref()
        .and_then(|backing| backing.format.clone())
        .filter(|word| !word.is_empty())
    else {
        return;
    };
    let Some(format) = Format::from_recorded(&word) else {
        return;
    };
    let qemu = Format::from_qemu(&word);
    let libvirt = Format::from_libvirt(&word);
    let consequence = match (qemu, libvirt) {
        (Some(qemu), None) if qemu != Format::Luks && qemu != Format::Raw => LIBVIRT_RAW.to_owned(),
        (None, Some(_)) => format!("QEMU and qemu-img know no format '{word}' and refuse to open the chain"),
        _ => return,
    };
    let cure = match below.map(|backing| backing.format) {
        // An ISO image is raw by another name, which only libvirt has.
        Some(Format::Iso) => {
            let cure = recording_cure(overlay, Format::Raw);
            match recording(overlay, Format::Raw) {
                Some(fix) => cure.by(fix),
                None => cure,
            }
        }
        _ => Cure::advice(format!(
            "no word says {format} to both; for both, convert the backing image to qcow2 and relink the overlay to it, or \
             give the whole chain in the domain XML, where libvirt calls it '{}'",
            format.libvirt()
        )),
    };
    examination.find(
        Code::FormatWordDiffers,
        Severity::Warning,
        (number, overlay.name()),
        format!("the recorded backing format '{word}' does not mean the same to QEMU and to libvirt"),
        consequence,
        cure,
    );
}

/// An image that looks like something else than what it is used as, or like several things.
fn look_alike(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    let Some(file) = layer.file.as_ref().filter(|_| layer.source.slice.is_none()) else {
        return;
    };
    let Ok(bytes) = StorageBytes::new(&file.storage) else {
        return;
    };
    let bytes = bytes.with_head();
    let (Ok(mut matches), Ok(qemu), Ok(libvirt)) = (
        recognise::recognise(&bytes),
        recognise::probe_as_qemu(&bytes, None),
        recognise::probe_as_libvirt(&bytes),
    ) else {
        return;
    };
    // A guest can write a footer or a descriptor onto its raw disk, and nobody takes the disk for an image because of it.
    matches.retain(|format| {
        let by_its_start = !matches!(format, Format::Vpc | Format::Dmg | Format::Vmdk);
        by_its_start || [qemu, libvirt, layer.format].contains(format)
    });
    let at = || (number, layer.name());
    if matches.len() > 1 {
        let names: Vec<_> = matches.iter().map(|format| format.as_str()).collect();
        examination.find(
            Code::FormatAmbiguous,
            Severity::Warning,
            at(),
            format!("the image looks like several formats at once: {}", names.join(", ")),
            format!(
                "whoever probes it may take it for another than the one meant: libvirt for {libvirt}, QEMU for {qemu}"
            ),
            Cure::advice(
                "record or give its format wherever it is used; if nobody knows why it is so, it was made to deceive",
            ),
        );
        return;
    }
    if layer.format != Format::Raw {
        return;
    }
    let overlay = number
        .checked_sub(1)
        .and_then(|above| examination.chain.layers.get(above));
    let who = match layer.origin {
        Origin::Recorded => "its overlay records raw",
        Origin::Specified if examination.first > 0 => "its overlay records raw",
        Origin::Specified => "it was given as raw",
        Origin::Probed(_) => return,
    };
    // libvirt knows LUKS 2 as well, QEMU does not.
    let found = match matches.as_slice() {
        [Format::Luks] => Format::Luks,
        _ => qemu,
    };
    match found {
        Format::Raw => {}
        Format::Luks => examination.find(
            Code::LuksInRaw,
            Severity::Warning,
            at(),
            format!("{who}, but the image holds a LUKS container"),
            "libvirt takes it for an encrypted volume and wants the secret, QEMU shows the guest the encrypted bytes",
            Cure::advice(
                "if the guest itself encrypts its disk this is as it should be; else record the format luks: 'catena \
                 relink' with --backing-format luks",
            ),
        ),
        found => examination.find(
            Code::FormatMismatch,
            Severity::Warning,
            at(),
            format!("{who}, but the image has the header of a {found} image"),
            format!(
                "the guest sees the bytes of the {found} file, not the disk in it; that is as it should be only if a guest \
                 keeps a disk image on this disk, or tries to pass one off"
            ),
            recognised_cure(overlay, found, examination.first == 0),
        ),
    }
}

/// What to do about an image that is said to be raw and is something else to QEMU.
fn recognised_cure(overlay: Option<&Layer>, found: Format, is_active: bool) -> Cure {
    let Some(overlay) = overlay else {
        if !is_active {
            return Cure::advice(format!(
                "if it is meant to be {found}, record that with its new place"
            ));
        }
        return Cure::advice(format!(
            "if the image is {found} and no guest could write it, give that as its format, here with '-f {found}'"
        ));
    };
    as_unsafe(plain_recording_cure(overlay, found)).saying(format!(
        "if the image is meant to be {found} and no guest could write it, its overlay must record that; this changes what the \
         guest sees, from the bytes of the file to the disk in it"
    ))
}
