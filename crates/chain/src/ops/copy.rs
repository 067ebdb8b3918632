//! Moving bytes from one disk to another: what every operation does that copies.
//!
//! Pieces are read by several threads and written in order, unless the caller wants any order. What is read and turns out
//! zeros is not written as data. Nothing here decides which stretches are moved: that is [`super::pieces`] and the
//! operations.

use super::aligned::AlignedBytes;
use super::carried::{Carried, Offload};
use super::line::{Line, Next, processors};
use super::noise::is_noise;
use super::observer::Observer;
use super::passed::{Streams, streams};
use super::pieces::{PIECE, Piece, Place, What};
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Carriage, Disk, Error, ErrorKind, FileRole, GuestOffset, Result, Unmap, WritableDisk};
use catena_storage::{Alignment, Carry};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pieces that are moved at once unless told otherwise; qemu-img's number.
pub const THREADS: usize = 8;
/// The shortest run of zeros that is looked for in data unless told otherwise, in bytes; qemu-img's number.
pub const SPARSE: u64 = 4096;
/// Bytes that are written before they are sent on their way to the medium.
const EARLY: u64 = 4 << 20;
/// Guests see whole sectors.
pub(super) const SECTOR: u64 = 512;

/// How bytes are moved.
#[derive(Clone, Debug)]
pub struct Moving {
    /// The shortest run of zeros in data that is not written as data, in bytes. 0: everything is written, zeros too.
    pub sparse: u64,
    /// Pieces that are moved at once.
    pub threads: usize,
    /// Whether pieces may be written in any order: faster on some media, and the target lies there in that order.
    pub any_order: bool,
    /// Most bytes a second.
    pub rate: Option<u64>,
    /// What is left to the kernel.
    pub offload: Offload,
    /// Whether what cannot be read is made zeros, and told to the observer, instead of failing.
    pub salvage: bool,
}

impl Default for Moving {
    fn default() -> Self {
        Self {
            sparse: SPARSE,
            threads: THREADS,
            any_order: false,
            rate: None,
            offload: Offload::default(),
            salvage: false,
        }
    }
}

/// What is done about zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// Nothing: the target reads as zeros there already.
    Skip,
    /// The target is told.
    Write(Unmap),
    /// Before that address they are bytes like others, behind it the target is told.
    WriteBehind(u64, Unmap),
}

/// Adds to an error that there is no space what to do about it, where the operation goes on from what was copied.
pub(super) fn goes_on_with_room(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NoSpace if error.hint().is_none() => error.with_hint(
            "every guest sees what it saw, and what was copied stays: make room, and run the same command again",
        ),
        _ => error,
    }
}

/// A copy: from where, to where, and how.
pub(super) struct Copy<'a> {
    pub source: &'a dyn Disk,
    pub target: &'a dyn WritableDisk,
    pub moving: &'a Moving,
    pub zeros: Zeros,
    /// Aligned units of this size are data or zeros as a whole; at least one sector.
    pub unit: u64,
    /// The target where its clusters are to be compressed; pieces are whole clusters then, and `unit` is one.
    pub compressed: Option<&'a Qcow2Disk>,
    pub observer: &'a dyn Observer,
    /// Bytes that will be moved, for the observer.
    pub total: u64,
}

/// What a thread holds.
#[derive(Default)]
pub(super) struct Buffer {
    /// A piece of the source.
    pub bytes: AlignedBytes,
    /// What it is held against, where it is.
    pub other: AlignedBytes,
    /// The piece's clusters, where they are compressed.
    packed: Vec<Packed>,
    /// The bytes of those of them that are.
    streams: Streams,
}

/// What becomes of a cluster.
enum Packed {
    /// Nothing: it is there already.
    Same,
    Zero,
    Plain,
    Compressed(Range<usize>),
}

impl Copy<'_> {
    /// Moves the pieces, by the kernel's means where it has some. Those that are copied may be of any length: they are cut up here.
    pub fn run(&self, pieces: impl Iterator<Item = Result<Piece>> + Send) -> Result<()> {
        match self.offload() {
            Some((how, carriage)) => self.run_any(Carried::new(pieces, self.source, how, carriage), how),
            None => self.run_any(pieces, Carry::Copy),
        }
    }

    /// What the kernel is asked for, and what the target can have done.
    pub fn offload(&self) -> Option<(Carry, Carriage)> {
        // A rate is kept, and sectors that cannot be read are told, piece by piece.
        if self.compressed.is_some() || self.moving.salvage || self.moving.rate.is_some() {
            return None;
        }
        self.moving.offload.to(self.target)
    }

    fn run_any(&self, pieces: impl Iterator<Item = Result<Piece>> + Send, how: Carry) -> Result<()> {
        self.run_with(
            pieces,
            |piece, buffer| {
                if self.take_packed(piece, buffer)? {
                    return Ok(());
                }
                self.read(piece, buffer)?;
                self.pack(piece.start, buffer, |_, _| false);
                Ok(())
            },
            |piece, buffer| match piece.what {
                What::Carry(place) => self.carry(piece, place, how),
                _ => self.write(piece, buffer),
            },
        )
    }

    /// Has the kernel move a piece, and copies what it leaves.
    fn carry(&self, piece: &Piece, place: Place, how: Carry) -> Result<()> {
        let mut at = piece.start;
        if let Some(store) = self.source.store(place.layer, place.file) {
            while at < piece.end {
                let offset = place.offset.plus(at - piece.start).0;
                let left = piece.end - at;
                match self
                    .target
                    .write_from(how, store, offset, GuestOffset(at), left)?
                {
                    0 => break,
                    carried => at = at.saturating_add(carried),
                }
                self.observer.check()?;
            }
        }
        let mut buffer = Buffer::default();
        while at < piece.end {
            self.observer.check()?;
            let rest = Piece {
                what: What::Copy,
                start: at,
                end: (at / PIECE + 1).saturating_mul(PIECE).min(piece.end),
            };
            self.read(&rest, &mut buffer)?;
            self.write(&rest, &buffer)?;
            at = rest.end;
        }
        Ok(())
    }

    /// Moves what of the pieces differs from what `read_other` reads beside them.
    pub fn run_differences(
        &self,
        pieces: impl Iterator<Item = Result<Piece>> + Send,
        read_other: impl Fn(&Piece, &mut AlignedBytes) -> Result<()> + Sync,
    ) -> Result<()> {
        let unit = index(self.unit);
        self.run_with(
            pieces,
            |piece, buffer| {
                self.read(piece, buffer)?;
                read_other(piece, &mut buffer.other)?;
                let other = std::mem::take(&mut buffer.other);
                self.pack(piece.start, buffer, |number, cluster| {
                    buffer_part(&other, number.saturating_mul(unit), unit) == cluster
                });
                buffer.other = other;
                Ok(())
            },
            |piece, buffer| match piece.what {
                What::Copy if self.compressed.is_none() => self.write_differences(piece, buffer),
                _ => self.write(piece, buffer),
            },
        )
    }

    fn run_with(
        &self,
        pieces: impl Iterator<Item = Result<Piece>> + Send,
        prepare: impl Fn(&Piece, &mut Buffer) -> Result<()> + Sync,
        write: impl Fn(&Piece, &Buffer) -> Result<()> + Sync,
    ) -> Result<()> {
        let done = AtomicU64::new(0);
        let pace = Pace::new(self.moving.rate);
        self.observer.progress(0, self.total);
        self.line().run(
            pieces,
            Piece::weight,
            |piece, buffer: &mut Buffer| match piece.what {
                What::Copy => prepare(piece, buffer),
                What::Carry(_) | What::Zero | What::Skip => Ok(()),
            },
            |piece, buffer| {
                write(piece, buffer)?;
                if matches!(piece.what, What::Copy | What::Carry(_)) {
                    let now = done
                        .fetch_add(piece.len(), Ordering::Relaxed)
                        .saturating_add(piece.len());
                    self.observer.progress(now.min(self.total), self.total);
                    // Every operation ends with a flush, or with a target whose flushes do nothing.
                    if piece.what == What::Copy && now % EARLY < piece.len() {
                        self.target.begin_flush();
                    }
                    pace.passed(piece.len(), self.observer)?;
                }
                Ok(Next::Go)
            },
        )
    }

    /// Takes those of a piece's clusters as they are that are compressed already in the target's way, and reads and compresses the others.
    /// `false` where there are none such, and nothing was done.
    fn take_packed(&self, piece: &Piece, buffer: &mut Buffer) -> Result<bool> {
        let Some(disk) = self.compressed.filter(|_| !self.moving.salvage) else {
            return Ok(false);
        };
        buffer.streams.clear();
        let streams = streams(self.source, disk, piece, &mut buffer.streams)?;
        if streams.iter().all(Option::is_none) {
            return Ok(false);
        }
        buffer.bytes.resize(piece.len());
        buffer.packed.clear();
        let mut at = piece.offset();
        for (cluster, stream) in buffer.bytes.chunks_mut(index(self.unit)).zip(streams) {
            buffer.packed.push(match stream {
                Some(stream) => Packed::Compressed(stream),
                None => {
                    self.source.read_at(cluster, at)?;
                    self.packed(disk, at.0, cluster, &mut buffer.streams)
                }
            });
            at = at.plus(cluster.len() as u64);
        }
        Ok(true)
    }

    /// Compresses the clusters of a piece that has been read, if they are to be.
    fn pack(&self, start: u64, buffer: &mut Buffer, is_same: impl Fn(usize, &[u8]) -> bool) {
        buffer.packed.clear();
        buffer.streams.clear();
        let Some(disk) = self.compressed else { return };
        let (bytes, streams) = (&buffer.bytes, &mut buffer.streams);
        let clusters = bytes.chunks(index(self.unit)).enumerate();
        let packed = clusters.map(|(number, cluster)| {
            let at = start.saturating_add((number as u64).saturating_mul(self.unit));
            if is_same(number, cluster) {
                Packed::Same
            } else {
                self.packed(disk, at, cluster, streams)
            }
        });
        buffer.packed.extend(packed);
    }

    fn packed(&self, disk: &Qcow2Disk, at: u64, cluster: &[u8], streams: &mut Streams) -> Packed {
        if self.seeks_zeros(at) && is_zero(cluster) {
            return Packed::Zero;
        }
        if is_noise(cluster) {
            return Packed::Plain;
        }
        let compressed = streams.add(index(self.unit), |out| {
            disk.compress(cluster, GuestOffset(at), out).ok_or(())
        });
        compressed.map_or(Packed::Plain, Packed::Compressed)
    }

    /// Whether zeros that are read at an address are more than bytes.
    fn seeks_zeros(&self, at: u64) -> bool {
        match self.zeros {
            Zeros::WriteBehind(from, _) => at >= from,
            Zeros::Skip | Zeros::Write(_) => self.moving.sparse > 0,
        }
    }

    pub fn line(&self) -> Line<'_> {
        Line {
            threads: match self.compressed {
                Some(_) => self.moving.threads,
                // The page cache is as busy as the processors; more threads would only push each other's bytes out of their caches.
                None if self.is_cached() => self.moving.threads.min(processors()),
                None => self.moving.threads,
            },
            in_order: !self.moving.any_order,
            observer: self.observer,
        }
    }

    /// Whether reading the source reads ahead, as far as its active image tells.
    fn is_cached(&self) -> bool {
        let store = self.source.store(0, FileRole::Image);
        store.is_some_and(|store| store.descriptor().is_some() && store.alignment() == Alignment::NONE)
    }

    /// Fills the buffer with a piece of the source.
    pub fn read(&self, piece: &Piece, buffer: &mut Buffer) -> Result<()> {
        buffer.bytes.resize(piece.len());
        match self.source.read_at(&mut buffer.bytes, piece.offset()) {
            Err(_) if self.moving.salvage => self.read_what_can_be(piece, &mut buffer.bytes),
            other => other,
        }
    }

    /// Reads sector by sector; zeros where that fails.
    fn read_what_can_be(&self, piece: &Piece, bytes: &mut [u8]) -> Result<()> {
        let sector = usize::try_from(SECTOR).unwrap_or(512);
        let mut at = piece.offset();
        for part in bytes.chunks_mut(sector) {
            if let Err(error) = self.source.read_at(part, at) {
                self.observer.check()?;
                self.observer.unreadable(at, &error);
                part.fill(0);
            }
            at = at.plus(part.len() as u64);
        }
        Ok(())
    }

    /// Writes a piece: data as data, zeros as zeros.
    pub fn write(&self, piece: &Piece, buffer: &Buffer) -> Result<()> {
        match piece.what {
            What::Skip | What::Carry(_) => Ok(()),
            What::Zero => self.zero(piece.start, piece.end),
            What::Copy if self.compressed.is_some() => self.write_packed(piece, buffer),
            What::Copy if self.moving.sparse == 0 => self.target.write_at(&buffer.bytes, piece.offset()),
            What::Copy => self.write_sparse(piece, &buffer.bytes),
        }
    }

    fn write_packed(&self, piece: &Piece, buffer: &Buffer) -> Result<()> {
        let Some(disk) = self.compressed else {
            return Ok(());
        };
        let mut at = piece.start;
        // Compressed clusters in a row are written in one go.
        let mut row: Vec<&[u8]> = Vec::new();
        let write_row = |row: &mut Vec<&[u8]>, end: u64| {
            let len = (row.len() as u64).saturating_mul(self.unit);
            let written = disk.write_compressed_bytes(GuestOffset(end.saturating_sub(len)), row);
            row.clear();
            written
        };
        for packed in &buffer.packed {
            if let Packed::Compressed(range) = packed {
                row.push(buffer.streams.get(range));
                at = at.saturating_add(self.unit);
                continue;
            }
            write_row(&mut row, at)?;
            let next = at.saturating_add(self.unit).min(piece.end);
            match packed {
                Packed::Zero => self.zero(at, next)?,
                Packed::Plain => {
                    let from = usize::try_from(at.saturating_sub(piece.start)).unwrap_or(usize::MAX);
                    let cluster = buffer_part(&buffer.bytes, from, index(next.saturating_sub(at)));
                    self.target.write_at(cluster, GuestOffset(at))?;
                }
                Packed::Same | Packed::Compressed(_) => {}
            }
            at = next;
        }
        write_row(&mut row, at)
    }

    /// Writes the units of a piece that are not what is there already.
    fn write_differences(&self, piece: &Piece, buffer: &Buffer) -> Result<()> {
        let unit = index(self.unit);
        // Runs of units that all differ and are all data, or all zeros, go in one request.
        let mut run: Option<(bool, usize, usize)> = None;
        let write = |run: Option<(bool, usize, usize)>| -> Result<()> {
            let Some((zero, from, to)) = run else {
                return Ok(());
            };
            let bytes = buffer_part(&buffer.bytes, from, to - from);
            let offset = piece.offset().plus(from as u64);
            match self.zeros {
                Zeros::Write(unmap) | Zeros::WriteBehind(_, unmap) if zero => {
                    self.target.write_zeroes(offset, bytes.len() as u64, unmap)
                }
                _ => self.target.write_at(bytes, offset),
            }
        };
        let mut from = 0;
        // A piece may begin in the middle of a unit.
        let mut len = unit - usize::try_from(piece.start % self.unit).unwrap_or_default();
        while from < buffer.bytes.len() {
            let (ours, theirs) = (
                buffer_part(&buffer.bytes, from, len),
                buffer_part(&buffer.other, from, len),
            );
            let to = from + ours.len();
            if ours == theirs {
                write(run.take())?;
            } else {
                let zero = self.seeks_zeros(piece.start.saturating_add(from as u64)) && is_zero(ours);
                run = match run {
                    Some((kind, first, end)) if kind == zero && end == from => Some((kind, first, to)),
                    other => {
                        write(other)?;
                        Some((zero, from, to))
                    }
                };
            }
            (from, len) = (to, unit);
        }
        write(run)
    }

    fn write_sparse(&self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        // Where data begins that is not written yet, and where the zeros behind it do.
        let mut data: Option<u64> = None;
        let mut zeros: Option<u64> = None;
        let mut at = piece.start;
        let part = |from: u64, to: u64| {
            let index =
                |offset: u64| usize::try_from(offset.saturating_sub(piece.start)).unwrap_or(usize::MAX);
            bytes.get(index(from)..index(to)).unwrap_or_default()
        };
        while at < piece.end {
            let next = (at / self.unit + 1).saturating_mul(self.unit).min(piece.end);
            if is_zero(part(at, next)) {
                zeros.get_or_insert(at);
            } else {
                if let Some(from) = zeros.take()
                    && (data.is_none() || at - from >= self.moving.sparse)
                {
                    if let Some(data) = data.take() {
                        self.target.write_at(part(data, from), GuestOffset(data))?;
                    }
                    self.zero(from, at)?;
                }
                data.get_or_insert(at);
            }
            at = next;
        }
        let data_end = zeros.unwrap_or(piece.end);
        if let Some(data) = data {
            self.target.write_at(part(data, data_end), GuestOffset(data))?;
        }
        zeros.map_or(Ok(()), |from| self.zero(from, piece.end))
    }

    fn zero(&self, from: u64, to: u64) -> Result<()> {
        match self.zeros {
            Zeros::Skip => Ok(()),
            Zeros::Write(unmap) | Zeros::WriteBehind(_, unmap) => {
                self.target
                    .write_zeroes(GuestOffset(from), to.saturating_sub(from), unmap)
            }
        }
    }
}

/// At most so many bytes of a buffer from an index on.
fn buffer_part(bytes: &[u8], from: usize, len: usize) -> &[u8] {
    let rest = bytes.get(from..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).max(1)
}

/// Whether all bytes are zeros.
pub fn is_zero(bytes: &[u8]) -> bool {
    const BLOCK: usize = 4096;
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    // Data mostly shows in its first bytes.
    bytes.first().is_none_or(|byte| *byte == 0)
        && bytes
            .chunks(BLOCK)
            .all(|block| Some(block) == ZEROS.get(..block.len()))
}

/// Keeps to a rate.
pub(super) struct Pace {
    rate: Option<u64>,
    state: Mutex<(Instant, u64)>,
}

impl Pace {
    /// Looks whether to stop at least this often.
    const NAP: Duration = Duration::from_millis(100);

    pub fn new(rate: Option<u64>) -> Self {
        Self {
            rate: rate.filter(|rate| *rate > 0),
            state: Mutex::new((Instant::now(), 0)),
        }
    }

    /// So many bytes have been moved: waits until that was not too fast.
    pub fn passed(&self, bytes: u64, observer: &dyn Observer) -> Result<()> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let due = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.1 = state.1.saturating_add(bytes);
            let seconds = state.1 as f64 / rate as f64;
            Duration::try_from_secs_f64(seconds)
                .ok()
                .and_then(|time| state.0.checked_add(time))
                .ok_or_else(|| Error::new(ErrorKind::TooLarge, "the rate is too low"))?
        };
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            observer.check()?;
            std::thread::sleep(left.min(Self::NAP));
        }
    }
}
