//! qcow2, versions 2 and 3: QEMU's copy-on-write format. `docs/qcow2.md` draws the bytes.
//!
//! * [`Header`]: the first cluster, with its extensions and the backing reference.
//! * [`Layout`]: how L1 and L2 entries are read and written, from the few header fields that decide it.
//! * [`refcount`]: how refcounts are held.
//! * [`snapshot`], [`bitmap`]: the tables of internal snapshots and persistent bitmaps.
//! * [`stamp`], [`lineage`]: what an overlay knows of its backing image, and how that is known again; extensions of Catena's own.
//! * [`create`]: the bytes of a new image. [`rewrite`]: how a header changes without a moment of danger.

pub mod bitmap;
pub mod create;
pub mod extension;
pub mod feature;
pub mod header;
pub mod layout;
pub mod lineage;

mod raw;
pub mod refcount;
pub mod rewrite;
pub mod snapshot;
pub mod stamp;

pub use bitmap::{Bitmap, BitmapCluster};
pub use create::{CreateOptions, NewImage};
pub use extension::{BitmapsExtension, Extension, FeatureName, FeatureType};
pub use feature::{Autoclear, Compatible, Incompatible};
pub use header::{BackingName, ClusterBits, Compression, CryptMethod, Header, Version};
pub use layout::{Cluster, L1Entry, Layout};
pub use lineage::Lineage;
pub use refcount::RefcountWidth;
pub use snapshot::{Record as SnapshotRecord, Snapshot};
pub use stamp::Stamp;

use crate::bytes::Bytes;
use crate::describe::{DataFile, Description, Encryption, RecordedReference};
use crate::error::Result;
use crate::{Format, luks::LuksHeader};

/// What a qcow2 image says about itself.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    let header = Header::read(bytes)?;
    Ok(description(&header, bytes))
}

/// What a header that has been read says about its image. `bytes` is asked only for a LUKS header.
pub fn description(header: &Header, bytes: &dyn Bytes) -> Description {
    Description {
        variant: Some(header.version.compat().to_owned()),
        virtual_size: Some(header.virtual_size),
        cluster_size: Some(header.cluster_bits.size()),
        backing: header.backing.as_ref().map(|backing| RecordedReference {
            format: header
                .backing_format()
                .map(|word| String::from_utf8_lossy(word).into_owned()),
            offset: Some(backing.offset),
            ..RecordedReference::new(&backing.name)
        }),
        data_file: header.has_data_file().then(|| DataFile {
            name: header
                .data_file_name()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            raw: header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA),
        }),
        encryption: match header.crypt {
            CryptMethod::None => None,
            CryptMethod::Aes => Some(Encryption::Aes),
            CryptMethod::Luks => Some(luks(header, bytes)),
        },
        features: features(header),
        oddities: oddities(header),
        ..Description::new(Format::Qcow2)
    }
}

fn luks(header: &Header, bytes: &dyn Bytes) -> Encryption {
    let Some((offset, _)) = header.crypto_header() else {
        return Encryption::LuksUnreadable("the crypto header extension is missing".to_owned());
    };
    match LuksHeader::parse(bytes, offset) {
        Ok(luks) => Encryption::Luks(luks),
        Err(error) => Encryption::LuksUnreadable(error.to_string()),
    }
}

fn features(header: &Header) -> Vec<String> {
    let mut features = Vec::new();
    let mut add = |on: bool, name: &str| {
        if on {
            features.push(name.to_owned());
        }
    };
    add(
        header.compatible.contains(Compatible::LAZY_REFCOUNTS),
        "lazy refcounts",
    );
    add(header.has_extended_l2(), "extended l2");
    add(header.compression == Compression::Zstd, "zstd");
    add(header.autoclear.contains(Autoclear::BITMAPS), "bitmaps");
    add(header.incompatible.contains(Incompatible::DIRTY), "dirty");
    add(header.incompatible.contains(Incompatible::CORRUPT), "corrupt");
    for (bit, name) in header.unknown_incompatible() {
        features.push(format!("unknown incompatible feature {bit}: {name}"));
    }
    features
}

fn oddities(header: &Header) -> Vec<String> {
    let mut oddities = Vec::new();
    if header
        .backing
        .as_ref()
        .is_some_and(|backing| backing.end() > header.cluster_bits.size())
    {
        oddities.push(
            "the backing file name lies outside the first cluster, where a guest could write it".to_owned(),
        );
    }
    if !header.has_data_file() && header.data_file_name().is_some() {
        oddities.push("a data file is named, but the feature bit for data files is not set".to_owned());
    }
    oddities
}
