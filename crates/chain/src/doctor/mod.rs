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
mod mend;
mod relations;
mod search;
mod survey;
mod usage;
mod user;

pub use access::{Access, Obstacle, is_denied, obstacles, obstacles_if_owned};
pub use acl::{ACL_ATTRIBUTE, Acl};
pub use finding::{Code, Cure, Finding, Fix, Severity};
pub use mend::{Mend, mends};
pub use survey::{Report, survey};
pub use user::{User, group_name_of, name_of};

use crate::chain::{Chain, Layer};
use crate::detect::{Start, detect};
use crate::policy::Policy;
use crate::reference::without_credentials;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Missing backing images that are gone past in one examination because they were found again.
const FOUND_AGAIN: usize = 8;

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
    /// The number of the chain's first layer: not 0 where a chain goes on at a file that was found again.
    first: usize,
    findings: Vec<Finding>,
    /// What is in whose way, as far as it was told.
    obstacles: HashSet<(u32, Obstacle)>,
    /// Where the chain would go on: at the one file that the missing backing image can be.
    onward: Option<Start>,
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
    let (mut findings, mut onward) = run_from(0, chain, options, effort);
    let mut passed: Vec<_> = objects(chain).collect();
    let mut first = chain.layers.len();
    // What is found again may have lost its own backing image too.
    for _ in 0..FOUND_AGAIN {
        let Some(start) = onward.take() else { break };
        let below = detect(&start, options.policy);
        if objects(&below).any(|object| passed.contains(&object)) {
            break;
        }
        let (more, next) = run_from(first, &below, options, effort);
        findings.extend(more);
        onward = next;
        passed.extend(objects(&below));
        first += below.layers.len();
    }
    if let Some(at) = findings.iter().position(|finding| finding.code == Code::Dirty)
        && findings
            .iter()
            .any(|finding| finding.code == Code::InUse && finding.layer == 0)
        && let Some(dirty) = findings.get_mut(at).filter(|dirty| dirty.layer == 0)
    {
        // As it should be, as long as somebody has it open.
        dirty.severity = Severity::Note;
    }
    findings.sort_by_key(|finding| (finding.layer, std::cmp::Reverse(finding.severity), finding.code));
    findings
}

fn objects(chain: &Chain) -> impl Iterator<Item = (u64, u64)> {
    let files = chain.layers.iter().filter_map(|layer| layer.file.as_ref());
    files.map(|file| file.identity.object())
}

fn run_from(
    first: usize,
    chain: &Chain,
    options: &Options<'_>,
    effort: Effort,
) -> (Vec<Finding>, Option<Start>) {
    let mut examination = Examination {
        chain,
        options,
        effort,
        first,
        findings: Vec::new(),
        obstacles: HashSet::new(),
        onward: None,
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
    usage::check(&mut examination);
    ending::check(&mut examination);
    (examination.findings, examination.onward)
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
        let at = (self.first + layer, name);
        self.findings
            .push(Finding::new(code, severity, at, cause, consequence, cure));
    }
}

/// The change that makes an overlay record the backing it has, in a format; `None` where its header cannot say it.
fn recording(overlay: &Layer, format: catena_format::Format) -> Option<Fix> {
    let recorded = overlay.description.backing.as_ref()?;
    overlay.header.as_ref()?;
    let utf8 = !recorded.lossy && !recorded.name.is_empty();
    format.qemu().filter(|_| utf8)?;
    // A relative name must be a plain one for all to find the same.
    let plain = links::plain_name(overlay).filter(|plain| !plain.starts_with('/'));
    Some(Fix {
        image: overlay.path()?.to_owned(),
        name: plain.unwrap_or_else(|| recorded.name.clone()),
        format,
    })
}

/// That change as a cure: by command, or by advice where the overlay's format cannot record it.
fn recording_cure(overlay: &Layer, format: catena_format::Format) -> Cure {
    if let Some(fix) = recording(overlay, format) {
        return Cure::relink(overlay.word(), &without_credentials(&fix.name), format.as_str());
    }
    let bytes = overlay.header.as_ref().and_then(|header| header.backing.as_ref());
    match bytes.filter(|recorded| format.qemu().is_some() && !recorded.name.contains(&0)) {
        Some(recorded) => record(overlay, OsStr::from_bytes(&recorded.name), format),
        None => Cure::advice(format!(
            "a {} image cannot record this; make a qcow2 overlay of it",
            overlay.format
        )),
    }
}

/// The command that makes a qcow2 overlay record a name: ours, which checks, where the name is text.
fn record(overlay: &Layer, name: &OsStr, format: catena_format::Format) -> Cure {
    match name.to_str() {
        Some(name) => Cure::relink(overlay.word(), name, format.as_str()),
        None => Cure::command([
            "qemu-img".into(),
            "rebase".into(),
            "-u".into(),
            "-f".into(),
            overlay.format.to_string().into(),
            "-F".into(),
            format.qemu().unwrap_or(format.as_str()).into(),
            "-b".into(),
            name.to_owned(),
            overlay.word(),
        ])
        .saying("the name is not UTF-8 text, which 'catena relink' does not take; qemu-img checks nothing"),
    }
}

/// The same by commands that do not check what the guest sees: `catena rebase --unsafe` where it was `catena relink`.
fn as_unsafe(mut cure: Cure) -> Cure {
    for command in &mut cure.commands {
        if let [program, verb, ..] = command.as_mut_slice()
            && program == "catena"
        {
            *verb = "rebase".into();
            command.push("--unsafe".into());
        }
    }
    cure
}
