//! New images that are made together: all of them or none.
//!
//! They are written beside their places, made durable, and then given their names, which nothing may have. That names are being given
//! stands in the journal before the first one is. From then on a name whose part is gone is that of an image made here, and any other
//! is somebody else's.

use super::digits::Digits;
use super::files::{failed, is_regular, part_among};
use crate::detect::{Start, detect};
use crate::open::in_use;
use crate::ops::observer::Observer;
use crate::policy::Policy;
use crate::reference::{Reading, Reference, Source};
use crate::stamp;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_format::qcow2::{Header, NewImage};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage, sync_directory_of};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, openat, syncfs, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Up to so many files are made durable one by one; more of them with all else that waits on their file systems, which
/// costs as much as one of them.
const ONE_BY_ONE: usize = 16;

/// A new qcow2 image of which nothing is written, and the names of the files that become one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blank {
    /// The files.
    pub names: Vec<PathBuf>,
    /// The file whose owner and permissions they get, and which nobody may write meanwhile.
    pub like: Option<PathBuf>,
    /// Bytes of each.
    pub len: u64,
    /// What is in them that is not zeros.
    pub writes: Vec<Piece>,
}

/// Bytes and where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    at: u64,
    bytes: Digits,
}

impl Blank {
    /// Files that become an image that was laid out.
    pub(in crate::ops) fn of(image: &NewImage, names: Vec<PathBuf>, like: Option<PathBuf>) -> Self {
        let trimmed = |(at, bytes): &(u64, Vec<u8>)| {
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            let bytes = Digits(bytes.get(..end).unwrap_or_default().to_vec());
            (end > 0).then_some(Piece { at: *at, bytes })
        };
        Self {
            names,
            like,
            len: image.len,
            writes: image.writes.iter().filter_map(trimmed).collect(),
        }
    }

    /// The whole of such a file.
    pub(in crate::ops) fn bytes(&self) -> Vec<u8> {
        let mut whole = vec![0; usize::try_from(self.len).unwrap_or_default()];
        for Piece {
            at,
            bytes: Digits(bytes),
        } in &self.writes
        {
            let start = usize::try_from(*at).unwrap_or(usize::MAX);
            let place = start.checked_add(bytes.len());
            if let Some(place) = place.and_then(|end| whole.get_mut(start..end)) {
                place.copy_from_slice(bytes);
            }
        }
        whole
    }

    fn header(&self) -> Result<Header> {
        Ok(Header::read(&self.bytes())?)
    }

    /// Whether the base is still the image that the stamp in the new ones is of.
    fn check_base(&self, policy: &Policy) -> Result<()> {
        let header = self.header()?;
        let (Some(stamp), Some(backing), Some(first)) = (header.stamp(), &header.backing, self.names.first())
        else {
            return Ok(());
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let reference = Reference::parse(&text(&backing.name), Reading::Catena)
            .map_err(|error| Error::new(ErrorKind::BadReference, error.to_string()).with_path(first))?;
        let format = header.backing_format().map(text);
        let start = Start {
            source: reference.resolve(&Source::file(first)),
            format: format.and_then(|format| Format::from_recorded(&format)),
        };
        let chain = detect(&start, policy);
        let Some(base) = chain.active() else {
            return chain.check_complete();
        };
        if stamp::matches(stamp, base)? {
            return Ok(());
        }
        let message = "it was written since it was decided what stands on it";
        Err(Error::new(ErrorKind::BaseChanged, message).with_path(base.name()))
    }
}

/// What a step that makes images is called in words.
pub(super) fn in_words(images: &[Blank], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let count: usize = images.iter().map(|image| image.names.len()).sum();
    let mut names = images.iter().flat_map(|image| &image.names);
    let (Some(first), last) = (names.next(), names.next_back()) else {
        return f.write_str("make no image");
    };
    let base = { images.first() }.and_then(|image| image.header().ok()?.backing);
    let base = { base.filter(|_| images.len() == 1) }
        .map(|backing| format!(" of '{}'", String::from_utf8_lossy(&backing.name)));
    let base = base.unwrap_or_default();
    match last {
        None => write!(f, "make '{}', a new overlay{base}", first.display()),
        Some(last) => write!(
            f,
            "make {count} new overlays{base}: '{}' to '{}'",
            first.display(),
            last.display()
        ),
    }
}

/// Images being made or taken back.
pub(super) struct Making<'a> {
    images: &'a [Blank],
    script: String,
    step: usize,
    /// Whether names are being given.
    begun: bool,
}

/// One file.
struct One<'a> {
    blank: &'a Blank,
    name: &'a Path,
    part: PathBuf,
    like: Option<LocalFile>,
}

impl<'a> Making<'a> {
    pub fn new(images: &'a [Blank], (script, step): (&str, usize), begun: bool) -> Self {
        Self {
            images,
            script: script.to_owned(),
            step,
            begun,
        }
    }

    /// Every file, with what it is like where that is asked for.
    fn each(&self, likes: &[Option<LocalFile>]) -> Vec<One<'a>> {
        let likes = likes.iter().chain(std::iter::repeat(&None));
        let images = self.images.iter().zip(likes);
        let names = images.flat_map(|(blank, like)| blank.names.iter().map(move |name| (blank, like, name)));
        names
            .enumerate()
            .map(|(number, (blank, like, name))| One {
                blank,
                name,
                part: part_among(name, &self.script, self.step, number),
                like: like.clone(),
            })
            .collect()
    }

    /// Makes those that are not there. `vetted` says whether they were decided on just now; `begin` has it stand in the journal that names
    /// are being given.
    pub fn make(
        &self,
        vetted: bool,
        policy: &Policy,
        observer: &dyn Observer,
        begin: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut likes = Vec::new();
        for image in self.images {
            // Whoever writes it would take what its overlay shows away from under it.
            let open = |like| LocalFile::open(like, &OpenOptions::new().lock(LockMode::Read));
            let like = image.like.as_deref().map(open).transpose();
            likes.push(like.map_err(|error| in_use(error.into(), "stop it first"))?);
            if !vetted {
                image.check_base(policy)?;
            }
        }
        let mut missing = self.each(&likes);
        if self.begun {
            missing.retain(|one| !one.has_its_name());
        }
        if let Some(taken) = missing.iter().find(|one| is_there(one.name)) {
            return Err(failed(Errno::EXIST, "create", taken.name));
        }
        let one_by_one = missing.len() <= ONE_BY_ONE;
        let total = missing.len() as u64;
        for (done, one) in missing.iter().enumerate() {
            observer.check()?;
            // What was there when names began to be given is complete.
            if !(self.begun && is_there(&one.part)) {
                one.write(one_by_one)?;
            }
            observer.progress(done as u64, total);
        }
        let folders = one_of_each_folder(missing.iter().map(|one| one.name));
        if !one_by_one {
            for file in &folders {
                sync_file_system_of(file)?;
            }
        }
        observer.check()?;
        if !self.begun {
            begin()?;
        }
        for one in &missing {
            observer.check()?;
            super::files::rename_unsynced(&one.part, one.name)?;
        }
        for file in &folders {
            sync_directory_of(file)?;
        }
        observer.progress(total, total);
        Ok(())
    }

    /// Removes what was made, unless somebody has written to any of it.
    pub fn take_back(&self) -> Result<()> {
        let all = self.each(&[]);
        let made: Vec<_> = { all.iter() }
            .filter(|one| self.begun && one.has_its_name())
            .collect();
        for one in &made {
            one.check_untouched()?;
        }
        for one in &made {
            let _locked = one.check_untouched()?;
            unlink(one.name)?;
        }
        for one in &all {
            unlink(&one.part)?;
        }
        for file in one_of_each_folder(all.iter().map(|one| one.name)) {
            sync_directory_of(file)?;
        }
        Ok(())
    }
}

impl One<'_> {
    /// Whether it has its name, once names are being given.
    fn has_its_name(&self) -> bool {
        is_regular(self.name) && !is_there(&self.part)
    }

    fn write(&self, durably: bool) -> Result<()> {
        let part = &self.part;
        let options = OpenOptions::new().lock(LockMode::Write).overwrite(true);
        let file = LocalFile::create(part, &options)?;
        if let Some(like) = &self.like {
            keep_out(like, &file)
                .map_err(|error| catena_storage::Error::from_io(error.into(), "write to").with_path(part))?;
        }
        file.set_len(self.blank.len)?;
        for Piece {
            at,
            bytes: Digits(bytes),
        } in &self.blank.writes
        {
            file.write_all_at(bytes, *at)?;
        }
        if durably {
            file.flush()?;
        }
        Ok(())
    }

    /// Holds it, if it is what was made, byte for byte.
    fn check_untouched(&self) -> Result<LocalFile> {
        let file = LocalFile::open(self.name, &OpenOptions::new().lock(LockMode::Write))
            .map_err(|error| in_use(error.into(), "stop it first: an image in use is not taken back"))?;
        let expected = self.blank.bytes();
        let mut found = vec![0; expected.len()];
        if file.len()? == self.blank.len && file.read_at(&mut found, 0)? == found.len() && found == expected {
            return Ok(file);
        }
        let message = "it was written since it was made";
        Err(Error::new(ErrorKind::Conflict, message)
            .with_path(self.name)
            .with_hint(
                "to take it back would lose that; 'catena resume' without --undo keeps it; to lose it, delete it first",
            ))
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Takes a name away, if it is there; that it is gone is not durable yet.
fn unlink(path: &Path) -> Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(failed(error, "delete", path)),
    }
}

fn one_of_each_folder<'a>(files: impl Iterator<Item = &'a Path>) -> Vec<&'a Path> {
    let by_folder: BTreeMap<_, _> = files.map(|file| (file.parent(), file)).collect();
    by_folder.into_values().collect()
}

/// Lets nobody at a file who may not read another one, and its owner write it. A device's permissions say nothing about
/// files: its overlay is its maker's alone.
fn keep_out(like: &LocalFile, file: &LocalFile) -> rustix::io::Result<()> {
    let invalid = |_| Errno::BADF;
    let (like, is_block) = (like.opened().map_err(invalid)?, like.is_block_device());
    let file = file.opened().map_err(invalid)?;
    let stat = fstat(&like)?;
    if is_block {
        return fchmod(&file, Mode::RUSR | Mode::WUSR);
    }
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // Who may not give it away keeps it, as with any copy; the group perhaps can be kept alone.
    if fchown(&file, Some(user), Some(group)).is_err() {
        let _ = fchown(&file, None, Some(group));
    }
    fchmod(&file, Mode::from_raw_mode((stat.st_mode & 0o666) | 0o600))
}

/// One flush for all files there.
fn sync_file_system_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, folder, flags, Mode::empty())
        .and_then(syncfs)
        .map_err(|error| failed(error, "flush", folder))
}
