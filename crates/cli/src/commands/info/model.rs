//! What `catena info` tells of an image, as the JSON output has it. `docs/json.md` says what each field means.

use super::qcow2::Qcow2;
use crate::commands::facts;
use catena::chain::Origin;
use catena::reference::without_credentials;
use catena::{Layer, Source};
use catena_format::{Encryption, RecordedReference};
use serde::Serialize;

/// An image.
#[derive(Debug, Serialize)]
pub struct Image {
    pub image: String,
    pub format: &'static str,
    pub origin: &'static str,
    pub variant: Option<String>,
    pub virtual_size: Option<u64>,
    pub cluster_size: Option<u64>,
    pub file_size: Option<u64>,
    pub allocated: Option<u64>,
    pub id: Option<String>,
    pub features: Vec<String>,
    pub backing: Option<Backing>,
    pub data_file: Option<DataFile>,
    pub encryption: Option<Encrypted>,
    pub oddities: Vec<String>,
    pub writers: Vec<String>,
    pub qcow2: Option<Qcow2>,
}

/// The reference to the image below.
#[derive(Debug, Serialize)]
pub struct Backing {
    pub text: String,
    /// Whether `text` is not all that is recorded, since that is not UTF-8.
    pub lossy: bool,
    pub format: Option<String>,
    pub offset: Option<u64>,
    pub parent_id: Option<String>,
    pub alternatives: Vec<String>,
    /// Where it leads.
    pub source: Option<Source>,
    pub lost: Vec<String>,
    /// Why it leads nowhere.
    pub error: Option<String>,
}

/// The file that holds the data.
#[derive(Debug, Serialize)]
pub struct DataFile {
    pub text: Option<String>,
    pub raw: bool,
    /// Where it leads.
    pub path: Option<String>,
}

/// How the data is encrypted.
#[derive(Debug, Default, Serialize)]
pub struct Encrypted {
    pub summary: String,
    pub cipher: Option<String>,
    pub hash: Option<String>,
    pub uuid: Option<String>,
    pub payload_offset: Option<u64>,
    pub active_key_slots: Option<u32>,
}

impl Image {
    /// Gathers it; of a qcow2 image, its tables of snapshots and bitmaps are read.
    pub fn of(layer: &Layer) -> Self {
        let description = &layer.description;
        let file = layer.file.as_ref();
        let path = layer.path();
        Self {
            image: layer.name(),
            format: layer.format.as_str(),
            origin: match layer.origin {
                Origin::Specified => "specified",
                Origin::Recorded => "recorded",
                Origin::Probed(_) => "probed",
            },
            variant: description.variant.clone(),
            virtual_size: layer.virtual_size(),
            cluster_size: description.cluster_size,
            file_size: file.map(|file| file.identity.len),
            allocated: file.and_then(|file| file.allocated),
            id: description.id.map(|id| id.to_string()),
            features: description.features.clone(),
            backing: description
                .backing
                .as_ref()
                .map(|recorded| Backing::of(recorded, layer)),
            data_file: description.data_file.as_ref().map(|file| DataFile {
                text: file.name.as_deref().map(shown),
                raw: file.raw,
                path: layer
                    .data_file
                    .as_ref()
                    .and_then(|file| file.source.as_ref())
                    .map(ToString::to_string),
            }),
            encryption: description.encryption.as_ref().map(Encrypted::of),
            oddities: description.oddities.clone(),
            writers: path.map(facts::writers).unwrap_or_default(),
            qcow2: layer
                .header
                .as_ref()
                .zip(file)
                .map(|(header, file)| Qcow2::of(header, &file.storage)),
        }
    }
}

impl Backing {
    fn of(recorded: &RecordedReference, layer: &Layer) -> Self {
        let reference = layer.backing_reference();
        Self {
            text: shown(&recorded.name),
            lossy: recorded.lossy,
            format: recorded.format.clone(),
            offset: recorded.offset,
            parent_id: recorded.parent_id.map(|id| id.to_string()),
            alternatives: recorded.alternatives.iter().map(|name| shown(name)).collect(),
            source: reference
                .as_ref()
                .ok()
                .map(|reference| reference.resolve(&layer.source)),
            lost: reference.as_ref().map_or_else(
                |_| Vec::new(),
                |reference| reference.lost().iter().map(ToString::to_string).collect(),
            ),
            error: reference.err().map(|error| error.full()),
        }
    }
}

/// A recorded string as it may be printed.
fn shown(recorded: &str) -> String {
    without_credentials(recorded).into_owned()
}

impl Encrypted {
    fn of(encryption: &Encryption) -> Self {
        let summary = facts::encryption(encryption);
        let Encryption::Luks(luks) = encryption else {
            return Self {
                summary,
                ..Self::default()
            };
        };
        Self {
            summary,
            cipher: luks.cipher.clone(),
            hash: luks.hash.clone(),
            uuid: luks.uuid.clone(),
            payload_offset: luks.payload_offset,
            active_key_slots: luks.active_key_slots,
        }
    }
}
