//! `<seclabel>` of a domain, and whether its disks may have others.

use super::element::{Element, Result};
use crate::model::{Disk, DomainLabel, LabelKind, Layer};

pub(super) fn labels(domain: Element<'_, '_>) -> Result<Vec<DomainLabel>> {
    domain.children("seclabel").map(label).collect()
}

/// Where a domain's files keep their labels, no image of it has another.
pub(super) fn check(disk: &Disk, labels: &[DomainLabel], element: Element<'_, '_>) -> Result<()> {
    let kept = |layer: &Layer| {
        layer.details.seclabels.iter().any(|own| {
            let domains = labels.iter().find(|label| label.model == own.model);
            domains.is_some_and(|label| !label.relabel)
        })
    };
    let stores = disk.layers.iter().filter_map(|layer| layer.data_store.as_deref());
    if disk.layers.iter().chain(stores).any(kept) {
        return Err(
            element.unsupported("label overrides require relabeling to be enabled at the domain level")
        );
    }
    Ok(())
}

fn label(element: Element<'_, '_>) -> Result<DomainLabel> {
    let kind = match element.choice("type", &["dynamic", "static", "none"])? {
        Some("static") => LabelKind::Static,
        Some("none") => LabelKind::None,
        _ => LabelKind::Dynamic,
    };
    let relabel = element.yes_no("relabel")?;
    if kind == LabelKind::Dynamic && relabel == Some(false) {
        return Err(element.unsupported("dynamic label type must use resource relabeling"));
    }
    if kind == LabelKind::None && relabel == Some(true) {
        return Err(element.unsupported("resource relabeling is not compatible with 'none' label type"));
    }
    let text = |name| element.child(name).map(Element::text);
    let label = text("label");
    if kind == LabelKind::Static && label.is_none() {
        return Err(element.malformed("security label is missing"));
    }
    Ok(DomainLabel {
        kind,
        model: element.attribute("model").map(str::to_owned),
        relabel: relabel.unwrap_or(kind == LabelKind::Dynamic),
        label: label.filter(|_| kind != LabelKind::None),
        image_label: text("imagelabel"),
    })
}
