//! What headers said when they were read last, so that they need not be read again.
//!
//! Never needed: an index that is missing, damaged or old only costs time. A header is believed to be what it was as long as
//! its file has the same identity, length and times; a change that leaves all of these cannot be told from none, so what
//! decides over data reads the headers themselves. It also tells where an image was that named another: a hint where to look.

use super::header::{Header, Recorded};
use super::stamps;
use super::walk::Stat;
use catena_engine::{Error, Result};
use catena_format::Format;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Changes with what is stored.
const VERSION: u32 = 2;
/// A file that changed so shortly before its header was read may change again within the same tick of its clock.
const SETTLED: i128 = 2_000_000_000;
/// An index that is longer is not ours.
const MOST: u64 = 1 << 30;

/// Headers by the files they were in.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    known: HashMap<(u64, u64), Known>,
    learned: Mutex<Vec<Known>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Where it was, from the root.
    path: PathBuf,
    object: (u64, u64),
    len: u64,
    modified: i128,
    changed: i128,
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backing: Option<(Vec<String>, Option<String>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<stamps::Known>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    images: Vec<Known>,
}

impl Index {
    /// Reads an index; an empty one where there is none, or none that makes sense.
    pub fn load(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let stored = read(&path).filter(|stored| stored.version == VERSION);
        let known = stored.map_or_else(Vec::new, |stored| stored.images);
        Self {
            path,
            known: known.into_iter().map(|known| (known.object, known)).collect(),
            learned: Mutex::default(),
        }
    }

    /// Writes it with what was learned, beside the old one, and then in its place. Where nothing was, nothing is done.
    pub fn store(self) -> Result<()> {
        let learned = self.learned.into_inner().unwrap_or_else(PoisonError::into_inner);
        if learned.is_empty() {
            return Ok(());
        }
        let mut known = self.known;
        known.extend(learned.into_iter().map(|known| (known.object, known)));
        let mut images: Vec<_> = known.into_values().collect();
        images.sort_unstable_by_key(|known| known.object);
        let stored = Stored {
            version: VERSION,
            images,
        };
        let failed = |error: std::io::Error| {
            Error::from(catena_storage::Error::from_io(error, "store").with_path(&self.path))
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        let written = std::fs::File::create(&part).and_then(|file| {
            let mut out = BufWriter::new(file);
            serde_json::to_writer(&mut out, &stored)?;
            out.flush()?;
            std::fs::rename(&part, &self.path)
        });
        written.map_err(|error| {
            // It would be of no use to anybody.
            let _ = std::fs::remove_file(&part);
            failed(error)
        })
    }

    /// Where images were, and still is something, that named others by one of these file names; by their real names.
    pub(super) fn that_name(&self, files: &BTreeSet<OsString>) -> Vec<PathBuf> {
        let files: Vec<_> = files.iter().filter_map(|file| file.to_str()).collect();
        let known = self.known.values().filter(|known| {
            let backing = known.backing.iter().flat_map(|(names, _)| names);
            let mut named = backing.chain(&known.data_file);
            named.any(|name| files.iter().any(|file| name.contains(file)))
        });
        let mut paths: Vec<_> = known
            .filter_map(|known| std::fs::canonicalize(&known.path).ok())
            .collect();
        paths.sort_unstable();
        paths
    }

    pub(super) fn get(&self, path: &Path, stat: &Stat) -> Option<Header> {
        let known = self.known.get(&stat.object)?;
        let same = (known.len, known.modified, known.changed) == (stat.len, stat.modified, stat.changed);
        // One that was moved is learned anew.
        if !same || stat.block_device || absolute(path)? != known.path {
            return None;
        }
        Some(Header {
            format: Format::from_qemu(&known.format)?,
            virtual_size: known.size,
            backing: known.backing.clone().map(|(names, format)| Recorded {
                names: names.into_iter().map(String::into_bytes).collect(),
                format,
            }),
            data_file: known.data_file.clone().map(String::into_bytes),
            stamp: known.stamp,
            trouble: None,
        })
    }

    pub(super) fn learn(&self, path: &Path, stat: &Stat, header: &Header) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled = stat.changed.max(stat.modified) + SETTLED < i128::try_from(now.as_nanos()).unwrap_or(0);
        if !settled || stat.block_device || header.trouble.is_some() {
            return;
        }
        // A name that is no text would not come back as it was.
        let text = |name: &Vec<u8>| String::from_utf8(name.clone()).ok();
        let backing = match &header.backing {
            None => None,
            Some(recorded) => {
                let Some(names) = recorded.names.iter().map(text).collect() else {
                    return;
                };
                Some((names, recorded.format.clone()))
            }
        };
        let data_file = match header.data_file.as_ref().map(text) {
            Some(None) => return,
            name => name.flatten(),
        };
        let Some(path) = absolute(path) else { return };
        let known = Known {
            path,
            object: stat.object,
            len: stat.len,
            modified: stat.modified,
            changed: stat.changed,
            format: header.format.as_str().to_owned(),
            size: header.virtual_size,
            backing,
            data_file,
            stamp: header.stamp,
        };
        self.learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(known);
    }
}

/// The name from the root; `None` for one that is no text, which would not come back as it was.
fn absolute(path: &Path) -> Option<PathBuf> {
    path.to_str()?;
    std::path::absolute(path).ok()
}

fn read(path: &Path) -> Option<Stored> {
    let file = std::fs::File::open(path).ok()?;
    if file.metadata().ok()?.len() > MOST {
        return None;
    }
    serde_json::from_reader(BufReader::new(file)).ok()
}
