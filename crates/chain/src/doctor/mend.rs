//! Mending: the cures that the doctor can carry out by itself, each a change of one header that no guest can tell.

use super::{Code, Finding, Fix, Report};
use crate::ops::{Silent, relink};
use crate::policy::Policy;
use catena_engine::Result;
use std::path::PathBuf;

/// One header to change, and all that this cures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mend {
    /// The change.
    pub fix: Fix,
    /// The findings it cures.
    pub codes: Vec<Code>,
}

/// What can be mended: one change for each image, the deepest layers first.
///
/// Findings that would have the same header say different things are left to a person.
pub fn mends(reports: &[Report]) -> Vec<Mend> {
    let mut findings: Vec<&Finding> = reports.iter().flat_map(|report| &report.findings).collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.layer));
    let mut mends: Vec<Mend> = Vec::new();
    let mut disputed: Vec<PathBuf> = Vec::new();
    for finding in findings {
        let Some(fix) = &finding.cure.fix else {
            continue;
        };
        match mends.iter_mut().find(|mend| mend.fix.image == fix.image) {
            None => mends.push(Mend {
                fix: fix.clone(),
                codes: vec![finding.code],
            }),
            Some(mend) if mend.fix == *fix => mend.codes.push(finding.code),
            Some(_) => disputed.push(fix.image.clone()),
        }
    }
    mends.retain(|mend| !disputed.contains(&mend.fix.image));
    mends
}

impl Mend {
    /// Decides how the header changes; refused where a guest could tell.
    ///
    /// # Errors
    /// Those of [`relink::plan`].
    pub fn plan(&self, policy: &Policy) -> Result<relink::Plan> {
        let request = relink::Request {
            image: self.fix.image.clone(),
            backing: Some(relink::NewBacking {
                name: self.fix.name.clone(),
                format: self.fix.format,
            }),
            safety: relink::Safety::Checked,
        };
        relink::plan(&request, policy, &Silent)
    }
}
