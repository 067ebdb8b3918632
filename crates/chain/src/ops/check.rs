//! Check: what is wrong with an image's own metadata; and repair: what has one right answer is given it.
//!
//! The image alone is looked at, whatever chain it is in. Everything is checked and can be told before anything is mended.

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
    chain: Chain,
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
    let chain = detect(&request.start, policy);
    let image = chain.active().ok_or_else(|| match chain.check_complete() {
        Err(error) => error,
        Ok(()) => Error::new(ErrorKind::NotFound, "there is no image"),
    })?;
    let named = |error: Error| error.with_path(image.name());
    if image.format != Format::Qcow2 {
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
        chain,
    })
}

impl Plan {
    /// What the check found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The image's name.
    pub fn name(&self) -> String {
        self.chain.active().map(Layer::name).unwrap_or_default()
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
