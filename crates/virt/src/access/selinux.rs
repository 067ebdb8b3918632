//! SELinux labels, as libvirt's driver chooses them.

use crate::model::{DomainLabel, LabelKind};

/// A label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelinuxLabel {
    /// `user:role:type:range`.
    pub context: String,
    /// Whether libvirt adds two categories to the range, drawn anew at each start.
    pub drawn: bool,
}

impl SelinuxLabel {
    /// One that is the same at every start.
    pub(super) fn fixed(context: &str) -> Self {
        Self {
            context: context.to_owned(),
            drawn: false,
        }
    }

    /// That of a domain's own images. A running one tells; a static label lends its range.
    pub(super) fn of_domain(label: Option<&DomainLabel>, image: &str) -> Self {
        if let Some(context) = label.and_then(|label| label.image_label.as_deref()) {
            return Self::fixed(context);
        }
        let given = label.filter(|label| label.kind == LabelKind::Static);
        match given.and_then(|label| range(label.label.as_deref()?)) {
            Some(own) => {
                let kind = range(image).map_or(image, |range| {
                    image
                        .strip_suffix(range)
                        .and_then(|kind| kind.strip_suffix(':'))
                        .unwrap_or(image)
                });
                Self::fixed(&format!("{kind}:{own}"))
            }
            None => Self {
                context: image.to_owned(),
                drawn: true,
            },
        }
    }
}

/// The part behind `user:role:type:`.
fn range(context: &str) -> Option<&str> {
    context.splitn(4, ':').nth(3)
}
