//! The snapshot table: internal snapshots, each with an L1 table of its own.

use super::header::Header;
use super::raw;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::limits;
use zerocopy::FromBytes;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The unique id, usually a small number as text; lossily decoded.
    pub id: String,
    /// The name, lossily decoded.
    pub name: String,
    /// Offset of its L1 table.
    pub l1_offset: u64,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Seconds since the epoch at which it was taken.
    pub date_sec: u32,
    /// Nanoseconds of the time.
    pub date_nsec: u32,
    /// Nanoseconds the guest had been running.
    pub vm_clock_nsec: u64,
    /// Bytes of saved VM state, kept behind the end of the virtual disk.
    pub vm_state_size: u64,
    /// Virtual size when it was taken.
    pub virtual_size: u64,
    /// Instructions the guest had executed, where it was counted.
    pub icount: Option<u64>,
}

impl Snapshot {
    /// Reads the whole snapshot table of an image, at most [`limits::QCOW2_SNAPSHOT_TABLE_BYTES`].
    pub fn read_all(header: &Header, bytes: &dyn Bytes) -> Result<Vec<Self>> {
        let mut snapshots = Vec::new();
        let mut offset = header.snapshots_offset;
        for _ in 0..header.snapshot_count.min(limits::QCOW2_SNAPSHOTS) {
            let (snapshot, len) = Self::read(header, bytes, offset)?;
            offset = offset.saturating_add(len);
            if offset - header.snapshots_offset > limits::QCOW2_SNAPSHOT_TABLE_BYTES {
                return Err(Error::too_large("snapshot table too large").at(header.snapshots_offset));
            }
            snapshots.push(snapshot);
        }
        Ok(snapshots)
    }

    /// Reads one entry, and tells how many bytes it takes up with its padding.
    fn read(header: &Header, bytes: &dyn Bytes, offset: u64) -> Result<(Self, u64)> {
        const FIXED: usize = size_of::<raw::SnapshotEntry>();
        let fixed = bytes.read_exact(offset, FIXED)?;
        let raw = raw::SnapshotEntry::read_from_bytes(&fixed)
            .map_err(|_| Error::truncated("snapshot entry").at(offset))?;
        if raw.extra_data_size.get() > limits::QCOW2_SNAPSHOT_EXTRA_BYTES {
            return Err(Error::too_large("too much extra metadata in snapshot table entry").at(offset));
        }
        let (extra_len, id_len, name_len) = (
            raw.extra_data_size.get() as usize,
            usize::from(raw.id_str_size.get()),
            usize::from(raw.name_size.get()),
        );
        let tail = bytes.read_exact(offset.saturating_add(FIXED as u64), extra_len + id_len + name_len)?;
        let (extra, strings) = tail.split_at_checked(extra_len).unwrap_or_default();
        let (id, name) = strings.split_at_checked(id_len).unwrap_or_default();
        let extra_u64 = |index: usize| {
            extra
                .chunks_exact(8)
                .nth(index)
                .and_then(|chunk| chunk.try_into().ok())
                .map(u64::from_be_bytes)
        };
        let l1_bytes = u64::from(raw.l1_size.get()) * 8;
        if l1_bytes > limits::QCOW2_L1_BYTES {
            return Err(Error::too_large("snapshot L1 table too large").at(offset));
        }
        if header.cluster_bits.offset_in_cluster(raw.l1_table_offset.get()) != 0 {
            return Err(Error::invalid("snapshot L1 table offset is not cluster-aligned").at(offset));
        }
        let snapshot = Self {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            l1_offset: raw.l1_table_offset.get(),
            l1_entries: raw.l1_size.get(),
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
            vm_state_size: extra_u64(0).unwrap_or_else(|| raw.vm_state_size.get().into()),
            virtual_size: extra_u64(1).unwrap_or(header.virtual_size),
            icount: extra_u64(2).filter(|count| *count != u64::MAX),
        };
        Ok((snapshot, ((FIXED + tail.len()) as u64).next_multiple_of(8)))
    }
}
