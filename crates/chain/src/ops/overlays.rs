//! Overlays of several images, one of each: what a snapshot of all disks of a guest is made of.
//!
//! All of them are made, or none; what was stopped is finished by the same request. From the plan to its end nobody may write
//! what they stand on.

use super::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use super::observer::Observer;
use super::together::Together;
use crate::policy::Policy;
use crate::reference::Source;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_storage::{LocalFile, LockMode, OpenOptions};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// An overlay to be made: qcow2, with the options of qemu-img.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The new file.
    pub path: PathBuf,
    /// What it stands on: a file or block device, by the name that is recorded.
    pub base: PathBuf,
    /// The format that is in.
    pub format: Format,
}

/// Overlays, decided. What they stand on is locked.
#[derive(Debug)]
pub struct Plan {
    together: Together,
    bases: Vec<LocalFile>,
}

/// Decides what to write.
///
/// # Errors
/// [`ErrorKind::Locked`] where somebody writes what an overlay is to stand on; [`ErrorKind::Conflict`], with the path,
/// where something else than the untouched overlay has its name.
pub fn plan(overlays: &[Overlay], policy: &Policy) -> Result<Plan> {
    let mut plan = Plan {
        together: Together::default(),
        bases: Vec::new(),
    };
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
        let recorded = Source::file(&overlay.base).to_recorded();
        let recorded = recorded.map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()))?;
        let image = create::lay_out(
            &create::Request {
                path: overlay.path.clone(),
                existing: Existing::Overwrite,
                size: None,
                kind: Kind::Qcow2(Box::new(Qcow2Options {
                    backing: Some((recorded, overlay.format)),
                    ..Qcow2Options::default()
                })),
                preallocation: Preallocation::Off,
            },
            policy,
        )?;
        plan.together.add(&overlay.path, &Arc::new(image), Some(&base))?;
        plan.bases.push(base);
    }
    Ok(plan)
}

impl Plan {
    /// Whether all of them are there.
    pub fn is_empty(&self) -> bool {
        self.together.missing().len() == 0
    }

    /// Makes them. What fails or is stopped leaves none of them.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        self.together.make(observer)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<_> = self
            .together
            .missing()
            .map(|(path, image)| {
                let backing = image.header.backing.as_ref();
                let name = backing
                    .map(|backing| String::from_utf8_lossy(&backing.name))
                    .unwrap_or_default();
                format!("{}: a new overlay of '{name}'", path.display())
            })
            .collect();
        match self.together.there() {
            0 => {}
            there => lines.push(format!("{there} overlays are there already")),
        }
        f.write_str(&lines.join("\n"))
    }
}
