//! Commit: what layers hold is written into a layer below them.
//!
//! Several layers go in one pass: the merge of their maps says what is copied, once and from where it is. The base is written
//! only where the layers above it answer, so that what those show stays the same at every instant; only when all of it is
//! durable are references changed, and only then are layers emptied or deleted. Begun again after an interruption, it copies
//! again what is there still.

use super::children::OtherChildren;
use super::choice::LayerChoice;
use super::copy::{Copy, Moving, Zeros, goes_on_with_room};
use super::observer::{Observer, Silent};
use super::pieces::{Piece, Pieces, What, bytes_to_copy, stretches};
use super::relink::{NewBacking, change_header, change_stamp, changeable_header, reference_to, set_backing};
use super::view::{View, first_difference_within};
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::{ChangedBase, Policy};
use crate::stamp::{self, Renewal, lineage};
use crate::writable::{Reserved, Through, plainly};
use catena_engine::qcow2::{CheckOptions, metadata};
use catena_engine::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, StorageBytes, Unmap};
use catena_format::qcow2::Header;
use catena_storage::{LocalFile, Storage, sync_directory_of};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// What to commit.
#[derive(Clone, Debug)]
pub struct Request {
    /// The active image of the chain.
    pub start: Start,
    /// The highest layer that is committed; the active one unless told otherwise.
    pub top: LayerChoice,
    /// The layer that is written; the one below `top` where `None`. All between go with it.
    pub base: Option<LayerChoice>,
    /// What becomes of the committed layers.
    pub after: After,
    /// Who else may stand on what is written or deleted.
    pub children: OtherChildren,
    /// How bytes are moved.
    pub moving: Moving,
}

/// What becomes of committed layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum After {
    /// The highest one is emptied and stands on the base; those between, which would show something else, stay as they are.
    #[default]
    Empty,
    /// They stay as they are.
    Keep,
    /// They are deleted from the lowest up, each when the one above it has been put on the base: the chain is whole at every instant. A cut
    /// between the two leaves at most one file that nothing refers to any more.
    Delete,
}

/// A commit, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    top: usize,
    base: usize,
    after: After,
    moving: Moving,
    to_copy: u64,
    grows_to: Option<u64>,
    /// The layers that are put on the base, lowest first, and how they record it.
    relinked: Vec<(usize, NewBacking)>,
    /// The layer asked for is gone already.
    done: bool,
    /// Layers that were committed before and only have to be deleted still.
    left: Vec<Layer>,
    /// What is locked from here on.
    held: Option<Held>,
}

/// The layer whose stamp says nothing of the base as long as that is written; none where it has no stamp.
fn stamp_at_stake(chain: &Chain, base: usize) -> Option<usize> {
    let known = chain.changed_base != ChangedBase::Ignore;
    base.checked_sub(1).filter(|index| {
        let header = chain.layers.get(*index).and_then(|layer| layer.header.as_ref());
        known && header.is_some_and(|header| header.stamp().is_some())
    })
}

/// The locks of what is read and written, from the plan to the end: nothing that was looked at can change between.
#[derive(Debug)]
struct Held {
    /// The files of the layers that are put on the base.
    relinked: Vec<LocalFile>,
    emptied: Option<LocalFile>,
    /// The layer whose stamp is suspended meanwhile, and its file.
    suspended: Option<(usize, LocalFile)>,
    base: Reserved,
    /// What the committed layers show.
    view: View,
}

impl Held {
    fn of(
        chain: &Chain,
        (top, base): (usize, usize),
        after: After,
        relinked: &[(usize, NewBacking)],
    ) -> Result<Self> {
        let reserve = |index: usize| {
            let layer = chain.layers.get(index);
            layer
                .ok_or_else(|| Error::new(ErrorKind::OutOfBounds, format!("there is no layer {index}")))?
                .reserve()
        };
        let files = { relinked.iter() }
            .map(|(index, _)| Ok(reserve(*index)?.file))
            .collect::<Result<Vec<_>>>()?;
        let emptied = match (after, files.first()) {
            (After::Empty, None) => Some(reserve(top)?.file),
            (After::Empty, Some(file)) => Some(file.clone()),
            (After::Keep | After::Delete, _) => None,
        };
        let suspended = stamp_at_stake(chain, base)
            .map(|index| match &emptied {
                Some(file) if index == top => Ok((index, file.clone())),
                _ => Ok::<_, Error>((index, reserve(index)?.file)),
            })
            .transpose()?;
        // What we have locked for writing cannot be locked against writers.
        let is_ours = |index: usize| {
            (index == top && emptied.is_some())
                || relinked.iter().any(|(ours, _)| *ours == index)
                || suspended.iter().any(|(ours, _)| *ours == index)
        };
        let layers = chain.layers.get(top..base).unwrap_or_default();
        let view = View::open_with(layers.iter().enumerate().map(|(number, layer)| {
            let ours = is_ours(top + number);
            (layer, if ours { Sharing::Force } else { Sharing::Locked })
        }))?;
        Ok(Self {
            relinked: files,
            emptied,
            suspended,
            base: reserve(base)?,
            view,
        })
    }
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&request.start, policy);
    let gone = match (&request.top, request.start.source.path()) {
        (LayerChoice::Index(0), Some(path)) => LayerChoice::Path(path.to_owned()).is_gone(),
        (top, _) => top.is_gone(),
    };
    if request.after == After::Delete && gone {
        return Ok(Plan::nothing(chain, request, Vec::new()));
    }
    chain.check_complete()?;
    if let Some(left) = left_over(request, &chain, policy)? {
        request.children.check(&left.iter().collect::<Vec<_>>(), &left)?;
        return Ok(Plan::nothing(chain, request, left));
    }
    let top = request.top.find(&chain)?;
    let base = match &request.base {
        Some(base) => base.find(&chain)?,
        None => top + 1,
    };
    let layers = chain.layers.get(top..base).unwrap_or_default();
    let (Some(highest), Some(written)) = (layers.first(), chain.layers.get(base)) else {
        let active = chain.layers.get(top).map(Layer::name).unwrap_or_default();
        return Err(if base > top {
            Error::new(ErrorKind::Conflict, "Image does not have a backing file").with_path(active)
        } else {
            Error::new(
                ErrorKind::Conflict,
                "the base must lie below the layers that are committed",
            )
        });
    };
    check_readable(layers)?;
    check_writable(written)?;
    if request.after == After::Empty && highest.header.is_none() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "only qcow2 images can be emptied",
        ));
    }
    let relinked = match request.after {
        After::Empty if base > top + 1 => top..top + 1,
        // Before a layer goes the one above it is put on the base: the chain is never broken.
        After::Delete => top.saturating_sub(1)..base - 1,
        After::Empty | After::Keep => 0..0,
    };
    let relinked = { chain.layers.iter().enumerate().take(relinked.end) }
        .skip(relinked.start)
        .rev()
        .map(|(index, image)| {
            changeable_header(image)?;
            let owner = chain.layers.get(base - 1).unwrap_or(image);
            Ok((index, reference_to(image, owner, written)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let size = highest.virtual_size().unwrap_or_default();
    let grows_to = (written.virtual_size().unwrap_or_default() < size).then_some(size);
    let held_files = Held::of(&chain, (top, base), request.after, &relinked)?;
    let view = &held_files.view;
    let to_copy = bytes_to_copy(held(&**view.disk(), layers.len()))?;
    // The base and all between show something else afterwards; the highest layer does not, unless it goes.
    let changed: Vec<&Layer> = chain.layers.iter().skip(top + 1).take(base - top).collect();
    if request.after == After::Delete {
        request
            .children
            .check(&layers.iter().collect::<Vec<_>>(), &chain.layers)?;
    }
    // What is committed already, as when the same is asked again, changes nobody's view.
    let writes = |piece: Result<Piece>| piece.map_or(true, |piece| piece.what != What::Skip);
    if grows_to.is_some() || held(&**view.disk(), layers.len()).any(writes) {
        let refused = request.children.check(&changed, &chain.layers);
        // A commit that was stopped when the base had all of it, but its layers were not dealt with yet.
        if refused.is_err() && (grows_to.is_some() || !is_shown(&chain, top, base)?) {
            refused?;
        }
    }
    Ok(Plan {
        top,
        base,
        after: request.after,
        moving: request.moving.clone(),
        to_copy,
        grows_to,
        relinked,
        done: false,
        left: Vec::new(),
        held: Some(held_files),
        chain,
    })
}

/// The layers of a commit that was stopped when they were no part of the chain any more, but not all deleted yet.
fn left_over(request: &Request, chain: &Chain, policy: &Policy) -> Result<Option<Vec<Layer>>> {
    let (After::Delete, LayerChoice::Path(path)) = (request.after, &request.top) else {
        return Ok(None);
    };
    if request.top.find(chain).is_ok() {
        return Ok(None);
    }
    let below = detect(&Start::at(path, None), policy);
    if below.check_complete().is_err() {
        return Ok(None);
    }
    let base = match &request.base {
        None => 1,
        Some(LayerChoice::Index(_)) => return Ok(None),
        Some(path) => match path.find(&below) {
            Ok(base) => base,
            Err(_) => return Ok(None),
        },
    };
    let Some(written) = below.layers.get(base).and_then(Layer::object) else {
        return Ok(None);
    };
    if base == 0 || !chain.layers.iter().any(|layer| layer.object() == Some(written)) {
        return Ok(None);
    }
    // They may go only if the base shows all that they do.
    let shown = View::open(&below.layers.iter().collect::<Vec<_>>(), Sharing::Locked)?;
    let kept = View::open(
        &below.layers.iter().skip(base).collect::<Vec<_>>(),
        Sharing::Locked,
    )?;
    if shown.size() > kept.size() || first_difference_within(&shown, &kept, shown.size(), &Silent)?.is_some()
    {
        return Ok(None);
    }
    let mut layers = below.layers;
    layers.truncate(base);
    Ok(Some(layers))
}

/// Whether the base shows all that the layers above it do. They are locked already.
fn is_shown(chain: &Chain, top: usize, base: usize) -> Result<bool> {
    let view = |from: usize| {
        let layers = chain.layers.iter().enumerate().skip(from);
        View::open_with(layers.map(|(number, layer)| {
            let ours = number <= base;
            (layer, if ours { Sharing::Force } else { Sharing::Locked })
        }))
    };
    let (shown, kept) = (view(top)?, view(base)?);
    Ok(shown.size() <= kept.size()
        && first_difference_within(&shown, &kept, shown.size(), &Silent)?.is_none())
}

/// What is to be written to a base that lies below so many layers: all that they answer for.
pub(super) fn held(disk: &dyn Disk, layers: usize) -> impl Iterator<Item = Result<Piece>> {
    let lowest = u32::try_from(layers.saturating_sub(1)).unwrap_or(u32::MAX);
    stretches(disk, 0, disk.size(), move |extent: &Extent| match extent.kind {
        // Nobody answers, unless a layer ends before: what it does not reach is zeros.
        ExtentKind::Unallocated if extent.layer >= lowest => What::Skip,
        ExtentKind::Unallocated | ExtentKind::Zero { offset: None } => What::Zero,
        // A hole of a file is zeros, too.
        ExtentKind::Zero { offset: Some(_) } => What::Zero,
        _ => What::Copy,
    })
}

/// Whether the layers' data can be read.
fn check_readable(layers: &[Layer]) -> Result<()> {
    for layer in layers {
        changeable_header(layer)?;
        if layer.encryption().is_some() {
            return Err(Error::new(
                ErrorKind::Encrypted,
                "the data is encrypted, and reading encrypted images is not supported",
            )
            .with_path(layer.name()));
        }
    }
    Ok(())
}

/// Whether the base can be written.
fn check_writable(base: &Layer) -> Result<()> {
    if base.header.is_some() {
        changeable_header(base)?;
    }
    if base.encryption().is_some() {
        return Err(Error::new(
            ErrorKind::Encrypted,
            "the data is encrypted, and writing encrypted images is not supported",
        )
        .with_path(base.name()));
    }
    Ok(())
}

impl Plan {
    fn nothing(chain: Chain, request: &Request, left: Vec<Layer>) -> Self {
        Self {
            chain,
            top: 0,
            base: 0,
            after: request.after,
            moving: request.moving.clone(),
            to_copy: 0,
            grows_to: None,
            relinked: Vec::new(),
            done: true,
            left,
            held: None,
        }
    }

    /// Whether there is nothing to do: what was to be committed and deleted is gone.
    pub fn is_done(&self) -> bool {
        self.done && self.left.is_empty()
    }

    /// Bytes that are to be read.
    pub fn to_copy(&self) -> u64 {
        self.to_copy
    }

    /// How many layers are committed.
    pub fn depth(&self) -> usize {
        self.base - self.top
    }

    fn layer(&self, index: usize) -> Result<&Layer> {
        self.chain
            .layers
            .get(index)
            .ok_or_else(|| Error::new(ErrorKind::OutOfBounds, format!("there is no layer {index}")))
    }

    /// Commits.
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
        if self.done {
            return delete(&self.left);
        }
        let Some(Held {
            relinked,
            emptied,
            suspended,
            base: reserved,
            view,
        }) = &self.held
        else {
            return Ok(());
        };
        let layers = self.chain.layers.get(self.top..self.base).unwrap_or_default();
        let below = self.chain.layers.get(self.base + 1..).unwrap_or_default();
        let base = self.layer(self.base)?;
        let mut base = base.open_reserved(reserved, below, Sharing::Locked, through)?;
        let relinked: Vec<_> = relinked.iter().cloned().map(through).collect();
        let emptied = match (emptied, relinked.first()) {
            (Some(_), Some(same)) => Some(Arc::clone(same)),
            (file, _) => file.clone().map(through),
        };
        let suspended = suspended.clone().map(|(index, file)| match &emptied {
            Some(emptied) if index == self.top => (index, Arc::clone(emptied)),
            _ => (index, through(file)),
        });
        if let Some((_, file)) = &suspended {
            change_stamp(&**file, |header| Ok(header.stamp().map(stamp::suspended)))?;
        }
        if let Some(size) = self.grows_to {
            base.grow(size)?;
        }
        let copy = Copy {
            source: &**view.disk(),
            target: &**base.disk(),
            moving: &Moving {
                sparse: 0,
                ..self.moving.clone()
            },
            zeros: Zeros::Write(Unmap::Allow),
            unit: base.unit(),
            compressed: None,
            observer,
            total: self.to_copy,
        };
        let end = view.size();
        copy.run(Pieces::new(held(&**view.disk(), layers.len()), end, 1))?;
        // From here on the base shows what the layers do.
        base.finish()?;
        observer.check()?;
        for (file, (index, backing)) in relinked.iter().zip(&self.relinked) {
            let renewal = Renewal::anew(&self.chain, Some(self.layer(self.base)?));
            set_backing(&**file, Some(backing), renewal, None)?;
            if self.after == After::Delete {
                delete_files(self.layer(index + 1)?)?;
            }
        }
        match (self.after, &emptied) {
            (After::Delete, _) if self.top == 0 => delete_files(self.layer(0)?)?,
            (After::Empty, Some(top)) => self.empty(&**top)?,
            _ => {}
        }
        suspended.map_or(Ok(()), |(index, file)| self.stamp_again(index, &*file))
    }

    /// Empties the highest layer, which shows what it did by way of the base.
    fn empty(&self, file: &dyn Storage) -> Result<()> {
        let top = self.layer(self.top)?;
        lineage::begin(&self.chain, top, file)?;
        metadata::empty(file, &CheckOptions::default())?;
        if Header::read(&StorageBytes::new(file)?)?.lineage().is_none() {
            return Ok(());
        }
        change_header(file, |old| {
            let mut new = old.clone();
            lineage::end(top, &mut new);
            Ok(new)
        })
    }

    /// Ends the suspension of a layer's stamp: a new one where the chain goes on through it, the old one, which tells on it, where it
    /// would show something else.
    fn stamp_again(&self, index: usize, file: &dyn Storage) -> Result<()> {
        let goes_on = match self.after {
            After::Delete => return Ok(()),
            After::Keep => true,
            After::Empty => self.base == self.top + 1,
        };
        let old = self.layer(index)?.header.as_ref().and_then(Header::stamp);
        let below = self.layer(index + 1)?;
        change_stamp(file, |header| match &header.backing {
            Some(backing) if goes_on => {
                Ok(stamp::take_held(below, &backing.name, header.backing_format()).ok())
            }
            _ => Ok(old.cloned()),
        })
    }
}

/// Deletes the files of layers, the highest one last: as long as it is there, the same command finds what is to be done.
fn delete(layers: &[Layer]) -> Result<()> {
    layers.iter().rev().try_for_each(delete_files)
}

fn delete_files(layer: &Layer) -> Result<()> {
    let data_file = layer
        .data_file
        .as_ref()
        .and_then(|data| data.source.as_ref()?.path());
    for path in [data_file, layer.path()].into_iter().flatten() {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(catena_storage::Error::from_io(error, "delete")
                    .with_path(path)
                    .into());
            }
        }
        sync_directory_of(path)?;
    }
    Ok(())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_done() {
            return f.write_str("nothing to commit: the layer is gone already");
        }
        if self.done {
            let names: Vec<_> = self
                .left
                .iter()
                .map(|layer| format!("'{}'", layer.name()))
                .collect();
            return write!(f, "{}: committed before, and deleted now", names.join(", "));
        }
        let names: Vec<PathBuf> = self
            .chain
            .layers
            .iter()
            .skip(self.top)
            .take(self.base - self.top + 1)
            .map(|layer| layer.path().map(PathBuf::from).unwrap_or_default())
            .collect();
        let (base, layers) = names
            .split_last()
            .map_or((None, names.as_slice()), |(base, rest)| (Some(base), rest));
        let quoted: Vec<_> = layers
            .iter()
            .map(|name| format!("'{}'", name.display()))
            .collect();
        let base = base.map(|base| base.display().to_string()).unwrap_or_default();
        write!(f, "{base}: takes {} bytes of {}", self.to_copy, quoted.join(", "))?;
        if let Some(size) = self.grows_to {
            write!(f, ", and grows to {size} bytes")?;
        }
        match self.after {
            After::Keep => write!(f, "; nothing else changes")?,
            After::Empty => write!(f, "; {} is emptied", quoted.first().map_or("", |name| name))?,
            After::Delete => write!(f, "; they are deleted")?,
        }
        for (index, backing) in &self.relinked {
            if self.after == After::Delete && *index >= self.top {
                // It goes itself.
                continue;
            }
            let image = self.chain.layers.get(*index).map(Layer::name).unwrap_or_default();
            write!(f, "; '{image}' is put on '{}' ({})", backing.name, backing.format)?;
        }
        Ok(())
    }
}
