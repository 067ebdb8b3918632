//! Rebase: an image put on another backing image, and what would change for its guest copied into it.
//!
//! Both backings are compared, by identity first, where the image itself does not answer; what differs is written into it. Only
//! when that is durable is the reference changed. Until then the image shows what it did over the old backing, after it the
//! same over the new one; begun again after an interruption, it finds less to copy.

use super::convert::copy_differences;
use super::copy::{Copy, Moving, Zeros, goes_on_with_room};
use super::observer::Observer;
use super::pieces::bytes_to_copy;
use super::relink::{NewBacking, changeable_header, check_no_loop, is_same_backing, resolve, set_backing};
use super::view::{Pair, View};
use crate::chain::{Chain, End, Layer, Link};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use crate::stamp::{Renewal, lineage};
use crate::writable::{Reserved, Through, plainly};
use catena_engine::{Error, ErrorKind, Result, Unmap};
use catena_storage::{LocalFile, Storage};
use std::fmt;

/// What to rebase.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub start: Start,
    /// What it shall stand on; `None` for nothing.
    pub backing: Option<NewBacking>,
    /// How bytes are moved.
    pub moving: Moving,
    /// Whether what is copied is compressed.
    pub compressed: bool,
}

/// A rebase, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    backing: Option<NewBacking>,
    /// What it will stand on.
    base: Chain,
    held: Held,
    to_compare: u64,
    moving: Moving,
    compressed: bool,
}

/// What is locked from the plan to the end, so that nothing that was looked at can change between.
#[derive(Debug)]
enum Held {
    /// The image. Its backing stays the file that it is, so there is nothing to compare.
    Same(LocalFile),
    /// The image, what it shows, and what it would show.
    Compared { image: Reserved, old: View, new: View },
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    let image = chain.active().ok_or_else(|| match chain.check_complete() {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no image"),
    })?;
    changeable_header(image)?;
    let base = match &request.backing {
        None => Chain::without_layers(End::Terminated),
        Some(backing) => {
            let start = Start {
                source: resolve(backing, image)?,
                format: Some(backing.format),
            };
            let chain = detect(&start, policy);
            check_no_loop(image, Some(&chain))?;
            chain
        }
    };
    let same = request
        .backing
        .as_ref()
        .is_some_and(|backing| is_same_backing(&chain, backing, &base));
    let (held, to_compare) = if same {
        (Held::Same(image.reopen_for_writing()?), 0)
    } else {
        chain.check_complete()?;
        base.check_complete()?;
        chain.check_not_encrypted(0)?;
        base.check_not_encrypted(0)?;
        let reserved = image.reserve()?;
        let view = |below: &[Layer]| {
            // The image itself is locked for writing, by us.
            let own = std::iter::once((image, Sharing::Force));
            View::open_with(own.chain(below.iter().map(|layer| (layer, Sharing::Locked))))
        };
        let old = view(chain.layers.get(1..).unwrap_or_default())?;
        let new = view(&base.layers)?;
        let pair = Pair { a: &old, b: &new };
        let to_compare = bytes_to_copy(pair.stretches(old.size(), |_| false))?;
        let held = Held::Compared {
            image: reserved,
            old,
            new,
        };
        (held, to_compare)
    };
    Ok(Plan {
        backing: request.backing.clone(),
        base,
        held,
        to_compare,
        moving: request.moving.clone(),
        compressed: request.compressed,
        chain,
    })
}

impl Plan {
    /// Bytes of which the maps do not tell whether they stay the same.
    pub fn to_compare(&self) -> u64 {
        self.to_compare
    }

    /// Rebases.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where there is no room for it: what was copied stays, nothing else has changed, and the same goes on from
    /// there when there is.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        self.execute_through(&plainly, observer)
    }

    /// The same, with something in front of what is written.
    pub fn execute_through(&self, through: Through<'_>, observer: &dyn Observer) -> Result<()> {
        self.perform(through, observer).map_err(goes_on_with_room)
    }

    fn perform(&self, through: Through<'_>, observer: &dyn Observer) -> Result<()> {
        observer.check()?;
        let (image, below) = self
            .chain
            .layers
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no image"))?;
        let file = match &self.held {
            Held::Same(file) => through(file.clone()),
            Held::Compared {
                image: reserved,
                old,
                new,
            } => {
                let prepare = |file: &dyn Storage| lineage::begin(&self.chain, image, file);
                let writable = image.open_prepared(reserved, below, Sharing::Locked, through, &prepare)?;
                let old_size = below.first().and_then(Layer::virtual_size).unwrap_or_default();
                let zeros = match self.moving.sparse {
                    0 => Zeros::WriteBehind(old_size, Unmap::Allow),
                    _ => Zeros::Write(Unmap::Allow),
                };
                let copy = Copy {
                    source: &**old.disk(),
                    target: &**writable.disk(),
                    moving: &self.moving,
                    zeros,
                    unit: match self.compressed {
                        true => writable.unit(),
                        false => writable.part(),
                    },
                    compressed: writable.qcow2().map(|disk| &**disk).filter(|_| self.compressed),
                    observer,
                    total: self.to_compare,
                };
                copy_differences(&copy, Pair { a: old, b: new }, old.size())?;
                writable.finish()?
            }
        };
        observer.check()?;
        let renewal = match self.held {
            Held::Same(_) => Renewal::follow(&self.chain),
            Held::Compared { .. } => Renewal::anew(&self.chain, self.base.active()),
        };
        set_backing(&*file, self.backing.as_ref(), renewal, Some(image))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.chain.active().map(Layer::name).unwrap_or_default();
        match &self.backing {
            None => write!(f, "{image}: is put on no backing image")?,
            Some(backing) => {
                let link = Link {
                    text: backing.name.clone(),
                    format: None,
                };
                write!(f, "{image}: is put on '{}' ({})", link.shown(), backing.format)?;
            }
        }
        if matches!(self.held, Held::Same(_)) {
            return f.write_str(", which is its backing image already");
        }
        let compressed = if self.compressed { ", compressed" } else { "" };
        write!(
            f,
            "; {} bytes are compared, and what differs is copied into it{compressed}",
            self.to_compare
        )
    }
}
