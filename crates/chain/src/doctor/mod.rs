//! The doctor: what is wrong with a chain, what comes of it, and what cures it.
//!
//! [`examine`] says what the metadata tells, quickly; [`examine_fully`] also asks who uses the images, who may open
//! them, where missing ones may have gone, and looks at the tables that headers point to. Every layer is examined, also
//! after the first fault. `docs/findings.md` explains every [`Code`].
//!
//! What holds: nothing is changed, and nothing is opened that detection did not open, other than files in the folders
//! that the caller says may be searched, which the policy is asked about too. A name that the policy refuses is
//! followed by nobody, whatever could be learned from it.

mod access;
mod acl;
mod content;
mod data_file;
mod ending;
mod finding;
mod formats;
mod libvirt_walk;
mod links;
mod relations;
mod search;
mod user;

pub use access::{Access, Obstacle, obstacles};
pub use finding::{Code, Cure, Finding, Fix, Severity};
pub use user::User;

use crate::chain::{Chain, Layer};
use crate::policy::Policy;
use std::path::PathBuf;

/// What the doctor is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options<'a> {
    /// The policy under which the chain was detected.
    pub policy: &'a Policy,
    /// Who must be able to open the chain. Without one, permissions are looked at only where we failed ourselves.
    pub user: Option<User>,
    /// Folders in which to look for images that have moved, beside the overlay's own.
    pub search: Vec<PathBuf>,
}

impl<'a> Options<'a> {
    /// Nothing but the policy.
    pub fn new(policy: &'a Policy) -> Self {
        Self {
            policy,
            user: None,
            search: Vec::new(),
        }
    }

    /// Says who must be able to open the chain.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Says where to look for images that have moved.
    #[must_use]
    pub fn search(mut self, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        self.search = folders.into_iter().collect();
        self
    }
}

/// How thorough an examination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// What detection found, and a few reads.
    Metadata,
    /// Everything short of reading the guest's data.
    Full,
}

/// One examination.
struct Examination<'a> {
    chain: &'a Chain,
    options: &'a Options<'a>,
    effort: Effort,
    findings: Vec<Finding>,
}

/// What the metadata tells. Quick: a few small reads for each layer, none for those not on this host.
///
/// Findings come by layer, the worst first.
pub fn examine(chain: &Chain, options: &Options<'_>) -> Vec<Finding> {
    run(chain, options, Effort::Metadata)
}

/// What can be told without reading the guest's data.
///
/// Findings come by layer, the worst first.
pub fn examine_fully(chain: &Chain, options: &Options<'_>) -> Vec<Finding> {
    run(chain, options, Effort::Full)
}

fn run(chain: &Chain, options: &Options<'_>, effort: Effort) -> Vec<Finding> {
    let mut examination = Examination {
        chain,
        options,
        effort,
        findings: Vec::new(),
    };
    for (number, layer) in chain.layers.iter().enumerate() {
        formats::check(&mut examination, number, layer);
        links::check(&mut examination, number, layer);
        data_file::check(&mut examination, number, layer);
        content::check(&mut examination, number, layer);
        if let Some(backing) = chain.layers.get(number + 1) {
            relations::check(&mut examination, number, layer, backing);
        }
        access::check(&mut examination, number, layer);
    }
    ending::check(&mut examination);
    let mut findings = examination.findings;
    findings.sort_by_key(|finding| (finding.layer, std::cmp::Reverse(finding.severity), finding.code));
    findings
}

impl Examination<'_> {
    fn is_full(&self) -> bool {
        self.effort == Effort::Full
    }

    /// Notes something about a layer.
    fn find(
        &mut self,
        code: Code,
        severity: Severity,
        at: (usize, String),
        cause: impl Into<String>,
        consequence: impl Into<String>,
        cure: Cure,
    ) {
        let (layer, name) = at;
        self.findings.push(Finding {
            code,
            severity,
            layer,
            name,
            cause: cause.into(),
            consequence: consequence.into(),
            cure,
        });
    }
}

/// The change that makes an overlay record the backing it has, in a format; `None` where its header cannot say it.
fn recording(overlay: &Layer, format: catena_format::Format) -> Option<Fix> {
    let recorded = overlay.description.backing.as_ref()?;
    overlay.header.as_ref()?;
    let utf8 = !recorded.lossy && !recorded.name.is_empty();
    format.qemu().filter(|_| utf8)?;
    Some(Fix {
        image: overlay.path()?.to_owned(),
        name: recorded.name.clone(),
        format,
    })
}

/// That change as a cure: by command, or by advice where the overlay's format cannot record it.
fn recording_cure(overlay: &Layer, format: catena_format::Format) -> Cure {
    match recording(overlay, format) {
        Some(fix) => Cure::relink(&overlay.name(), &fix.name, format.as_str()),
        None => Cure::advice(format!(
            "a {} image cannot record this; make a qcow2 overlay of it",
            overlay.format
        )),
    }
}
