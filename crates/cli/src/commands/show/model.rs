//! What `catena show` shows: facts of a chain, as the JSON output has them. `docs/json.md` says what each field means.
//!
//! The tree, the graph and the picture are drawn from this alone.

use crate::commands::facts::{self, ErrorFacts, FindingFacts};
use catena::chain::{Consent, DataFileLayer, End, Link, OpenEnd, Origin};
use catena::doctor::{Code, Finding};
use catena::open::Sharing;
use catena::{Chain, Contributions, ErrorKind, Format, Layer, Policy, Source, doctor};
use serde::Serialize;
use std::path::Path;

/// Bytes of mapping tables that are read without having been asked for: a tenth of a second, where they are in memory.
const FEW_TABLES: u64 = 256 << 20;

/// A chain.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub target: String,
    pub virtual_size: Option<u64>,
    pub data: Option<u64>,
    pub depth: usize,
    pub layers: Vec<ShownLayer>,
    pub end: ShownEnd,
    /// What the doctor finds in the metadata, by layer.
    pub findings: Vec<FindingFacts>,
    /// Why the contributions are not known.
    pub contributions_error: Option<ErrorFacts>,
}

/// A layer of it.
#[derive(Debug, Serialize)]
pub struct ShownLayer {
    pub index: usize,
    pub name: String,
    pub path: Option<String>,
    pub source: Source,
    pub recorded: Option<Recorded>,
    pub format: &'static str,
    pub origin: &'static str,
    pub consent: Option<&'static str>,
    pub variant: Option<String>,
    pub virtual_size: Option<u64>,
    pub cluster_size: Option<u64>,
    pub file_size: Option<u64>,
    pub allocated: Option<u64>,
    pub contributes: Option<Contributes>,
    pub features: Vec<String>,
    pub snapshots: u32,
    pub bitmaps: u32,
    pub encryption: Option<String>,
    pub data_file: Option<ShownDataFile>,
    pub oddities: Vec<String>,
    /// The processes that write the image.
    pub writers: Vec<String>,
}

/// What an image records about its backing.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    pub text: String,
    pub format: Option<String>,
}

/// Guest bytes that a layer answers for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Contributes {
    pub data: u64,
    pub zero: u64,
    pub corrupt: u64,
}

/// A data file beside its image.
#[derive(Debug, Serialize)]
pub struct ShownDataFile {
    pub text: String,
    pub path: Option<String>,
    pub raw: bool,
    pub file_size: Option<u64>,
    pub allocated: Option<u64>,
    /// Why it is not open.
    pub error: Option<ErrorFacts>,
}

/// How the chain goes on after its last layer.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ShownEnd {
    Terminated,
    OpenEnded {
        why: &'static str,
        recorded: Option<Recorded>,
    },
    Broken {
        error: ErrorFacts,
        recorded: Option<Recorded>,
        name: Option<String>,
        /// The format that the bytes there look like, though it is not believed.
        probed_format: Option<&'static str>,
    },
}

impl Shown {
    /// Gathers it. Nothing is locked, so a chain in use can be looked at; what its writer does meanwhile may or may not
    /// be seen. What the layers hold is counted where `count` says so, or that costs little.
    pub fn of(chain: &Chain, policy: &Policy, target: &Path, count: bool) -> Self {
        let findings = doctor::examine(chain, &doctor::Options::new(policy));
        let most = if count { u64::MAX } else { FEW_TABLES };
        let (contributions, contributions_error) = match Contributions::of_chain(chain, Sharing::Force, most)
        {
            Ok(contributions) => (contributions, None),
            Err(error) => {
                let error = match error.kind() {
                    ErrorKind::TooLarge if !count => error.with_hint("--count counts all the same"),
                    _ => error,
                };
                (Contributions::default(), Some(ErrorFacts::of(&error)))
            }
        };
        let counted = contributions.layers.len();
        let layers: Vec<_> = chain
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| ShownLayer {
                contributes: contributions.layers.get(index).map(|layer| Contributes {
                    data: layer.data,
                    zero: layer.zero,
                    corrupt: layer.corrupt,
                }),
                ..ShownLayer::of(index, layer)
            })
            .collect();
        Self {
            target: target.display().to_string(),
            virtual_size: chain.active().and_then(Layer::virtual_size),
            data: (counted == layers.len() && matches!(chain.end, End::Terminated))
                .then(|| contributions.data()),
            depth: layers.len(),
            layers,
            end: ShownEnd::of(&chain.end),
            findings: findings.iter().map(FindingFacts::of).collect(),
            contributions_error,
        }
    }

    /// Adds findings of others.
    pub fn add_findings(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings
            .extend(findings.into_iter().map(|finding| FindingFacts::of(&finding)));
        // By layer, as they are looked for.
        self.findings.sort_by_key(|finding| finding.layer);
    }

    /// Whether something is wrong: the chain breaks, the doctor finds an error, or a mapping is damaged.
    pub fn is_wrong(&self) -> bool {
        let damaged = |layer: &ShownLayer| layer.contributes.is_some_and(|bytes| bytes.corrupt > 0);
        matches!(self.end, ShownEnd::Broken { .. })
            || self.findings.iter().any(FindingFacts::is_error)
            || self.layers.iter().any(damaged)
    }

    /// What is wrong or doubtful about a layer; what is merely worth knowing is left to the doctor.
    pub fn troubles(&self, layer: usize) -> impl Iterator<Item = &FindingFacts> {
        // They are in order, and there may be thousands of layers.
        let first = self.findings.partition_point(|finding| finding.layer < layer);
        let own = self
            .findings
            .iter()
            .skip(first)
            .take_while(move |finding| finding.layer == layer);
        own.filter(|finding| finding.severity != "note")
    }

    /// Whether a finding is about the reference at which the chain breaks.
    pub fn is_of_end(&self, finding: &FindingFacts) -> bool {
        const CODES: [Code; 8] = [
            Code::BackingMissing,
            Code::FormatNotRecorded,
            Code::FormatWordUnknown,
            Code::Loop,
            Code::ChainTooDeep,
            Code::ReferenceRefused,
            Code::ReferenceInvalid,
            Code::Credentials,
        ];
        let broken = matches!(self.end, ShownEnd::Broken { .. });
        broken && finding.layer + 1 >= self.depth && CODES.iter().any(|code| code.as_str() == finding.code)
    }

    /// Bytes of data that the layers which could be counted contribute together.
    pub fn counted_data(&self) -> u64 {
        let contributed = self.layers.iter().filter_map(|layer| layer.contributes);
        contributed.map(|bytes| bytes.data).sum()
    }
}

impl ShownLayer {
    fn of(index: usize, layer: &Layer) -> Self {
        let description = &layer.description;
        let header = layer.header.as_ref();
        let (origin, consent) = match layer.origin {
            Origin::Specified => ("specified", None),
            Origin::Recorded => ("recorded", None),
            Origin::Probed(consent) => ("probed", Some(consent_word(consent))),
        };
        let path = layer.path();
        Self {
            index,
            name: name(layer),
            path: path.map(|path| path.display().to_string()),
            source: layer.source.clone(),
            recorded: layer.link.as_ref().map(Recorded::of),
            format: layer.format.as_str(),
            origin,
            consent,
            variant: description.variant.clone(),
            virtual_size: layer.virtual_size(),
            cluster_size: description.cluster_size,
            file_size: layer.file.as_ref().map(|file| file.identity.len),
            allocated: layer.file.as_ref().and_then(|file| file.allocated),
            contributes: None,
            features: description.features.clone(),
            snapshots: header.map_or(0, |header| header.snapshot_count),
            bitmaps: header
                .and_then(|header| header.bitmaps())
                .map_or(0, |bitmaps| bitmaps.count),
            encryption: description.encryption.as_ref().map(facts::encryption),
            data_file: layer
                .data_file
                .as_ref()
                .map(|file| ShownDataFile::of(file, layer)),
            oddities: description.oddities.clone(),
            // Asking costs a look at every process, and only the active layer has a right to be written.
            writers: path
                .filter(|_| index == 0)
                .map(facts::writers)
                .unwrap_or_default(),
        }
    }

    /// Whether its format was found out by probing the file the user named.
    pub fn is_unsure(&self) -> bool {
        self.consent == Some("user_argument") && self.format != Format::Raw.as_str()
    }
}

impl ShownDataFile {
    fn of(data_file: &DataFileLayer, layer: &Layer) -> Self {
        let file = data_file.file.as_ref().ok();
        Self {
            text: data_file.shown().into_owned(),
            path: data_file.source.as_ref().map(ToString::to_string),
            raw: layer.description.data_file.as_ref().is_some_and(|file| file.raw),
            file_size: file.map(|file| file.identity.len),
            allocated: file.and_then(|file| file.allocated),
            error: data_file.file.as_ref().err().map(ErrorFacts::of),
        }
    }
}

impl Recorded {
    fn of(link: &Link) -> Self {
        Self {
            text: link.shown().into_owned(),
            format: link.format.clone(),
        }
    }
}

impl ShownEnd {
    fn of(end: &End) -> Self {
        match end {
            End::Terminated => Self::Terminated,
            End::OpenEnded(OpenEnd::NotTraversable) => Self::OpenEnded {
                why: "not_traversable",
                recorded: None,
            },
            End::OpenEnded(OpenEnd::Credentials(link)) => Self::OpenEnded {
                why: "credentials",
                recorded: Some(Recorded::of(link)),
            },
            End::Broken(broken) => Self::Broken {
                error: ErrorFacts::of(&broken.error),
                recorded: broken.link.as_ref().map(Recorded::of),
                name: broken.source.as_ref().map(ToString::to_string),
                probed_format: broken.probed.as_ref().map(|(format, _)| format.as_str()),
            },
        }
    }
}

/// The name a reader of the chain knows it by: as its overlay records it where that is a plain name, else its own.
fn name(layer: &Layer) -> String {
    match &layer.link {
        Some(link) if layer.path().is_some() && !link.text.contains(':') => link.text.clone(),
        _ => layer.name(),
    }
}

fn consent_word(consent: Consent) -> &'static str {
    match consent {
        Consent::UserArgument => "user_argument",
        Consent::Leaf => "leaf",
        Consent::Qed => "qed",
        Consent::Trusted => "trusted",
    }
}
