//! Pruning: points in time that are not worth keeping any more leave a chain, and those that stay show what they did.
//!
//! Each layer below the active one is a point: what the guest's disk was when the layer above was made. What the layers between two
//! points that stay hold is pulled up into the upper one, all in one pass. Where the base goes too, the lowest point that stays
//! may instead be committed into it, and the base gets its name: whichever moves fewer bytes.

use super::choice::LayerChoice;
use super::commit::{self, After};
use super::copy::Moving;
use super::keep::{Keep, Rule};
use super::observer::Observer;
use super::remove::since_1970;
use super::script::{FileId, Script, Step};
use super::{OtherChildren, folder_of, stream};
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::forest::{Around, Forest};
use crate::policy::Policy;
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What to prune.
#[derive(Clone, Debug)]
pub struct Request {
    /// The active image of the chain.
    pub image: PathBuf,
    /// The points that are kept.
    pub keep: Keep,
    /// Whether the base may go as well; else it is kept, whatever its age.
    pub base: bool,
    /// Where others are looked for that stand on the layers.
    pub around: Around,
    /// Where days begin.
    pub zone: TimeZone,
    /// What age is counted from.
    pub now: Timestamp,
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is the active one.
    Active,
    /// A rule keeps it.
    Kept(Rule),
    /// It is the base, which was not asked about.
    Base,
    /// So many others stand on it.
    Shared(usize),
    /// What it holds goes to others, and it goes.
    Goes,
}

/// A layer, as it is before.
#[derive(Clone, Debug)]
pub struct Point {
    /// The layer's file.
    pub path: PathBuf,
    /// When it was written last: the time that it shows.
    pub time: Timestamp,
    /// What becomes of it.
    pub fate: Fate,
    /// Bytes on its medium.
    pub allocated: u64,
}

/// Pruning, decided.
#[derive(Debug)]
pub struct Plan {
    /// What is done.
    pub script: Script,
    home: PathBuf,
    /// The layers, active one first.
    pub points: Vec<Point>,
    /// Bytes that are pulled up or committed.
    pub copied: u64,
    /// Folders that could not be looked into: who stands on the layers from there is not known.
    pub unknown: Vec<Error>,
}

/// Decides which layers go, and where what they hold goes to.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let chain = detect(&Start::at(&request.image, None), policy);
    chain.check_complete()?;
    let mut points = { chain.layers.iter() }.map(point).collect::<Result<Vec<_>>>()?;
    let unknown = decide(&mut points, request, policy)?;
    let mut plan = Plan {
        script: Script::new("prune", words(request)),
        home: folder_of(&request.image),
        points,
        copied: 0,
        unknown,
    };
    for going in runs(&plan.points) {
        let (steps, copied) = merge(&chain, &plan.points, going, policy)?;
        plan.script.steps.extend(steps);
        plan.copied += copied;
    }
    Ok(plan)
}

/// The request as its journal knows it.
pub fn words(request: &Request) -> String {
    let image = std::path::absolute(&request.image).unwrap_or_else(|_| request.image.clone());
    format!("{} {:?} {}", image.display(), request.keep, request.base)
}

fn point(layer: &Layer) -> Result<Point> {
    let path = layer.path().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "a layer that is not on this host cannot be pruned",
        )
        .with_path(layer.name())
    })?;
    let path = std::path::absolute(path).map_err(|error| failed(error, path))?;
    let metadata = std::fs::metadata(&path).map_err(|error| failed(error, &path))?;
    let time = { metadata.modified() }
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or_default();
    let allocated = layer
        .file
        .as_ref()
        .and_then(|file| file.allocated)
        .unwrap_or_default();
    Ok(Point {
        path,
        time,
        fate: Fate::Goes,
        allocated,
    })
}

/// Says of each layer what becomes of it, and which folders could not be asked.
fn decide(points: &mut [Point], request: &Request, policy: &Policy) -> Result<Vec<Error>> {
    let paths: Vec<_> = points.iter().map(|point| &point.path).collect();
    let forest = Forest::grow(&request.around.widely(&paths), Some(policy), None);
    // The active layer is where the guest is, not a point that it could go back to.
    let times: Vec<_> = points.iter().skip(1).map(|point| point.time).collect();
    let kept = request.keep.choose(&times, request.now, &request.zone);
    let last = points.len().saturating_sub(1);
    for (number, point) in points.iter_mut().enumerate() {
        let image = forest
            .find(&point.path)?
            .and_then(|number| forest.images().get(number));
        let users = image.map_or(0, |image| image.overlays.len() + image.data_of.len());
        let rule = number
            .checked_sub(1)
            .and_then(|number| kept.get(number).copied().flatten());
        point.fate = match rule {
            _ if number == 0 => Fate::Active,
            Some(rule) => Fate::Kept(rule),
            None if users > 1 => Fate::Shared(users - 1),
            None if number == last && !request.base => Fate::Base,
            None => Fate::Goes,
        };
    }
    Ok(forest.errors)
}

/// The layers that go, in runs between those that stay.
fn runs(points: &[Point]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let going = points
        .iter()
        .enumerate()
        .filter(|(_, point)| point.fate == Fate::Goes);
    for (number, _) in going {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

/// What brings the data of a run of layers to those that stay, and takes the layers away; and how many bytes that moves.
fn merge(chain: &Chain, points: &[Point], going: Range<usize>, policy: &Policy) -> Result<(Vec<Step>, u64)> {
    let upper = going.start.checked_sub(1).and_then(|number| points.get(number));
    let upper = upper.ok_or_else(|| Error::new(ErrorKind::OutOfBounds, "the active layer stays"))?;
    let base = points.get(going.end);
    let pulled = stream::plan(
        &stream::Request {
            start: Start::at(&upper.path, None),
            base: base.map(|base| LayerChoice::Path(base.path.clone())),
            moving: Moving::default(),
            compressed: false,
            dated: None,
        },
        policy,
    )?
    .to_copy();
    if base.is_none()
        && let Some(found) = commit_into_base(chain, points, going.clone(), policy)?
        && found.1 < pulled
    {
        return Ok(found);
    }
    let above = going.start.checked_sub(2).and_then(|number| points.get(number));
    let mut steps = vec![Step::Stream {
        image: upper.path.clone(),
        base: base.map(|base| base.path.clone()),
        dated: above.map(|_| since_1970(upper.time.into())),
    }];
    steps.extend(deletions(points.get(going).unwrap_or_default())?);
    Ok((steps, pulled))
}

/// The same where the base goes: the layer that stays is written into the base, which then gets its name. `None` where the base
/// cannot stand for it.
fn commit_into_base(
    chain: &Chain,
    points: &[Point],
    going: Range<usize>,
    policy: &Policy,
) -> Result<Option<(Vec<Step>, u64)>> {
    let kept = going.start.saturating_sub(1);
    let (Some(upper), Some(last)) = (points.get(kept), points.get(going.end.saturating_sub(1))) else {
        return Ok(None);
    };
    let layer = |number: usize| chain.layers.get(number);
    let (Some(top), Some(base)) = (layer(kept), layer(going.end.saturating_sub(1))) else {
        return Ok(None);
    };
    let plain = [top, base]
        .iter()
        .all(|layer| layer.format == Format::Qcow2 && layer.data_file.is_none());
    let in_one_folder = upper.path.parent() == last.path.parent();
    if !plain || !in_one_folder || base.virtual_size() > top.virtual_size() {
        return Ok(None);
    }
    let committed = commit::plan(
        &commit::Request {
            start: Start::at(&upper.path, None),
            top: LayerChoice::Index(0),
            base: Some(LayerChoice::Path(last.path.clone())),
            after: After::Keep,
            // Nobody else stands on what goes; that was looked at.
            children: OtherChildren {
                forced: true,
                ..OtherChildren::default()
            },
            moving: Moving::default(),
        },
        policy,
    )?
    .to_copy();
    let mut steps = vec![
        Step::Commit {
            image: upper.path.clone(),
            top: upper.path.clone(),
            base: last.path.clone(),
            after: After::Keep,
        },
        Step::Supplant {
            from: last.path.clone(),
            to: upper.path.clone(),
            file: FileId::of(&last.path)?,
            old: FileId::of(&upper.path)?,
        },
    ];
    let between = points
        .get(going.start..going.end.saturating_sub(1))
        .unwrap_or_default();
    steps.extend(deletions(between)?);
    Ok(Some((steps, committed)))
}

fn deletions(points: &[Point]) -> Result<Vec<Step>> {
    { points.iter() }
        .map(|point| {
            Ok(Step::Delete {
                path: point.path.clone(),
                file: FileId::of(&point.path)?,
                kept: None,
            })
        })
        .collect()
}

fn failed(error: std::io::Error, path: &Path) -> Error {
    catena_storage::Error::from_io(error, "find")
        .with_path(path)
        .into()
}

impl Plan {
    /// Does it. What is cut off is finished by [`super::script::interrupted`], or by hand.
    pub fn execute(&self, policy: &Policy, observer: &dyn Observer) -> Result<()> {
        self.script.execute(&self.home, policy, observer)
    }

    /// Bytes on the medium of what goes.
    pub fn freed(&self) -> u64 {
        let going = self.points.iter().filter(|point| point.fate == Fate::Goes);
        going.map(|point| point.allocated).sum()
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::Kept(rule) => write!(f, "kept: {rule}"),
            Self::Base => f.write_str("kept: the base"),
            Self::Shared(1) => f.write_str("kept: another image stands on it"),
            Self::Shared(others) => write!(f, "kept: {others} others stand on it"),
            Self::Goes => f.write_str("goes"),
        }
    }
}
