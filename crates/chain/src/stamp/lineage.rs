//! Images that are rewritten and show what they did: they say so in their headers, so that the stamps of what stands on them stay good.
//!
//! It is said twice, in two header changes: before the first write, so that what is cut off is not taken for another image, and
//! after the last one. Where there is no room for it nothing is said; then those that stand on the image are refused, and may be told to
//! accept it.

use super::fingerprint::Facts;
use crate::chain::{Chain, Layer};
use crate::ops::relink::change_header;
use crate::policy::ChangedBase;
use catena_engine::{ErrorKind, Result, StorageBytes};
use catena_format::qcow2::stamp::Fingerprint;
use catena_format::qcow2::{Autoclear, Header, Lineage, Stamp};
use catena_storage::Storage;

/// What an image's lineage says of a stamp.
pub(super) enum Kin {
    /// It is of what the image was, which showed the same.
    Same,
    /// It is so too, and the image is being rewritten just now, or that was cut off.
    UnderWay,
}

/// What the lineage of a base says of a stamp that is not of what it is; `None` where it says nothing.
pub(super) fn kin(base: &Layer, stamp: &Stamp) -> Option<Kin> {
    let lineage = base.header.as_ref()?.lineage()?;
    if !lineage.former().contains(&joined(stamp.parts())) {
        return None;
    }
    if lineage.under_way {
        return Some(Kin::UnderWay);
    }
    let now = Facts::of(base, None).ok()?;
    (joined(now.parts()) == lineage.now).then_some(Kin::Same)
}

fn joined(parts: [Fingerprint; 3]) -> Fingerprint {
    let mut joined = [0; 16];
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part);
    }
    hasher.finalize_xof().fill(&mut joined);
    joined
}

/// Says in the header of an image, which is open and locked, that it is about to be rewritten.
pub(crate) fn begin(chain: &Chain, image: &Layer, file: &dyn Storage) -> Result<()> {
    if chain.changed_base == ChangedBase::Ignore {
        return Ok(());
    }
    let header = Header::read(&StorageBytes::new(file)?)?;
    let Ok(facts) = Facts::of(image, None) else {
        return Ok(());
    };
    let lineage = continued(header.lineage(), joined(facts.parts()));
    say(file, lineage)
}

/// Gives an open image a lineage, where there is room for it.
fn say(file: &dyn Storage, lineage: Lineage) -> Result<()> {
    let said = change_header(file, |header| {
        let mut new = header.clone();
        new.autoclear &= Autoclear::KNOWN;
        new.set_lineage(Some(lineage));
        Ok(new)
    });
    match said {
        // Nothing was written.
        Err(error) if matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Unsupported) => Ok(()),
        said => said,
    }
}

/// The lineage of an image that had this one, and has this fingerprint.
fn continued(old: Option<&Lineage>, now: Fingerprint) -> Lineage {
    match old {
        // What was cut off is begun again: what it is in between is nothing that anybody stands on.
        Some(old) if old.under_way => old.clone(),
        Some(old) if old.now == now => {
            let mut lineage = old.clone();
            lineage.push(now);
            lineage.under_way = true;
            lineage
        }
        _ => Lineage::new(now),
    }
}

/// Says in the header that an image will have that it is rewritten. The rest of it is durable.
pub(crate) fn end(image: &Layer, header: &mut Header) {
    let Some(lineage) = header.lineage().filter(|lineage| lineage.under_way) else {
        return;
    };
    let mut lineage = lineage.clone();
    lineage.under_way = false;
    let now = Facts::of(image, None);
    header.set_lineage(now.ok().map(|facts| {
        lineage.now = joined(facts.parts());
        lineage
    }));
}

/// Says in the header of an image, which is open and locked, that it shows what another one does whose place it takes.
pub(crate) fn inherit(image: &Layer, other: &Layer, file: &dyn Storage) -> Result<()> {
    let (Ok(now), Ok(former)) = (Facts::of(image, None), Facts::of(other, None)) else {
        return Ok(());
    };
    let old = other.header.as_ref().and_then(Header::lineage);
    let mut lineage = continued(old, joined(former.parts()));
    lineage.now = joined(now.parts());
    lineage.under_way = false;
    say(file, lineage)
}
