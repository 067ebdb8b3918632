//! Stream: what lower layers hold is pulled up into an image, which then stands on a layer further down or on none.
//!
//! The image is written only where it did not answer, with what its guest saw there anyway; when that is durable its reference
//! changes. Other images keep what they stand on. Begun again after an interruption, it copies what is still missing.

use super::choice::LayerChoice;
use super::copy::{Copy, Moving, Zeros, goes_on_with_room};
use super::observer::Observer;
use super::pieces::{Piece, Pieces, What, bytes_to_copy, stretches};
use super::relink::{NewBacking, changeable_header, reference_to, set_backing};
use super::script::set_modified;
use super::view::View;
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use crate::stamp::{Renewal, lineage};
use crate::writable::{Reserved, Through, plainly};
use catena_engine::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, Unmap};
use catena_storage::Storage;
use std::fmt;

/// What to pull up.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image that takes it in.
    pub start: Start,
    /// The layer it stands on afterwards; none where `None`, so that it holds everything itself.
    pub base: Option<LayerChoice>,
    /// How bytes are moved.
    pub moving: Moving,
    /// Whether what is copied is compressed.
    pub compressed: bool,
    /// When the image was written last, as seconds and nanoseconds since 1970, where it still stands for that time. It is dated a second later, so that whoever
    /// compares times to find out what to copy sees that it has changed.
    pub dated: Option<(i64, u32)>,
}

/// A stream, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    /// How many layers are above the one that stays.
    kept: usize,
    backing: Option<NewBacking>,
    to_copy: u64,
    moving: Moving,
    compressed: bool,
    dated: Option<(i64, u32)>,
    /// The locks from the plan to the end, so that nothing that was looked at can change between: of the image, which is written,
    /// and of what it shows. Nothing where nothing is to do.
    held: Option<(Reserved, View)>,
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    chain.check_complete()?;
    let image = chain
        .active()
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no image"))?;
    let kept = match &request.base {
        None => chain.layers.len(),
        Some(base) => base.find(&chain)?,
    };
    if kept == 0 {
        return Err(Error::new(ErrorKind::Conflict, "an image cannot be its own base"));
    }
    let backing = match (chain.layers.get(kept), chain.layers.get(kept - 1)) {
        (Some(base), Some(owner)) => Some(reference_to(image, owner, base)?),
        _ => None,
    };
    let (mut to_copy, mut held) = (0, None);
    if kept > 1 {
        changeable_header(image)?;
        chain.check_not_encrypted(0)?;
        let reserved = image.reserve()?;
        let below = chain.layers.get(1..).unwrap_or_default();
        // The image itself is locked for writing, by us.
        let own = std::iter::once((image, Sharing::Force));
        let view = View::open_with(own.chain(below.iter().map(|layer| (layer, Sharing::Locked))))?;
        to_copy = bytes_to_copy(missing(&**view.disk(), kept, chain.layers.len()))?;
        held = Some((reserved, view));
    }
    Ok(Plan {
        kept,
        backing,
        to_copy,
        moving: request.moving.clone(),
        compressed: request.compressed,
        dated: request.dated,
        held,
        chain,
    })
}

/// What the image lacks so that it shows the same without the layers above the one that is kept.
fn missing(disk: &dyn Disk, kept: usize, layers: usize) -> impl Iterator<Item = Result<Piece>> {
    let kept_layer = u32::try_from(kept).unwrap_or(u32::MAX);
    let lowest = u32::try_from(layers.saturating_sub(1)).unwrap_or(u32::MAX);
    let alone = kept >= layers;
    stretches(disk, 0, disk.size(), move |extent: &Extent| match extent.kind {
        // Without a backing image what is not there is zeros.
        ExtentKind::Unallocated | ExtentKind::Zero { .. } if alone => What::Skip,
        // Nobody answers; or a layer ends before, and those below are not asked. If it goes, they would be.
        ExtentKind::Unallocated if extent.layer >= lowest || extent.layer + 1 >= kept_layer => What::Skip,
        ExtentKind::Unallocated => What::Zero,
        _ if extent.layer == 0 || extent.layer >= kept_layer => What::Skip,
        ExtentKind::Zero { .. } => What::Zero,
        _ => What::Copy,
    })
}

impl Plan {
    /// Whether the image stands where it shall already.
    pub fn is_done(&self) -> bool {
        self.kept <= 1
    }

    /// Bytes that are to be copied into the image.
    pub fn to_copy(&self) -> u64 {
        self.to_copy
    }

    /// Pulls them up.
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
        let Some((reserved, view)) = &self.held else {
            return Ok(());
        };
        observer.check()?;
        let (image, below) = self
            .chain
            .layers
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no image"))?;
        let prepare = |file: &dyn Storage| lineage::begin(&self.chain, image, file);
        let writable = image.open_prepared(reserved, below, Sharing::Locked, through, &prepare)?;
        let copy = Copy {
            source: &**view.disk(),
            target: &**writable.disk(),
            moving: &self.moving,
            zeros: match self.backing {
                // What is not written is zeros once there is no backing image.
                None => Zeros::Skip,
                Some(_) => Zeros::Write(Unmap::Allow),
            },
            unit: writable.unit(),
            compressed: writable.qcow2().map(|disk| &**disk).filter(|_| self.compressed),
            observer,
            total: self.to_copy,
        };
        let pieces = missing(&**view.disk(), self.kept, self.chain.layers.len());
        let align = if self.compressed { copy.unit } else { 1 };
        copy.run(Pieces::new(pieces, view.size(), align))?;
        let file = writable.finish()?;
        observer.check()?;
        let renewal = Renewal::anew(&self.chain, self.chain.layers.get(self.kept));
        set_backing(&*file, self.backing.as_ref(), renewal, Some(image))?;
        match (self.dated, image.path()) {
            (Some((seconds, rest)), Some(path)) => set_modified(path, (seconds.saturating_add(1), rest)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.chain.active().map(Layer::name).unwrap_or_default();
        if self.is_done() {
            return match &self.backing {
                Some(backing) => write!(f, "{image}: stands on '{}' already", backing.name),
                None => write!(f, "{image}: stands on no other image already"),
            };
        }
        let compressed = if self.compressed { ", compressed" } else { "" };
        write!(
            f,
            "{image}: takes in {} bytes of {} layers{compressed}, and then stands on ",
            self.to_copy,
            self.kept - 1
        )?;
        match &self.backing {
            Some(backing) => write!(f, "'{}' ({})", backing.name, backing.format),
            None => f.write_str("no other image"),
        }
    }
}
