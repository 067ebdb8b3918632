//! Where the references of an image begin: its header, and the tables that the header names.

use super::finding::FindingKind;
use super::found::{Found, Room};
use crate::bytes::StorageBytes;
use crate::error::Result;
use catena_format::qcow2::{Bitmap, Header, SnapshotRecord, Version};
use catena_format::{Bytes, limits};
use catena_storage::Storage;
use std::io;

/// What the two 64-bit fields of a version 3 snapshot's extra data take up.
const SNAPSHOT_EXTRA_BYTES: usize = 16;

/// Everything a walk starts from. It need not be what is on disk.
#[derive(Clone, Debug)]
pub(in crate::qcow2) struct Roots {
    /// The header.
    pub header: Header,
    /// The entries of the snapshot table.
    pub snapshots: Vec<SnapshotRecord>,
    /// Bytes of the snapshot table.
    pub snapshots_len: u64,
    /// The persistent bitmaps, as far as they are believed.
    pub bitmaps: Vec<Bitmap>,
}

impl Roots {
    /// Reads the roots of an image. A snapshot table or bitmap directory that cannot be read is a finding, and counts
    /// as empty.
    pub fn read(storage: &dyn Storage, room: &Room, found: &mut Found) -> Result<Self> {
        let header = Header::read(&StorageBytes::new(storage)?)?;
        header.check_readable()?;
        let endless = Endless(storage);
        let mut roots = Self {
            header,
            snapshots: Vec::new(),
            snapshots_len: 0,
            bitmaps: Vec::new(),
        };
        roots.read_snapshots(&endless, room, found);
        if roots.bitmaps_believed() {
            match Bitmap::read_all(&roots.header, &endless) {
                Ok(bitmaps) => roots.bitmaps = bitmaps,
                Err(error) => found.push(
                    room,
                    FindingKind::Bitmaps {
                        why: error.to_string(),
                    },
                ),
            }
        }
        Ok(roots)
    }

    /// Whether the bitmaps are those of the disk as it is; if not, their space is leaked.
    pub fn bitmaps_believed(&self) -> bool {
        use catena_format::qcow2::Autoclear;
        self.header.bitmaps().is_some() && self.header.autoclear.contains(Autoclear::BITMAPS)
    }

    fn read_snapshots(&mut self, bytes: &Endless<'_>, room: &Room, found: &mut Found) {
        let start = self.header.snapshots_offset;
        let mut offset = start;
        for index in 0..self.header.snapshot_count {
            let failure = match SnapshotRecord::read(bytes, offset) {
                Ok((_, next)) if next - start > limits::QCOW2_SNAPSHOT_TABLE_BYTES => {
                    FindingKind::SnapshotTable {
                        why: "Snapshot table is too big".to_owned(),
                        hint: Some(format!(
                            "You can force-remove all {} overhanging snapshots with qemu-img check -r all",
                            self.header.snapshot_count - index
                        )),
                    }
                }
                Ok((record, next)) => {
                    let fields = record.id.len() + record.name.len() + record.extra.len();
                    self.snapshots_len = offset - start + 40 + fields as u64;
                    offset = next;
                    self.snapshots.push(record);
                    continue;
                }
                Err(error) if error.kind() == catena_format::ErrorKind::TooLarge => {
                    FindingKind::SnapshotTable {
                        why: format!("Too much extra metadata in snapshot table entry {index}"),
                        hint: Some(
                            "You can force-remove this extra metadata with qemu-img check -r all".to_owned(),
                        ),
                    }
                }
                Err(_) => FindingKind::SnapshotTable {
                    why: "Failed to read snapshot table".to_owned(),
                    hint: None,
                },
            };
            found.push(room, failure);
            self.snapshots = Vec::new();
            self.snapshots_len = 0;
            return;
        }
        if self.header.version == Version::V3 {
            for (index, record) in (0..).zip(&self.snapshots) {
                if record.extra.len() < SNAPSHOT_EXTRA_BYTES {
                    found.push(room, FindingKind::SnapshotIncomplete { index });
                }
            }
        }
    }
}

/// A store as QEMU reads it: what lies past the end is zeros.
pub(in crate::qcow2) struct Endless<'a>(pub &'a dyn Storage);

impl Endless<'_> {
    /// Fills `buf` from `offset`.
    pub fn fill(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.0.read_at(buf, offset)?;
        if let Some(rest) = buf.get_mut(read..) {
            rest.fill(0);
        }
        Ok(())
    }
}

impl Bytes for Endless<'_> {
    fn len(&self) -> u64 {
        i64::MAX as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.fill(buf, offset).map_err(io::Error::other)?;
        Ok(buf.len())
    }
}
