//! Fork: many new overlays of one base at once, all of them or none.

use super::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use super::folder_of;
use super::observer::Observer;
use super::script::Script;
use super::together::Together;
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The new files, all in one folder.
    pub names: Vec<PathBuf>,
    /// Bytes their guests see; those of the base where `None`.
    pub size: Option<u64>,
    /// What they are, the base included.
    pub options: Qcow2Options,
}

/// New overlays, decided.
#[derive(Debug)]
pub struct Plan {
    /// What is done.
    pub script: Script,
    together: Together,
    home: PathBuf,
}

/// The request as its journal knows it.
pub fn words(request: &Request) -> String {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let names = request.names.first().map(absolute).zip(request.names.last());
    format!(
        "{names:?} {} {:?} {:?}",
        request.names.len(),
        request.size,
        request.options
    )
}

/// Decides what to write.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let (first, others) = request
        .names
        .split_first()
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "no new image is named"))?;
    if request.options.data_file.is_some() {
        return Err(Error::new(
            ErrorKind::Conflict,
            "one data file cannot be that of many images",
        ));
    }
    if let Some(other) = others.iter().find(|name| name.parent() != first.parent()) {
        let message =
            "the new images must be in one folder, so that the base's name leads to the same for all";
        return Err(Error::new(ErrorKind::Conflict, message).with_path(other));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = request.names.iter().find(|name| !seen.insert(*name)) {
        return Err(Error::new(ErrorKind::Conflict, "two new images would have this name").with_path(twice));
    }
    let image = create::lay_out(
        &create::Request {
            path: first.clone(),
            existing: Existing::Overwrite,
            size: request.size,
            kind: Kind::Qcow2(Box::new(request.options.clone())),
            preallocation: Preallocation::Off,
        },
        policy,
    )?;
    let image = Arc::new(image);
    let mut together = Together::default();
    for name in &request.names {
        together.add(name, &image, None)?;
    }
    let mut script = Script::new("fork", words(request));
    script.steps.extend(together.step()?);
    Ok(Plan {
        script,
        together,
        home: folder_of(first),
    })
}

impl Plan {
    /// How many are made.
    pub fn len(&self) -> usize {
        self.together.missing().len()
    }

    /// Those that are made.
    pub fn missing(&self) -> impl Iterator<Item = &Path> {
        self.together.missing().map(|(path, _)| path)
    }

    /// How many are there already.
    pub fn there(&self) -> usize {
        self.together.there()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes them. What fails or is stopped leaves none of them; what is killed is finished by [`super::script::interrupted`].
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script.execute(&self.home, policy, observer)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self.together.there();
        let mut missing = self.together.missing();
        let (count, first, last) = (missing.len(), missing.next(), missing.next_back());
        let Some((first, image)) = first else {
            return write!(f, "all {there} overlays are there already");
        };
        let base = image.header.backing.as_ref();
        let base = base
            .map(|backing| String::from_utf8_lossy(&backing.name))
            .unwrap_or_default();
        match last {
            None => write!(f, "{}: a new overlay of '{base}'", first.display())?,
            Some((last, _)) => write!(
                f,
                "{} to {}: {count} new overlays of '{base}'",
                first.display(),
                last.display()
            )?,
        }
        match there {
            0 => Ok(()),
            there => write!(f, "; {there} are there already"),
        }
    }
}
