//! Which of several `<seclabel>`s counts.

use super::Kept;
use crate::model::{DomainLabel, Seclabel};

/// What the domain says to a driver. One without a model is for the host's first driver, which is never DAC's.
pub(super) fn of<'a>(domain: &'a [DomainLabel], model: &str) -> Option<&'a DomainLabel> {
    let named = domain.iter().find(|label| label.model.as_deref() == Some(model));
    let first = || domain.iter().find(|label| label.model.is_none());
    named.or_else(|| (model != "dac").then(first).flatten())
}

/// The first of these that says something: the label to have, or that there is none. One that says neither is passed over.
pub(super) fn overriding<'a>(model: &str, labels: &[&'a [Seclabel]]) -> Option<Result<&'a str, Kept>> {
    labels.iter().find_map(|labels| {
        let label = labels
            .iter()
            .find(|label| label.model.as_deref() == Some(model))?;
        if label.relabel == Some(false) {
            return Some(Err(Kept::Image));
        }
        label.label.as_deref().map(Ok)
    })
}
