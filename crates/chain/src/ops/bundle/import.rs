//! Import: the layers of bundles as files again.
//!
//! They are written to a folder of their own beside their places, under their names, and get these only when all bundles have
//! been read to the end and every digest is right: as a script, from the lowest up, so that what has a name stands on what has
//! one. A bundle can put nothing elsewhere, and no image from one names a file that its manifest does not.

use super::manifest::{BundledFile, BundledLayer, Manifest, Since, format_of, wrong};
use super::read::{Receiver, read};
pub use super::staging::Left;
use super::staging::Staging;
use super::{view_of, with_names};
use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::ops::observer::Observer;
use crate::ops::relink::{self, NewBacking};
use crate::ops::script::{Journal, Made, Script, Step, interrupted};
use crate::policy::Policy;
use crate::stamp::{self, Renewal};
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::Format;
use catena_format::qcow2::Header;
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use std::fmt;
use std::fs::Permissions;
use std::io::Read;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What to restore.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The folder that the files come to; made where it is not there. Its parent must be.
    pub folder: PathBuf,
    /// The uppermost layer that is restored, by its name; all where `None`.
    pub at: Option<String>,
    /// The image that the lowest layer is put on, where it needs one.
    pub onto: Option<Start>,
}

/// A bundle to read.
pub struct Bundle<'a> {
    /// How messages name it.
    pub name: String,
    /// Its bytes, from the first on.
    pub input: Box<dyn Read + 'a>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The layers, the lowest first, as their manifests have them.
    pub layers: Vec<BundledLayer>,
    /// What the lowest stands on, as it records it.
    pub onto: Option<String>,
    /// The digest of what the guest of the uppermost layer sees, where it is known.
    pub view: Option<String>,
}

/// Reads bundles to the end, and checks all that is in them, and that each stands on the one before it. Nothing is written.
pub fn verify(bundles: Vec<Bundle<'_>>, observer: &dyn Observer) -> Result<Vec<Manifest>> {
    let mut manifests: Vec<Manifest> = Vec::new();
    for Bundle { name, input } in bundles {
        let mut checked = Checked(manifests.last());
        let manifest = read(input, observer, &mut checked).map_err(|error| error.with_path(name))?;
        manifests.push(manifest);
    }
    Ok(manifests)
}

struct Checked<'a>(Option<&'a Manifest>);

impl Receiver for Checked<'_> {
    fn begin(&mut self, manifest: &Manifest) -> Result<()> {
        match self.0 {
            None => Ok(()),
            Some(below) => check_follows(manifest.since.as_ref(), below.view.as_deref()),
        }
    }

    fn open(&mut self, _: &BundledFile) -> Result<Option<LocalFile>> {
        Ok(None)
    }
}

/// Restores bundles: one that needs no other or stands on an image that is there, and then those that each stand on the one
/// before. What fails leaves nothing.
///
/// # Errors
/// Those of reading bundles and writing files; [`ErrorKind::ViewWouldChange`] for an image that shows its guest something else
/// than what the lowest layer stood on; [`ErrorKind::Conflict`] for files that are there already.
pub fn import(
    request: &Request,
    bundles: Vec<Bundle<'_>>,
    policy: &Policy,
    observer: &dyn Observer,
) -> Result<Imported> {
    let made = make_folder(&request.folder)?;
    let names: Vec<_> = bundles.iter().map(|bundle| bundle.name.clone()).collect();
    let left = Left::find_in(&request.folder)?;
    let staging = Staging::make_in(&request.folder)?;
    let at = staging.path().to_owned();
    let mut restored = Restored {
        request,
        policy,
        observer,
        staging: &at,
        files: Vec::new(),
        layers: Vec::new(),
        view: None,
        previous: None,
        bundles: 0,
        onto: None,
        reached: false,
        wanted: Vec::new(),
    };
    for Bundle { name, input } in bundles {
        let manifest = read(input, observer, &mut restored).map_err(|error| named(error, &name))?;
        restored.settle(&manifest).map_err(|error| named(error, &name))?;
    }
    restored.check_reached()?;
    let script = publishing(request, &names, &at, &restored.files)?;
    let published = script.execute(&request.folder, policy, observer);
    if let Err(error) = published {
        if unfinished(request, &names)?.is_some() {
            staging.keep();
            if let Some(made) = made {
                made.keep();
            }
        }
        return Err(error);
    }
    for left in left {
        // All that it was to become is there; what cannot be removed is found by gc.
        let _ = left.remove();
    }
    if let Some(made) = made {
        made.keep();
    }
    Ok(Imported {
        layers: restored.layers,
        onto: restored.onto.map(|onto| onto.reference.name),
        view: restored.view,
    })
}

/// Says of which bundle an error is, unless it says of which file.
fn named(error: Error, bundle: &str) -> Error {
    match error.path() {
        None => error.with_path(bundle),
        Some(_) => error,
    }
}

/// What has been restored so far.
struct Restored<'a> {
    request: &'a Request,
    policy: &'a Policy,
    observer: &'a dyn Observer,
    staging: &'a Path,
    /// Names of complete files, those first that others stand on.
    files: Vec<String>,
    layers: Vec<BundledLayer>,
    /// What the guest of the uppermost layer sees.
    view: Option<String>,
    /// The same of the uppermost layer of the bundle before, restored or not.
    previous: Option<String>,
    /// Bundles that were begun.
    bundles: usize,
    onto: Option<Onto>,
    /// Whether the layer has been found at which to end.
    reached: bool,
    /// The files of this bundle that are written.
    wanted: Vec<String>,
}

/// An image that is there already, on which the lowest layer is put.
struct Onto {
    reference: NewBacking,
    /// Holds its locks.
    chain: Chain,
}

/// A chain that layers are put on.
enum Found<'a> {
    There(&'a Chain),
    Restored(Box<Chain>),
}

impl Deref for Found<'_> {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        match self {
            Self::There(chain) => chain,
            Self::Restored(chain) => chain,
        }
    }
}

impl Receiver for Restored<'_> {
    fn begin(&mut self, manifest: &Manifest) -> Result<()> {
        let first = self.bundles == 0;
        self.bundles += 1;
        match (&manifest.since, &self.request.onto) {
            (None, Some(_)) if first => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "the bundle needs no other image, so it cannot be put on one",
                ));
            }
            (Some(since), Some(onto)) if first => self.onto = Some(self.look_at(onto, since)?),
            (None, None) if first => {}
            (since, _) if first => return Err(needs_another(since.as_ref())),
            (since, _) => check_follows(since.as_ref(), self.previous.as_deref())?,
        }
        self.wanted.clear();
        for layer in &manifest.layers {
            if self.reached {
                break;
            }
            self.wanted.extend(layer.data_file.clone());
            self.wanted.push(layer.name.clone());
            self.reached = self.request.at.as_ref() == Some(&layer.name);
        }
        let taken = |name: &&String| self.files.contains(name);
        if let Some(name) = self.wanted.iter().find(taken) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a file named '{name}' is in a bundle before this one, too"),
            )
            .with_hint(
                "import them one by one into folders of their own, each --onto what is there by then",
            ));
        }
        self.wanted
            .iter()
            .map(|name| self.request.folder.join(name))
            .find(|path| path.symlink_metadata().is_ok())
            .map_or(Ok(()), |path| Err(is_there(&path)))
    }

    fn open(&mut self, file: &BundledFile) -> Result<Option<LocalFile>> {
        if !self.wanted.contains(&file.name) {
            return Ok(None);
        }
        let path = self.staging.join(&file.name);
        let target = LocalFile::create(&path, &OpenOptions::new().lock(LockMode::Write))?;
        let failed =
            |error| Error::from(catena_storage::Error::from_io(error, "change the mode of").with_path(&path));
        let now = path.metadata().map_err(failed)?.permissions().mode();
        // No more than the user's own files have.
        let mode = (now & file.mode & 0o666) | 0o600;
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed)?;
        Ok(Some(target))
    }
}

impl Restored<'_> {
    /// Opens the image that the lowest layer is to stand on, and looks whether it shows what that stood on.
    fn look_at(&self, onto: &Start, since: &Since) -> Result<Onto> {
        let chain = detect(onto, self.policy);
        chain.check_complete()?;
        chain.check_not_encrypted(0)?;
        let view = view_of(&chain.open(Sharing::Locked)?, self.observer)?;
        let layer = chain
            .active()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no image"))?;
        if view != since.view {
            return Err(Error::new(
                ErrorKind::ViewWouldChange,
                format!(
                    "it shows its guest something else than '{}', on which the layers stood",
                    since.name
                ),
            )
            .with_path(layer.name())
            .with_hint("'catena hash' of the right image is the manifest's: tar -xOf BUNDLE manifest.json"));
        }
        let path = layer
            .path()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the image is not on this host"))?;
        let reference = NewBacking {
            name: reference(path, &self.request.folder)?,
            format: layer.format,
        };
        Ok(Onto { reference, chain })
    }

    /// Takes in what a bundle held, which has been read to its end.
    fn settle(&mut self, manifest: &Manifest) -> Result<()> {
        let mut recorded = manifest
            .since
            .as_ref()
            .map(|since| (since.name.clone(), since.format.clone()));
        for (index, layer) in manifest.layers.iter().enumerate() {
            if !self.wanted.contains(&layer.name) {
                break;
            }
            let path = self.staging.join(&layer.name);
            let file = LocalFile::open(&path, &OpenOptions::new().write(true).lock(LockMode::Write))?;
            vet(&file, layer, recorded.as_ref()).map_err(|error| error.with_path(&layer.name))?;
            if format_of(&layer.format)? == Format::Qcow2 {
                self.name_others(&file, index == 0)
                    .map_err(|error| error.with_path(&layer.name))?;
            }
            recorded = Some((layer.name.clone(), layer.format.clone()));
            let is_top = index + 1 == manifest.layers.len();
            self.view = manifest.view.clone().filter(|_| is_top);
            self.layers.push(layer.clone());
        }
        self.previous.clone_from(&manifest.view);
        self.files.append(&mut self.wanted);
        Ok(())
    }

    /// Has an image record what it will need where it will be. In the bundle that is another name only of what the lowest layer
    /// stands on, and of data files: QEMU looks for these in the folder in which it runs, so they are named by their whole path.
    fn name_others(&self, file: &LocalFile, lowest: bool) -> Result<()> {
        let header = Header::read(&StorageBytes::new(file)?)?;
        let recorded = header.backing.as_ref().zip(header.backing_format());
        let recorded = recorded.and_then(|(backing, word)| {
            Some(NewBacking {
                name: String::from_utf8(backing.name.clone()).ok()?,
                format: format_of(std::str::from_utf8(word).ok()?).ok()?,
            })
        });
        let below = if lowest { self.below()? } else { None };
        let moved = below.is_some() && below != recorded;
        let data_file = match header.data_file_name().filter(|_| header.has_data_file()) {
            None => None,
            Some(name) => {
                let name = std::str::from_utf8(name).map_err(|_| wrong("a name in it is not UTF-8"))?;
                Some(whole_path(&self.request.folder, name)?)
            }
        };
        let chain = if lowest { self.chain_below()? } else { None };
        let base = chain.as_deref().and_then(Chain::active);
        // It may be another image, which shows the same.
        let renewal = match (header.stamp(), base) {
            (Some(stamp), Some(base)) if !stamp::matches(stamp, base)? => Renewal::Anew(Some(base)),
            _ if moved || data_file.is_some() => Renewal::Follow,
            _ => return Ok(()),
        };
        let backing = below.or(recorded);
        relink::change_header(file, |header| {
            with_names(header, backing.as_ref(), data_file.as_deref(), renewal)
        })
    }

    /// What the lowest layer of a bundle is put on, as it is to record it.
    fn below(&self) -> Result<Option<NewBacking>> {
        match self.layers.last() {
            None => Ok(self.onto.as_ref().map(|onto| onto.reference.clone())),
            Some(layer) => Ok(Some(NewBacking {
                name: layer.name.clone(),
                format: format_of(&layer.format)?,
            })),
        }
    }

    /// The same, opened where it is.
    fn chain_below(&self) -> Result<Option<Found<'_>>> {
        match self.layers.last() {
            None => Ok(self.onto.as_ref().map(|onto| Found::There(&onto.chain))),
            Some(layer) => {
                let start = Start::at(self.staging.join(&layer.name), Some(format_of(&layer.format)?));
                Ok(Some(Found::Restored(Box::new(detect(&start, self.policy)))))
            }
        }
    }

    fn check_reached(&self) -> Result<()> {
        match &self.request.at {
            Some(at) if !self.reached => {
                let names: Vec<_> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
                Err(
                    Error::new(ErrorKind::NotFound, format!("there is no layer '{at}' in it"))
                        .with_hint(format!("the layers are {}", names.join(", "))),
                )
            }
            _ => Ok(()),
        }
    }
}

/// Whether a bundle stands on the layer that shows its guest this.
fn check_follows(since: Option<&Since>, view: Option<&str>) -> Result<()> {
    match (since, view) {
        (None, _) => Err(Error::new(
            ErrorKind::Conflict,
            "the bundle needs no other image, so it follows no other bundle",
        )),
        (Some(since), Some(view)) if since.view == view => Ok(()),
        (Some(since), _) => Err(Error::new(
            ErrorKind::ViewWouldChange,
            format!(
                "it stands on '{}', which is not the uppermost layer of the bundle before it",
                since.name
            ),
        )
        .with_hint("import that layer first, with --at, and then this --onto it")),
    }
}

fn needs_another(since: Option<&Since>) -> Error {
    let name = since.map(|since| since.name.as_str()).unwrap_or_default();
    Error::new(
        ErrorKind::Conflict,
        format!("the bundle holds only what is above '{name}'"),
    )
    .with_hint("name the bundle that has it before this one, or the image itself with --onto")
}

/// Whether an image names what its manifest says, and nothing else.
fn vet(file: &LocalFile, layer: &BundledLayer, below: Option<&(String, String)>) -> Result<()> {
    if format_of(&layer.format)? != Format::Qcow2 {
        return Ok(());
    }
    let header = Header::read(&StorageBytes::new(file)?)?;
    let named = header.backing.as_ref().map(|backing| backing.name.as_slice());
    let format = header.backing_format();
    let as_said = named == below.map(|(name, _)| name.as_bytes())
        && (named.is_none() || format == below.map(|(_, format)| format.as_bytes()))
        && header.has_data_file() == layer.data_file.is_some()
        && (layer.data_file.is_none()
            || header.data_file_name() == layer.data_file.as_ref().map(String::as_bytes))
        && header.virtual_size == layer.virtual_size;
    match as_said {
        true => Ok(()),
        false => Err(wrong(
            "an image in it says something else of itself than the manifest",
        )),
    }
}

/// The name by which an image in a folder records another: alone where both are in it, else the whole path.
fn reference(image: &Path, folder: &Path) -> Result<String> {
    let failed = |error| Error::from(catena_storage::Error::from_io(error, "find").with_path(image));
    let beside = std::fs::canonicalize(
        image
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )
    .map_err(failed)?;
    let same = beside == std::fs::canonicalize(folder).map_err(failed)?;
    let name = match image.file_name().filter(|_| same) {
        // A colon early in a name would be a protocol.
        Some(name) => Path::new(".").join(name),
        None => std::path::absolute(image).map_err(failed)?,
    };
    let text = name.into_os_string().into_string();
    let text =
        text.map_err(|_| Error::new(ErrorKind::Unsupported, "its name is not UTF-8").with_path(image))?;
    let plain = text.strip_prefix("./").filter(|name| !name.contains(':'));
    Ok(plain.map_or(text.clone(), str::to_owned))
}

/// The name of a file in a folder, from the root.
fn whole_path(folder: &Path, name: &str) -> Result<String> {
    let path = std::path::absolute(folder.join(name))
        .map_err(|error| catena_storage::Error::from_io(error, "find").with_path(folder))?;
    path.into_os_string()
        .into_string()
        .map_err(|_| Error::new(ErrorKind::Unsupported, "its name is not UTF-8").with_path(folder))
}

/// A folder that is removed again unless it is kept.
struct MadeFolder(Option<PathBuf>);

impl MadeFolder {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for MadeFolder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The first error is the one that is reported; a folder that something is in stays.
            let _ = std::fs::remove_dir(path);
        }
    }
}

fn make_folder(path: &Path) -> Result<Option<MadeFolder>> {
    if path.is_dir() {
        return Ok(None);
    }
    std::fs::create_dir(path)
        .map_err(|error| catena_storage::Error::from_io(error, "create").with_path(path))?;
    sync_directory_of(path)?;
    Ok(Some(MadeFolder(Some(path.to_owned()))))
}

/// The script that gives complete files their names, none of which is taken; all of them or none.
fn publishing(request: &Request, names: &[String], staging: &Path, files: &[String]) -> Result<Script> {
    let whole = |path: &Path| {
        std::fs::canonicalize(path)
            .map_err(|error| Error::from(catena_storage::Error::from_io(error, "find").with_path(path)))
    };
    let (staging, folder) = (whole(staging)?, whole(&request.folder)?);
    let mut made = Vec::new();
    sync_directory_of(&staging)?;
    for name in files {
        let (from, to) = (staging.join(name), folder.join(name));
        sync_file(&from)?;
        made.push(Made::find(from, to)?);
    }
    if let Some(first) = files.first() {
        sync_directory_of(&staging.join(first))?;
    }
    let mut script = Script::new(OPERATION, words(request, names));
    script.steps.push(Step::Publish { staging, files: made });
    Ok(script)
}

const OPERATION: &str = "import";

/// The request as its journal knows it.
fn words(request: &Request, names: &[String]) -> String {
    let onto = request.onto.as_ref().map(|onto| &onto.source);
    format!("{names:?} {:?} {onto:?}", request.at)
}

/// The journal of the same import, of bundles of these names, that was cut off when its files were being given their names.
/// What is cut off before has none, but leaves a folder ([`Left`]): the bundles are read anew.
///
/// # Errors
/// [`ErrorKind::Locked`] while it runs.
pub fn unfinished(request: &Request, names: &[String]) -> Result<Option<Journal>> {
    match request.folder.is_dir() {
        true => interrupted(&[&request.folder], OPERATION, &words(request, names)),
        false => Ok(None),
    }
}

fn sync_file(path: &Path) -> Result<()> {
    let file = LocalFile::open(path, &OpenOptions::new().write(true).lock(LockMode::None))?;
    Ok(file.flush()?)
}

fn is_there(path: &Path) -> Error {
    Error::new(ErrorKind::Conflict, "a file of this name is there already")
        .with_path(path)
        .with_hint("import into another folder: no file is replaced")
}

impl fmt::Debug for Bundle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
