//! Stamps: by which an overlay knows whether its base is still the image that it was made on.
//!
//! A base whose length and time of change are those of the stamp is believed unseen. One that differs in these and has the
//! fingerprint was touched, copied or moved, and is believed too. One that has not is another image, or was written: what the
//! overlay holds does not belong to it, so nothing is read through it until the user says otherwise. Three things look like that and
//! are not refused: an overlay that holds nothing, as after a commit; a base that somebody is writing just now, who answers for it;
//! and a reference that another program has changed since, which knows of no stamps.
//!
//! A fingerprint is of samples: that it is the same does not prove that nothing changed. `stamp --full` and `--check --full` do.

mod fingerprint;
pub(crate) mod lineage;

use crate::chain::{Chain, Layer};
use crate::policy::ChangedBase;
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::Bytes;
use catena_format::qcow2::{Header, L1Entry, Layout, Stamp};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use fingerprint::{Age, Facts};
use lineage::Kin;
use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// L2 tables that are looked at to see whether an overlay holds nothing; one with more counts as holding something.
const TABLES: usize = 4096;

/// What an overlay's stamp says of the image below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stamped {
    /// Nothing: there is no stamp, or none of a version that is known.
    Not,
    /// It is as it was: nobody has written to it, as far as its length and times tell.
    Same,
    /// It was written, copied or moved, and is the same by its fingerprint.
    Touched,
    /// The stamp is about another reference: some other program has changed it since.
    OtherReference,
    /// It is not what it was, but the overlay holds nothing that would not fit it.
    Emptied(Differences),
    /// It is not what it was.
    Changed(Differences),
    /// It is not known: somebody writes to it, or it cannot be looked at.
    Unknown(String),
}

/// In what an image differs from what a stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differences {
    /// The bytes of its disk then and now, where these are fewer.
    pub smaller: Option<(u64, u64)>,
    /// Its format, or its geometry.
    pub layout: bool,
    /// Which parts of the disk it holds, or where.
    pub tables: bool,
    /// What it holds.
    pub content: bool,
    /// When the stamp was taken, in seconds since 1970.
    pub taken: u64,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        if let Some((then, now)) = self.smaller {
            said.push(format!("its disk has {now} bytes and had {then}"));
        }
        for (differs, what) in [
            (self.layout, "its format or geometry"),
            (self.tables, "its mapping tables"),
            (self.content, "its content"),
        ] {
            if differs {
                said.push(format!("{what} changed"));
            }
        }
        write!(f, "{} since {}", said.join(", "), utc(self.taken))
    }
}

/// A time as people write it.
fn utc(seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in eras of 400 of them: the leap day comes last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + later;
    let (hour, minute) = (clock / 3_600, clock % 3_600 / 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02} UTC")
}

/// Takes the stamp of a base for an overlay that records it by this name and format word.
///
/// # Errors
/// [`ErrorKind::Locked`] where somebody writes to it, and what reading its tables says.
pub fn take(base: &Layer, name: &[u8], word: Option<&[u8]>) -> Result<Stamp> {
    let _held = Held::of(base)?;
    take_held(base, name, word)
}

/// The same for who has locked the base already.
pub(crate) fn take_held(base: &Layer, name: &[u8], word: Option<&[u8]>) -> Result<Stamp> {
    let facts = Facts::of(base, None).map_err(|error| error.with_path(base.name()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Stamp {
        virtual_size: facts.virtual_size,
        file_length: facts.age.file_length,
        modified: facts.age.modified,
        taken: now.as_secs(),
        reference: reference(name, word),
        layout: facts.layout,
        tables: facts.tables,
        content: facts.content,
        view: None,
    })
}

/// By which a stamp knows the reference that it is about.
pub(crate) fn reference(name: &[u8], word: Option<&[u8]>) -> [u8; 8] {
    let mut reference = [0; 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(name).update(&[0]).update(word.unwrap_or_default());
    hasher.finalize_xof().fill(&mut reference);
    reference
}

/// The same of what a header records.
pub(crate) fn reference_of(header: &Header) -> [u8; 8] {
    let name = header.backing.as_ref().map(|backing| backing.name.as_slice());
    reference(name.unwrap_or_default(), header.backing_format())
}

/// What becomes of the stamp of an overlay whose reference changes. One that has none gets none.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Renewal<'a> {
    /// It is left alone.
    Leave,
    /// The base stays the image that it is, by whatever name: the stamp says of it what it did.
    Follow,
    /// It becomes that of this base, which the caller has locked; there is none where it cannot be taken.
    Anew(Option<&'a Layer>),
}

impl<'a> Renewal<'a> {
    /// For an overlay that is put on this base, as far as a chain's policy knows stamps.
    pub fn anew(chain: &Chain, base: Option<&'a Layer>) -> Self {
        match chain.changed_base {
            ChangedBase::Ignore => Self::Leave,
            ChangedBase::Refuse | ChangedBase::Accept => Self::Anew(base),
        }
    }

    /// For one that stays on its base.
    pub fn follow(chain: &Chain) -> Self {
        match chain.changed_base {
            ChangedBase::Ignore => Self::Leave,
            ChangedBase::Refuse | ChangedBase::Accept => Self::Follow,
        }
    }

    /// Changes the stamp in the header that will be.
    pub fn apply(self, old: &Header, new: &mut Header) {
        let Some(stamp) = old.stamp() else { return };
        let backing = new.backing.as_ref().map(|backing| backing.name.as_slice());
        let stamp = match (self, backing) {
            (Self::Leave, _) => return,
            (_, None) => None,
            (Self::Follow, Some(_)) if stamp.reference == reference_of(old) => Some(Stamp {
                reference: reference_of(new),
                ..stamp.clone()
            }),
            // It was about another image, and is so still.
            (Self::Follow, Some(_)) => Some(stamp.clone()),
            (Self::Anew(base), Some(name)) => {
                base.and_then(|base| take_held(base, name, new.backing_format()).ok())
            }
        };
        new.set_stamp(stamp);
    }
}

/// The stamp of an image while its base is written: about no reference, so that it says nothing. It is not taken away, for whoever
/// finishes what was interrupted is to give the image a new one.
pub(crate) fn suspended(stamp: &Stamp) -> Stamp {
    Stamp {
        reference: [0; 8],
        ..stamp.clone()
    }
}

/// What the overlay's stamp says of the layer below it.
pub fn judge(overlay: &Layer, base: &Layer) -> Stamped {
    let Some((header, stamp)) = overlay
        .header
        .as_ref()
        .and_then(|header| Some((header, header.stamp()?)))
    else {
        return Stamped::Not;
    };
    // What somebody states beside the header is no reference that the stamp could be about.
    let own = base.link.is_some() && stamp.reference == reference_of(header);
    let age = match Age::of(base) {
        Ok(age) if own && is_untouched(stamp, age) => return Stamped::Same,
        Ok(age) => age,
        Err(error) => return Stamped::Unknown(error.full()),
    };
    let differences = match differences(stamp, base) {
        Ok(None) if own && is_as_old(stamp, age) => return Stamped::Same,
        Ok(None) => return Stamped::Touched,
        Ok(Some(differences)) => differences,
        Err(error) => return Stamped::Unknown(error.full()),
    };
    match lineage::kin(base, stamp) {
        Some(Kin::Same) => return Stamped::Touched,
        Some(Kin::UnderWay) => {
            let why = "it is being rewritten, or that was cut off: the same command finishes it";
            return Stamped::Unknown(why.to_owned());
        }
        None => {}
    }
    if !own {
        return Stamped::OtherReference;
    }
    if holds_nothing(overlay, header).is_ok_and(|nothing| nothing) {
        return Stamped::Emptied(differences);
    }
    match Held::of(base) {
        Err(error) if error.kind() == ErrorKind::Locked => Stamped::Unknown(error.full()),
        _ => Stamped::Changed(differences),
    }
}

/// How an image is the one that a stamp is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// It has the fingerprint.
    Fingerprint,
    /// It had it, and says that it was rewritten since and shows what it did.
    Lineage,
}

/// How an image is the one that a stamp is of; `None` where it is another.
pub fn likeness(stamp: &Stamp, image: &Layer) -> Result<Option<Likeness>> {
    if matches(stamp, image)? {
        return Ok(Some(Likeness::Fingerprint));
    }
    let is_kin = matches!(lineage::kin(image, stamp), Some(Kin::Same));
    Ok(is_kin.then_some(Likeness::Lineage))
}

/// Whether an image is the one that a stamp is of, by its fingerprint.
pub fn matches(stamp: &Stamp, image: &Layer) -> Result<bool> {
    Ok(differences(stamp, image)?.is_none())
}

fn differences(stamp: &Stamp, base: &Layer) -> Result<Option<Differences>> {
    let facts = Facts::of(base, Some(stamp))?;
    let differences = Differences {
        smaller: (facts.virtual_size < stamp.virtual_size)
            .then_some((stamp.virtual_size, facts.virtual_size)),
        layout: facts.layout != stamp.layout,
        tables: facts.tables != stamp.tables,
        content: facts.content != stamp.content,
        taken: stamp.taken,
    };
    let same = Differences {
        smaller: None,
        layout: false,
        tables: false,
        content: false,
        taken: stamp.taken,
    };
    Ok((differences != same).then_some(differences))
}

/// Whether nobody can have written to a base since its stamp was taken. One that was written in the second of its stamp may have
/// been written again within the same tick of the file system's clock.
fn is_untouched(stamp: &Stamp, age: Age) -> bool {
    is_settled(age.modified, stamp.taken) && is_as_old(stamp, age)
}

/// Whether a time of change, in nanoseconds, is so long before a stamp was taken that the file's clock has gone on since.
pub(crate) fn is_settled(modified: Option<u64>, taken: u64) -> bool {
    const SECOND: u64 = 1_000_000_000;
    modified.is_some_and(|modified| modified / SECOND + 1 < taken)
}

/// Whether a base's length and time of change are those of its stamp.
fn is_as_old(stamp: &Stamp, age: Age) -> bool {
    (stamp.file_length, stamp.modified) == (age.file_length, age.modified)
}

/// Whether an overlay has nothing of its own, so that its guest sees the base and nothing else.
fn holds_nothing(overlay: &Layer, header: &Header) -> Result<bool> {
    let Some(file) = overlay.file.as_ref().filter(|_| header.snapshot_count == 0) else {
        return Ok(false);
    };
    let bytes = StorageBytes::new(&file.storage)?;
    // At most 32 MiB, as the header has been checked.
    let len = usize::try_from(u64::from(header.l1_entries) * 8).unwrap_or_default();
    let l1 = bytes.read_some(header.l1_offset, len)?;
    let entries = l1.as_chunks::<8>().0.iter();
    let tables = entries.filter_map(|entry| L1Entry(u64::from_be_bytes(*entry)).offset());
    let layout = Layout::of(header);
    let table = usize::try_from(layout.l2_entries() * layout.l2_entry_size()).unwrap_or_default();
    for (number, offset) in tables.enumerate() {
        if number == TABLES || bytes.read_some(offset, table)?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The files of a base once more, locked so that nobody writes to them as long as this lives.
pub(crate) struct Held {
    _files: Vec<LocalFile>,
}

impl Held {
    /// Locks them.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where somebody writes to one, be it ourselves.
    pub fn of(base: &Layer) -> Result<Self> {
        let data = base.data_file.as_ref().and_then(|data| data.file.as_ref().ok());
        let files = base.file.iter().chain(data).map(|file| {
            let opened = file.storage.opened()?;
            let path = file.storage.path().unwrap_or(Path::new(""));
            LocalFile::open_handle(opened, path, &OpenOptions::new().lock(LockMode::Read))
        });
        Ok(Self {
            _files: files.collect::<Result<_, _>>()?,
        })
    }
}

impl Chain {
    /// What the stamp of a layer says of the one below it.
    pub fn stamped(&self, layer: usize) -> Stamped {
        match (self.layers.get(layer), self.layers.get(layer + 1)) {
            (Some(overlay), Some(base)) => judge(overlay, base),
            _ => Stamped::Not,
        }
    }

    /// Whether every overlay from a layer down stands on the image that it was made on, as far as stamps tell.
    ///
    /// # Errors
    /// [`ErrorKind::BaseChanged`], unless the policy accepts it.
    pub fn check_bases(&self, from_layer: usize) -> Result<()> {
        (from_layer..self.layers.len()).try_for_each(|layer| self.check_base(layer))
    }

    /// The same of one overlay alone.
    pub(crate) fn check_base(&self, layer: usize) -> Result<()> {
        if self.changed_base != ChangedBase::Refuse {
            return Ok(());
        }
        match (self.layers.get(layer), self.layers.get(layer + 1)) {
            (Some(overlay), Some(base)) => match judge(overlay, base) {
                Stamped::Changed(differences) => Err(changed(overlay, base, differences)),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The error that a base is not what it was.
fn changed(overlay: &Layer, base: &Layer, differences: Differences) -> Error {
    Error::new(
        ErrorKind::BaseChanged,
        format!(
            "the backing image '{}' is not the one that this overlay was made on: {differences}",
            base.name()
        ),
    )
    .with_path(overlay.name())
    .with_hint(format!(
        "restore it, or let 'catena heal' look for it; if it was changed on purpose and what the guest sees is right, go on with \
         --accept-base, or for good: catena stamp --accept-base {}",
        crate::detect::quoted(overlay.word())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_calendars_have_them() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_767_225_600), "2026-01-01 00:00 UTC");
        assert_eq!(utc(4_107_542_399), "2100-02-28 23:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00 UTC");
        // Any number that a stamp may hold.
        assert!(utc(u64::MAX).ends_with("UTC"));
    }

    #[test]
    fn a_stamp_is_about_a_name_and_a_format() {
        assert_eq!(reference(b"base", Some(b"raw")), reference(b"base", Some(b"raw")));
        assert_ne!(
            reference(b"base", Some(b"raw")),
            reference(b"base", Some(b"qcow2"))
        );
        assert_ne!(reference(b"base", None), reference(b"other", None));
    }
}
