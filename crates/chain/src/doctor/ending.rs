//! How the chain ends: where it goes on unseen, and where and why it breaks.

use super::links::plain_recording_cure;
use super::search::{Candidate, candidates, namesakes};
use super::{Code, Cure, Examination, Severity, access, as_unsafe, record, recording_cure};
use crate::chain::{Break, End, Layer, Link, OpenEnd, unmistakable};
use crate::detect::{Start, quoted};
use crate::reference::{Source, without_credentials};
use catena_engine::{ErrorKind, StorageBytes};
use catena_format::{Description, Format, recognise};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Layers from which on libvirt 10.8 to 11.x fails to start a guest (measured: JSON may nest 31 levels).
const LIBVIRT_RUNS: usize = 25;
/// Images named that may be the missing one.
const CANDIDATES: usize = 5;
/// Layers that libvirt allows at all.
const LIBVIRT_ALLOWS: usize = 200;

pub(super) fn check(examination: &mut Examination<'_>) {
    length(examination);
    let chain = examination.chain;
    match &chain.end {
        End::Terminated => {}
        End::OpenEnded(open) => open_ended(examination, open),
        End::Broken(broken) => broken_at(examination, broken),
    }
}

/// Where a sentence about the last layer's reference belongs: that layer, or the active one where there is none yet.
fn last(examination: &Examination<'_>, broken: Option<&Break>) -> (usize, String) {
    let layers = &examination.chain.layers;
    match layers.last() {
        Some(layer) => (layers.len() - 1, layer.name()),
        None => {
            let source = broken.and_then(|broken| broken.source.as_ref());
            (0, source.map(ToString::to_string).unwrap_or_default())
        }
    }
}

/// The way on when the policy is in the way.
pub(super) fn allow() -> Cure {
    Cure::advice(
        "if you trust the image that names it, allow it in a policy file and give that with --policy",
    )
}

fn length(examination: &mut Examination<'_>) {
    let layers = examination.first + examination.chain.layers.len();
    let Some(active) = examination.chain.active().filter(|_| layers > LIBVIRT_RUNS) else {
        return;
    };
    let at = (0, active.name());
    let cure = Cure::advice(
        "merge layers that nobody needs any more: 'virsh blockcommit' for a running guest, 'qemu-img commit' else",
    );
    let cause = format!("the chain has {layers} layers");
    let consequence = if layers > LIBVIRT_ALLOWS {
        "libvirt allows 200: backing chains more than 200 layers deep are not supported"
    } else {
        "libvirt 10.8 to 11.x cannot start a guest on it (failed to parse JSON: nesting too deep); others can"
    };
    examination.find(Code::ChainLong, Severity::Warning, at, cause, consequence, cure);
}

fn open_ended(examination: &mut Examination<'_>, open: &OpenEnd) {
    let (number, name) = last(examination, None);
    match open {
        OpenEnd::NotTraversable => examination.find(
            Code::NotExamined,
            Severity::Note,
            (number, name),
            "the layer is not a file or block device of this host, so its header was not read",
            "whether it is there, in its recorded format, and has a backing image of its own is not known; libvirt leaves \
             that to QEMU",
            Cure::none(),
        ),
        OpenEnd::Credentials(_) => examination.find(
            Code::Credentials,
            Severity::Warning,
            (number, name),
            "the recorded reference to the backing image carries credentials",
            "whoever can read the image can read them; libvirt ends the chain here without a word, QEMU uses them",
            Cure::advice(
                "record the place without credentials, change the password, and give it by a <secret> in the domain XML",
            ),
        ),
    }
}

fn broken_at(examination: &mut Examination<'_>, broken: &Break) {
    let at = last(examination, Some(broken));
    let error = &broken.error;
    let below = "what is below is not examined";
    match error.kind() {
        ErrorKind::FormatUnknown => format_unknown(examination, broken, at),
        ErrorKind::InvalidFormat => mismatch(examination, broken, at),
        ErrorKind::NotFound => missing(examination, broken, at),
        ErrorKind::Denied => {
            let number = examination.chain.layers.len();
            access::denied(examination, number, broken.source.as_ref(), error);
        }
        ErrorKind::Loop => loops(examination, broken, at),
        ErrorKind::TooDeep => examination.find(
            Code::ChainTooDeep,
            Severity::Error,
            at,
            format!(
                "the chain has more than the {} layers that the policy '{}' allows",
                examination.options.policy.depth(),
                examination.options.policy.name()
            ),
            format!("{}; {below}", error.message()),
            Cure::advice("merge layers that nobody needs any more, or allow more in a policy file (depth)"),
        ),
        ErrorKind::Refused => refused(examination, broken, at),
        ErrorKind::BadReference => examination.find(
            Code::ReferenceInvalid,
            Severity::Error,
            at.clone(),
            format!(
                "the recorded reference '{}' cannot be followed: {}",
                broken.link.as_ref().map(Link::shown).unwrap_or_default(),
                error.message()
            ),
            format!("neither libvirt nor Catena can find the backing image; {below}"),
            by_hand(examination, "name the right image"),
        ),
        _ => {
            let number = examination.chain.layers.len();
            let name = broken
                .source
                .as_ref()
                .map_or_else(|| at.1.clone(), ToString::to_string);
            if let Some(kind) = broken.source.as_ref().and_then(no_image) {
                return no_file(examination, broken, (number, name), kind);
            }
            let what = if broken.link.is_some() {
                "the backing image"
            } else {
                "the image"
            };
            examination.find(
                Code::Unreadable,
                Severity::Error,
                (number, name),
                format!("{what} cannot be read: {}", error.full()),
                format!("no guest starts from it; {below}"),
                error.hint().map_or_else(
                    || Cure::advice("restore it from a backup, or see what 'qemu-img check' can do about it"),
                    Cure::advice,
                ),
            );
        }
    }
    // What the policy refuses, or nobody knows, is not looked at for somebody else either.
    let looked_at = !matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::Denied
            | ErrorKind::Refused
            | ErrorKind::BadReference
            | ErrorKind::TooDeep
            | ErrorKind::Loop
    );
    if looked_at {
        access::check_source(examination, broken.source.as_ref());
    }
}

/// What a name leads to that nothing can be read from as from a disk.
fn no_image(source: &Source) -> Option<&'static str> {
    let kind = std::fs::metadata(source.path()?).ok()?.file_type();
    [
        (kind.is_dir(), "a directory"),
        (kind.is_char_device(), "a character device"),
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
    ]
    .into_iter()
    .find_map(|(is, what)| is.then_some(what))
}

/// Something that is there and is no image.
fn no_file(examination: &mut Examination<'_>, broken: &Break, at: (usize, String), kind: &str) {
    let (what, cure) = match &broken.link {
        Some(_) => (
            "the backing image",
            by_hand(examination, "record the image that is meant instead"),
        ),
        None => (
            "the image",
            Cure::advice("name the image itself: a regular file or a block device"),
        ),
    };
    examination.find(
        Code::Unreadable,
        Severity::Error,
        at,
        format!("{what} is {kind}; an image is a regular file or a block device"),
        "no guest starts from it",
        cure,
    );
}

fn format_unknown(examination: &mut Examination<'_>, broken: &Break, at: (usize, String)) {
    let error = &broken.error;
    let Some(link) = &broken.link else {
        return examination.find(
            Code::FormatAmbiguous,
            Severity::Error,
            at,
            error.message().to_owned(),
            "it is not opened, since what is in it depends on who looks",
            Cure::advice("give its format with --format if you know it; if nobody knows why it is so, it was made to deceive"),
        );
    };
    let word = link.format.as_deref().filter(|word| !word.is_empty());
    if let Some(word) = word.filter(|word| Format::from_recorded(word).is_none()) {
        let cure = other_format(examination, broken);
        return examination.find(
            Code::FormatWordUnknown,
            Severity::Error,
            at,
            error.message().to_owned(),
            format!(
                "QEMU refuses the chain (unknown driver '{word}'), libvirt 9.10 and later opens the backing image as raw; what \
                 is below is not examined"
            ),
            cure,
        );
    }
    let Some(((format, description), overlay)) = broken.probed.as_ref().zip(examination.chain.layers.last())
    else {
        // Not on this host, or several formats at once.
        return examination.find(
            Code::FormatNotRecorded,
            Severity::Error,
            at.clone(),
            format!(
                "the format of the backing image '{}' is not recorded",
                link.shown()
            ),
            format!("the chain is refused ({})", error.message()),
            by_hand(examination, "only you can know the format; record it"),
        );
    };
    let cure = recording_cure(overlay, *format).saying(
        "if you trust the backing image: no guest could ever write to it as a raw disk. Until then what is below it is not \
         examined",
    );
    let consequence = format!("the chain is refused. {}", criteria(*format, description));
    examination.find(
        Code::FormatNotRecorded,
        Severity::Error,
        at,
        error.message().to_owned(),
        consequence,
        cure,
    );
}

/// A relink that only a person can complete.
fn by_hand(examination: &Examination<'_>, what: &str) -> Cure {
    let overlay = examination.chain.layers.last().map(Layer::word);
    Cure::advice(format!(
        "{what}: catena rebase {} --backing IMAGE --backing-format FORMAT --unsafe",
        quoted(overlay.unwrap_or_default())
    ))
}

/// The recording of the format that a backing image turns out to be in, where it was opened already and is in another
/// than recorded.
fn other_format(examination: &Examination<'_>, broken: &Break) -> Cure {
    const ADVICE: &str = "if the backing image is what it should be and no guest could write to it, record the format it is \
                          in; if it was overwritten, restore it";
    let path = broken.source.as_ref().and_then(Source::path);
    let format = path
        .and_then(|path| examination.options.policy.open(path).ok())
        .and_then(|file| recognise::probe_as_qemu(&StorageBytes::new(&file).ok()?, None).ok());
    let overlay = examination.chain.layers.last();
    match overlay.zip(format) {
        Some((overlay, format)) => as_unsafe(plain_recording_cure(overlay, format)).saying(ADVICE),
        None => Cure::advice(ADVICE),
    }
}

/// Which of the three criteria for recording a probed format hold (libvirt's page on backing chains).
fn criteria(format: Format, description: &Description) -> String {
    let leaf = match (&description.backing, &description.data_file) {
        (None, None) => "holds".to_owned(),
        (Some(backing), _) => format!("does not hold, it names '{}'", without_credentials(&backing.name)),
        (None, Some(file)) => format!(
            "does not hold, it names the data file '{}'",
            without_credentials(file.name.as_deref().unwrap_or_default())
        ),
    };
    let raw = if format == Format::Raw {
        "holds"
    } else {
        "does not hold"
    };
    format!(
        "Probed, the backing image is {format}, which may be recorded where one of these holds: it is raw ({raw}); it names no \
         other image ({leaf}); it is trusted (only you know, or a policy file)"
    )
}

fn mismatch(examination: &mut Examination<'_>, broken: &Break, at: (usize, String)) {
    let said = match &broken.link {
        Some(link) => format!(
            "is recorded as {}",
            link.format
                .as_deref()
                .filter(|word| !word.is_empty())
                .unwrap_or("its overlay's format")
        ),
        None => "was given in another format".to_owned(),
    };
    let name = broken
        .source
        .as_ref()
        .map_or_else(String::new, ToString::to_string);
    let hint = broken
        .error
        .hint()
        .map_or_else(String::new, |hint| format!(": {hint}"));
    let cure = match &broken.link {
        Some(_) => other_format(examination, broken),
        None => Cure::advice("give its format with --format, or leave that away"),
    };
    examination.find(
        Code::FormatMismatch,
        Severity::Error,
        at,
        format!(
            "the image '{name}' {said} and is not in that format ({}){hint}",
            broken.error.message()
        ),
        "neither QEMU nor libvirt can open the chain; what is below is not examined",
        cure,
    );
}

fn refused(examination: &mut Examination<'_>, broken: &Break, at: (usize, String)) {
    let path = broken.source.as_ref().and_then(Source::path);
    let whole = path.and_then(|path| std::path::absolute(path).ok());
    let policy = examination.options.policy;
    let how = match whole.filter(|path| policy.reaches(path)) {
        Some(_) if broken.error.message().contains("outside the folders") => {
            " (its name lies inside them, but '..' or a symbolic link on the way leads out)"
        }
        _ => "",
    };
    examination.find(
        Code::ReferenceRefused,
        Severity::Error,
        at,
        format!("{}{how}", broken.error.message()),
        "the file was not looked at, nor what is below it",
        allow(),
    );
}

fn loops(examination: &mut Examination<'_>, broken: &Break, at: (usize, String)) {
    let cure = by_hand(examination, "name the image that this one was made over");
    let path = broken.source.as_ref().and_then(Source::path);
    let object = path
        .and_then(|path| std::fs::metadata(path).ok())
        .map(|found| (found.dev(), found.ino()));
    let earlier = examination.chain.layers.iter().position(|layer| {
        let known = layer.file.as_ref().map(|file| file.identity.object());
        object.is_some() && known == object
    });
    let again = match earlier {
        Some(number) => format!("layer {number} of the chain again"),
        None => "an earlier layer of the chain again".to_owned(),
    };
    let text = broken.link.as_ref().map(Link::shown).unwrap_or_default();
    examination.find(
        Code::Loop,
        Severity::Error,
        at,
        format!("the backing image '{text}' is {again}"),
        format!("nobody can open the chain ({})", broken.error.message()),
        cure,
    );
}

fn missing(examination: &mut Examination<'_>, broken: &Break, at: (usize, String)) {
    let error = &broken.error;
    let Some(link) = &broken.link else {
        return missing_active(examination, broken, at);
    };
    let chain = examination.chain;
    let Some(overlay) = chain.layers.last() else {
        return;
    };
    let word = link.format.as_deref().filter(|word| !word.is_empty());
    // Those formats that differ from their own kind only record no word.
    let own = matches!(
        overlay.format,
        Format::Vmdk | Format::Vpc | Format::Vhdx | Format::Vdi
    )
    .then_some(overlay.format);
    let recorded = word.and_then(Format::from_recorded).or(own);
    let (found, by_name) = candidates(examination, overlay, broken.source.as_ref(), recorded);
    let cure = match found.as_slice() {
        [one] => unsafe_relink(overlay, one, broken.source.as_ref()),
        _ => Cure::advice(format!(
            "put the image back, or find it ('catena doctor --search DIR {}') and record where it is: 'catena rebase' with \
             --unsafe",
            quoted(overlay.word())
        )),
    };
    let names = listed(found.iter().map(|candidate| candidate.path.as_path()));
    if let ([one], true, Some(_)) = (found.as_slice(), by_name, recorded) {
        examination.onward = Some(Start::at(&one.path, Some(one.format)));
    }
    let proven = found.iter().all(|candidate| candidate.proven);
    let found = match (found.len(), by_name) {
        _ if !examination.is_full() => String::new(),
        (0, _) => "; nothing that could be it is beside the overlay or in the folders given with --search"
            .to_owned(),
        (_, true) => format!("; a file of that name is at {names}"),
        (_, false) if proven => format!("; the image it was made over, by its identity, is {names}"),
        (_, false) => format!("; of its format and the overlay's size is {names}"),
    };
    let name = broken
        .source
        .as_ref()
        .map_or_else(String::new, ToString::to_string);
    examination.find(
        Code::BackingMissing,
        Severity::Error,
        at,
        format!("the backing image '{name}' does not exist{found}"),
        format!("no guest starts from the chain (libvirt: {})", error.message()),
        cure,
    );
}

/// The image that the caller named is not there.
fn missing_active(examination: &mut Examination<'_>, broken: &Break, at: (usize, String)) {
    let source = broken.source.as_ref();
    let found = namesakes(examination, source.and_then(Source::path), source);
    let (found, advice) = match found.as_slice() {
        _ if !examination.is_full() => (String::new(), "check the name"),
        [] => (
            "; no file of that name is in its folder or in those given with --search".to_owned(),
            "check the name, or give the folders in which it may be with --search",
        ),
        several => (
            format!(
                "; a file of that name is at {}",
                listed(several.iter().map(PathBuf::as_path))
            ),
            "if that is the image, put it back, or name its new place here and in the domain XML",
        ),
    };
    let name = source.map_or_else(String::new, ToString::to_string);
    examination.find(
        Code::ImageMissing,
        Severity::Error,
        at,
        format!("the image '{name}' does not exist{found}"),
        format!(
            "there is nothing to examine, and no guest starts from it (libvirt: {})",
            broken.error.message()
        ),
        Cure::advice(advice),
    );
}

/// A few names out of many.
fn listed<'p>(paths: impl ExactSizeIterator<Item = &'p Path>) -> String {
    let more = paths.len().saturating_sub(CANDIDATES);
    let names: Vec<_> = paths
        .take(CANDIDATES)
        .map(|path| format!("'{}'", path.display()))
        .collect();
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn unsafe_relink(overlay: &Layer, found: &Candidate, missing: Option<&Source>) -> Cure {
    let real = |path: &Path| {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        whole.into_os_string()
    };
    // A name beside the overlay stays right when both move together.
    let folder = |path: &Path| path.parent().map(Path::to_owned);
    let beside = overlay.path().and_then(folder) == folder(&found.path);
    let relative = overlay
        .description
        .backing
        .as_ref()
        .is_some_and(|link| !link.name.starts_with('/'));
    let name = match found.path.file_name().filter(|_| beside && relative) {
        Some(name) => unmistakable(name),
        None => real(&found.path),
    };
    if overlay.header.is_none() {
        // No program changes these; the name they record must lead to the image.
        let Some(expected) = missing.and_then(Source::path) else {
            return Cure::advice("put the image where its overlay expects it");
        };
        return Cure::command([
            "ln".into(),
            "-s".into(),
            real(&found.path),
            expected.as_os_str().to_owned(),
        ]);
    }
    let cure = as_unsafe(record(overlay, &name, found.format));
    if found.proven {
        cure
    } else {
        cure.saying(
            "if it is the image that this one was made over: what the guest saw cannot be compared any more",
        )
    }
}
