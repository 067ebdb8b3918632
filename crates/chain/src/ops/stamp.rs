//! Stamp: overlays get a stamp of what they stand on, lose it, or are held against it.
//!
//! Only headers are written, lowest layer first: writing one touches it, and the one above it is to know it as it is then.

use super::folder_of;
use super::hash::{self, hash};
use super::observer::Observer;
use super::relink::{change_stamp, changeable_header};
use super::script::{Digits, Journal, Script, Step, interrupted};
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::{Sharing, in_use};
use crate::policy::Policy;
use crate::stamp::{self, Held, Stamped};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::Format;
use catena_format::qcow2::{Header, Stamp};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// What to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// The overlays, or the active images of chains of them.
    pub images: Vec<Start>,
    /// Whether the layers below, as far as they are overlays, are stamped too.
    pub chain: bool,
    /// What becomes of stamps.
    pub action: Action,
}

/// What becomes of an overlay's stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// Whether it gets, or loses, one.
    pub written: bool,
}

/// Changes of stamps, decided.
#[derive(Debug)]
pub struct Plan {
    /// What is done, lowest layers first.
    pub script: Script,
    home: PathBuf,
    action: Action,
    overlays: Vec<Overlay>,
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
            written: false,
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
    let mut plan = Plan {
        script: Script::new(OPERATION, words(request)),
        home: home(request),
        action: request.action,
        overlays: Vec::new(),
    };
    let mut written = BTreeSet::new();
    for start in &request.images {
        let (chain, mut overlays) = look(start, request.chain, policy)?;
        if let Action::Give { .. } = request.action {
            chain.check_end()?;
            for overlay in &overlays {
                chain.check_base(overlay.layer)?;
            }
        }
        for overlay in overlays.iter_mut().rev() {
            let [layer, base] = [overlay.layer, overlay.layer + 1].map(|index| chain.layers.get(index));
            let (Some(layer), Some(base)) = (layer, base) else {
                continue;
            };
            let known = overlay.stamp.as_ref();
            let has_view = known.is_some_and(|stamp| stamp.view.is_some());
            let action = match request.action {
                Action::Remove if known.is_none() => continue,
                Action::Remove => Action::Remove,
                // What is written is touched.
                Action::Give { full }
                    if overlay.stamped == Stamped::Same
                        && (has_view || !full)
                        && path_of(base).is_none_or(|base| !written.contains(&base)) =>
                {
                    continue;
                }
                Action::Give { full } => Action::Give {
                    full: full || has_view,
                },
            };
            changeable_header(layer)?;
            let image = path_of(layer).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "the image is not on this host").with_path(layer.name())
            })?;
            overlay.written = true;
            if written.insert(image.clone()) {
                let from = known.map(|stamp| Digits(stamp.encode()));
                plan.script.steps.push(Step::Stamp { image, from, action });
            }
        }
        plan.overlays.append(&mut overlays);
    }
    Ok(plan)
}

const OPERATION: &str = "stamp";

fn path_of(layer: &Layer) -> Option<PathBuf> {
    std::path::absolute(layer.path()?).ok()
}

fn words(request: &Request) -> String {
    let names: Vec<_> = { request.images.iter() }
        .filter_map(|start| std::path::absolute(start.source.path()?).ok())
        .collect();
    format!("{names:?} {} {:?}", request.chain, request.action)
}

/// Where the journal is.
fn home(request: &Request) -> PathBuf {
    let first = request.images.first().and_then(|start| start.source.path());
    folder_of(first.unwrap_or(Path::new("")))
}

/// The journal of the same that was cut off.
///
/// # Errors
/// [`ErrorKind::Locked`] while it runs.
pub fn unfinished(request: &Request) -> Result<Option<Journal>> {
    interrupted(&[home(request)], OPERATION, &words(request))
}

impl Plan {
    /// The overlays, the highest of each chain first, and what their stamps said before.
    pub fn overlays(&self) -> &[Overlay] {
        &self.overlays
    }

    /// Performs it, each image under a lock that excludes every other user.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where somebody uses an overlay or writes to its base; and where a stamp has no room.
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script.execute(&self.home, policy, observer)
    }
}

/// Gives an overlay a stamp of its base as it is, or takes it away.
pub(super) fn write(image: &Path, action: Action, policy: &Policy, observer: &dyn Observer) -> Result<()> {
    let chain = detect(&Start::at(image, Some(Format::Qcow2)), policy);
    let Some(layer) = chain.active() else {
        return chain.check_complete();
    };
    let view = match action {
        Action::Give { full: true } => Some(view(&chain, 1, observer)?),
        _ => None,
    };
    let reserved = layer.reserve()?;
    let held = match (action, chain.layers.get(1)) {
        (Action::Give { .. }, None) => return chain.check_complete(),
        (Action::Give { .. }, Some(base)) => Some((Held::of(base)?, base)),
        (Action::Remove, _) => None,
    };
    change_stamp(&reserved.file, |header| {
        let (Some((_, base)), Some(backing)) = (&held, &header.backing) else {
            return Ok(None);
        };
        let taken = stamp::take_held(base, &backing.name, header.backing_format())?;
        Ok(Some(Stamp { view, ..taken }))
    })
    .map_err(|error| error.with_path(image))
}

/// Gives an overlay the stamp that it had.
pub(super) fn restore(image: &Path, had: Option<&Digits>) -> Result<()> {
    let had = had.and_then(|Digits(bytes)| Stamp::parse(bytes));
    let named = |error: Error| error.with_path(image);
    let open = |options: OpenOptions| LocalFile::open(image, &options);
    // Without a lock: what was never made is not undone, and whoever uses the image may go on.
    let looked = open(OpenOptions::new().lock(LockMode::None))?;
    let header = Header::read(&StorageBytes::new(&looked)?).map_err(|error| named(error.into()))?;
    if header.stamp() == had.as_ref() {
        return Ok(());
    }
    let file = open(OpenOptions::new().write(true).lock(LockMode::Write))
        .map_err(|error| in_use(error.into(), "stop it first: an image in use is not written"))?;
    change_stamp(&file, |_| Ok(had)).map_err(named)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, overlay) in self.overlays.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            let Overlay { name, base, .. } = overlay;
            match (self.action, overlay.written) {
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
