//! Resize: a disk made larger or smaller.
//!
//! What is new reads as zeros, whatever lies below, and can have its space from the start. What is cut off is gone, so a caller has to say that it may be.

use super::allocated::write_zeros;
use super::children::OtherChildren;
use super::create::Preallocation;
use super::observer::Observer;
use super::relink::changeable_header;
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use crate::writable::Writable;
use catena_engine::qcow2::{self, CheckOptions, shrink};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::{Format, limits};
use catena_storage::Storage;
use std::fmt;

/// Guests see whole sectors.
const SECTOR: u64 = 512;

/// Bytes that are given their space at once: whole clusters of any size.
const STEP: u64 = 64 << 20;

/// What to resize.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub start: Start,
    /// The size it shall have.
    pub size: NewSize,
    /// What of a larger disk's new part is allocated.
    pub preallocation: Preallocation,
    /// Whether what lies past a smaller size may be cut off.
    pub shrink: bool,
    /// Who else may stand on an image that becomes smaller.
    pub children: OtherChildren,
}

/// A new size, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// This one.
    To(u64),
    /// So much more.
    More(u64),
    /// So much less.
    Less(u64),
}

/// A resize, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    old: u64,
    new: u64,
    preallocation: Preallocation,
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    let image = chain.active().ok_or_else(|| match chain.check_complete() {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no image"),
    })?;
    let named = |error: Error| error.with_path(image.name());
    if image.header.is_some() {
        changeable_header(image)?;
    } else if image.format != Format::Raw {
        return Err(named(Error::new(
            ErrorKind::Unsupported,
            format!("{} images cannot be resized", image.format),
        )));
    }
    let is_device = image
        .file
        .as_ref()
        .is_some_and(|file| file.storage.is_block_device());
    if image.format == Format::Raw && (is_device || image.source.slice.is_some()) {
        return Err(named(Error::new(
            ErrorKind::Unsupported,
            "a device, or a part of a file, has the size that it has",
        )));
    }
    chain.check_not_encrypted(0)?;
    let old = image.virtual_size().unwrap_or_default();
    let wanted = match request.size {
        NewSize::To(size) => Some(size),
        NewSize::More(bytes) => old.checked_add(bytes),
        NewSize::Less(bytes) => old.checked_sub(bytes),
    };
    let new = wanted
        .and_then(|size| size.checked_next_multiple_of(SECTOR))
        .filter(|size| *size <= limits::VIRTUAL_SIZE)
        .ok_or_else(|| named(Error::new(ErrorKind::TooLarge, "no disk has such a size")))?;
    let preallocation = request.preallocation;
    if image.format == Format::Raw && preallocation == Preallocation::Metadata {
        return Err(named(Error::new(
            ErrorKind::Unsupported,
            "raw images have no metadata to preallocate",
        )));
    }
    if new < old && preallocation != Preallocation::Off {
        return Err(named(Error::new(
            ErrorKind::Conflict,
            "the disk would become smaller: only what is new can be preallocated",
        )));
    }
    if new < old {
        if !request.shrink {
            return Err(named(
                Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "the disk would become smaller: {} bytes at its end would be gone",
                        old - new
                    ),
                )
                .with_hint("shrink the guest's partitions and file systems first, then add --shrink"),
            ));
        }
        request.children.check(&[image], &chain.layers)?;
    }
    Ok(Plan {
        old,
        new,
        preallocation,
        chain,
    })
}

impl Plan {
    /// Bytes the disk will have.
    pub fn size(&self) -> u64 {
        self.new
    }

    /// Whether it has them already.
    pub fn is_done(&self) -> bool {
        self.old == self.new
    }

    /// Resizes. Where the observer stops that, the disk has the size that it had.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        let Some(image) = self.chain.active() else {
            return Err(Error::new(ErrorKind::NotFound, "there is no image"));
        };
        let named = |error: Error| error.with_path(image.name());
        if self.new > self.old {
            observer.check()?;
            let mut writable = self.chain.open_writable(0, Sharing::Locked)?;
            writable.grow(self.new)?;
            let kept = self.preallocate(&writable, observer);
            let file = writable.finish();
            if kept.is_err() {
                // Nobody has seen what is new: without its space it goes again, and the same command can be given again. Where
                // even that fails, the first error is the one to tell.
                if let Ok(file) = &file {
                    let _ = cut_off(image.format, &**file, self.old, &CheckOptions::default());
                }
                kept.map_err(named)?;
            }
            file?;
        } else if self.new < self.old {
            let file = image.reopen_for_writing()?;
            let tell = |done, total| observer.step(done, total);
            let options = CheckOptions::default().watched(&tell);
            cut_off(image.format, &file, self.new, &options).map_err(named)?;
        }
        Ok(())
    }
}

/// Makes a disk smaller that nobody else uses.
fn cut_off(format: Format, file: &dyn Storage, size: u64, options: &CheckOptions<'_>) -> Result<()> {
    match format {
        Format::Qcow2 => shrink(file, size, options),
        _ => {
            file.set_len(size)?;
            Ok(file.flush()?)
        }
    }
}

impl Plan {
    /// Gives what is new its space, step by step.
    fn preallocate(&self, writable: &Writable, observer: &dyn Observer) -> Result<()> {
        let how = match self.preallocation {
            Preallocation::Off => return Ok(()),
            Preallocation::Metadata => qcow2::Preallocation::Metadata,
            Preallocation::Falloc => qcow2::Preallocation::Falloc,
            Preallocation::Full => qcow2::Preallocation::Full,
        };
        let mut at = self.old;
        while at < self.new {
            if !observer.step(at - self.old, self.new - self.old) {
                observer.check()?;
            }
            let to = (at / STEP).saturating_add(1).saturating_mul(STEP).min(self.new);
            match (writable.qcow2(), how) {
                (Some(disk), _) => disk.preallocate(at..to, how)?,
                (None, qcow2::Preallocation::Full) => write_zeros(writable.file(), at, to)?,
                (None, _) => writable.file().allocate(at, to - at)?,
            }
            at = to;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.chain.active().map(Layer::name).unwrap_or_default();
        let Self { old, new, .. } = self;
        if self.is_done() {
            return write!(f, "{image}: has {new} bytes already");
        }
        let how = if new > old { "grows" } else { "shrinks" };
        write!(f, "{image}: {how} from {old} to {new} bytes")?;
        f.write_str(match self.preallocation {
            Preallocation::Off => "",
            Preallocation::Metadata => "; what is new has its metadata",
            Preallocation::Falloc => "; what is new has its space",
            Preallocation::Full => "; what is new is written as zeros",
        })
    }
}
