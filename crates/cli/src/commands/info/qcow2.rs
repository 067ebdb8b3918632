//! What only qcow2 images have: feature bits, tables, header extensions, snapshots and bitmaps.

use catena_engine::StorageBytes;
use catena_format::qcow2::{
    Bitmap, Compression, CryptMethod, Extension, FeatureName, FeatureType, Header, Snapshot,
};
use catena_storage::Storage;
use serde::Serialize;

/// The header in full.
#[derive(Debug, Serialize)]
pub struct Qcow2 {
    pub compat: &'static str,
    pub header_length: u32,
    pub compression: &'static str,
    pub crypt: &'static str,
    pub refcount_bits: u32,
    pub l1_table: Table,
    pub refcount_table: Table,
    pub snapshot_table: Option<Table>,
    pub incompatible: Vec<Bit>,
    pub compatible: Vec<Bit>,
    pub autoclear: Vec<Bit>,
    pub extensions: Vec<Field>,
    /// Header bytes behind the last known field, in hexadecimal digits, where they are not all zeros.
    pub unknown_fields: Option<String>,
    pub snapshots: Vec<ShownSnapshot>,
    pub bitmaps: Vec<ShownBitmap>,
    /// Why not all snapshots or bitmaps are there.
    pub errors: Vec<String>,
}

/// Where a table lies, and its entries (of the refcount table: clusters).
#[derive(Debug, Serialize)]
pub struct Table {
    pub offset: u64,
    pub entries: u32,
}

/// A feature bit that is set.
#[derive(Debug, Serialize)]
pub struct Bit {
    pub bit: u8,
    pub name: Option<String>,
    /// Whether it is understood here.
    pub known: bool,
}

/// A header extension.
#[derive(Debug, Serialize)]
pub struct Field {
    #[serde(rename = "type")]
    pub kind: u32,
    pub name: Option<&'static str>,
    /// What it says, in words.
    pub content: String,
}

/// An internal snapshot.
#[derive(Debug, Serialize)]
pub struct ShownSnapshot {
    pub id: String,
    pub name: String,
    /// Seconds since the epoch.
    pub date: u32,
    pub date_nanoseconds: u32,
    pub vm_clock_nanoseconds: u64,
    pub vm_state_size: u64,
    pub virtual_size: u64,
    pub icount: Option<u64>,
}

/// A persistent bitmap.
#[derive(Debug, Serialize)]
pub struct ShownBitmap {
    pub name: String,
    pub granularity: u64,
    pub auto: bool,
    pub in_use: bool,
}

impl Qcow2 {
    /// Reads what the header points to.
    pub fn of(header: &Header, storage: &dyn Storage) -> Self {
        let mut errors = Vec::new();
        let (snapshots, bitmaps) = match StorageBytes::new(storage) {
            Ok(bytes) => (
                kept(Snapshot::read_all(header, &bytes), "snapshots", &mut errors),
                kept(Bitmap::read_all(header, &bytes), "bitmaps", &mut errors),
            ),
            Err(error) => {
                errors.push(error.to_string());
                (Vec::new(), Vec::new())
            }
        };
        let unknown = header.unknown_fields.iter().any(|byte| *byte != 0);
        Self {
            compat: header.version.compat(),
            header_length: header.header_length,
            compression: match header.compression {
                Compression::Deflate => "zlib",
                Compression::Zstd => "zstd",
            },
            crypt: match header.crypt {
                CryptMethod::None => "none",
                CryptMethod::Aes => "aes",
                CryptMethod::Luks => "luks",
            },
            refcount_bits: 1 << header.refcount_order.min(6),
            l1_table: Table {
                offset: header.l1_offset,
                entries: header.l1_entries,
            },
            refcount_table: Table {
                offset: header.refcount_table_offset,
                entries: header.refcount_table_clusters,
            },
            snapshot_table: (header.snapshot_count > 0).then_some(Table {
                offset: header.snapshots_offset,
                entries: header.snapshot_count,
            }),
            incompatible: bits(header, FeatureType::Incompatible, header.incompatible.bits()),
            compatible: bits(header, FeatureType::Compatible, header.compatible.bits()),
            autoclear: bits(header, FeatureType::Autoclear, header.autoclear.bits()),
            extensions: header.extensions.iter().map(field).collect(),
            unknown_fields: unknown.then(|| hex(&header.unknown_fields)),
            snapshots: snapshots.into_iter().map(ShownSnapshot::from).collect(),
            bitmaps: bitmaps.into_iter().map(ShownBitmap::from).collect(),
            errors,
        }
    }
}

fn kept<T>(read: catena_format::Result<Vec<T>>, what: &str, errors: &mut Vec<String>) -> Vec<T> {
    read.unwrap_or_else(|error| {
        errors.push(format!("cannot read the {what}: {error}"));
        Vec::new()
    })
}

/// The bits that are set, by the names that QEMU gives them, or else the image.
fn bits(header: &Header, kind: FeatureType, set: u64) -> Vec<Bit> {
    let known = FeatureName::all();
    let own = header.extensions.iter().find_map(|extension| match extension {
        Extension::FeatureNames(names) => Some(names.as_slice()),
        _ => None,
    });
    let name_in = |names: &[FeatureName], bit: u8| {
        let found = names.iter().find(|name| name.kind == kind && name.bit == bit);
        found.map(|name| String::from_utf8_lossy(&name.name).into_owned())
    };
    let of = |bit: u8| {
        let known = name_in(&known, bit);
        Bit {
            bit,
            known: known.is_some(),
            name: known.or_else(|| name_in(own.unwrap_or_default(), bit)),
        }
    };
    (0..64u8).filter(|bit| set >> bit & 1 == 1).map(of).collect()
}

fn field(extension: &Extension) -> Field {
    let text = |bytes: &[u8]| format!("'{}'", String::from_utf8_lossy(bytes));
    let (name, content) = match extension {
        Extension::BackingFormat(word) => (Some("backing format"), text(word)),
        Extension::FeatureNames(names) => (Some("feature names"), format!("{} names", names.len())),
        Extension::Bitmaps(bitmaps) => (
            Some("bitmaps"),
            format!(
                "{} in a directory of {} bytes at {:#x}",
                bitmaps.count, bitmaps.directory_size, bitmaps.directory_offset
            ),
        ),
        Extension::CryptoHeader { offset, length } => {
            (Some("crypto header"), format!("{length} bytes at {offset:#x}"))
        }
        Extension::DataFile(name) => (Some("data file"), text(name)),
        Extension::Stamp(stamp) => (
            Some("stamp"),
            format!(
                "of a base of {} bytes, with the content {}",
                stamp.file_length,
                hex(&stamp.content)
            ),
        ),
        Extension::Unknown { data, .. } => {
            // Enough to recognise it by; all of it could be a whole cluster.
            let start = data.get(..32).unwrap_or(data);
            let more = if start.len() < data.len() { "…" } else { "" };
            (None, format!("{} bytes: {}{more}", data.len(), hex(start)))
        }
        _ => (None, String::new()),
    };
    Field {
        kind: extension.kind(),
        name,
        content,
    }
}

impl From<Snapshot> for ShownSnapshot {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            id: snapshot.id,
            name: snapshot.name,
            date: snapshot.date_sec,
            date_nanoseconds: snapshot.date_nsec,
            vm_clock_nanoseconds: snapshot.vm_clock_nsec,
            vm_state_size: snapshot.vm_state_size,
            virtual_size: snapshot.virtual_size,
            icount: snapshot.icount,
        }
    }
}

impl From<Bitmap> for ShownBitmap {
    fn from(bitmap: Bitmap) -> Self {
        Self {
            name: bitmap.name,
            granularity: bitmap.granularity,
            auto: bitmap.auto,
            in_use: bitmap.in_use,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
