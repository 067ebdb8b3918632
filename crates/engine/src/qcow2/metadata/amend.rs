//! Other options for an image that exists: version, refcount width, lazy refcounts, names of other files.

use super::beside::{Beside, write_header};
use super::repair::complete;
use super::{snapshot, tables};
use crate::bytes::StorageBytes;
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::check::CheckOptions;
use crate::qcow2::check::counts::Counts;
use crate::qcow2::check::refcounts::be64;
use crate::qcow2::check::roots::Roots;
use crate::qcow2::check::table::{Kind, Shape, ZERO};
use crate::qcow2::check::walk::OFFSET_MASK;
use catena_format::qcow2::{
    Autoclear, BackingName, Compatible, Compression, Extension, FeatureName, Header, Incompatible,
    RefcountWidth, Version,
};
use catena_storage::Storage;
use std::sync::atomic::{AtomicU64, Ordering};

/// The feature names are left out of headers in clusters up to this size, as QEMU leaves them out.
const FEATURE_NAMES_ABOVE: u64 = 4096;
/// The `refcount_order` that version 2 has.
const V2_ORDER: u32 = 4;

/// What is to be changed; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amend {
    /// The version, as `compat=`.
    pub version: Option<Version>,
    /// Refcounts of `1 << order` bits.
    pub refcount_order: Option<u32>,
    /// Whether refcount updates may be postponed.
    pub lazy_refcounts: Option<bool>,
    /// The recorded name of the data file.
    pub data_file: Option<Vec<u8>>,
    /// Whether the data file stays a raw image of the disk. It can only be given up.
    pub data_file_raw: Option<bool>,
    /// The backing image's name and format; none for no backing image. What the guest sees is the caller's business.
    pub backing: Option<Option<(Vec<u8>, Vec<u8>)>>,
}

/// Changes options of an image that the caller holds alone.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the image, as it is or as it is to be, does not allow for it, in QEMU's words;
/// [`ErrorKind::TooLarge`] where a refcount does not fit the width; [`ErrorKind::Corrupt`] where the image is to be
/// repaired first.
pub fn amend(storage: &dyn Storage, amend: &Amend, options: &CheckOptions<'_>) -> Result<()> {
    let old = Header::read(&StorageBytes::new(storage)?)?;
    old.check_readable()?;
    let mut new = old.clone();
    set_header(&mut new, amend)?;
    let downgrades = new.version < old.version;
    let upgrades = new.version > old.version;
    let moves = new.refcount_order != old.refcount_order
        || downgrades
        || upgrades && old.snapshot_count > 0
        || old.incompatible.contains(Incompatible::DIRTY)
            && !new.compatible.contains(Compatible::LAZY_REFCOUNTS);
    if !moves {
        return if new == old {
            Ok(())
        } else {
            write_header(storage, &old, &new)
        };
    }
    let mut beside = Beside::begin(storage, options)?;
    let mut roots = Roots {
        header: new,
        ..beside.old.clone()
    };
    if upgrades && !roots.snapshots.is_empty() {
        let mut snapshots = roots.snapshots.clone();
        snapshots
            .iter_mut()
            .for_each(|record| complete(record, &beside.old.header));
        beside.put_snapshots(&mut roots, snapshots)?;
    }
    if downgrades {
        downgrade(&mut beside, &mut roots)?;
        let l1 = tables::read_l1(storage, roots.header.l1_offset, roots.header.l1_entries)?;
        let shape = Shape::of(&roots.header);
        let (roots, counts) = snapshot::activate(&mut beside, &mut roots, shape, l1, None)?;
        return beside.commit(roots, &counts);
    }
    let counts = count(&beside, &roots)?;
    beside.commit(roots, &counts)
}

/// Counts references, and says which cluster has too many where one has.
fn count(beside: &Beside<'_>, roots: &Roots) -> Result<Counts> {
    let width = RefcountWidth::of(&roots.header);
    beside.count(roots).or_else(|error| {
        let mut wide = roots.clone();
        wide.header.refcount_order = 6;
        let counts = beside.count(&wide)?;
        let large = (0..counts.end())
            .map(|cluster| (cluster, counts.get(cluster)))
            .find(|(_, count)| *count > width.max());
        let Some((cluster, count)) = large else { return Err(error) };
        Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
                width.bits(),
                cluster << roots.header.cluster_bits.get()
            ),
        ))
    })
}

fn unsupported(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}

/// Sets the header fields, and refuses what QEMU refuses.
fn set_header(new: &mut Header, amend: &Amend) -> Result<()> {
    let was = new.version;
    new.version = amend.version.unwrap_or(was);
    new.refcount_order = match amend.refcount_order {
        Some(order) => RefcountWidth::new(order)?.order(),
        None => new.refcount_order,
    };
    if was == Version::V2 && new.version == Version::V2 && new.refcount_order != V2_ORDER {
        return Err(unsupported(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        ));
    }
    // Where they are on already they are not asked for, and go with version 3.
    let asks = amend.lazy_refcounts == Some(true) && !new.compatible.contains(Compatible::LAZY_REFCOUNTS);
    if asks && new.version == Version::V2 {
        return Err(unsupported(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
        ));
    }
    if let Some(lazy) = amend.lazy_refcounts {
        new.compatible.set(Compatible::LAZY_REFCOUNTS, lazy);
    }
    if let Some(name) = &amend.data_file {
        if !new.has_data_file() {
            return Err(unsupported(
                "data-file can only be set for images that use an external data file",
            ));
        }
        new.extensions
            .retain(|extension| !matches!(extension, Extension::DataFile(_)));
        if !name.is_empty() {
            let first_of_us = usize::from(new.backing_format().is_some()).min(new.extensions.len());
            new.extensions
                .insert(first_of_us, Extension::DataFile(name.clone()));
        }
    }
    match amend.data_file_raw {
        Some(true) if !new.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA) => {
            return Err(unsupported("data-file-raw cannot be set on existing images"));
        }
        Some(false) => new.autoclear -= Autoclear::RAW_EXTERNAL_DATA,
        _ => {}
    }
    if let Some(backing) = &amend.backing {
        new.extensions
            .retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
        if let Some((_, format)) = backing.as_ref().filter(|(_, format)| !format.is_empty()) {
            new.extensions.insert(0, Extension::BackingFormat(format.clone()));
        }
        new.backing = backing.as_ref().map(|(name, _)| BackingName {
            offset: 0,
            name: name.clone(),
        });
    }
    match (was, new.version) {
        (Version::V2, Version::V3) => upgrade_header(new),
        (Version::V3, Version::V2) => downgrade_header(new)?,
        _ => {}
    }
    Ok(())
}

fn upgrade_header(new: &mut Header) {
    new.header_length = 112;
    let named = new
        .extensions
        .iter()
        .any(|extension| matches!(extension, Extension::FeatureNames(_)));
    if new.cluster_bits.size() > FEATURE_NAMES_ABOVE && !named {
        new.extensions.push(Extension::FeatureNames(FeatureName::all()));
    }
}

fn downgrade_header(new: &mut Header) -> Result<()> {
    if new.has_data_file() {
        return Err(unsupported("Cannot downgrade an image with a data file"));
    }
    if new.refcount_order != V2_ORDER {
        return Err(unsupported("compat=0.10 requires refcount_bits=16"));
    }
    let left = new.incompatible - Incompatible::DIRTY - Incompatible::COMPRESSION;
    if !left.is_empty() {
        return Err(unsupported(format!(
            "Cannot downgrade an image with incompatible features {:#x} set",
            left.bits()
        )));
    }
    new.incompatible = Incompatible::empty();
    new.compatible = Compatible::empty();
    new.autoclear = Autoclear::empty();
    new.compression = Compression::Deflate;
    new.header_length = 72;
    new.unknown_fields = Vec::new();
    // Version 2 has neither.
    new.extensions
        .retain(|extension| !matches!(extension, Extension::FeatureNames(_) | Extension::Bitmaps(_)));
    Ok(())
}

/// Writes tables without what version 2 does not know: zero clusters. Bitmaps go, too.
fn downgrade(beside: &mut Beside<'_>, roots: &mut Roots) -> Result<()> {
    let size = beside.old.header.virtual_size;
    let odd = |record: &catena_format::qcow2::SnapshotRecord| {
        let said = record.snapshot(&beside.old.header);
        said.vm_state_size > u32::MAX.into() || said.virtual_size != size
    };
    if roots.snapshots.iter().any(odd) {
        return Err(unsupported("Internal snapshots prevent downgrade of image"));
    }
    roots.bitmaps = Vec::new();
    let was_zstd = beside.old.header.compression != Compression::Deflate;
    let shape = Shape::of(&beside.old.header);
    let (zeros, compressed) = (AtomicU64::new(0), AtomicU64::new(0));
    let is_zero = |entry: u64| entry & ZERO != 0 && shape.kind(entry) != Kind::Compressed;
    let mut places = vec![(roots.header.l1_offset, roots.header.l1_entries)];
    places.extend(
        roots
            .snapshots
            .iter()
            .map(|record| (record.l1_offset, record.l1_entries)),
    );
    for (offset, entries) in &places {
        let mut l1 = tables::read_l1(beside.storage, *offset, *entries)?;
        tables::rewrite(beside, &mut l1, |_, table| {
            let entries = || table.chunks_exact(8).map(be64);
            zeros.fetch_add(
                entries().filter(|entry| is_zero(*entry)).count() as u64,
                Ordering::Relaxed,
            );
            let is_compressed = |entry: &u64| shape.kind(*entry) == Kind::Compressed;
            compressed.fetch_add(entries().filter(is_compressed).count() as u64, Ordering::Relaxed);
            Ok(false)
        })?;
    }
    if was_zstd && compressed.load(Ordering::Relaxed) > 0 {
        return Err(unsupported(
            "Cannot downgrade an image with zstd compression type and existing compressed clusters",
        ));
    }
    let zeros = zeros.load(Ordering::Relaxed);
    if zeros == 0 {
        return Ok(());
    }
    // Zeros over a backing image become clusters that hold zeros. Each is its own: of one that is shared a guest would take away
    // one reference after the other, and the last one left would not know that it is alone. They are holes in the file.
    let cluster_bits = beside.old.header.cluster_bits.get();
    let mut runs = Vec::new();
    let mut placed = 0;
    while placed < zeros && beside.old.header.backing.is_some() {
        let run = beside.take(zeros - placed)?;
        let offset = beside.offset(run);
        beside.storage.write_zeroes(offset, run.count << cluster_bits)?;
        runs.push((placed, offset));
        placed += run.count;
    }
    let place = |number: u64| {
        let behind = runs.partition_point(|(first, _)| *first <= number);
        let (first, offset) = runs.get(behind.checked_sub(1)?)?;
        Some(offset + ((number - first) << cluster_bits))
    };
    let next = AtomicU64::new(0);
    let plain = |table: &mut [u8]| {
        let mut changed = false;
        for raw in table.as_chunks_mut::<8>().0 {
            if is_zero(u64::from_be_bytes(*raw)) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                *raw = place(number).unwrap_or(0).to_be_bytes();
                changed = true;
            }
        }
        changed
    };
    let mut snapshots = roots.snapshots.clone();
    let mut moved = Vec::new();
    for (offset, entries) in places {
        let mut l1 = tables::read_l1(beside.storage, offset, entries)?;
        tables::rewrite(beside, &mut l1, |_, table| Ok(plain(table)))?;
        l1.iter_mut().for_each(|entry| *entry &= OFFSET_MASK);
        moved.push(beside.put_l1(&l1)?);
    }
    let mut moved = moved.into_iter();
    roots.header.l1_offset = moved.next().unwrap_or(roots.header.l1_offset);
    for (record, offset) in snapshots.iter_mut().zip(moved) {
        record.l1_offset = offset;
    }
    if !snapshots.is_empty() {
        beside.put_snapshots(roots, snapshots)?;
    }
    Ok(())
}
