//! The snapshot table: internal snapshots, each with an L1 table of its own.
//!
//! [`Snapshot`] is what one says; [`Record`] is its entry in the table word for word, as it is rewritten without losing
//! what is not understood.

use super::header::Header;
use super::raw;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::limits;
use zerocopy::{FromBytes, IntoBytes};

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
        Record::each(header, bytes, |record, offset| {
            record.check(header).map_err(|error| error.at(offset))?;
            snapshots.push(record.snapshot(header));
            Ok(())
        })?;
        Ok(snapshots)
    }
}

/// An entry of the snapshot table, its strings and extra data as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The unique id.
    pub id: Vec<u8>,
    /// The name.
    pub name: Vec<u8>,
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
    /// Bytes of saved VM state in the old 32-bit field, superseded by the extra data.
    pub vm_state_size: u32,
    /// The extra data: 64-bit size of the VM state, virtual size, instruction count, and whatever comes after.
    pub extra: Vec<u8>,
}

impl Record {
    /// Reads the whole snapshot table like [`Snapshot::read_all`], whatever the entries say of their L1 tables: to tell which
    /// snapshots there are, those are not needed. See [`Record::check`].
    pub fn read_all(header: &Header, bytes: &dyn Bytes) -> Result<Vec<Self>> {
        let mut records = Vec::new();
        Self::each(header, bytes, |record, _| {
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    }

    /// Goes through the table, at most [`limits::QCOW2_SNAPSHOT_TABLE_BYTES`] of it: each entry with its offset.
    fn each(header: &Header, bytes: &dyn Bytes, mut take: impl FnMut(Self, u64) -> Result<()>) -> Result<()> {
        let mut offset = header.snapshots_offset;
        for _ in 0..header.snapshot_count.min(limits::QCOW2_SNAPSHOTS) {
            let (record, next) = Self::read(bytes, offset)?;
            if next - header.snapshots_offset > limits::QCOW2_SNAPSHOT_TABLE_BYTES {
                return Err(Error::too_large("snapshot table too large").at(header.snapshots_offset));
            }
            take(record, offset)?;
            offset = next;
        }
        Ok(())
    }

    /// Reads one entry, and tells where the next one begins. Its L1 table is not looked at: see [`Record::check`].
    pub fn read(bytes: &dyn Bytes, offset: u64) -> Result<(Self, u64)> {
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
        let record = Self {
            id: id.to_vec(),
            name: name.to_vec(),
            l1_offset: raw.l1_table_offset.get(),
            l1_entries: raw.l1_size.get(),
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
            vm_state_size: raw.vm_state_size.get(),
            extra: extra.to_vec(),
        };
        let len = ((FIXED + tail.len()) as u64).next_multiple_of(8);
        let next = offset
            .checked_add(len)
            .ok_or_else(|| Error::invalid("snapshot table out of range"))?;
        Ok((record, next))
    }

    /// Whether its L1 table is one that can be: short enough, and at the start of a cluster.
    pub fn check(&self, header: &Header) -> Result<()> {
        if u64::from(self.l1_entries) * 8 > limits::QCOW2_L1_BYTES {
            return Err(Error::too_large("snapshot L1 table too large"));
        }
        if header.cluster_bits.offset_in_cluster(self.l1_offset) != 0 {
            return Err(Error::invalid("snapshot L1 table offset is not cluster-aligned"));
        }
        Ok(())
    }

    /// What the entry says. `header` tells the virtual size where the entry does not.
    pub fn snapshot(&self, header: &Header) -> Snapshot {
        Snapshot {
            id: String::from_utf8_lossy(&self.id).into_owned(),
            name: String::from_utf8_lossy(&self.name).into_owned(),
            l1_offset: self.l1_offset,
            l1_entries: self.l1_entries,
            date_sec: self.date_sec,
            date_nsec: self.date_nsec,
            vm_clock_nsec: self.vm_clock_nsec,
            vm_state_size: self.extra_u64(0).unwrap_or_else(|| self.vm_state_size.into()),
            virtual_size: self.extra_u64(1).unwrap_or(header.virtual_size),
            icount: self.extra_u64(2).filter(|count| *count != u64::MAX),
        }
    }

    /// Number `index` of the 64-bit fields in the extra data, where it reaches that far.
    pub fn extra_u64(&self, index: usize) -> Option<u64> {
        let field = self.extra.chunks_exact(8).nth(index)?;
        field.try_into().ok().map(u64::from_be_bytes)
    }

    /// The bytes of the entry with its padding to 8 bytes. Fails where a string or the extra data is too long for its
    /// field.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let too_long = |_| Error::too_large("a snapshot's id or name is too long");
        let raw = raw::SnapshotEntry {
            l1_table_offset: self.l1_offset.into(),
            l1_size: self.l1_entries.into(),
            id_str_size: u16::try_from(self.id.len()).map_err(too_long)?.into(),
            name_size: u16::try_from(self.name.len()).map_err(too_long)?.into(),
            date_sec: self.date_sec.into(),
            date_nsec: self.date_nsec.into(),
            vm_clock_nsec: self.vm_clock_nsec.into(),
            vm_state_size: self.vm_state_size.into(),
            extra_data_size: u32::try_from(self.extra.len()).map_err(too_long)?.into(),
        };
        let mut out = raw.as_bytes().to_vec();
        for part in [&self.extra, &self.id, &self.name] {
            out.extend_from_slice(part);
        }
        out.resize(out.len().next_multiple_of(8), 0);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let record = Record {
            id: b"17".to_vec(),
            name: b"before \xff the update".to_vec(),
            l1_offset: 0x5_0000,
            l1_entries: 3,
            date_sec: 1,
            date_nsec: 2,
            vm_clock_nsec: 3,
            vm_state_size: 4,
            extra: [[0, 0, 0, 0, 0, 0, 0, 9u8]; 4].concat(),
        };
        let bytes = record.encode().unwrap();
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(
            Record::read(&bytes, 0).unwrap(),
            (record.clone(), bytes.len() as u64)
        );
        assert_eq!(record.extra_u64(3), Some(9));
        assert!(Record::read(&bytes[..bytes.len() - 8].to_vec(), 0).is_err());
        let long = Record {
            name: vec![b'x'; 1 << 16],
            ..record
        };
        assert!(long.encode().is_err());
    }
}
