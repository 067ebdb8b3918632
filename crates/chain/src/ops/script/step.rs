//! The steps of a script: what one thing is done to one file.
//!
//! A step says what it expects to find and what it leaves, so that it can tell whether it is done already, and refuses what is
//! neither. Every path is absolute.

use super::super::commit::After;
use super::super::stamp::Action;
use super::blank::{self, Blank};
use super::digits::Digits;
use super::files::FileId;
use super::publish::Made;
use super::recorded::Recorded;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// One step of a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A new folder, of the mode and owner of `like`.
    Folder {
        /// Where.
        path: PathBuf,
        /// The folder whose mode and owner it gets; those of any new folder where `None`.
        like: Option<PathBuf>,
    },
    /// New images, all of them or none. To take it back removes those that nobody has written, or none.
    Create {
        /// The images.
        images: Vec<Blank>,
    },
    /// A folder goes, which is empty by now.
    RemoveFolder {
        /// Which.
        path: PathBuf,
    },
    /// Another name for a file, on the same file system.
    Link {
        /// A name it has.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
        /// The file.
        file: FileId,
    },
    /// A symbolic link.
    Symlink {
        /// Where.
        path: PathBuf,
        /// What it leads to, as it is written in it.
        target: PathBuf,
    },
    /// A copy of a file, with its mode, owner, times and attributes, as sparse as the file is. Nobody may write the file from then on until it is
    /// deleted, or the script ends.
    Copy {
        /// The file.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
        /// The file again.
        file: FileId,
        /// What the copy records instead of what the file does, before it has its name.
        records: Option<Recorded>,
    },
    /// A new name for a file, instead of the old one, on the same file system.
    Rename {
        /// The old name.
        from: PathBuf,
        /// The new one, which nothing has.
        to: PathBuf,
        /// The file.
        file: FileId,
    },
    /// Files that were made in a folder beside get their names, all of them or none, and the folder goes. To take it back
    /// removes the files, unless somebody has written to one.
    Publish {
        /// The folder.
        staging: PathBuf,
        /// The files, those first that others stand on.
        files: Vec<Made>,
    },
    /// What a qcow2 image records about its backing image and data file. Its guest's view stays: whoever writes the script knows.
    Relink {
        /// The image.
        image: PathBuf,
        /// What it records.
        from: Recorded,
        /// What it shall record.
        to: Recorded,
    },
    /// What an overlay knows of its base, by its stamp: [`super::super::stamp`].
    Stamp {
        /// The overlay.
        image: PathBuf,
        /// The stamp that it has.
        from: Option<Digits>,
        /// What becomes of it.
        action: Action,
    },
    /// Nothing is done, if a qcow2 image still records what it did when the script was written; else the script stops.
    Expect {
        /// The image.
        image: PathBuf,
        /// What it is to record.
        records: Recorded,
    },
    /// What lower layers hold is pulled up into a qcow2 image: [`super::super::stream`].
    Stream {
        /// The image.
        image: PathBuf,
        /// The layer it stands on afterwards; none where `None`.
        base: Option<PathBuf>,
        /// The time that it stands for, if it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dated: Option<(i64, u32)>,
    },
    /// What layers hold is written into a layer below them: [`super::super::commit`]. It cannot be taken back.
    Commit {
        /// The active image of the chain.
        image: PathBuf,
        /// The highest layer that is committed.
        top: PathBuf,
        /// The layer that is written.
        base: PathBuf,
        /// What becomes of the committed layers.
        after: After,
    },
    /// A file gets the name of another one, which goes; with its mode, owner, attributes and times, but for a second. Both are in one folder. It cannot be taken
    /// back.
    Supplant {
        /// The old name of the file that stays.
        from: PathBuf,
        /// The name of the file that goes.
        to: PathBuf,
        /// The file that stays.
        file: FileId,
        /// The file that goes.
        old: FileId,
    },
    /// A text file gets another text, at once and whole; mode and owner stay.
    Replace {
        /// The file.
        file: PathBuf,
        /// The text it has.
        from: String,
        /// The text it shall have.
        to: String,
    },
    /// A name goes, and the file with its last name. It cannot be taken back.
    Delete {
        /// The name.
        path: PathBuf,
        /// The file.
        file: FileId,
        /// Where the file is to be found by then: another name of it, or the copy that this script made. What stands nowhere else is deleted only
        /// while nobody uses it.
        kept: Option<PathBuf>,
    },
}

impl Step {
    /// Whether it cannot be taken back once it is begun.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Commit { .. } | Self::Delete { .. } | Self::Supplant { .. }
        )
    }

    /// The paths that it is about.
    pub fn paths(&self) -> Vec<&Path> {
        let (one, two, three) = match self {
            Self::Create { images } => {
                let paths = images
                    .iter()
                    .flat_map(|image| image.names.iter().chain(&image.like));
                return paths.map(PathBuf::as_path).collect();
            }
            Self::Publish { staging, files } => {
                let paths = files.iter().map(Made::to);
                return paths.chain([staging.as_path()]).collect();
            }
            Self::Folder { path, .. } | Self::RemoveFolder { path } | Self::Symlink { path, .. } => {
                (path, None, None)
            }
            Self::Link { from, to, .. }
            | Self::Copy { from, to, .. }
            | Self::Rename { from, to, .. }
            | Self::Supplant { from, to, .. } => (from, Some(to), None),
            Self::Relink { image, .. } | Self::Stamp { image, .. } | Self::Expect { image, .. } => {
                (image, None, None)
            }
            Self::Stream { image, base, .. } => (image, base.as_ref(), None),
            Self::Commit { image, top, base, .. } => (image, Some(top), Some(base)),
            Self::Replace { file, .. } => (file, None, None),
            Self::Delete { path, kept, .. } => (path, kept.as_ref(), None),
        };
        [Some(one), two, three]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { path, .. } => write!(f, "make the folder '{}'", path.display()),
            Self::Create { images } => blank::in_words(images, f),
            Self::RemoveFolder { path } => write!(f, "remove the folder '{}'", path.display()),
            Self::Link { from, to, .. } => {
                write!(f, "name '{}' also '{}'", from.display(), to.display())
            }
            Self::Symlink { path, target } => {
                write!(f, "make '{}' a link to '{}'", path.display(), target.display())
            }
            Self::Copy {
                from, to, records, ..
            } => {
                write!(f, "copy '{}' to '{}'", from.display(), to.display())?;
                records
                    .as_ref()
                    .map_or(Ok(()), |records| write!(f, ", which records {records}"))
            }
            Self::Rename { from, to, .. } => write!(f, "rename '{}' to '{}'", from.display(), to.display()),
            Self::Publish { files, .. } => {
                f.write_str("give their names to")?;
                files
                    .iter()
                    .try_for_each(|made| write!(f, " '{}'", made.to().display()))
            }
            Self::Relink { image, to, .. } => write!(f, "have '{}' record {to}", image.display()),
            Self::Stamp {
                image,
                action: Action::Give { .. },
                ..
            } => write!(f, "have '{}' know its base as it is", image.display()),
            Self::Stamp { image, .. } => write!(f, "take the stamp of '{}' away", image.display()),
            Self::Expect { image, records } => {
                write!(f, "see that '{}' records {records} still", image.display())
            }
            Self::Stream {
                image, base: None, ..
            } => {
                write!(f, "have '{}' hold all that it shows", image.display())
            }
            Self::Stream {
                image,
                base: Some(base),
                ..
            } => write!(
                f,
                "pull what lies above '{}' up into '{}'",
                base.display(),
                image.display()
            ),
            Self::Commit { top, base, after, .. } => {
                write!(
                    f,
                    "commit '{}' and what lies between into '{}'",
                    top.display(),
                    base.display()
                )?;
                match after {
                    After::Keep => Ok(()),
                    After::Empty => f.write_str(", and empty it"),
                    After::Delete => f.write_str(", and delete them"),
                }
            }
            Self::Supplant { from, to, .. } => {
                write!(
                    f,
                    "have '{}' take the place of '{}'",
                    from.display(),
                    to.display()
                )
            }
            Self::Replace { file, .. } => write!(f, "rewrite '{}'", file.display()),
            Self::Delete { path, kept: None, .. } => write!(f, "delete '{}'", path.display()),
            Self::Delete { path, .. } => write!(f, "take the name '{}' away", path.display()),
        }
    }
}
