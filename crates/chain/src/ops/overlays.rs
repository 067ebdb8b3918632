//! Overlays of several images, one of each: what a snapshot of all disks of a guest is made of.
//!
//! All of them are made, or none, and then a text that names what they stand on may name them. From the plan to its end nobody may
//! write what they stand on.

use super::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use super::observer::Observer;
use super::script::{Script, Step};
use super::together::Together;
use crate::policy::Policy;
use crate::reference::Source;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_format::qcow2::NewImage;
use catena_storage::{LocalFile, LockMode, OpenOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An overlay to be made: qcow2, with the options of qemu-img.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    path: PathBuf,
    base: PathBuf,
    recorded: String,
    format: Format,
}

impl Overlay {
    /// A new file over a file or block device, in the format given, that records its base by the name given here.
    ///
    /// # Errors
    /// [`ErrorKind::BadReference`] for a name that cannot be recorded.
    pub fn naming(path: PathBuf, base: PathBuf, format: Format) -> Result<Self> {
        let recorded = recorded(&base)?;
        Ok(Self {
            path,
            base,
            recorded,
            format,
        })
    }

    /// A new file in the folder of its base, which it records by its name within that: both can move together.
    ///
    /// # Errors
    /// [`ErrorKind::BadReference`] for a name that cannot be recorded.
    pub fn beside(name: &str, base: PathBuf, format: Format) -> Result<Self> {
        let recorded = recorded(Path::new(base.file_name().unwrap_or_default()))?;
        Ok(Self {
            path: base.with_file_name(name),
            base,
            recorded,
            format,
        })
    }

    /// The new file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it stands on.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The format that is in.
    pub fn format(&self) -> Format {
        self.format
    }
}

fn recorded(base: &Path) -> Result<String> {
    let recorded = Source::file(base).to_recorded();
    recorded.map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()).with_path(base))
}

/// Overlays, decided. What they stand on is locked.
#[derive(Debug)]
pub struct Plan {
    /// What is done.
    pub script: Script,
    together: Together,
    home: PathBuf,
    _bases: Vec<LocalFile>,
}

/// How journals of snapshots are called.
pub const OPERATION: &str = "snapshot";

/// Decides what to write. The journal is kept in the folder `home`, and knows the request by `words`.
///
/// # Errors
/// [`ErrorKind::Locked`] where somebody writes what an overlay is to stand on; [`ErrorKind::Conflict`], with the path,
/// where something else than the untouched overlay has its name.
pub fn plan(overlays: &[Overlay], (home, words): (&Path, &str), policy: &Policy) -> Result<Plan> {
    let (mut together, mut bases) = (Together::default(), Vec::new());
    let mut seen = BTreeSet::new();
    for overlay in overlays {
        if !seen.insert(&overlay.path) {
            return Err(
                Error::new(ErrorKind::Conflict, "two new images would have this name")
                    .with_path(&overlay.path),
            );
        }
        // Whoever writes it would take what the overlay shows away from under it.
        let base = LocalFile::open(&overlay.base, &OpenOptions::new().lock(LockMode::Read))?;
        let image = create::lay_out(
            &create::Request {
                path: overlay.path.clone(),
                existing: Existing::Overwrite,
                size: None,
                kind: Kind::Qcow2(Box::new(Qcow2Options {
                    backing: Some((overlay.recorded.clone(), overlay.format)),
                    ..Qcow2Options::default()
                })),
                preallocation: Preallocation::Off,
            },
            policy,
        )?;
        together.add(&overlay.path, &Arc::new(image), Some(&overlay.base))?;
        bases.push(base);
    }
    let mut script = Script::new(OPERATION, words);
    script.steps.extend(together.step()?);
    Ok(Plan {
        script,
        together,
        home: home.to_owned(),
        _bases: bases,
    })
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.script.is_empty()
    }

    /// It in words, a line for each of what is made.
    pub fn lines(&self) -> Vec<String> {
        let made = |(path, image): (&Path, &NewImage)| {
            let backing = image.header.backing.as_ref();
            let name = backing
                .map(|backing| String::from_utf8_lossy(&backing.name))
                .unwrap_or_default();
            format!("{}: a new overlay of '{name}'", path.display())
        };
        let mut lines: Vec<_> = self.together.missing().map(made).collect();
        match self.together.there() {
            0 => {}
            there => lines.push(format!("{there} overlays are there already")),
        }
        lines
    }

    /// The new files that are not there yet.
    pub fn missing(&self) -> impl Iterator<Item = &Path> {
        self.together.missing().map(|(path, _)| path)
    }

    /// Has a text file get another text, once all of them are there. Its path is absolute.
    pub fn replace(&mut self, file: &Path, from: &str, to: &str) {
        if from != to {
            self.script.steps.push(Step::Replace {
                file: file.to_owned(),
                from: from.to_owned(),
                to: to.to_owned(),
            });
        }
    }

    /// Makes them. What fails or is stopped leaves none of them; what is killed is finished by [`super::script::interrupted`].
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script.execute(&self.home, policy, observer)
    }
}
