//! Limits of throughput, by libvirt's words and by QEMU's.

use crate::model::ThrottleGroup;
use serde_json::{Map, Value, json};

/// What can be limited in libvirt's words, each with QEMU's, in the order in which QEMU gets them.
pub(crate) const LIMITS: [(&str, &str); 13] = [
    ("total_bytes_sec", "bps-total"),
    ("read_bytes_sec", "bps-read"),
    ("write_bytes_sec", "bps-write"),
    ("total_iops_sec", "iops-total"),
    ("read_iops_sec", "iops-read"),
    ("write_iops_sec", "iops-write"),
    ("total_bytes_sec_max", "bps-total-max"),
    ("read_bytes_sec_max", "bps-read-max"),
    ("write_bytes_sec_max", "bps-write-max"),
    ("total_iops_sec_max", "iops-total-max"),
    ("read_iops_sec_max", "iops-read-max"),
    ("write_iops_sec_max", "iops-write-max"),
    ("size_iops_sec", "iops-size"),
];
/// For how many seconds the highest may be reached.
pub(crate) const LENGTHS: [(&str, &str); 6] = [
    ("total_bytes_sec_max_length", "bps-total-max-length"),
    ("read_bytes_sec_max_length", "bps-read-max-length"),
    ("write_bytes_sec_max_length", "bps-write-max-length"),
    ("total_iops_sec_max_length", "iops-total-max-length"),
    ("read_iops_sec_max_length", "iops-read-max-length"),
    ("write_iops_sec_max_length", "iops-write-max-length"),
];

impl ThrottleGroup {
    /// What of a limit is given; 0 where it is none.
    pub(crate) fn limit(&self, word: &str) -> u64 {
        let found = self.limits.iter().find(|(known, _)| *known == word);
        found.map_or(0, |(_, limit)| *limit)
    }

    /// QEMU's name for the group.
    pub(crate) fn id(name: &str) -> String {
        format!("throttle-{name}")
    }

    /// The object that QEMU gets for it.
    pub(crate) fn object(&self) -> Value {
        let mut limits = Map::new();
        for (word, key) in LIMITS {
            limits.insert(key.to_owned(), self.limit(word).into());
        }
        for (word, key) in LENGTHS {
            let length = self.limit(word);
            if length > 0 {
                limits.insert(key.to_owned(), length.into());
            }
        }
        json!({"qom-type": "throttle-group", "id": Self::id(&self.name), "limits": limits})
    }
}
