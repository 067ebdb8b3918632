//! Relink: rewriting what an image records about its backing, and nothing else.
//!
//! The safe half of `qemu-img rebase -u`: the same header change, but only where the guest's view stays what it is.
//! That is settled by identity where the backing stays the same file in the same format, by the maps where both
//! chains lead to the same bytes, and by reading where they do not. Every write of it is safe at every instant.

use super::observer::Observer;
use super::view::{View, first_difference};
use crate::chain::{Chain, End, Layer, Link};
use crate::detect::{Start, detect, quoted};
use crate::open::Sharing;
use crate::policy::Policy;
use crate::reference::{Reading, Reference, Source};
use crate::stamp::{Held, Renewal, lineage};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::qcow2::rewrite::{self, Write};
use catena_format::qcow2::{Autoclear, BackingName, Extension, Header, Incompatible, Stamp};
use catena_format::{Format, limits};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::fmt;
use std::path::PathBuf;

/// What to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// The overlay whose header changes.
    pub image: PathBuf,
    /// What it shall record; `None` for no backing at all.
    pub backing: Option<NewBacking>,
    /// Whether the view is checked.
    pub safety: Safety,
}

/// A backing image to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBacking {
    /// The string, recorded as it is.
    pub name: String,
    /// The format.
    pub format: Format,
}

/// Whether a change of the guest's view is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    /// What would change it, or cannot be shown not to, is refused.
    Checked,
    /// The caller answers for it. The backing image need not even exist.
    Unsafe,
}

/// A header change, decided.
#[derive(Debug)]
pub struct Plan {
    image: PathBuf,
    old: Option<Link>,
    new: Option<Link>,
    view: ViewStays,
    area: Vec<u8>,
    writes: Vec<Write>,
}

/// Why the guest's view stays what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewStays {
    /// The backing stays the same file, read in the same format.
    SameBacking,
    /// Both chains show the guest the same.
    SameContent,
    /// Nobody knows: the caller answers for it.
    NotChecked,
}

/// Decides how the header changes, and that it may.
pub fn plan(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<Plan> {
    decide(request, None, policy, observer)
}

/// Decides how the header changes where another word is to be recorded as the backing format: a protocol's, or that of a driver
/// nobody here has. The caller answers for it: nothing is opened to see whether it is right.
///
/// # Errors
/// Those of [`plan`], and [`ErrorKind::TooLarge`] for a word of no or more than 15 bytes, which QEMU would not open again.
pub fn plan_recording(
    request: &Request,
    word: &str,
    policy: &Policy,
    observer: &dyn Observer,
) -> Result<Plan> {
    if !(1..=15).contains(&word.len()) {
        return Err(Error::new(
            ErrorKind::TooLarge,
            "a backing format has 1 to 15 bytes",
        ));
    }
    if request.safety == Safety::Checked {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("that the guest's view stays cannot be checked for the backing format '{word}'"),
        ));
    }
    decide(request, Some(word), policy, observer)
}

fn decide(request: &Request, word: Option<&str>, policy: &Policy, observer: &dyn Observer) -> Result<Plan> {
    let chain = detect(&Start::at(&request.image, None), policy);
    let overlay = chain.active().ok_or_else(|| match chain.check_complete() {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no image"),
    })?;
    let header = changeable_header(overlay)?;
    let file = overlay
        .file
        .as_ref()
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the image is not on this host"))?;

    let new_source = match &request.backing {
        Some(backing) => Some(resolve(backing, overlay)?),
        None => None,
    };
    let new_chain = match (&request.backing, &new_source) {
        (Some(backing), Some(source)) => Some(detect(
            &Start {
                source: source.clone(),
                format: Some(backing.format),
            },
            policy,
        )),
        _ => None,
    };
    check_no_loop(overlay, new_chain.as_ref())?;
    let view = match request.safety {
        Safety::Unsafe => ViewStays::NotChecked,
        Safety::Checked => check_view(
            &chain,
            overlay,
            request.backing.as_ref(),
            new_chain.as_ref(),
            observer,
        )?,
    };

    let mut new_header = changed(header, request.backing.as_ref())?;
    let base = new_chain.as_ref().and_then(Chain::active);
    let held = base.map(Held::of).transpose();
    let renewal = match (view, &held) {
        (ViewStays::SameBacking, _) => Renewal::follow(&chain),
        // What somebody writes just now has no stamp.
        (_, Err(_)) => Renewal::anew(&chain, None),
        (_, Ok(_)) => Renewal::anew(&chain, base),
    };
    renewal.apply(header, &mut new_header);
    if let Some(word) = word {
        for extension in &mut new_header.extensions {
            if let Extension::BackingFormat(recorded) = extension {
                *recorded = word.as_bytes().to_vec();
            }
        }
    }
    let cluster_size = usize::try_from(header.cluster_bits.size()).unwrap_or_default();
    let area = read_area(&file.storage, cluster_size)?;
    let new = request.backing.as_ref().map(|backing| Link {
        text: backing.name.clone(),
        format: Some(word.unwrap_or(backing.format.as_str()).to_owned()),
    });
    let old = overlay.description.backing.as_ref().map(|recorded| Link {
        text: recorded.name.clone(),
        format: recorded.format.clone(),
    });
    let writes = if old == new && is_well_placed(header) {
        Vec::new()
    } else {
        rewrite::plan(&area, header, &new_header)?
    };
    Ok(Plan {
        image: request.image.clone(),
        old,
        new,
        view,
        area,
        writes,
    })
}

impl Plan {
    /// Whether the image records already what it shall.
    pub fn is_done(&self) -> bool {
        self.writes.is_empty()
    }

    /// Why the view stays what it is.
    pub fn view(&self) -> ViewStays {
        self.view
    }

    /// Performs it, under a lock that excludes every other user of the image.
    pub fn execute(&self) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let options = OpenOptions::new().write(true).lock(LockMode::Write);
        let file = LocalFile::open(&self.image, &options).map_err(|error| {
            let error = Error::from(error);
            match error.kind() {
                ErrorKind::Locked => error.with_hint("stop it first: an image in use is not written"),
                _ => error,
            }
        })?;
        if read_area(&file, self.area.len())? != self.area {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the header has changed since this was planned",
            )
            .with_path(&self.image)
            .with_hint("run the command again"));
        }
        write_each(&file, &self.writes)
    }
}

/// Rewrites what an open image records about its backing. The caller has locked it, and knows that the view stays; `rewritten` is the
/// image where its data was rewritten for that.
pub(super) fn set_backing(
    file: &dyn Storage,
    backing: Option<&NewBacking>,
    renewal: Renewal<'_>,
    rewritten: Option<&Layer>,
) -> Result<()> {
    change_header(file, |old| {
        let mut new = changed(old, backing)?;
        renewal.apply(old, &mut new);
        if let Some(image) = rewritten {
            lineage::end(image, &mut new);
        }
        Ok(new)
    })
}

/// Rewrites the header of an open image, which the caller has locked. Tables are not moved.
pub(crate) fn change_header(
    file: &dyn Storage,
    change: impl FnOnce(&Header) -> Result<Header>,
) -> Result<()> {
    let header = Header::read(&StorageBytes::new(file)?)?;
    let area = read_area(
        file,
        usize::try_from(header.cluster_bits.size()).unwrap_or_default(),
    )?;
    write_each(file, &rewrite::plan(&area, &header, &change(&header)?)?)
}

/// Rewrites the stamp of an open image, which the caller has locked.
pub(crate) fn change_stamp(
    file: &dyn Storage,
    stamp: impl FnOnce(&Header) -> Result<Option<Stamp>>,
) -> Result<()> {
    change_header(file, |old| {
        let mut new = old.clone();
        new.autoclear &= Autoclear::KNOWN;
        new.set_stamp(stamp(old)?);
        Ok(new)
    })
}

fn write_each(file: &dyn Storage, writes: &[Write]) -> Result<()> {
    for (offset, bytes) in writes {
        file.write_all_at(bytes, *offset)?;
        file.flush()?;
    }
    Ok(())
}

/// How an image can record a backing image that another one of its chain, `owner`, records already: by the same string where
/// that leads to the same place, else by a path.
pub(super) fn reference_to(image: &Layer, owner: &Layer, backing: &Layer) -> Result<NewBacking> {
    let format = backing.format;
    let leads_there = |name: &str| {
        let reference = Reference::parse(name, Reading::Catena).ok()?;
        let source = reference.resolve(&image.source);
        let found = LocalFile::open(source.path()?, &OpenOptions::new().lock(LockMode::None)).ok()?;
        let object = backing.file.as_ref()?.identity.object();
        (found.identity()?.object() == object).then_some(())
    };
    let recorded = owner
        .description
        .backing
        .as_ref()
        .map(|backing| backing.name.as_str())
        .unwrap_or_default();
    if leads_there(recorded).is_some() {
        return Ok(NewBacking {
            name: recorded.to_owned(),
            format,
        });
    }
    let cannot = || {
        Error::new(
            ErrorKind::BadReference,
            format!("'{}' cannot be named in it", backing.name()),
        )
        .with_path(image.name())
    };
    let path = backing.path().ok_or_else(cannot)?;
    let path = std::path::absolute(path).map_err(|_| cannot())?;
    // A path in which a colon comes early would be taken for a protocol.
    let name = path.to_str().ok_or_else(cannot)?.to_owned();
    leads_there(&name).ok_or_else(cannot)?;
    Ok(NewBacking { name, format })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |link: &Option<Link>| match link {
            None => "no backing image".to_owned(),
            Some(link) => match &link.format {
                Some(format) => format!("'{}' ({format})", link.shown()),
                None => format!("'{}' (format not recorded)", link.shown()),
            },
        };
        let image = self.image.display();
        if self.is_done() {
            return write!(f, "{image}: records {} already", show(&self.new));
        }
        let why = match self.view {
            ViewStays::SameBacking => "the guest's view stays: it is the same backing image",
            ViewStays::SameContent => "the guest's view stays: both chains show the same content",
            ViewStays::NotChecked => "the guest's view was not checked",
        };
        write!(
            f,
            "{image}: {} becomes {}; {why}",
            show(&self.old),
            show(&self.new)
        )
    }
}

/// The header of an image whose reference can be rewritten.
pub(super) fn changeable_header(overlay: &Layer) -> Result<&Header> {
    let header = overlay.header.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the reference of a {} image cannot be rewritten", overlay.format),
        )
        .with_path(overlay.name())
    })?;
    header
        .check_readable()
        .map_err(|error| Error::from(error).with_path(overlay.name()))?;
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the image is marked corrupt and is not written",
        )
        .with_path(overlay.name())
        .with_hint(format!(
            "repair it first: qemu-img check -r all {}",
            quoted(overlay.word())
        )));
    }
    Ok(header)
}

pub(super) fn resolve(backing: &NewBacking, overlay: &Layer) -> Result<Source> {
    if backing.name.is_empty() || backing.name.len() > limits::BACKING_NAME_BYTES as usize {
        return Err(Error::new(
            ErrorKind::TooLarge,
            "a backing file name has 1 to 1023 bytes",
        ));
    }
    let reference = Reference::parse(&backing.name, Reading::Catena)
        .map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()))?;
    Ok(reference.resolve(&overlay.source))
}

/// An image must not come to back itself, whoever answers for the view.
pub(super) fn check_no_loop(overlay: &Layer, new_chain: Option<&Chain>) -> Result<()> {
    let object = overlay.file.as_ref().map(|file| file.identity.object());
    let layers = new_chain.map(|chain| chain.layers.as_slice()).unwrap_or_default();
    let own = layers
        .iter()
        .find(|layer| layer.file.as_ref().map(|file| file.identity.object()) == object);
    match own.filter(|_| object.is_some()) {
        Some(layer) => Err(Error::new(
            ErrorKind::Loop,
            format!("'{}' would become its own backing image", layer.name()),
        )
        .with_path(overlay.name())),
        None => Ok(()),
    }
}

fn check_view(
    chain: &Chain,
    overlay: &Layer,
    backing: Option<&NewBacking>,
    new_chain: Option<&Chain>,
    observer: &dyn Observer,
) -> Result<ViewStays> {
    if let Some(new_chain) = new_chain
        && new_chain.layers.is_empty()
    {
        new_chain.check_complete()?;
    }
    if let (Some(backing), Some(new_chain)) = (backing, new_chain)
        && is_same_backing(chain, backing, new_chain)
    {
        return Ok(ViewStays::SameBacking);
    }
    let cannot = |what: &str, error: &Error| {
        Error::new(
            ErrorKind::ViewWouldChange,
            format!("{what} cannot be read, so the guest's view cannot be compared"),
        )
        .with_path(overlay.name())
        .with_hint(format!(
            "{}; if you know that the view stays the same, use 'catena rebase --unsafe'",
            error.full()
        ))
    };
    chain
        .check_complete()
        .map_err(|error| cannot("the chain as it is", &error))?;
    let below = Chain::without_layers(End::Terminated);
    let old_layers: Vec<_> = chain.layers.iter().collect();
    let old = View::open(&old_layers, Sharing::Locked)?;
    let new = View::over(overlay, Some(new_chain.unwrap_or(&below)), Sharing::Locked)
        .map_err(|error| cannot("the chain as it would be", &error))?;
    match first_difference(&old, &new, observer)? {
        None => Ok(ViewStays::SameContent),
        Some(offset) => Err(Error::new(
            ErrorKind::ViewWouldChange,
            format!("the guest would see something else at offset {offset}"),
        )
        .with_path(overlay.name())
        .with_hint(
            "'catena rebase' copies what differs, so that the guest's view stays; with --unsafe it changes the \
                     reference alone, as relink would",
        )),
    }
}

/// Whether the new backing is the present one, read in the format in which it is, or would be, read now.
pub(super) fn is_same_backing(chain: &Chain, backing: &NewBacking, new_chain: &Chain) -> bool {
    let object = |layer: &Layer| {
        layer
            .file
            .as_ref()
            .map(|file| (file.identity.object(), layer.source.slice))
    };
    let Some(new) = new_chain.active().and_then(object) else {
        return false;
    };
    match (chain.layers.get(1), chain.broken()) {
        (Some(old), _) => object(old) == Some(new) && old.format == backing.format,
        // Refused for want of a recorded format: the probed one is what everybody who does not refuse would use.
        (None, Some(broken)) => {
            let probed = broken.probed.as_ref().map(|(format, _)| *format) == Some(backing.format);
            let same = broken
                .source
                .as_ref()
                .and_then(Source::path)
                .zip(new_chain.active().and_then(Layer::path));
            let same = same.is_some_and(|(old, new)| {
                match (std::fs::canonicalize(old), std::fs::canonicalize(new)) {
                    (Ok(old), Ok(new)) => old == new,
                    _ => false,
                }
            });
            probed && same
        }
        (None, None) => false,
    }
}

/// The header with the new reference in it.
pub(super) fn changed(header: &Header, backing: Option<&NewBacking>) -> Result<Header> {
    let mut new = header.clone();
    new.extensions
        .retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
    if let Some(backing) = backing {
        if header.has_data_file() && header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "an image with a raw data file cannot have a backing image",
            ));
        }
        let word = backing.format.qemu().unwrap_or("raw");
        // libvirt finds the backing format only where it comes first.
        new.extensions
            .insert(0, Extension::BackingFormat(word.as_bytes().to_vec()));
    }
    new.backing = backing.map(|backing| BackingName {
        offset: 0,
        name: backing.name.as_bytes().to_vec(),
    });
    // Whoever writes an image takes back the promises of features it does not know.
    new.autoclear &= Autoclear::KNOWN;
    Ok(new)
}

/// Whether the reference is where everybody finds it: the name in the first cluster and in what libvirt reads, the format
/// before all other extensions.
fn is_well_placed(header: &Header) -> bool {
    const LIBVIRT_READS: u64 = 33_280;
    let is_format = |extension: &Extension| matches!(extension, Extension::BackingFormat(_));
    let end = header.cluster_bits.size().min(LIBVIRT_READS);
    header.backing.as_ref().is_none_or(|name| name.end() <= end)
        && !header.extensions.iter().skip(1).any(is_format)
}

/// The first cluster, zeros where the file is shorter.
fn read_area(file: &dyn Storage, len: usize) -> Result<Vec<u8>> {
    let mut area = vec![0; len];
    file.read_at(&mut area, 0)?;
    Ok(area)
}
