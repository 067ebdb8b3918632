//! Many chains at once: images and folders of them, each layer reported once.

use super::{Code, Cure, Finding, Options, Severity, examine_fully};
use crate::chain::{Break, Chain, End, LayerFile};
use crate::detect::{Start, detect};
use crate::policy::Policy;
use crate::reference::Source;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep folders are looked through.
const DEPTH: usize = 16;
/// Most names that are looked at in one folder and all below it.
const NAMES: usize = 1_000_000;
/// Endings of names that stand for disk images, which raw ones have nothing else to tell by.
const ENDINGS: [&str; 12] = [
    "img", "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhd", "vhdx", "vpc", "hdd", "disk",
];

/// One chain and what is to be said about it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The active image.
    pub target: PathBuf,
    /// The chain as it was found.
    pub chain: Chain,
    /// What is wrong with it, less what an earlier report says already of the same image.
    pub findings: Vec<Finding>,
}

/// Examines images, and every image in folders, fully.
///
/// Of a folder, images that others in it build on are examined as parts of those chains. Links in it are not followed.
/// An image there whose format its overlay does not record, and which may not be believed for that, is examined alone:
/// what it names is not looked at.
///
/// A target that is not there, or a folder that cannot be read, is a report with an error and no layers; the others are
/// examined all the same.
pub fn survey(targets: &[PathBuf], format: Option<Format>, options: &Options<'_>) -> Vec<Report> {
    let mut survey = Survey {
        options,
        reports: Vec::new(),
        covered: HashSet::new(),
        refused: HashSet::new(),
    };
    for target in targets {
        match std::fs::metadata(target) {
            Ok(found) if found.is_dir() => survey.folder(target),
            // Why a name cannot be looked at is for the examination to tell.
            _ => survey.image(target, format, options.policy),
        }
    }
    let mut reports = survey.reports;
    same_images(&mut reports);
    once(&mut reports);
    reports
}

struct Survey<'a> {
    options: &'a Options<'a>,
    reports: Vec<Report>,
    /// Objects that some report is about.
    covered: HashSet<(u64, u64)>,
    /// Names of images that a chain ended at because they may not be believed.
    refused: HashSet<(u64, u64)>,
}

/// An image of a folder, its own header read and nothing else.
struct Found {
    path: PathBuf,
    object: (u64, u64),
    /// Whether it names other files.
    names_others: bool,
    /// Whether another image of the folder builds on it.
    is_backing: bool,
}

impl Survey<'_> {
    fn image(&mut self, target: &Path, format: Option<Format>, policy: &Policy) {
        let chain = detect(&Start::at(target, format), policy);
        let options = Options {
            policy,
            ..self.options.clone()
        };
        let findings = examine_fully(&chain, &options);
        for layer in &chain.layers {
            self.covered.extend(layer.file.as_ref().map(object));
            let data_file = layer
                .data_file
                .as_ref()
                .and_then(|data_file| data_file.file.as_ref().ok());
            self.covered.extend(data_file.map(object));
        }
        if let End::Broken(broken) = &chain.end
            && broken.error.kind() == ErrorKind::FormatUnknown
            && let Some(path) = broken.source.as_ref().and_then(|source| source.path())
            && let Ok(found) = std::fs::metadata(path)
        {
            self.refused.insert((found.dev(), found.ino()));
        }
        self.reports.push(Report {
            target: target.to_owned(),
            chain,
            findings,
        });
    }

    fn folder(&mut self, folder: &Path) {
        // Reads one header and follows no name.
        let alone = match Policy::parse("alone", "[reach]\ndepth = 1\ndata-files = false\n") {
            Ok(alone) => alone,
            Err(error) => return self.unread(folder, error),
        };
        let mut paths = Vec::new();
        let mut closed = Vec::new();
        let mut left = NAMES;
        if let Err(error) = list(folder, DEPTH, &mut left, &mut paths, &mut closed) {
            return self.unread(folder, error);
        }
        for (folder, error) in closed {
            self.unread(&folder, error);
        }
        let mut images = images(paths, &alone);
        // The tops of chains, then what is in no chain but for a loop, then what names nothing.
        images.sort_by_key(|image| (!image.names_others, image.is_backing));
        for image in images {
            if self.covered.contains(&image.object) {
                continue;
            }
            if self.refused.contains(&image.object) {
                self.image(&image.path, None, &alone);
                if let Some(report) = self.reports.last_mut() {
                    let because_alone = [Code::ChainTooDeep, Code::ReferenceRefused];
                    report
                        .findings
                        .retain(|finding| !because_alone.contains(&finding.code));
                }
            } else {
                self.image(&image.path, None, self.options.policy);
            }
            self.covered.insert(image.object);
        }
    }

    /// Reports a folder of which nothing is known.
    fn unread(&mut self, folder: &Path, error: Error) {
        let code = match error.kind() {
            ErrorKind::Denied => Code::PermissionDenied,
            _ => Code::Unreadable,
        };
        let advice = match (error.kind(), error.hint()) {
            (_, Some(hint)) => hint.to_owned(),
            (ErrorKind::Denied, None) => "run the doctor as a user who may read it, such as root".to_owned(),
            _ => "name the images in it that are to be examined".to_owned(),
        };
        let finding = Finding {
            code,
            severity: Severity::Error,
            layer: 0,
            name: folder.display().to_string(),
            cause: error.full(),
            consequence: "the images in the folder were not examined".to_owned(),
            cure: Cure::advice(advice),
        };
        let end = End::Broken(Box::new(Break {
            error,
            link: None,
            source: Some(Source::file(folder)),
            probed: None,
        }));
        self.reports.push(Report {
            target: folder.to_owned(),
            chain: Chain::without_layers(end),
            findings: vec![finding],
        });
    }
}

fn object(file: &LayerFile) -> (u64, u64) {
    file.identity.object()
}

/// Which of the files in a folder and all below it are images.
fn images(paths: Vec<PathBuf>, alone: &Policy) -> Vec<Found> {
    let mut found = Vec::new();
    let mut backings: HashMap<OsString, Vec<PathBuf>> = HashMap::new();
    for path in paths {
        let chain = detect(&Start::at(&path, None), alone);
        let ending = path.extension().and_then(|ending| ending.to_str());
        let is_named_so = ending.is_some_and(|ending| ENDINGS.contains(&ending));
        let layer = chain.active();
        let looks = layer.is_some_and(|layer| !matches!(layer.format, Format::Raw | Format::Iso));
        if !is_named_so && !looks {
            continue;
        }
        if let Some(layer) = layer
            && let Ok(reference) = layer.backing_reference()
            && let Some(backing) = reference.resolve(&layer.source).path()
            && let Some(name) = backing.file_name()
        {
            backings
                .entry(name.to_owned())
                .or_default()
                .push(backing.to_owned());
        }
        let Ok(stat) = std::fs::metadata(&path) else {
            continue;
        };
        found.push(Found {
            object: (stat.dev(), stat.ino()),
            names_others: layer.is_some_and(|layer| !layer.description.is_leaf()),
            is_backing: false,
            path,
        });
    }
    for image in &mut found {
        let same = image.path.file_name().and_then(|name| backings.get(name));
        let real = std::fs::canonicalize(&image.path).ok();
        image.is_backing = same.is_some_and(|named| {
            named
                .iter()
                .any(|path| real.is_some() && std::fs::canonicalize(path).ok() == real)
        });
    }
    found
}

/// The regular files of a folder and all below it, in order of their names; and the folders that cannot be read, and why.
fn list(
    folder: &Path,
    depth: usize,
    left: &mut usize,
    paths: &mut Vec<PathBuf>,
    closed: &mut Vec<(PathBuf, Error)>,
) -> Result<()> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        let error = Error::new(kind, "cannot read the folder")
            .with_path(folder)
            .with_source(error);
        (folder.to_owned(), error)
    };
    let found = match std::fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) => {
            closed.push(failed(error));
            return Ok(());
        }
    };
    let mut entries = Vec::new();
    for entry in found {
        match entry {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                closed.push(failed(error));
                break;
            }
        }
        *left = left.checked_sub(1).ok_or_else(|| {
            Error::new(ErrorKind::TooLarge, format!("there are more than {NAMES} names"))
                .with_path(folder)
                .with_hint("name the images, or smaller folders")
        })?;
    }
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_file() => paths.push(entry.path()),
            Ok(kind) if kind.is_dir() && depth > 0 => list(&entry.path(), depth - 1, left, paths, closed)?,
            _ => {}
        }
    }
    Ok(())
}

/// A name with the links in its folder followed, so that only the last part can be another name for the same file.
fn plain(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (whole.parent().map(std::fs::canonicalize), whole.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => whole,
    }
}

/// Files that chains reach by several names.
fn same_images(reports: &mut [Report]) {
    let mut names: HashMap<(u64, u64), Vec<PathBuf>> = HashMap::new();
    for report in reports {
        let mut new = Vec::new();
        for (number, layer) in report.chain.layers.iter().enumerate() {
            let (Some(file), Some(path)) = (&layer.file, layer.path()) else {
                continue;
            };
            let path = plain(path);
            let known = names.entry(object(file)).or_default();
            if !known.contains(&path) {
                if let Some(first) = known.first() {
                    new.push(same_image(number, layer.name(), &path, first));
                }
                known.push(path);
            }
        }
        report.findings.extend(new);
        report
            .findings
            .sort_by_key(|finding| (finding.layer, std::cmp::Reverse(finding.severity), finding.code));
    }
}

fn same_image(layer: usize, name: String, path: &Path, first: &Path) -> Finding {
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    let (severity, consequence) = if is_link(path) || is_link(first) {
        (
            Severity::Note,
            "a chain that names the link breaks when the link is removed or led elsewhere",
        )
    } else {
        (
            Severity::Warning,
            "who copies, moves or deletes the one does not see the other, and a copy of both parts them for good",
        )
    };
    Finding {
        code: Code::SameImage,
        severity,
        layer,
        name,
        cause: format!("'{}' is the same file as '{}'", path.display(), first.display()),
        consequence: consequence.to_owned(),
        cure: Cure::advice("record one of the names everywhere: 'catena relink'"),
    }
}

/// Leaves out what an earlier report says of the same file.
fn once(reports: &mut [Report]) {
    let mut said: HashSet<(Code, String)> = HashSet::new();
    for report in reports {
        let layers = &report.chain.layers;
        let key = |finding: &Finding| {
            // What matters to a guest that runs from it does not to one that builds on it.
            let as_active = finding.layer == 0
                && matches!(
                    finding.code,
                    Code::PermissionDenied | Code::InUse | Code::BackingWritten
                );
            let file = layers
                .get(finding.layer)
                .filter(|layer| layer.name() == finding.name)
                .and_then(|layer| layer.file.as_ref());
            let which = match file {
                Some(file) => format!("{:?} {as_active}", object(file)),
                None => format!("{} {as_active}", finding.name),
            };
            (finding.code, which)
        };
        report.findings.retain(|finding| !said.contains(&key(finding)));
        let now: Vec<_> = report.findings.iter().map(key).collect();
        said.extend(now);
    }
}
