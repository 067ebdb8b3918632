//! Drawing images and chains at random.
//!
//! Every feature is drawn by itself and shrinks by itself, towards what qemu-img makes by default, towards fewer steps
//! and smaller numbers; [`super::spec`] then makes the whole possible. Offsets lie where mistakes do: near the start, near
//! the end, around the edges of clusters and of what an L2 table covers.

use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::spec::{
    BackingName, ChainSpec, Compression, DataFile, Encryption, Fill, Format, ImageSpec, LayerSpec, MAX_SIZE,
    MAX_WRITE, Op, Preallocation, Qcow2Spec,
};

/// What may be drawn beyond plain qcow2 images of moderate size.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// LUKS and AES.
    pub encryption: bool,
    /// External data files.
    pub data_files: bool,
    /// Internal snapshots.
    pub snapshots: bool,
    /// Persistent bitmaps.
    pub bitmaps: bool,
    /// Compressed clusters.
    pub compression: bool,
    /// Images left dirty by a writer that died. `qemu-img check` finds fault with those until they are repaired.
    pub dirty: bool,
    /// Virtual sizes beyond a few megabytes, up to terabytes.
    pub huge: bool,
    /// Raw bases.
    pub raw: bool,
}

impl Features {
    /// Everything.
    pub const fn all() -> Self {
        Self {
            encryption: true,
            data_files: true,
            snapshots: true,
            bitmaps: true,
            compression: true,
            dirty: true,
            huge: true,
            raw: true,
        }
    }

    /// None of it.
    pub const fn plain() -> Self {
        Self {
            encryption: false,
            data_files: false,
            snapshots: false,
            bitmaps: false,
            compression: false,
            dirty: false,
            huge: false,
            raw: false,
        }
    }
}

/// Single qcow2 images.
pub fn images(features: Features) -> impl Strategy<Value = ImageSpec> {
    image(Features {
        raw: false,
        ..features
    })
    .prop_map(ImageSpec::normalised)
}

/// Chains of so many layers.
pub fn chains(features: Features, depth: RangeInclusive<usize>) -> impl Strategy<Value = ChainSpec> {
    let names = select(vec![
        BackingName::Relative,
        BackingName::Absolute,
        BackingName::Dotted,
        BackingName::File,
        BackingName::Json,
    ]);
    let layer = (
        image(features),
        names,
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(image, backing, format_recorded, own_folder)| LayerSpec {
            image,
            backing,
            format_recorded,
            own_folder,
        });
    vec(layer, depth).prop_map(|layers| ChainSpec { layers }.normalised())
}

/// True now and then, if it may be true at all. Shrinks to false.
fn maybe(allowed: bool, chance: f64) -> BoxedStrategy<bool> {
    if allowed {
        prop::bool::weighted(chance).boxed()
    } else {
        Just(false).boxed()
    }
}

fn image(features: Features) -> impl Strategy<Value = ImageSpec> {
    let format = (maybe(features.raw, 0.3), qcow2(features)).prop_map(|(raw, qcow2)| {
        if raw { Format::Raw } else { Format::Qcow2(qcow2) }
    });
    (format, size(features.huge), maybe(features.dirty, 0.3)).prop_flat_map(
        move |(format, size, left_open)| {
            let (cluster, coverage) = match &format {
                Format::Raw => (4096, 1 << 20),
                Format::Qcow2(qcow2) => (1 << qcow2.cluster_bits, qcow2.l2_coverage()),
            };
            let ops = vec(op(features, size, cluster, coverage), 0..12);
            (Just(format), Just(size), ops, Just(left_open)).prop_map(|(format, size, ops, left_open)| {
                ImageSpec {
                    format,
                    size,
                    ops,
                    left_open,
                }
            })
        },
    )
}

fn qcow2(features: Features) -> impl Strategy<Value = Qcow2Spec> {
    let shape = (
        prop::bool::weighted(0.85),
        cluster_bits(),
        refcount_order(),
        any::<bool>(),
    );
    let compression = select(vec![Compression::Zlib, Compression::Zstd]);
    let data_file = if features.data_files {
        prop_oneof![4 => Just(None), 1 => Just(Some(DataFile::Mapped)), 1 => Just(Some(DataFile::Raw))]
            .boxed()
    } else {
        Just(None).boxed()
    };
    let encryption = if features.encryption {
        prop_oneof![8 => Just(None), 1 => Just(Some(Encryption::Luks)), 1 => Just(Some(Encryption::Aes))]
            .boxed()
    } else {
        Just(None).boxed()
    };
    let preallocation = prop_oneof![
        6 => Just(Preallocation::Off),
        2 => Just(Preallocation::Metadata),
        1 => Just(Preallocation::Falloc),
        1 => Just(Preallocation::Full),
    ];
    (
        shape,
        compression,
        data_file,
        prop::bool::weighted(0.3),
        preallocation,
        encryption,
    )
        .prop_map(
            |(shape, compression, data_file, lazy_refcounts, preallocation, encryption)| {
                let (v3, cluster_bits, refcount_order, extended_l2) = shape;
                Qcow2Spec {
                    v3,
                    cluster_bits,
                    refcount_order,
                    extended_l2: extended_l2 && cluster_bits >= 14,
                    compression,
                    data_file,
                    lazy_refcounts,
                    preallocation,
                    encryption,
                }
            },
        )
}

fn cluster_bits() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(16), 5 => 9u32..=16, 1 => 17u32..=21]
}

fn refcount_order() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(4), 3 => 0u32..=6]
}

/// Mostly a few megabytes, so that layers overlap, and sizes that are whole in no unit.
fn size(huge: bool) -> BoxedStrategy<u64> {
    let moderate = prop_oneof![
        1 => 0u64..4096,
        3 => (0u64..64).prop_map(|count| count << 16),
        3 => 0u64..4 << 20,
        1 => 0u64..64 << 20,
    ];
    if huge {
        prop_oneof![8 => moderate, 1 => 0u64..64 << 30, 1 => 0u64..=MAX_SIZE].boxed()
    } else {
        moderate.boxed()
    }
}

fn op(features: Features, size: u64, cluster: u64, coverage: u64) -> impl Strategy<Value = Op> {
    let range = move || (offset(size, cluster, coverage), length(cluster));
    let mut kinds = vec![
        (
            8,
            (range(), fill())
                .prop_map(|((at, len), fill)| Op::Write { at, len, fill })
                .boxed(),
        ),
        (
            3,
            (zeros(size, cluster, coverage), any::<bool>())
                .prop_map(|((at, len), unmap)| Op::Zero { at, len, unmap })
                .boxed(),
        ),
        (
            2,
            zeros(size, cluster, coverage)
                .prop_map(|(at, len)| Op::Discard { at, len })
                .boxed(),
        ),
    ];
    if features.compression {
        kinds.push((
            4,
            (range(), fill())
                .prop_map(|((at, len), fill)| Op::Compress { at, len, fill })
                .boxed(),
        ));
    }
    if features.snapshots {
        kinds.push((1, Just(Op::Snapshot).boxed()));
    }
    if features.bitmaps {
        kinds.push((
            1,
            any::<bool>().prop_map(|disabled| Op::Bitmap { disabled }).boxed(),
        ));
    }
    proptest::strategy::Union::new_weighted(kinds)
}

/// Zeros and discards may also span much more than data does, within reason: each cluster gets an entry.
fn zeros(size: u64, cluster: u64, coverage: u64) -> impl Strategy<Value = (u64, u64)> {
    let long = (cluster << 8).min(64 << 20);
    (
        offset(size, cluster, coverage),
        prop_oneof![3 => length(cluster), 1 => 1..=long],
    )
}

fn offset(size: u64, cluster: u64, coverage: u64) -> impl Strategy<Value = u64> {
    let near = (cluster * 4).min(size).max(1);
    let tables = (size / coverage).max(1);
    prop_oneof![
        3 => 0..(cluster * 16).min(size).max(1),
        2 => (0..16u64).prop_map(move |index| index * cluster),
        1 => (0..near).prop_map(move |back| size.saturating_sub(back + 1)),
        2 => (1..=tables, 0..near * 2).prop_map(move |(table, ahead)| (table * coverage).saturating_add(ahead).saturating_sub(near)),
        1 => 0..size.max(1),
    ]
}

fn length(cluster: u64) -> impl Strategy<Value = u64> {
    let some = (cluster * 8).min(MAX_WRITE);
    prop_oneof![
        1 => 1u64..1024,
        1 => (1u64..16).prop_map(|sectors| sectors * 512),
        2 => 1..=some,
        2 => (1..=(some / cluster).max(1)).prop_map(move |count| (count * cluster).min(MAX_WRITE)),
    ]
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        3 => (1u8..=255).prop_map(Fill::Byte),
        1 => Just(Fill::Byte(0)),
        2 => any::<u8>().prop_map(Fill::Noise),
        2 => any::<u8>().prop_map(Fill::Text),
    ]
}
