//! Bitmap: persistent bitmaps of an image, which remember what has been written since a backup.
//!
//! Several changes are stored in one step: at every instant the image has its old bitmaps or the new ones. The image alone
//! is opened, whatever chain it is in; one that bits are taken from is only read.

use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::qcow2::bitmap::{BitmapError, Bitmaps, Bits, NewBitmap, stored};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::Format;
use catena_format::qcow2::{Bitmap, Header};
use std::fmt;

/// What to change.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub start: Start,
    /// The bitmap.
    pub name: String,
    /// What with it, one after the other.
    pub actions: Vec<Action>,
}

/// A change of a bitmap.
#[derive(Clone, Debug)]
pub enum Action {
    /// It is new.
    Add {
        /// Bytes a bit stands for; QEMU's choice where `None`.
        granularity: Option<u64>,
        /// Whether it records writes by itself.
        enabled: bool,
    },
    /// It goes, whatever state it is in.
    Remove,
    /// All its bits are cleared.
    Clear,
    /// It records writes by itself.
    Enable,
    /// It no longer does.
    Disable,
    /// It takes in what another one has marked.
    Merge {
        /// The other one.
        from: String,
        /// The image that has it, where that is another one.
        image: Option<Start>,
    },
}

/// Changes of a bitmap, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    name: String,
    actions: Vec<(Action, Option<Chain>)>,
}

/// The bitmaps of an image.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where its format has none.
pub fn list(start: &Start, policy: &Policy) -> Result<Vec<Bitmap>> {
    let chain = detect(start, policy);
    Ok(qcow2(&chain)?.bitmaps()?.unwrap_or_default())
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
        format!("{} images have no bitmaps", image.format),
    )
    .with_path(image.name()))
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    let mut there = names(qcow2(&chain)?)?;
    let mut actions = Vec::new();
    for action in &request.actions {
        let other = match action {
            Action::Merge { image, .. } => image.as_ref().map(|start| detect(start, policy)),
            _ => None,
        };
        let known = there.contains(&request.name);
        match action {
            Action::Add { .. } if known => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("there is a bitmap '{}' already", request.name),
                )
                .with_path(qcow2(&chain)?.name()));
            }
            Action::Add { .. } => there.push(request.name.clone()),
            _ if !known => return Err(none(qcow2(&chain)?, &request.name)),
            Action::Remove => there.retain(|name| *name != request.name),
            Action::Merge { from, .. } => {
                let has = match &other {
                    Some(other) => names(qcow2(other)?)?.contains(from),
                    None => there.contains(from),
                };
                if !has {
                    return Err(none(qcow2(other.as_ref().unwrap_or(&chain))?, from));
                }
            }
            Action::Clear | Action::Enable | Action::Disable => {}
        }
        actions.push((action.clone(), other));
    }
    Ok(Plan {
        name: request.name.clone(),
        actions,
        chain,
    })
}

fn names(image: &Layer) -> Result<Vec<String>> {
    let bitmaps = image.bitmaps()?.unwrap_or_default();
    Ok(bitmaps.into_iter().map(|bitmap| bitmap.name).collect())
}

fn none(image: &Layer, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no bitmap '{name}'"))
        .with_path(image.name())
        .with_hint("'catena bitmap list' lists them")
}

impl Plan {
    /// Performs them.
    pub fn execute(&self) -> Result<()> {
        let image = qcow2(&self.chain)?;
        let named = |error: Error| error.with_path(image.name());
        // Bitmaps lie in the image itself: what is below it is not asked.
        let writable = image.open_writable(&[], Sharing::Locked)?;
        let disk = writable
            .qcow2()
            .ok_or_else(|| named(Error::new(ErrorKind::Unsupported, "the image has no bitmaps")))?;
        self.change(disk).map_err(named)?;
        writable.finish()?;
        Ok(())
    }

    fn change(&self, disk: &Qcow2Disk) -> Result<()> {
        let mut bitmaps = Bitmaps::read(disk)?;
        let name = self.name.as_str();
        for (action, other) in &self.actions {
            match action {
                Action::Add { granularity, enabled } => bitmaps.add(&NewBitmap {
                    name: name.to_owned(),
                    granularity: *granularity,
                    enabled: *enabled,
                })?,
                Action::Remove => bitmaps.remove(name)?,
                Action::Clear => bitmaps.clear(name)?,
                Action::Enable => bitmaps.enable(name, true)?,
                Action::Disable => bitmaps.enable(name, false)?,
                Action::Merge { from, .. } => {
                    let bits = match other {
                        Some(other) => bits_of(other, from)?,
                        None => bitmaps.bits(from, disk)?,
                    };
                    bitmaps.merge(name, &bits, disk)?;
                }
            }
        }
        bitmaps.store(disk)
    }
}

/// The bits of a bitmap of another image, which others may read meanwhile.
fn bits_of(chain: &Chain, name: &str) -> Result<Bits> {
    let image = qcow2(chain)?;
    let read = || {
        let file = image
            .file
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the image is not on this host"))?;
        let storage = file.lock(Sharing::Locked)?;
        let header = Header::read(&StorageBytes::new(&*storage)?)?;
        let bitmap = stored::list(&header, &*storage)?
            .into_iter()
            .find(|bitmap| bitmap.name == name)
            .ok_or_else(|| none(image, name))?;
        if bitmap.in_use {
            return Err(BitmapError::Inconsistent(name.to_owned()).into());
        }
        if !bitmap.is_understood() {
            return Err(BitmapError::NotUnderstood(name.to_owned()).into());
        }
        stored::load(&bitmap, &header, &*storage)
    };
    read().map_err(|error: Error| error.with_path(image.name()))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.chain.active().map(Layer::name).unwrap_or_default();
        write!(f, "{image}: bitmap '{}'", self.name)?;
        for (number, (action, other)) in self.actions.iter().enumerate() {
            f.write_str(if number == 0 { " " } else { ", " })?;
            match action {
                Action::Add { enabled: true, .. } => f.write_str("is added, and records writes")?,
                Action::Add { enabled: false, .. } => f.write_str("is added, and does not record writes")?,
                Action::Remove => f.write_str("is removed")?,
                Action::Clear => f.write_str("is cleared")?,
                Action::Enable => f.write_str("records writes")?,
                Action::Disable => f.write_str("no longer records writes")?,
                Action::Merge { from, .. } => {
                    write!(f, "takes in what '{from}' has marked")?;
                    if let Some(other) = other.as_ref().and_then(Chain::active) {
                        write!(f, " in {}", other.name())?;
                    }
                }
            }
        }
        Ok(())
    }
}
