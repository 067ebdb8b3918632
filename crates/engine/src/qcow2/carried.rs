//! Guest data that the kernel puts into the image's clusters, without its bytes passing through this process.
//!
//! Only whole clusters are written so: there is nothing around them to be copied, and nothing in them to be kept.

use super::disk::Qcow2Disk;
use super::lookup::Found;
use crate::error::Result;
use catena_storage::{Carry, Storage, carry};

impl Qcow2Disk {
    /// Has the kernel move what is at `from_offset` to `start..end`, and tells how much from the start on it did.
    pub(super) fn carry_guest(
        &self,
        how: Carry,
        from: &dyn Storage,
        from_offset: u64,
        start: u64,
        end: u64,
    ) -> Result<u64> {
        let size = self.cluster_size();
        // The rest of the last cluster would have to come from elsewhere.
        let end = end - end % size;
        if self.encrypted || !start.is_multiple_of(size) || start >= end {
            return Ok(0);
        }
        self.prepare(start..end)?;
        let _inside = self.enter();
        let mut at = start;
        while at < end {
            let place = from_offset.saturating_add(at - start);
            let (found, len) = self.look_up(at, end).map_err(|error| self.damaged(error))?;
            let (wanted, carried) = match found {
                Found::Data { host, own: true } => {
                    self.check_data_place(host, len)?;
                    let carried = self.attempt(carry(how, from, place, self.data_storage(), host, len))?;
                    self.wrote(host, carried);
                    (len, carried)
                }
                _ => self.carry_elsewhere(how, from, place, at, end)?,
            };
            at += carried;
            if carried < wanted {
                break;
            }
        }
        Ok(at - start)
    }

    /// The same for clusters that have no place yet: how much was tried, and how much was done.
    fn carry_elsewhere(
        &self,
        how: Carry,
        from: &dyn Storage,
        place: u64,
        at: u64,
        end: u64,
    ) -> Result<(u64, u64)> {
        let Some(group) = self.claim(at, end - at)? else {
            // Others have given it a place by now.
            return Ok((0, 0));
        };
        let len = group.clusters() * self.cluster_size();
        let host = group.host();
        let carried = self
            .check_data_place(host, len)
            .and_then(|()| self.carry_all(how, from, place, host, len));
        match carried {
            Ok(true) => {
                self.wrote(host, len);
                self.finish(&group, at..at + len, Ok(())).map(|()| (len, len))
            }
            Ok(false) => {
                self.abandon(&group);
                Ok((len, 0))
            }
            Err(error) => self.finish(&group, at..at + len, Err(error)).map(|()| (len, 0)),
        }
    }

    fn carry_all(&self, how: Carry, from: &dyn Storage, place: u64, host: u64, len: u64) -> Result<bool> {
        let mut done = 0;
        while done < len {
            let carried = carry(
                how,
                from,
                place + done,
                self.data_storage(),
                host + done,
                len - done,
            );
            match self.attempt(carried)? {
                0 => return Ok(false),
                carried => done += carried,
            }
        }
        Ok(true)
    }
}
