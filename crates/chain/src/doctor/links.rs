//! References: what an image records about its backing, and who reads it how.

use super::{Code, Cure, Examination, Severity, libvirt_walk, record, recording, recording_cure};
use crate::chain::{Layer, unmistakable};
use crate::detect::quoted;
use crate::reference::{Reading, Reference, differs_from_qemu};
use catena_engine::StorageBytes;
use catena_format::{Format, limits};

pub(super) fn check(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    differs(examination, number, layer);
    place(examination, number, layer);
}

/// A string that libvirt and QEMU read differently.
fn differs(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    let Some(recorded) = &layer.description.backing else {
        return;
    };
    // Only these two record a string by QEMU's rules; the others have names of their own.
    if layer.header.is_none() && !matches!(layer.format, catena_format::Format::Qed) {
        return;
    }
    let Some(how) = differs_from_qemu(&recorded.name, &layer.source) else {
        return;
    };
    // The credentials themselves are nobody's business, and have a finding of their own.
    let text = match crate::reference::Reference::parse(&recorded.name, crate::reference::Reading::Catena) {
        Ok(reference) if reference.has_lost(crate::reference::LostKind::Credentials) => return,
        _ => &recorded.name,
    };
    let below = examination.chain.layers.get(number + 1);
    let same = plain_name(layer)
        .filter(|plain| !plain.starts_with('/'))
        .and_then(|_| recording(layer, below.filter(|below| below.file.is_some())?.format));
    let cure = match same {
        Some(fix) => Cure::relink(layer.word(), &fix.name, fix.format.as_str())
            .saying("the plain name means the file beside the overlay to both")
            .by(fix),
        None => Cure::advice("record a plain file name, or a URI, which both read alike: 'catena relink'"),
    };
    examination.find(
        Code::ReferenceDiffers,
        Severity::Warning,
        (number, layer.name()),
        format!("libvirt and QEMU read the backing reference '{text}' differently: {how}"),
        "under libvirt the guest may see another disk than qemu-img does, or none",
        cure,
    );
}

/// The plain name for a file of this host that is recorded as `json:` or `file:`, where that says nothing more.
pub(super) fn plain_name(overlay: &Layer) -> Option<String> {
    let recorded = overlay.description.backing.as_ref().filter(|link| !link.lossy)?;
    let named = ["json:", "file:"];
    if !named.iter().any(|prefix| recorded.name.starts_with(prefix)) {
        return None;
    }
    let reference = Reference::parse(&recorded.name, Reading::Catena).ok()?;
    let source = reference.unresolved();
    if !reference.lost().is_empty() || source.slice.is_some() {
        return None;
    }
    let plain = unmistakable(source.path()?.as_os_str()).into_string().ok()?;
    let again = Reference::parse(&plain, Reading::Catena).ok()?;
    let (old, new) = (reference.resolve(&overlay.source), again.resolve(&overlay.source));
    (old.key() == new.key() && old.type_name() == new.type_name()).then_some(plain)
}

/// The cure by which an overlay records its backing image in another format. A `json:` description may give the format as
/// well, and so is replaced by the plain name.
pub(super) fn plain_recording_cure(overlay: &Layer, format: Format) -> Cure {
    let is_json = overlay
        .description
        .backing
        .as_ref()
        .is_some_and(|link| link.name.starts_with("json:"));
    match plain_name(overlay).filter(|_| overlay.header.is_some()) {
        Some(plain) => record(overlay, plain.as_ref(), format),
        None if is_json => Cure::advice(format!(
            "record the image anew: catena rebase {} --backing IMAGE --backing-format {format} --unsafe",
            quoted(overlay.word())
        )),
        None => recording_cure(overlay, format),
    }
}

/// Where in the image the name lies.
fn place(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    let (Some(header), Some(file)) = (&layer.header, &layer.file) else {
        return;
    };
    let Some(name) = &header.backing else {
        return;
    };
    let format = examination
        .chain
        .layers
        .get(number + 1)
        .map(|backing| backing.format);
    let fits = name.name.len() as u64 <= u64::from(limits::BACKING_NAME_BYTES);
    let cure = match (format.and_then(|format| recording(layer, format)), fits) {
        (Some(fix), true) => Cure::relink(layer.word(), &fix.name, fix.format.as_str())
            .saying("writing the same name again puts it into the first cluster")
            .by(fix),
        _ => Cure::advice("record the backing image again once it can be opened: 'catena relink'"),
    };
    if name.end() > header.cluster_bits.size() {
        examination.find(
            Code::NameOutsideFirstCluster,
            Severity::Warning,
            (number, layer.name()),
            format!(
                "the backing file name lies at offset {}, outside the first cluster of {} bytes",
                name.offset,
                header.cluster_bits.size()
            ),
            "a guest that writes to this image may be able to change the name, and so choose a file of the host to read",
            cure.clone(),
        );
    }
    let Ok(bytes) = StorageBytes::new(&file.storage) else {
        return;
    };
    if !libvirt_walk::look(header, &bytes).backing {
        examination.find(
            Code::BackingUnseen,
            Severity::Error,
            (number, layer.name()),
            format!(
                "the backing file name lies at offset {}, beyond the {} bytes that libvirt reads",
                name.offset,
                libvirt_walk::WINDOW
            ),
            "libvirt takes the image for one without a backing image and has QEMU open it so: the guest sees zeros instead \
             of its data",
            cure,
        );
    }
}
