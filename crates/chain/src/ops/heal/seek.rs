//! Finding: which of the images in a forest is the one that an overlay lacks, and what speaks for each that could be.

use super::weigh::{Content, Own};
use super::{By, Candidate, Evidence, Found, Missing, Need, change, read_header};
use crate::detect::{Start, detect};
use crate::forest::{Edge, Forest, Image, To};
use crate::policy::Policy;
use crate::stamp::{self, Likeness};
use catena_format::Format;
use catena_format::qcow2::Stamp;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Images that could be the missing one and are told of.
const TOLD: usize = 8;
/// Images of other names whose content is looked at.
const WEIGHED: usize = 16;

/// Looks for files in a forest.
pub(super) struct Seeker<'a> {
    forest: &'a Forest,
    policy: &'a Policy,
    /// What the stamps of images would be that were looked at, and whether they were ever rewritten.
    known: HashMap<(usize, Format), Option<(Stamp, bool)>>,
    /// The stamps by which overlays know files that are missing, by their places.
    stamps: HashMap<PathBuf, Vec<Stamp>>,
}

/// An image that may be the missing one.
type Other<'a> = (usize, &'a Image);

/// What is looked for.
struct Lost<'a> {
    image: &'a Image,
    /// The format that is recorded for it.
    format: Option<Format>,
    /// Where it was.
    gone: &'a Path,
    /// Images of its name, and others; each of its format.
    namesakes: Vec<Other<'a>>,
    strangers: Vec<Other<'a>>,
}

/// What was found, and what else could be it.
type Answer = (Option<Found>, Vec<Candidate>);

impl<'a> Seeker<'a> {
    pub(super) fn new(forest: &'a Forest, policy: &'a Policy) -> Self {
        let mut stamps: HashMap<PathBuf, Vec<Stamp>> = HashMap::new();
        for image in forest.images() {
            let gone = image.backing.as_ref().and_then(|edge| match &edge.to {
                To::Broken(Some(path), _) => Some(whole(path)),
                _ => None,
            });
            let own = image.header.stamp.is_some_and(|stamp| stamp.own);
            let (Some(gone), true, Ok(header)) = (gone, own, read_header(image)) else {
                continue;
            };
            let known = stamps.entry(gone).or_default();
            let new = header
                .stamp()
                .filter(|stamp| !known.iter().any(|known| known.same_base(stamp)));
            known.extend(new.cloned());
        }
        Self {
            forest,
            policy,
            known: HashMap::new(),
            stamps,
        }
    }

    pub(super) fn find(
        &mut self,
        number: usize,
        image: &Image,
        need: Need,
        edge: &Edge,
        gone: &Path,
        by_name: bool,
    ) -> Missing {
        let format = match need {
            Need::Backing => edge.format.as_deref().and_then(Format::from_recorded),
            Need::DataFile => Some(Format::Raw),
        };
        // Nothing that stands on the image can be below it.
        let above: BTreeSet<usize> = self.forest.dependents(number).into_iter().collect();
        let images = self.forest.images().iter().enumerate();
        let others = images
            .filter(|(other, _)| *other != number && !above.contains(other))
            .filter(|(_, other)| other.inside && is_of_format(other, format));
        let is_namesake = |(_, other): &Other<'_>| {
            let mut names = other.names.iter();
            names.any(|name| name.file_name() == gone.file_name())
        };
        let (namesakes, strangers) = others.partition(is_namesake);
        let lost = Lost {
            image,
            format,
            gone,
            namesakes,
            strangers,
        };
        let header = read_header(image);
        let stamp = header.as_ref().ok().and_then(|header| {
            let stamp = header.stamp()?;
            (stamp.reference == stamp::reference_of(header)).then(|| stamp.clone())
        });
        let (found, candidates) = match (need, stamp) {
            (Need::DataFile, _) => Self::by_name(&lost, &lost.namesakes, HashMap::new(), 0),
            (Need::Backing, Some(stamp)) => self.by_stamp(&lost, &stamp),
            (Need::Backing, None) => { self.by_siblings(&lost) }.unwrap_or_else(|| self.by_content(&lost)),
        };
        let taken = found.as_ref().filter(|found| found.by != By::Name || by_name);
        let change = taken
            .zip(header.as_ref().ok())
            .and_then(|(found, header)| change(header, need, image.path(), &found.path));
        Missing {
            image: image.path().to_owned(),
            need,
            recorded: edge.text.clone(),
            found,
            candidates,
            change,
            users: Vec::new(),
        }
    }

    /// The image that a stamp of the overlay's own is of.
    fn by_stamp(&mut self, lost: &Lost<'_>, stamp: &Stamp) -> Answer {
        let found = self.of_stamp(lost, stamp);
        match found.as_slice() {
            [(number, likeness)] => {
                let by = match likeness {
                    Likeness::Fingerprint => By::Stamp,
                    Likeness::Lineage => By::Lineage,
                };
                (self.found(lost, *number, by, None), Vec::new())
            }
            // What has its name is not what it was.
            [] => {
                let namesakes = lost.namesakes.iter().take(TOLD);
                let told = namesakes.map(|(_, other)| lost.candidate(other, Some(false), None));
                (None, told.collect())
            }
            several => {
                let images = several
                    .iter()
                    .filter_map(|(number, _)| self.forest.images().get(*number));
                (
                    None,
                    images
                        .map(|other| lost.candidate(other, Some(true), None))
                        .collect(),
                )
            }
        }
    }

    /// Those that a stamp is of. Copies of one image are it too; the one of its name is the one that was meant.
    fn of_stamp(&mut self, lost: &Lost<'_>, stamp: &Stamp) -> Vec<(usize, Likeness)> {
        for group in [&lost.namesakes, &lost.strangers] {
            let found: Vec<_> = { group.iter() }
                .filter_map(|(number, other)| {
                    Some((*number, self.likeness(*number, other, lost.format, stamp)?))
                })
                .collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// The image that stood in the same place for other overlays, which know it by their stamps.
    fn by_siblings(&mut self, lost: &Lost<'_>) -> Option<Answer> {
        // Who knows two images of that place knows that it was not always the same.
        let stamp = match self.stamps.get(&whole(lost.gone)).map(Vec::as_slice) {
            Some([one]) => one.clone(),
            _ => return None,
        };
        match self.of_stamp(lost, &stamp).as_slice() {
            [(number, _)] => {
                let other = self.forest.images().get(*number)?;
                let content = self.weigh(lost, &[(*number, other)]).remove(number);
                let contradicted = content.as_ref().is_some_and(Content::contradicts);
                (!contradicted).then(|| (self.found(lost, *number, By::Sibling, content), Vec::new()))
            }
            _ => None,
        }
    }

    /// The image of the name that has what the overlay copied of it.
    fn by_content(&mut self, lost: &Lost<'_>) -> Answer {
        let size = lost.image.header.virtual_size;
        let fits = |other: &Image| match (size, other.header.virtual_size) {
            (Some(size), Some(of)) => of <= size,
            (size, _) => size.is_none(),
        };
        let namesakes: Vec<_> = { lost.namesakes.iter() }
            .filter(|(_, other)| fits(other))
            .copied()
            .collect();
        let mut strangers: Vec<_> = { lost.strangers.iter() }
            .filter(|(_, other)| fits(other))
            .copied()
            .collect();
        // A raw image of some size could be anything.
        let is_alike =
            |other: &Image| other.header.format != Format::Raw && other.header.virtual_size == size;
        strangers.sort_by_key(|(_, other)| !is_alike(other));
        strangers.truncate(WEIGHED);
        let weighed: Vec<_> = { namesakes.iter().take(WEIGHED) }
            .chain(&strangers)
            .copied()
            .collect();
        let contents = self.weigh(lost, &weighed);
        let agreeing = |other: &Other<'_>| {
            let content = contents.get(&other.0).filter(|content| content.supports());
            content.map_or(0, |content| content.agreeing)
        };
        if namesakes.is_empty() {
            strangers.retain(|other| {
                let content = contents.get(&other.0);
                let contradicted = content.is_some_and(Content::contradicts);
                agreeing(other) > 0 || is_alike(other.1) && !contradicted
            });
            strangers.sort_by_key(|other| std::cmp::Reverse(agreeing(other)));
            let told = strangers.iter().take(TOLD);
            let told = told.map(|(number, other)| lost.candidate(other, None, contents.get(number).cloned()));
            return (None, told.collect());
        }
        let most = strangers.iter().map(agreeing).max().unwrap_or_default();
        Self::by_name(lost, &namesakes, contents, most)
    }

    /// One of those that have the name: no other image agrees with the overlay in more than so many pieces.
    fn by_name(
        lost: &Lost<'_>,
        namesakes: &[Other<'_>],
        mut contents: HashMap<usize, Content>,
        most: u64,
    ) -> Answer {
        let mut all: Vec<_> = { namesakes.iter() }
            .map(|(number, other)| lost.candidate(other, None, contents.remove(number)))
            .collect();
        let is_sound = |candidate: &Candidate| {
            let content = candidate.evidence.content.as_ref();
            content.is_some_and(|content| content.agreeing >= most) && !candidate.evidence.written_later
        };
        let mut supported = all.iter().filter(|one| one.evidence.is_supported());
        let found = match (supported.next(), supported.next(), all.as_slice()) {
            (Some(one), None, _) if is_sound(one) => Found::of(one, By::NameAndContent),
            (_, _, [one]) if !one.evidence.is_contradicted() => Found::of(one, By::Name),
            _ => {
                all.truncate(TOLD);
                return (None, all);
            }
        };
        (Some(found), Vec::new())
    }

    fn found(&self, lost: &Lost<'_>, number: usize, by: By, content: Option<Content>) -> Option<Found> {
        let other = self.forest.images().get(number)?;
        let stamp = matches!(by, By::Stamp | By::Lineage).then_some(true);
        Some(Found::of(&lost.candidate(other, stamp, content), by))
    }

    /// What the overlay's own data says of images, by their numbers; nothing of those that cannot be read.
    fn weigh(&self, lost: &Lost<'_>, others: &[Other<'_>]) -> HashMap<usize, Content> {
        let Ok(own) = Own::of(lost.image.path(), self.policy) else {
            return HashMap::new();
        };
        let weighed = others.iter().filter_map(|(number, other)| {
            let format = lost.format.unwrap_or(other.header.format);
            let content = own.against(other.path(), format, self.policy).ok()?;
            Some((*number, content))
        });
        weighed.collect()
    }

    /// How an image is that of a stamp, where it is.
    fn likeness(
        &mut self,
        number: usize,
        image: &Image,
        format: Option<Format>,
        stamp: &Stamp,
    ) -> Option<Likeness> {
        if { image.header.virtual_size }.is_none_or(|size| size < stamp.virtual_size) {
            return None;
        }
        let format = format.unwrap_or(image.header.format);
        let policy = self.policy;
        let start = || Start::at(image.path(), Some(format));
        let known = self.known.entry((number, format)).or_insert_with(|| {
            let chain = detect(&start(), policy);
            let layer = chain.active()?;
            let rewritten = { layer.header.as_ref() }.is_some_and(|header| header.lineage().is_some());
            Some((stamp::take(layer, &[], None).ok()?, rewritten))
        });
        let (known, rewritten) = known.as_ref()?;
        if known.same_base(stamp) {
            return Some(Likeness::Fingerprint);
        }
        // One that has grown since is looked at as far as it went then.
        if !rewritten && known.virtual_size == stamp.virtual_size {
            return None;
        }
        let chain = detect(&start(), policy);
        stamp::likeness(stamp, chain.active()?).ok().flatten()
    }
}

impl Lost<'_> {
    fn candidate(&self, other: &Image, stamp: Option<bool>, content: Option<Content>) -> Candidate {
        let name = other
            .names
            .iter()
            .any(|name| name.file_name() == self.gone.file_name());
        Candidate {
            path: other.path().to_owned(),
            evidence: Evidence {
                name,
                stamp,
                content,
                written_later: other.modified > self.image.modified,
            },
        }
    }
}

/// A path as others may have written it, too.
fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn is_of_format(image: &Image, format: Option<Format>) -> bool {
    // What an overlay says is raw may look like anything.
    format.is_none_or(|format| format == Format::Raw || image.header.format == format)
}
