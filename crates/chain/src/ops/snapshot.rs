//! Snapshot: internal snapshots of an image taken, gone back to, and deleted.
//!
//! Each is one change that is made beside, so that what is cut off leaves the image as it was or as it is to be.

use super::children::OtherChildren;
use super::observer::Observer;
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use catena_engine::qcow2::CheckOptions;
use catena_engine::qcow2::metadata::snapshot::{self, NewSnapshot};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_format::qcow2::Snapshot;
use std::fmt;
use std::time::{Duration, SystemTime};

/// What to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub start: Start,
    /// What with it.
    pub action: Action,
    /// Who else may stand on an image that goes back to a snapshot.
    pub children: OtherChildren,
}

/// What is done with a snapshot. One that exists is named by its id or, where none has that id, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take one.
    Create {
        /// Its name.
        name: String,
    },
    /// Make the disk what it was when it was taken.
    Apply {
        /// Which.
        snapshot: String,
    },
    /// Delete it.
    Delete {
        /// Which.
        snapshot: String,
    },
}

/// A change of snapshots, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    action: Action,
    /// The one it is about, with its place in the table; none where it is taken.
    found: Option<(usize, Snapshot)>,
}

/// The snapshots of an image, in the order of its table.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where its format has none.
pub fn list(start: &Start, sharing: Sharing, policy: &Policy) -> Result<Vec<Snapshot>> {
    let chain = detect(start, policy);
    snapshots(qcow2(&chain)?, sharing)
}

fn qcow2(chain: &Chain) -> Result<&Layer> {
    let image = chain.active().ok_or_else(|| match chain.check_complete() {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no image"),
    })?;
    if image.format == Format::Qcow2 {
        return Ok(image);
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("{} images have no snapshots", image.format),
    )
    .with_path(image.name()))
}

fn snapshots(image: &Layer, sharing: Sharing) -> Result<Vec<Snapshot>> {
    image
        .open_qcow2(sharing)
        .and_then(|image| image.snapshots())
        .map_err(|error| error.with_path(image.name()))
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    let image = qcow2(&chain)?;
    // No lock stays: the image is locked for writing when it is written, and looked at again then.
    let there = snapshots(image, Sharing::Force)?;
    let find = |name: &String| {
        let by_id = there.iter().position(|snapshot| snapshot.id == *name);
        by_id
            .or_else(|| there.iter().position(|snapshot| snapshot.name == *name))
            .and_then(|index| Some((index, there.get(index)?.clone())))
            .ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("there is no snapshot '{name}'"))
                    .with_path(image.name())
                    .with_hint("'catena snapshot list' lists them")
            })
    };
    let found = match &request.action {
        Action::Create { .. } => None,
        Action::Apply { snapshot } => {
            request.children.check(&[image], &chain.layers)?;
            Some(find(snapshot)?)
        }
        Action::Delete { snapshot } => Some(find(snapshot)?),
    };
    Ok(Plan {
        action: request.action.clone(),
        found,
        chain,
    })
}

impl Plan {
    /// Performs it. A snapshot that is taken has the time of now; its id is told. Stopped by the
    /// observer, the image is as it was.
    pub fn execute(&self, observer: &dyn Observer) -> Result<Option<String>> {
        let image = qcow2(&self.chain)?;
        let file = image.reopen_for_writing()?;
        let tell = |done, total| observer.step(done, total);
        let options = CheckOptions::default().watched(&tell);
        let done = match (&self.action, &self.found) {
            (Action::Create { name }, _) => {
                let now = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or(Duration::ZERO);
                let new = NewSnapshot {
                    name: name.clone().into_bytes(),
                    date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
                    date_nsec: now.subsec_nanos(),
                    vm_clock_nsec: 0,
                    icount: u64::MAX,
                };
                snapshot::create(&file, &new, &options).map(Some)
            }
            (Action::Apply { .. }, Some((index, _))) => {
                snapshot::apply(&file, self.still(image, *index)?, &options).map(|()| None)
            }
            (Action::Delete { .. }, Some((index, _))) => {
                snapshot::delete(&file, self.still(image, *index)?, &options).map(|()| None)
            }
            (_, None) => Err(Error::new(ErrorKind::NotFound, "there is no such snapshot")),
        };
        done.map_err(|error| error.with_path(image.name()))
    }

    /// The place in the table, if the snapshot that was found there still is there.
    fn still(&self, image: &Layer, index: usize) -> Result<usize> {
        let there = snapshots(image, Sharing::Force)?;
        match (&self.found, there.get(index)) {
            (Some((_, found)), Some(now)) if found.id == now.id && found.name == now.name => Ok(index),
            _ => Err(Error::new(
                ErrorKind::Conflict,
                "the snapshots have changed since they were looked at",
            )
            .with_path(image.name())),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.chain.active().map(Layer::name).unwrap_or_default();
        let which = |f: &mut fmt::Formatter<'_>| match &self.found {
            Some((_, found)) if found.name.is_empty() => write!(f, "snapshot {}", found.id),
            Some((_, found)) => write!(f, "snapshot {} '{}'", found.id, found.name),
            None => f.write_str("no snapshot"),
        };
        match &self.action {
            Action::Create { name } => write!(f, "{image}: a new snapshot '{name}'"),
            Action::Apply { .. } => {
                write!(f, "{image}: shows what it did when ")?;
                which(f)?;
                f.write_str(" was taken")
            }
            Action::Delete { .. } => {
                write!(f, "{image}: ")?;
                which(f)?;
                f.write_str(" is deleted")
            }
        }
    }
}
