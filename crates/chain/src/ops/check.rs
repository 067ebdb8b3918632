//! Check: what is wrong with an image's own metadata; and repair: what has one right answer is given it.
//!
//! An image alone is looked at, whatever chain it is in, or each layer of a chain by itself. Everything is checked and can be told before anything is mended.

use super::children::OtherChildren;
use super::observer::Observer;
use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use catena_engine::qcow2::{CheckOptions, Repair, Repaired, Report, check, repair};
use catena_engine::{Error, ErrorKind, Result};
use catena_format::Format;
use catena_storage::LocalFile;
use std::sync::Arc;

/// What to check.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image.
    pub start: Start,
    /// Whether an image that somebody writes is checked: what is found may be half written.
    pub sharing: Sharing,
    /// What is to be mended.
    pub repair: Option<Repair>,
    /// Who else may stand on an image that is mended.
    pub children: OtherChildren,
    /// What a check may use.
    pub options: CheckOptions<'static>,
}

/// A checked image, and what is to be mended.
#[derive(Debug)]
pub struct Plan {
    chain: Arc<Chain>,
    /// How many layers of the chain are above it.
    index: usize,
    report: Report,
    /// What is to be mended, in the file, which is locked.
    repair: Option<(Repair, LocalFile)>,
    options: CheckOptions<'static>,
}

/// Checks, and changes nothing.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the image's format has nothing to check; [`ErrorKind::Cancelled`] where the observer says so.
pub fn plan(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<Plan> {
    let chain = Arc::new(detect(&request.start, policy));
    if chain.layers.is_empty() {
        chain.check_complete()?;
    }
    plan_layer(request, &chain, 0, observer)
}

/// Checks each layer of the chain by itself, the active one first, and changes nothing. That one cannot be checked, or must not
/// be mended for others' sake, is that layer's answer; the others are checked all the same.
///
/// # Errors
/// [`ErrorKind::Cancelled`] where the observer says so, and where there is no active image.
pub fn plan_chain(request: &Request, policy: &Policy, observer: &dyn Observer) -> Result<ChainPlan> {
    let chain = Arc::new(detect(&request.start, policy));
    if chain.layers.is_empty() {
        chain.check_complete()?;
    }
    let total = chain.layers.iter().map(weight).sum();
    let mut before = 0_u64;
    let mut layers = Vec::with_capacity(chain.layers.len());
    for (index, layer) in chain.layers.iter().enumerate() {
        observer.check()?;
        let part = PartOf {
            whole: observer,
            before,
            weight: weight(layer),
            total,
        };
        before = before.saturating_add(weight(layer));
        layers.push(match plan_layer(request, &chain, index, &part) {
            Ok(plan) => Verdict::Checked(Box::new(plan)),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(_) if has_nothing_to_check(layer) => Verdict::NothingToCheck,
            Err(error) => Verdict::Failed(error),
        });
    }
    Ok(ChainPlan { chain, layers })
}

/// What a layer takes of the whole work, by its length.
fn weight(layer: &Layer) -> u64 {
    layer.file.as_ref().map_or(0, |file| file.identity.len).max(1)
}

fn has_nothing_to_check(layer: &Layer) -> bool {
    layer.format != Format::Qcow2
}

fn plan_layer(request: &Request, chain: &Arc<Chain>, index: usize, observer: &dyn Observer) -> Result<Plan> {
    let image = chain
        .layers
        .get(index)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no image"))?;
    let named = |error: Error| error.with_path(image.name());
    if has_nothing_to_check(image) {
        return Err(named(Error::new(
            ErrorKind::Unsupported,
            format!("{} images are not checked", image.format),
        )));
    }
    let file = image.file.as_ref().ok_or_else(|| {
        named(Error::new(
            ErrorKind::Unsupported,
            "the image is not on this host",
        ))
    })?;
    let tell = |done, total| observer.step(done, total);
    let options = request.options.watched(&tell);
    let (report, repair) = match request.repair {
        None => {
            let storage = file.lock(request.sharing).map_err(named)?;
            (check(&*storage, &options).map_err(named)?, None)
        }
        Some(what) => {
            let file = image.reopen_for_writing()?;
            let report = check(&file, &options).map_err(named)?;
            (report, Some((what, file)))
        }
    };
    // Leaks are nobody's data; what else is mended may show others something else.
    if request.repair == Some(Repair::All) && !report.is_sound() {
        request.children.check(&[image], &chain.layers)?;
    }
    Ok(Plan {
        report,
        repair,
        options: request.options,
        chain: Arc::clone(chain),
        index,
    })
}

/// The layers of a chain, checked.
#[derive(Debug)]
pub struct ChainPlan {
    chain: Arc<Chain>,
    /// The active one first.
    layers: Vec<Verdict>,
}

/// What came of checking a layer.
#[derive(Debug)]
pub enum Verdict {
    /// It was checked.
    Checked(Box<Plan>),
    /// Its format has no metadata to check.
    NothingToCheck,
    /// It could not be checked, or must not be mended.
    Failed(Error),
}

impl ChainPlan {
    /// The chain, which may break: what lies below is not checked then.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What came of each layer, the active one first.
    pub fn layers(&self) -> impl Iterator<Item = (&Layer, &Verdict)> {
        self.chain.layers.iter().zip(&self.layers)
    }

    /// Mends one layer after the other, the lowest first: those above stand on it. What is given for each layer, the active one
    /// first, is what became of it; a layer that cannot be mended leaves the others to be.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] where the observer says so.
    pub fn execute(&self, observer: &dyn Observer) -> Result<Vec<Option<Result<Repaired>>>> {
        let mut outcomes = Vec::with_capacity(self.layers.len());
        for verdict in self.layers.iter().rev() {
            observer.check()?;
            outcomes.push(match verdict {
                Verdict::Checked(plan) => match plan.execute(observer) {
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                    outcome => outcome.transpose(),
                },
                Verdict::NothingToCheck | Verdict::Failed(_) => None,
            });
        }
        outcomes.reverse();
        Ok(outcomes)
    }
}

/// Watches a part of the work.
struct PartOf<'a> {
    whole: &'a dyn Observer,
    before: u64,
    weight: u64,
    total: u64,
}

impl Observer for PartOf<'_> {
    fn progress(&self, done: u64, total: u64) {
        let share = u128::from(self.weight) * u128::from(done.min(total)) / u128::from(total.max(1));
        let done = self
            .before
            .saturating_add(u64::try_from(share).unwrap_or(self.weight));
        self.whole.progress(done, self.total);
    }

    fn cancelled(&self) -> bool {
        self.whole.cancelled()
    }
}

impl Plan {
    /// What the check found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The image's name.
    pub fn name(&self) -> String {
        self.chain
            .layers
            .get(self.index)
            .map(Layer::name)
            .unwrap_or_default()
    }

    /// Whether there is nothing to mend, or nothing is to be.
    pub fn is_done(&self) -> bool {
        self.repair.is_none() || self.report.is_clean()
    }

    /// Mends. Each write on the way leaves an image that is no worse than it was, also where the observer stops
    /// it.
    pub fn execute(&self, observer: &dyn Observer) -> Result<Option<Repaired>> {
        let tell = |done, total| observer.step(done, total);
        let options = self.options.watched(&tell);
        match &self.repair {
            Some((what, file)) if !self.report.is_clean() => repair(file, *what, &options)
                .map(Some)
                .map_err(|error| error.with_path(self.name())),
            _ => Ok(None),
        }
    }
}
