//! Stamp: overlays get a stamp of what they stand on, lose it, or are held against it.
//!
//! Only headers are written, lowest layer first: writing one touches it, and the one above it is to know it as it is then.

use super::hash::{self, hash};
use super::observer::Observer;
use super::relink::{change_stamp, changeable_header};
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use crate::stamp::{self, Held, Stamped};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::qcow2::Stamp;
use std::fmt;

/// What to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// The overlay, or the active image of a chain of them.
    pub start: Start,
    /// Whether the layers below it, as far as they are overlays, are stamped too.
    pub chain: bool,
    /// What becomes of stamps.
    pub action: Action,
}

/// What becomes of an overlay's stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It becomes that of the image that the overlay stands on. One that has the digest of its base's view keeps having one.
    Give {
        /// Whether all that the base shows is digested, too: nothing that changes then remains unnoticed.
        full: bool,
    },
    /// It is taken away.
    Remove,
}

/// An overlay, and what its stamp says.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// Its place in the chain.
    pub layer: usize,
    /// Its name.
    pub name: String,
    /// That of its base.
    pub base: String,
    /// What the stamp says of the base.
    pub stamped: Stamped,
    /// The stamp.
    pub stamp: Option<Stamp>,
}

/// Changes of stamps, decided.
#[derive(Debug)]
pub struct Plan {
    chain: Chain,
    action: Action,
    overlays: Vec<Overlay>,
    /// The layers that are written, lowest first.
    written: Vec<usize>,
}

/// What the stamps of an image, or of a chain, say.
///
/// # Errors
/// Where the image has no backing image, or the chain breaks before it.
pub fn look(start: &Start, whole_chain: bool, policy: &Policy) -> Result<(Chain, Vec<Overlay>)> {
    let chain = detect(start, policy);
    if chain.layers.len() < 2 {
        chain.check_end()?;
        let name = chain.active().map(Layer::name).unwrap_or_default();
        return Err(Error::new(ErrorKind::Conflict, "it has no backing image to know").with_path(name));
    }
    let most = if whole_chain { usize::MAX } else { 1 };
    let pairs = chain.layers.iter().zip(chain.layers.iter().skip(1));
    let overlays = { pairs.enumerate().take(most) }
        .map(|(layer, (overlay, base))| Overlay {
            layer,
            name: overlay.name(),
            base: base.name(),
            stamped: chain.stamped(layer),
            stamp: overlay.header.as_ref().and_then(|header| header.stamp().cloned()),
        })
        .collect();
    Ok((chain, overlays))
}

/// Whether all that an overlay's base shows is what it was when its stamp was taken; `None` where the stamp does not know.
pub fn compare_view(chain: &Chain, overlay: &Overlay, observer: &dyn Observer) -> Result<Option<bool>> {
    let Some(then) = overlay.stamp.as_ref().and_then(|stamp| stamp.view) else {
        return Ok(None);
    };
    Ok(Some(view(chain, overlay.layer + 1, observer)? == then))
}

fn view(chain: &Chain, layer: usize, observer: &dyn Observer) -> Result<[u8; 32]> {
    chain.check_not_encrypted(layer)?;
    let request = hash::Request {
        blake3: true,
        sha256: false,
    };
    let digests = hash(&chain.open_from(layer, Sharing::Locked)?, request, observer)?;
    digests
        .blake3
        .ok_or_else(|| Error::new(ErrorKind::Io, "the digest was not computed"))
}

/// Decides.
///
/// # Errors
/// [`ErrorKind::BaseChanged`] where a base is not what its overlay's stamp says, unless the policy accepts it.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let (chain, overlays) = look(&request.start, request.chain, policy)?;
    if let Action::Give { .. } = request.action {
        chain.check_end()?;
        for overlay in &overlays {
            chain.check_base(overlay.layer)?;
        }
    }
    let mut written = Vec::new();
    for overlay in overlays.iter().rev() {
        let known = overlay.stamp.as_ref();
        let is_to_be = match request.action {
            Action::Remove => known.is_some(),
            Action::Give { full } => {
                let as_it_is = overlay.stamped == Stamped::Same
                    && !(full && known.is_none_or(|stamp| stamp.view.is_none()));
                // What is written is touched.
                !as_it_is || written.contains(&(overlay.layer + 1))
            }
        };
        if is_to_be && let Some(layer) = chain.layers.get(overlay.layer) {
            changeable_header(layer)?;
            written.push(overlay.layer);
        }
    }
    Ok(Plan {
        chain,
        action: request.action,
        overlays,
        written,
    })
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_done(&self) -> bool {
        self.written.is_empty()
    }

    /// The overlays, the highest first, and what their stamps said before.
    pub fn overlays(&self) -> &[Overlay] {
        &self.overlays
    }

    /// Whether an overlay's header is written.
    pub fn writes(&self, overlay: &Overlay) -> bool {
        self.written.contains(&overlay.layer)
    }

    /// Performs it, each image under a lock that excludes every other user.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where somebody uses an overlay or writes to its base; and where a stamp has no room.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        for index in &self.written {
            observer.check()?;
            let (Some(layer), base) = (self.chain.layers.get(*index), self.chain.layers.get(index + 1))
            else {
                continue;
            };
            let named = |error: Error| error.with_path(layer.name());
            let known = layer.header.as_ref().and_then(|header| header.stamp());
            let view = match self.action {
                Action::Give { full } if full || known.is_some_and(|stamp| stamp.view.is_some()) => {
                    Some(view(&self.chain, index + 1, observer)?)
                }
                _ => None,
            };
            let reserved = layer.reserve()?;
            let held = match (self.action, base) {
                (Action::Give { .. }, Some(base)) => Some((Held::of(base)?, base)),
                _ => None,
            };
            change_stamp(&reserved.file, |header| {
                let (Some((_, base)), Some(backing)) = (&held, &header.backing) else {
                    return Ok(None);
                };
                let taken = stamp::take_held(base, &backing.name, header.backing_format())?;
                Ok(Some(Stamp { view, ..taken }))
            })
            .map_err(named)?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, overlay) in self.overlays.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            let Overlay { name, base, .. } = overlay;
            match (self.action, self.writes(overlay)) {
                (Action::Give { full: true }, true) => {
                    write!(f, "{name}: knows '{base}' as it is, with all that it shows")?;
                }
                (Action::Give { .. }, true) => write!(f, "{name}: knows '{base}' as it is")?,
                (Action::Give { .. }, false) => write!(f, "{name}: knows '{base}' as it is already")?,
                (Action::Remove, true) => write!(f, "{name}: loses its stamp")?,
                (Action::Remove, false) => write!(f, "{name}: has no stamp")?,
            }
        }
        Ok(())
    }
}
