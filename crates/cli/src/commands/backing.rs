//! What the verbs that record a backing image share.

use catena::{Error, ErrorKind, Policy, Reading, Reference, Source, Start, detect};

/// The error for a backing image whose format the user did not give: its format is told, but not taken.
pub fn without_format(name: &str, overlay: &Source, policy: &Policy) -> Error {
    let error = Error::new(
        ErrorKind::Conflict,
        "backing image specified without backing format",
    );
    let found = Reference::parse(name, Reading::Catena)
        .ok()
        .and_then(|reference| {
            let chain = detect(
                &Start {
                    source: reference.resolve(overlay),
                    format: None,
                },
                policy,
            );
            chain.active().map(|layer| layer.format)
        });
    match found {
        Some(format) => error.with_hint(format!(
            "it looks like {format}: if no guest could have written its header, add --backing-format {format}"
        )),
        None => error.with_hint("add --backing-format with the format it is in"),
    }
}
