//! What the doctor finds: a code to match on, how bad it is, where, why, what follows, and what to do.

use crate::chain::unmistakable;
use crate::detect::quoted;
use catena_format::Format;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// Something that is wrong with a chain, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What sort of thing it is; stable.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// Which layer it is about, the active one being 0. A backing image that could not become a layer has the number
    /// it would have had.
    pub layer: usize,
    /// That layer's name, or that of the file of it that is at fault.
    pub name: String,
    /// One sentence: what is the case.
    pub cause: String,
    /// One sentence: what comes of it.
    pub consequence: String,
    /// What to do about it.
    pub cure: Cure,
}

impl Finding {
    /// A finding about a layer, which has a number and a name.
    pub fn new(
        code: Code,
        severity: Severity,
        at: (usize, String),
        cause: impl Into<String>,
        consequence: impl Into<String>,
        cure: Cure,
    ) -> Self {
        Self {
            code,
            severity,
            layer: at.0,
            name: at.1,
            cause: cause.into(),
            consequence: consequence.into(),
            cure,
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing is wrong, but somebody may want to know.
    Note,
    /// It works today, for some or for now.
    Warning,
    /// It does not work, or data is at risk.
    Error,
}

impl Severity {
    /// One word for machines and people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to do about a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cure {
    /// A sentence; `None` where the commands say it all, or nothing needs to be done.
    pub advice: Option<String>,
    /// Commands to run in turn, each as its words.
    pub commands: Vec<Vec<OsString>>,
    /// The change of a header that cures it without changing what any guest sees. The doctor can make it by itself.
    pub fix: Option<Fix>,
}

/// A change of what an image records about its backing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fix {
    /// The overlay whose header changes.
    pub image: PathBuf,
    /// The string it records from then on.
    pub name: String,
    /// The format it records from then on.
    pub format: Format,
}

impl Cure {
    /// Nothing to be done.
    pub fn none() -> Self {
        Self::default()
    }

    /// A sentence.
    pub fn advice(advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..Self::default()
        }
    }

    /// A command.
    pub fn command<W: Into<OsString>>(words: impl IntoIterator<Item = W>) -> Self {
        Self::default().and(words)
    }

    /// The command that makes an overlay record a backing image.
    pub fn relink(overlay: impl AsRef<OsStr>, name: &str, format: &str) -> Self {
        let overlay = unmistakable(overlay.as_ref());
        let mut words: Vec<OsString> = vec!["catena".into(), "relink".into(), overlay];
        if name.starts_with('-') {
            words.push(format!("--backing={name}").into());
        } else {
            words.extend(["--backing".into(), name.into()]);
        }
        words.extend(["--backing-format".into(), format.into()]);
        Self::command(words)
    }

    /// A further command.
    #[must_use]
    pub fn and<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.commands.push(words.into_iter().map(Into::into).collect());
        self
    }

    /// A sentence beside the commands.
    #[must_use]
    pub fn saying(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The change by which the doctor does it.
    #[must_use]
    pub fn by(mut self, fix: Fix) -> Self {
        self.fix = Some(fix);
        self
    }

    /// The commands as a shell takes them, in characters that can be printed.
    pub fn command_lines(&self) -> impl Iterator<Item = String> {
        self.commands.iter().map(|words| {
            let words: Vec<_> = words.iter().map(quoted).collect();
            words.join(" ")
        })
    }
}

impl Fix {
    /// The overlay's name.
    pub fn image(&self) -> &Path {
        &self.image
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: layer {} ({}): {}",
            self.severity, self.code, self.layer, self.name, self.cause
        )
    }
}

/// Gives every code its word in one place.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $code:ident = $word:literal,)+) => {
        /// What sort of thing a finding is. The words are stable; `docs/findings.md` explains each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ $code,)+
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$code),+];

            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$code => $word,)+
                }
            }
        }
    };
}

codes! {
    /// The overlay does not record its backing image's format.
    FormatNotRecorded = "format-not-recorded",
    /// The recorded format word is no format.
    FormatWordUnknown = "format-word-unknown",
    /// The recorded format word means different things to QEMU and libvirt.
    FormatWordDiffers = "format-word-differs",
    /// libvirt does not see the recorded format.
    FormatUnseen = "format-unseen",
    /// The image is not in the format it is said to be in.
    FormatMismatch = "format-mismatch",
    /// The image looks like several formats at once.
    FormatAmbiguous = "format-ambiguous",
    /// The backing image does not exist.
    BackingMissing = "backing-missing",
    /// The image that the caller named does not exist.
    ImageMissing = "image-missing",
    /// The image cannot be opened or its header cannot be read.
    Unreadable = "unreadable",
    /// Somebody who must open the file may not.
    PermissionDenied = "permission-denied",
    /// The chain comes back to an image it has passed.
    Loop = "loop",
    /// The chain has more layers than some libvirts can run.
    ChainLong = "chain-long",
    /// The chain has more layers than the policy allows.
    ChainTooDeep = "chain-too-deep",
    /// The policy does not allow what the image names.
    ReferenceRefused = "reference-refused",
    /// The recorded string cannot be understood.
    ReferenceInvalid = "reference-invalid",
    /// libvirt and QEMU read the recorded string differently.
    ReferenceDiffers = "reference-differs",
    /// The recorded string carries credentials.
    Credentials = "credentials",
    /// libvirt does not see the backing name.
    BackingUnseen = "backing-unseen",
    /// The backing name lies where a guest could write it.
    NameOutsideFirstCluster = "name-outside-first-cluster",
    /// The layer is not on this host.
    NotExamined = "not-examined",
    /// The data file has no name.
    DataFileUnnamed = "data-file-unnamed",
    /// The data file does not exist.
    DataFileMissing = "data-file-missing",
    /// The data file is shorter than the disk.
    DataFileShort = "data-file-short",
    /// The data file is an image of the chain as well.
    DataFileShared = "data-file-shared",
    /// libvirt does not see the data file, or does not take care of it.
    DataFileUnseen = "data-file-unseen",
    /// An overlay and its backing image differ in size.
    SizeDiffers = "size-differs",
    /// The image was not closed cleanly.
    Dirty = "dirty",
    /// The image is marked corrupt.
    Corrupt = "corrupt",
    /// The image needs features that nobody here knows.
    UnknownFeature = "unknown-feature",
    /// A backing image has lazy refcounts.
    LazyRefcounts = "lazy-refcounts",
    /// The header is odd.
    HeaderOdd = "header-odd",
    /// The image's tables lie past the end of its file.
    Truncated = "truncated",
    /// The data is encrypted.
    Encrypted = "encrypted",
    /// An image that is said to be raw holds a LUKS container.
    LuksInRaw = "luks-in-raw",
    /// The image has internal snapshots.
    InternalSnapshots = "internal-snapshots",
    /// The image has persistent bitmaps.
    Bitmaps = "bitmaps",
    /// A persistent bitmap cannot be believed.
    BitmapInconsistent = "bitmap-inconsistent",
    /// A backing image can be changed by somebody.
    BaseWritable = "base-writable",
    /// A backing image was written later than its overlay.
    BaseNewer = "base-newer",
    /// The backing image is not the one its overlay's stamp is of.
    BaseChanged = "base-changed",
    /// The backing image is not what it was, but the overlay holds nothing that would not fit it.
    BaseOutgrown = "base-outgrown",
    /// The overlay's stamp is of another backing image than it records.
    StampOfAnotherBase = "stamp-of-another-base",
    /// The backing image is not the one its overlay was made for.
    ParentChanged = "parent-changed",
    /// Somebody has the image open.
    InUse = "in-use",
    /// Somebody writes to a backing image.
    BackingWritten = "backing-written",
    /// One file goes by several names.
    SameImage = "same-image",
    /// XML gives another backing image than the overlay records.
    XmlBackingDiffers = "xml-backing-differs",
    /// XML gives a backing image in another format than the overlay records.
    XmlFormatDiffers = "xml-format-differs",
    /// XML ends the chain above an image that is recorded.
    XmlHidesBacking = "xml-hides-backing",
    /// XML gives a backing image to one that can have none.
    XmlBackingUnused = "xml-backing-unused",
    /// XML gives the chain and not the data file.
    XmlDataStoreMissing = "xml-data-store-missing",
    /// XML gives another data file than the image records.
    XmlDataStoreDiffers = "xml-data-store-differs",
    /// XML gives a part of an image that reaches past its end.
    XmlSliceBeyondEnd = "xml-slice-beyond-end",
    /// XML states another size than the image has.
    XmlSizeDiffers = "xml-size-differs",
    /// The overlay that a snapshot is to reuse records another base.
    XmlSnapshotBaseDiffers = "xml-snapshot-base-differs",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained_in_the_documentation() {
        let page = include_str!("../../../../docs/findings.md");
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        for word in &words {
            assert!(
                page.contains(&format!("\n### `{word}`\n")),
                "docs/findings.md lacks {word}"
            );
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
    }

    #[test]
    fn command_lines_are_quoted_for_a_shell() {
        let cure = Cure::relink("/a b/top", "it's", "qcow2");
        let lines: Vec<_> = cure.command_lines().collect();
        assert_eq!(
            lines,
            [r"catena relink '/a b/top' --backing 'it'\''s' --backing-format qcow2"]
        );
        let lines: Vec<_> = Cure::relink("-f", "-F", "raw").command_lines().collect();
        assert_eq!(lines, ["catena relink ./-f --backing=-F --backing-format raw"]);
    }

    #[test]
    fn names_that_cannot_be_printed_are_written_as_bash_has_them() {
        use std::os::unix::ffi::OsStrExt;
        for (name, expected) in [
            (b"a\nb\x1b[2J\tc'\\".as_slice(), r"$'a\nb\x1b[2J\tc\'\\'"),
            (b"d\xff\xc3\xa9 e", r"$'d\xffé e'"),
            ("f\u{202e}g\u{85}".as_bytes(), r"$'f\xe2\x80\xaeg\xc2\x85'"),
            (b"", "''"),
        ] {
            let name = OsStr::from_bytes(name);
            assert_eq!(quoted(name), expected);
            let echoed = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {expected}")])
                .output()
                .unwrap();
            assert_eq!(OsStr::from_bytes(&echoed.stdout), name);
        }
    }
}
