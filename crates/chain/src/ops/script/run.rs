//! A script on its way: its steps made, or taken back.
//!
//! Before and after every change the observer is asked whether to go on. Wherever it says no, and wherever the process is
//! killed, what is there is something that both directions start from.

use super::super::children::OtherChildren;
use super::super::choice::LayerChoice;
use super::super::commit;
use super::super::copy::Moving;
use super::super::observer::{Observer, Silent};
use super::super::replaced::Replacement;
use super::super::{stamp, stream};
use super::blank::{Blank, Making};
use super::files::{self, FileId, Seen, another};
use super::journal::{Copied, Journal};
use super::recorded::Recorded;
use super::{Step, copy, publish};
use crate::chain::Chain;
use crate::detect::{Start, detect};
use crate::open::in_use;
use crate::policy::Policy;
use crate::stamp::lineage;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_storage::{LocalFile, LockMode, OpenOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A script being performed or taken back.
pub(super) struct Run<'a> {
    journal: Journal,
    policy: &'a Policy,
    observer: &'a dyn Observer,
    /// Whether it was cut off before.
    resumed: bool,
    /// The numbers of the copies, by what is copied.
    copies: HashMap<PathBuf, usize>,
    /// What was copied, locked against writers until it is deleted.
    locked: HashMap<usize, LocalFile>,
}

/// A copy: what, where to, which file that is, and what it records.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    number: usize,
    from: &'a Path,
    to: &'a Path,
    file: FileId,
    records: Option<&'a Recorded>,
}

impl<'a> Run<'a> {
    /// A script that was decided on just now.
    pub fn begin(journal: Journal, policy: &'a Policy, observer: &'a dyn Observer) -> Self {
        Self {
            resumed: false,
            ..Self::resume(journal, policy, observer)
        }
    }

    /// One that was cut off.
    pub fn resume(journal: Journal, policy: &'a Policy, observer: &'a dyn Observer) -> Self {
        let steps = journal.script().steps.iter().enumerate();
        let copies = steps
            .filter_map(|(number, step)| match step {
                Step::Copy { from, .. } => Some((from.clone(), number)),
                _ => None,
            })
            .collect();
        Self {
            journal,
            policy,
            observer,
            resumed: true,
            copies,
            locked: HashMap::new(),
        }
    }

    /// Makes the steps that are not made yet. Where that fails before anything was done but to make what is new, nothing is left; else the error
    /// says how to go on.
    pub fn finish_or_say_how(&mut self) -> Result<()> {
        let Err(error) = self.finish() else {
            return Ok(());
        };
        if self.leaves_nothing() {
            // Whoever stopped it wants this, too.
            self.observer = &Silent;
            if self.take_back().is_ok() {
                return Err(error);
            }
        }
        let how = self.journal.how_to_go_on();
        Err(match error.hint().map(str::to_owned) {
            Some(hint) => error.with_hint(format!("{hint}; then {how}")),
            None => error.with_hint(how),
        })
    }

    /// Whether what fails is taken back at once.
    fn leaves_nothing(&self) -> bool {
        let (done, steps) = (self.journal.done(), &self.journal.script().steps);
        if steps.get(done).is_some_and(|step| self.is_streamed(step)) {
            return false;
        }
        match self.resumed {
            // What has had its name for a while may be named elsewhere.
            true => done == 0 && !self.journal.has_begun(0),
            false => { steps.iter().take(done) }
                .all(|step| matches!(step, Step::Create { .. } | Step::Publish { .. })),
        }
    }

    /// Whether an image stands by now on what it shall stand on. What it stood on before is not found from it any more, and what
    /// else was to become of that only the journal knows.
    fn is_streamed(&self, step: &Step) -> bool {
        let Step::Stream { image, base, .. } = step else {
            return false;
        };
        let Some(base) = base else {
            return recorded(image).is_ok_and(|now| now.backing.is_none());
        };
        let chain = detect(&Start::at(image, Some(Format::Qcow2)), self.policy);
        let below = { chain.layers.get(1) }.and_then(|layer| FileId::find(layer.path()?).ok()?);
        below.is_some_and(|below| FileId::find(base).is_ok_and(|base| base == Some(below)))
    }

    fn finish(&mut self) -> Result<()> {
        let steps = self.journal.script().steps.clone();
        self.renew_copies(&steps)?;
        for (number, step) in steps.iter().enumerate().skip(self.journal.done()) {
            self.observer.check()?;
            self.make(number, step)?;
            self.observer.check()?;
            self.journal.set_done(number + 1)?;
        }
        self.observer.check()?;
        self.journal.remove()
    }

    /// Takes back what was done, the last of it first.
    pub fn take_back(&mut self) -> Result<()> {
        let steps = self.journal.script().steps.clone();
        let done = self.journal.done();
        if let Some(step) = steps.iter().take(done).find(|step| step.is_final()) {
            return Err(cannot_take_back(step));
        }
        // The step that comes next may have been made too, and not be noted yet.
        for (number, step) in steps.iter().enumerate().take(done + 1).rev() {
            self.observer.check()?;
            self.undo(number, step)?;
            self.observer.check()?;
            self.journal.set_done(number)?;
        }
        self.journal.remove()
    }

    fn make(&mut self, number: usize, step: &Step) -> Result<()> {
        match step {
            Step::Folder { path, like } => files::make_folder(path, like.as_deref()),
            Step::Create { images } => {
                let (vetted, observer) = (!self.resumed, self.observer);
                let making = self.making(number, images);
                let journal = &mut self.journal;
                making.make(vetted, self.policy, observer, || journal.set_begun(number))
            }
            Step::RemoveFolder { path } => files::remove_folder(path),
            Step::Link { from, to, file } => match FileId::find(to)? {
                Some(found) if found == *file => Ok(()),
                _ => {
                    expect(from, *file)?;
                    files::link(from, to)?;
                    expect(to, *file)
                }
            },
            Step::Symlink { path, target } => match std::fs::read_link(path) {
                Ok(found) if found == *target => Ok(()),
                _ => files::symlink(path, target),
            },
            Step::Copy {
                from,
                to,
                file,
                records,
            } => self.copy(Wanted {
                number,
                from,
                to,
                file: *file,
                records: records.as_ref(),
            }),
            Step::Rename { from, to, file } => rename(from, to, *file),
            Step::Publish { staging, files } => publish::make(staging, files, self.observer),
            Step::Relink { image, from, to } => relink(image, from, to),
            Step::Stamp { image, action, .. } => stamp::write(image, *action, self.policy, self.observer),
            Step::Expect { image, records } => match recorded(image)? {
                now if now == *records => Ok(()),
                now => Err(records_another(image, &now)),
            },
            Step::Stream { image, base, dated } => self.stream(&stream::Request {
                start: Start::at(image, Some(Format::Qcow2)),
                base: base.clone().map(LayerChoice::Path),
                moving: Moving::default(),
                compressed: false,
                dated: *dated,
            }),
            Step::Commit {
                image,
                top,
                base,
                after,
            } => {
                let plan = self.commit(image, top, base, *after)?;
                self.journal.set_begun(number)?;
                plan.execute(self.observer)
            }
            Step::Supplant { from, to, file, old } => {
                self.journal.set_begun(number)?;
                supplant(from, to, *file, *old)
            }
            Step::Replace { file, from, to } => self.replace(number, file, from, to),
            Step::Delete { path, file, kept } => self.delete(path, *file, kept.as_deref()),
        }
    }

    fn undo(&mut self, number: usize, step: &Step) -> Result<()> {
        let may_be_unmade = number >= self.journal.done();
        match step {
            Step::Folder { path, .. } => files::remove_folder(path),
            Step::Create { images } => self.making(number, images).take_back(),
            Step::RemoveFolder { path } => files::make_folder(path, None),
            Step::Link { from, to, file } => {
                if FileId::find(to)? == Some(*file) {
                    expect(from, *file)?;
                    files::remove(to)?;
                }
                Ok(())
            }
            Step::Symlink { path, target } => match std::fs::read_link(path) {
                Ok(found) if found == *target => files::remove(path),
                _ => Ok(()),
            },
            Step::Copy { from, to, file, .. } => {
                files::remove(&files::part_of(to, self.journal.id(), number))?;
                let (Some(Copied { copy, .. }), Some(there)) = (self.journal.copied(number), Seen::find(to)?)
                else {
                    return Ok(());
                };
                if there.file != copy.file {
                    return Ok(());
                }
                expect(from, *file)?;
                if there != copy {
                    return Err(written_since(to).with_hint(format!(
                        "to take it back would lose that; 'catena resume' without --undo keeps it; to lose it, delete '{}' first",
                        to.display()
                    )));
                }
                files::remove(to)
            }
            Step::Rename { from, to, file } => match FileId::find(to)? {
                Some(found) if found == *file => rename(to, from, *file),
                _ => Ok(()),
            },
            Step::Publish { staging, files } => publish::take_back(staging, files),
            Step::Relink { image, from, to } => {
                // Without a lock: what was never made is not undone, and whoever uses the image may go on.
                let now = recorded(image)?;
                if now == *from || (may_be_unmade && now != *to) {
                    return Ok(());
                }
                relink(image, to, from)
            }
            Step::Stamp { image, from, .. } => stamp::restore(image, from.as_ref()),
            // It shows what it did, and holds more of it itself.
            Step::Stream { .. } | Step::Expect { .. } => Ok(()),
            Step::Replace { file, from, to } => match self.replace(number, file, to, from) {
                Err(error) if may_be_unmade && error.kind() == ErrorKind::Conflict => Ok(()),
                result => result,
            },
            Step::Commit { .. } | Step::Supplant { .. } if self.journal.has_begun(number) => {
                Err(cannot_take_back(step))
            }
            Step::Commit { .. } | Step::Supplant { .. } => Ok(()),
            Step::Delete { path, file, .. } => match FileId::find(path)? {
                Some(found) if found == *file => Ok(()),
                _ => Err(cannot_take_back(step)),
            },
        }
    }

    fn making<'b>(&self, number: usize, images: &'b [Blank]) -> Making<'b> {
        let begun = self.journal.has_begun(number);
        Making::new(images, (self.journal.id(), number), begun)
    }

    fn stream(&self, request: &stream::Request) -> Result<()> {
        stream::plan(request, self.policy)?.execute(self.observer)
    }

    fn commit(&self, image: &Path, top: &Path, base: &Path, after: commit::After) -> Result<commit::Plan> {
        let request = commit::Request {
            start: Start::at(image, Some(Format::Qcow2)),
            top: LayerChoice::Path(top.to_owned()),
            base: Some(LayerChoice::Path(base.to_owned())),
            after,
            children: OtherChildren::default(),
            moving: Moving::default(),
        };
        commit::plan(&request, self.policy)
    }

    fn copy(&mut self, wanted: Wanted<'_>) -> Result<()> {
        match (FileId::find(wanted.to)?, self.journal.copied(wanted.number)) {
            (None, _) => self.copy_anew(wanted, false),
            (Some(there), Some(copied)) if copied.copy.file == there => self.settle_copy(wanted, copied),
            (Some(_), _) => Err(files::failed(rustix::io::Errno::EXIST, "create", wanted.to)),
        }
    }

    /// Copies again what was written since it was copied, as long as the copy was not; and locks what is copied.
    fn renew_copies(&mut self, steps: &[Step]) -> Result<()> {
        for (number, step) in steps.iter().enumerate().take(self.journal.done()) {
            if let Step::Copy {
                from,
                to,
                file,
                records,
            } = step
                && let Some(copied) = self.journal.copied(number)
                && FileId::find(from)? == Some(*file)
            {
                let wanted = Wanted {
                    number,
                    from,
                    to,
                    file: *file,
                    records: records.as_ref(),
                };
                self.settle_copy(wanted, copied)?;
            }
        }
        Ok(())
    }

    fn settle_copy(&mut self, wanted: Wanted<'_>, copied: Copied) -> Result<()> {
        let Wanted { from, to, .. } = wanted;
        self.lock(wanted)?;
        let is_written = Seen::of(from)? != copied.of;
        match Seen::find(to)? {
            None => self.copy_anew(wanted, false),
            Some(there) if there.file != copied.copy.file => Err(another(to)),
            Some(there) if there == copied.copy && is_written => self.copy_anew(wanted, true),
            Some(there) if there != copied.copy && is_written => {
                let message = format!("both it and its copy '{}' were written since", to.display());
                Err(Error::new(ErrorKind::Conflict, message)
                    .with_path(from)
                    .with_hint("nobody but you knows which one counts: delete the other one"))
            }
            Some(_) => Ok(()),
        }
    }

    fn lock(&mut self, wanted: Wanted<'_>) -> Result<LocalFile> {
        if let Some(file) = self.locked.get(&wanted.number) {
            return Ok(file.clone());
        }
        let file = LocalFile::open(wanted.from, &OpenOptions::new().lock(LockMode::Read))
            .map_err(|error| in_use(error.into(), "stop it first: what somebody writes is not copied"))?;
        if Seen::of_open(file.opened()?, wanted.from)?.file != wanted.file {
            return Err(another(wanted.from));
        }
        self.locked.insert(wanted.number, file.clone());
        Ok(file)
    }

    fn copy_anew(&mut self, wanted: Wanted<'_>, over: bool) -> Result<()> {
        let Wanted { number, from, to, .. } = wanted;
        let source = self.lock(wanted)?;
        let mark = self.journal.id().to_owned();
        let (part, of, copy) =
            copy::write_part(&source, from, to, wanted.records, (&mark, number), self.observer)?;
        // Which file it is must be known before it has a name by which it could be taken for another one.
        self.journal.set_copied(number, of, copy)?;
        self.observer.check()?;
        if over {
            files::rename_over(&part, to)
        } else {
            files::rename_new(&part, to)
        }
    }

    fn replace(&self, number: usize, path: &Path, from: &str, to: &str) -> Result<()> {
        let part = files::part_of(path, self.journal.id(), number);
        let replacement = Replacement::prepare(path, part, from, to)?;
        self.observer.check()?;
        replacement.publish()
    }

    fn delete(&mut self, path: &Path, file: FileId, kept: Option<&Path>) -> Result<()> {
        match FileId::find(path)? {
            None => return Ok(()),
            Some(found) if found == file => {}
            Some(_) => return Err(another(path)),
        }
        match kept {
            Some(kept) => self.check_kept(path, file, kept)?,
            None if files::is_regular(path) => {
                let options = OpenOptions::new().lock(LockMode::Write);
                LocalFile::open(path, &options)
                    .map_err(|error| in_use(error.into(), "stop it first: an image in use is not deleted"))?;
            }
            None => {}
        }
        files::remove(path)?;
        if let Some(number) = self.copies.get(path) {
            self.locked.remove(number);
        }
        Ok(())
    }

    /// Whether a file is to be found elsewhere, as it is now.
    fn check_kept(&self, path: &Path, file: FileId, kept: &Path) -> Result<()> {
        let there = FileId::find(kept)?;
        if there == Some(file) {
            return Ok(());
        }
        let copied = self
            .copies
            .get(path)
            .and_then(|number| self.journal.copied(*number));
        let Some(copied) = copied.filter(|copied| there == Some(copied.copy.file)) else {
            let message = format!("it is not at '{}', where it should be by now", kept.display());
            return Err(Error::new(ErrorKind::Conflict, message).with_path(path));
        };
        if Seen::of(path)? == copied.of {
            Ok(())
        } else {
            Err(written_since(path))
        }
    }
}

fn cannot_take_back(step: &Step) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("what was done cannot be taken back: {step}"),
    )
    .with_hint("'catena resume' without --undo finishes it")
}

fn written_since(path: &Path) -> Error {
    Error::new(ErrorKind::Conflict, "it was written since it was copied").with_path(path)
}

fn expect(path: &Path, file: FileId) -> Result<()> {
    if FileId::of(path)? == file {
        Ok(())
    } else {
        Err(another(path))
    }
}

pub(super) fn rename(from: &Path, to: &Path, file: FileId) -> Result<()> {
    let [is_there, is_here] = [FileId::find(to)? == Some(file), FileId::find(from)? == Some(file)];
    match (is_there, is_here) {
        (true, false) => Ok(()),
        // What a power cut can leave of a move between folders.
        (true, true) => files::remove(from),
        (false, _) => {
            expect(from, file)?;
            files::rename_new(from, to)
        }
    }
}

/// Gives a file the name of another, unless it has it already. Nobody may use either.
fn supplant(from: &Path, to: &Path, file: FileId, old: FileId) -> Result<()> {
    if FileId::find(to)? == Some(file) {
        return Ok(());
    }
    expect(from, file)?;
    expect(to, old)?;
    let alone = |path: &Path, write: bool| {
        let options = OpenOptions::new().write(write).lock(LockMode::Write);
        LocalFile::open(path, &options)
            .map_err(|error| in_use(error.into(), "stop it first: an image in use is not replaced"))
    };
    let (stays, goes) = (alone(from, true)?, alone(to, false)?);
    // Those that stand on the one that goes have the stamp of that.
    let images = [from, to].map(|path| detect(&Start::at(path, Some(Format::Qcow2)), &Policy::libvirt()));
    if let [Some(image), Some(other)] = images.each_ref().map(Chain::active) {
        lineage::inherit(image, other, &stays)?;
    }
    let (stays, goes) = (stays.opened()?, goes.opened()?);
    copy::keep_all(&goes, &stays).map_err(|error| files::failed(error, "write to", from))?;
    let (seconds, rest) = Seen::of(to)?.modified;
    files::set_modified(from, (seconds.saturating_add(1), rest))?;
    files::rename_over(from, to)
}

/// What an image records, whoever uses it.
fn recorded(image: &Path) -> Result<Recorded> {
    let file = LocalFile::open(image, &OpenOptions::new().lock(LockMode::None))?;
    Recorded::read(&file).map_err(|error| error.with_path(image))
}

fn records_another(image: &Path, now: &Recorded) -> Error {
    let message = format!("somebody else has changed what it records: {now}");
    Error::new(ErrorKind::Conflict, message).with_path(image)
}

/// Changes what an image records, under a lock that excludes every other user.
pub(crate) fn relink(image: &Path, from: &Recorded, to: &Recorded) -> Result<()> {
    let options = OpenOptions::new().write(true).lock(LockMode::Write);
    let file = LocalFile::open(image, &options)
        .map_err(|error| in_use(error.into(), "stop it first: an image in use is not written"))?;
    let now = Recorded::read(&file).map_err(|error| error.with_path(image))?;
    if now == *to {
        return Ok(());
    }
    if now != *from {
        return Err(records_another(image, &now));
    }
    to.write(&file).map_err(|error| error.with_path(image))
}
