//! External data files: whether they are there, large enough, nobody else's, and seen by libvirt.

use super::{Code, Cure, Examination, Severity, access, ending, libvirt_walk, search};
use crate::chain::{DataFileLayer, Layer, LayerFile, unmistakable};
use catena_engine::{ErrorKind, StorageBytes};

pub(super) fn check(examination: &mut Examination<'_>, number: usize, layer: &Layer) {
    let Some(data_file) = &layer.data_file else {
        return;
    };
    seen(examination, number, layer, data_file);
    match &data_file.file {
        Ok(file) => {
            size(examination, number, layer, data_file, file);
            shared(examination, number, layer, data_file, file);
        }
        Err(error) => missing(examination, number, layer, data_file, error),
    }
}

fn name_of(data_file: &DataFileLayer) -> String {
    data_file
        .source
        .as_ref()
        .map_or_else(|| data_file.shown().into_owned(), ToString::to_string)
}

fn missing(
    examination: &mut Examination<'_>,
    number: usize,
    layer: &Layer,
    data_file: &DataFileLayer,
    error: &catena_engine::Error,
) {
    let text = data_file.shown();
    if text.is_empty() {
        let cure = "give the name when it is opened: QEMU's data-file= option";
        return examination.find(
            Code::DataFileUnnamed,
            Severity::Error,
            (number, layer.name()),
            "the image says that its data is in another file and does not say in which",
            format!(
                "libvirt refuses it (invalid empty data-file definition in '{}') or takes it for self-contained, and QEMU \
                 needs to be told",
                layer.name()
            ),
            Cure::advice(cure),
        );
    }
    match error.kind() {
        ErrorKind::NotFound => {
            let candidates = search::namesakes(examination, layer.path(), data_file.source.as_ref());
            let found = match candidates.as_slice() {
                [] => String::new(),
                several => {
                    let names: Vec<_> = several
                        .iter()
                        .map(|path| format!("'{}'", path.display()))
                        .collect();
                    format!("; a file of that name is at {}", names.join(", "))
                }
            };
            let advice = "put the file where the image expects it, or make a symbolic link there";
            let cure = match (
                candidates.as_slice(),
                data_file.source.as_ref().and_then(|source| source.path()),
            ) {
                ([one], Some(path)) => {
                    Cure::command(["ln".as_ref(), "-s".as_ref(), one.as_os_str(), path.as_os_str()])
                        .saying("if that is the file")
                }
                _ => Cure::advice(advice),
            };
            examination.find(
                Code::DataFileMissing,
                Severity::Error,
                (number, layer.name()),
                format!("the data file '{}' does not exist{found}", name_of(data_file)),
                "the guest's data is in it: nobody can open the image without",
                cure,
            );
        }
        ErrorKind::Denied => access::denied(examination, number, data_file.source.as_ref(), error),
        ErrorKind::Refused => examination.find(
            Code::ReferenceRefused,
            Severity::Error,
            (number, layer.name()),
            error.message().to_owned(),
            "the guest's data is in that file, which was not looked at",
            ending::allow(),
        ),
        _ => examination.find(
            Code::Unreadable,
            Severity::Error,
            (number, name_of(data_file)),
            format!("the data file '{text}' cannot be used: {}", error.full()),
            "the guest's data is in it: nobody can open the image without",
            Cure::advice("name a file or block device of this host"),
        ),
    }
}

/// A raw data file holds the whole disk.
fn size(
    examination: &mut Examination<'_>,
    number: usize,
    layer: &Layer,
    data_file: &DataFileLayer,
    file: &LayerFile,
) {
    let raw = layer.description.data_file.as_ref().is_some_and(|it| it.raw);
    let (Some(disk), have) = (layer.description.virtual_size, file.identity.len) else {
        return;
    };
    if raw && have < disk {
        let path = name_of(data_file);
        let source = data_file.source.as_ref().and_then(|source| source.path());
        let word = source.map_or_else(|| path.clone().into(), |path| unmistakable(path.as_os_str()));
        examination.find(
            Code::DataFileShort,
            Severity::Warning,
            (number, path.clone()),
            format!("the data file has {have} bytes, the disk {disk}, although the data file is the disk's raw image"),
            "the end of the disk reads as zeros, and whoever uses the data file by itself sees a smaller disk; if it was \
             cut, data is lost",
            Cure::command(["truncate".into(), format!("--size={disk}").into(), word])
                .saying("if nothing was cut off"),
        );
    }
}

/// The data file of one image must be nothing else.
fn shared(
    examination: &mut Examination<'_>,
    number: usize,
    layer: &Layer,
    data_file: &DataFileLayer,
    file: &LayerFile,
) {
    let same = |other: &LayerFile| other.identity.same_object(&file.identity);
    let chain = examination.chain;
    let as_image = chain
        .layers
        .iter()
        .position(|layer| layer.file.as_ref().is_some_and(same));
    let as_data = || {
        let others = chain.layers.iter().enumerate().skip(number + 1);
        let mut others = others.filter_map(|(other, layer)| Some((other, layer.data_file.as_ref()?)));
        others
            .find(|(_, data_file)| data_file.file.as_ref().is_ok_and(same))
            .map(|(other, _)| other)
    };
    let what = match (as_image, as_data()) {
        (Some(other), _) => format!("is layer {other} of the chain as well"),
        (None, Some(other)) => format!("is the data file of layer {other} as well"),
        (None, None) => return,
    };
    examination.find(
        Code::DataFileShared,
        Severity::Error,
        (number, layer.name()),
        format!("the data file '{}' {what}", name_of(data_file)),
        "a write to the one changes the other: the guest's data and the image's tables overwrite each other",
        Cure::advice("do not start the guest; find out which of the two names is wrong, and restore that image from a backup"),
    );
}

/// libvirt versions differ in what they do about data files.
fn seen(examination: &mut Examination<'_>, number: usize, layer: &Layer, data_file: &DataFileLayer) {
    let (Some(header), Some(file)) = (&layer.header, &layer.file) else {
        return;
    };
    if data_file.text.is_empty() {
        return;
    }
    let Ok(bytes) = StorageBytes::new(&file.storage) else {
        return;
    };
    let cure = Cure::advice(
        "give the guest's user access to the data file yourself, and let no other guest use it, or copy the image into one \
         without a data file: 'qemu-img convert'",
    );
    if libvirt_walk::look(header, &bytes).data_file {
        examination.find(
            Code::DataFileUnseen,
            Severity::Note,
            (number, layer.name()),
            format!("the data is in the data file '{}'", data_file.shown()),
            "libvirt before 10.10 takes the image for self-contained and denies QEMU the data file; later ones open it without \
             a test of existence or size, and lock it against nobody",
            cure,
        );
    } else {
        examination.find(
            Code::DataFileUnseen,
            Severity::Warning,
            (number, layer.name()),
            format!(
                "libvirt up to 11.3 does not see the data file '{}', because of the header extensions before its name",
                data_file.shown()
            ),
            "libvirt gives the data file no label, so that QEMU, which follows the recorded name by itself, is denied access",
            cure,
        );
    }
}
