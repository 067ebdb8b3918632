//! A qcow2 image that is written, over what lies below it.
//!
//! * Requests that use a host offset hold the gate shared; who makes a cluster free goes through it alone for an instant. So no request
//!   can meet a cluster that has become somebody else's.
//! * What requests change of the mapping is changed in memory, under one lock, and only when the data it speaks of has been written. A
//!   [flush](super::flush) carries it to the disk.
//! * Guest clusters whose entry is about to change are claimed; whoever else would change them waits. Clusters that are the image's own
//!   already are written in place, and wait for nobody.
//!
//! Locks are taken in this order: gate, `meta`, places and L1 table, slices. None but the gate is held while data is read or written.

use super::ahead::{Ahead, Scratch};
use super::bitmap::Recorder;
use super::check::{CheckOptions, Report, check};
use super::claims::Claims;
use super::metadata::{Rehearsal, Repair, repair};
use super::numbers::Numbers;
use super::places::{OverlapChecks, Places, be64s};
use super::refcounts::Refcounts;
use super::slices::{Key, L1, Slice, SliceShape, Slices};
use crate::addr::GuestOffset;
use crate::bytes::StorageBytes;
use crate::disk::{Carriage, Disk, Unmap, WritableDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use catena_format::qcow2::{Autoclear, Compression, CryptMethod, Header, Incompatible, Layout, Version};
use catena_storage::{Carry, Storage};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Bytes of the header that its fields lie in: a sector, which is written whole or not at all.
pub(super) const SECTOR: u64 = 512;
/// L2 slices that are kept though nobody uses them, in bytes.
const SLICE_CACHE_BYTES: u64 = 32 << 20;
/// Changed metadata that is held before it is written back, in bytes.
const DIRTY_BYTES: u64 = 16 << 20;
/// Decompressed clusters that are kept, in bytes.
const DECOMPRESSED_BYTES: u64 = 16 << 20;

/// How a [`Qcow2Disk`] is opened.
#[derive(Debug, Default)]
pub struct DiskOptions {
    checks: OverlapChecks,
    cache_bytes: Option<u64>,
    keep_freed: bool,
}

impl DiskOptions {
    /// Which metadata writes are checked against.
    #[must_use]
    pub fn overlap_checks(mut self, checks: OverlapChecks) -> Self {
        self.checks = checks;
        self
    }

    /// Bounds the L2 slices that are kept in memory, beside those that wait to be written.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// Leaves the space of discarded clusters with the file, for the image to use again, where it would be given back to the file system.
    #[must_use]
    pub fn keep_freed_space(mut self) -> Self {
        self.keep_freed = true;
        self
    }

    /// Opens an image. `data_file` is the open data file where the header says that there is one, `backing` what the image lies over;
    /// where that is shorter than the image, zeros follow.
    ///
    /// Nothing is changed by opening, unless the image has not been closed properly: then it is repaired, which is tried in memory first, so that
    /// a refusal has changed nothing. [`ErrorKind::Corrupt`] where it is marked corrupt, and must be repaired by somebody who decides to, or cannot be.
    pub fn open(
        self,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Qcow2Disk> {
        let header = Header::read(&StorageBytes::new(&*storage)?)?;
        check_writable(&header)?;
        if !header.incompatible.contains(Incompatible::DIRTY) {
            return self.open_clean(header, storage, data_file, backing);
        }
        // What cannot be mended, or would be refused when it is, is known before a byte is written.
        let rehearsal: Arc<dyn Storage> = Arc::new(Rehearsal::over(Arc::clone(&storage))?);
        mend(&*rehearsal)?;
        let header = Header::read(&StorageBytes::new(&*rehearsal)?)?;
        let trial = Self {
            checks: self.checks,
            ..Self::default()
        };
        drop(trial.open_clean(header, rehearsal, data_file.clone(), None)?);
        mend(&*storage)?;
        let header = Header::read(&StorageBytes::new(&*storage)?)?;
        self.open_clean(header, storage, data_file, backing)
    }

    fn open_clean(
        self,
        header: Header,
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Qcow2Disk> {
        if header.has_data_file() && data_file.is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the image's data is in a data file that is not open",
            ));
        }
        let layout = Layout::of(&header);
        let mut bytes = vec![0; header.l1_entries as usize * 8];
        storage.read_at(&mut bytes, header.l1_offset)?;
        let l1: Vec<u64> = be64s(&bytes).collect();
        let mut places = Places::of(&header, layout, &l1, &*storage, self.checks)?;
        let refcounts = Refcounts::open(&storage, &header, &mut places)?;
        let recorder = Recorder::read(&header, &*storage)?;
        let data_file = data_file.filter(|_| header.has_data_file());
        let data_len = data_file.as_deref().map_or(Ok(0), Storage::len)?;
        let shape = SliceShape::of(layout);
        Ok(Qcow2Disk {
            layout,
            shape,
            encrypted: header.crypt != CryptMethod::None,
            v3: header.version == Version::V3,
            compression: header.compression,
            raw_data: data_file.is_some() && header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA),
            size: AtomicU64::new(header.virtual_size),
            header: Mutex::new(header),
            data_file,
            backing,
            gate: RwLock::new(()),
            slices: Slices::new(shape, self.cache_bytes.unwrap_or(SLICE_CACHE_BYTES)),
            l1: RwLock::new(L1 {
                entries: l1,
                fresh: Numbers::default(),
            }),
            places: RwLock::new(places),
            meta: Mutex::new(Meta {
                refcounts,
                claimed: Claims::default(),
                dirty_slices: Numbers::default(),
                dirty_l1: BTreeSet::new(),
                let_go: Vec::new(),
                len: 0,
                waiting: 0,
            }),
            unclaimed: Condvar::new(),
            ahead: Ahead::default(),
            scratch: Scratch::default(),
            flushing: Mutex::new(()),
            growing: Mutex::new(()),
            changed: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
            data_len: AtomicU64::new(data_len),
            prepared: AtomicBool::new(false),
            poison: Mutex::new(None),
            poisoned: AtomicBool::new(false),
            decompressed: Cache::with_weighter(512, DECOMPRESSED_BYTES, ClusterBytes),
            keep_freed: self.keep_freed,
            recorder: RwLock::new(recorder.map(Arc::new)),
            storage,
        })
    }
}

fn check_writable(header: &Header) -> Result<()> {
    header.check_readable()?;
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the image is marked corrupt and cannot be written",
        )
        .with_hint("check it, and repair it"));
    }
    Ok(())
}

/// Repairs an image that has not been closed properly, as far as there is one right answer to everything that is wrong with it.
fn mend(storage: &dyn Storage) -> Result<()> {
    let beyond_repair = || {
        Error::new(
            ErrorKind::Corrupt,
            "the image was not closed properly, and cannot be repaired before it is written",
        )
        .with_hint("check it")
    };
    let options = CheckOptions::default();
    let wrong = |report: &Report| report.totals.check_errors + report.totals.corruptions > 0;
    let repaired = repair(storage, Repair::All, &options)?;
    // What was mended can contradict what was found sound before it: only the result tells.
    if repaired.failed || wrong(&repaired.report) || wrong(&check(storage, &options)?) {
        return Err(beyond_repair());
    }
    Ok(())
}

/// A qcow2 image open for writing, over its backing.
pub struct Qcow2Disk {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) data_file: Option<Arc<dyn Storage>>,
    pub(super) backing: Option<Arc<dyn Disk>>,
    pub(super) layout: Layout,
    pub(super) shape: SliceShape,
    pub(super) encrypted: bool,
    pub(super) v3: bool,
    pub(super) compression: Compression,
    /// The data file is a raw image of the disk, and stays one.
    pub(super) raw_data: bool,
    pub(super) size: AtomicU64,
    /// As it is on the disk.
    pub(super) header: Mutex<Header>,
    pub(super) gate: RwLock<()>,
    pub(super) slices: Slices,
    pub(super) l1: RwLock<L1>,
    pub(super) places: RwLock<Places>,
    pub(super) meta: Mutex<Meta>,
    pub(super) unclaimed: Condvar,
    pub(super) ahead: Ahead,
    pub(super) scratch: Scratch,
    pub(super) flushing: Mutex<()>,
    pub(super) growing: Mutex<()>,
    /// Entries have changed since it was last asked how many wait to be written.
    pub(super) changed: AtomicBool,
    /// Data was written since the last flush.
    pub(super) unsynced: AtomicBool,
    /// Up to where the data file may hold bytes.
    pub(super) data_len: AtomicU64,
    prepared: AtomicBool,
    poison: Mutex<Option<String>>,
    poisoned: AtomicBool,
    pub(super) decompressed: Cache<u64, Arc<[u8]>, ClusterBytes>,
    pub(super) keep_freed: bool,
    /// The bitmaps that are kept.
    pub(super) recorder: RwLock<Option<Arc<Recorder>>>,
}

/// What is changed under one lock.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) refcounts: Refcounts,
    /// Guest clusters whose entry somebody is about to change.
    pub(super) claimed: Claims,
    pub(super) dirty_slices: Numbers<Key, Arc<Slice>>,
    /// Sectors of the L1 table.
    pub(super) dirty_l1: BTreeSet<u64>,
    /// What the next flush makes free.
    pub(super) let_go: Vec<LetGo>,
    /// How long the image file is at least.
    pub(super) len: u64,
    /// How many wait for a claim to be given up.
    pub(super) waiting: usize,
}

/// Host clusters that have lost a reference, which the disk may still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LetGo {
    /// The first host cluster.
    pub(super) cluster: u64,
    pub(super) clusters: u64,
    /// What they were.
    pub(super) was: Was,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    /// Guest data that was replaced.
    Data,
    /// Guest data that was given up.
    Discarded,
    /// One compressed cluster, at this offset.
    Compressed(u64),
    /// An L2 table.
    L2Table,
    /// The L1 table.
    L1Table,
    /// The refcount table.
    RefcountTable,
}

#[derive(Clone, Debug)]
pub(super) struct ClusterBytes;

impl Weighter<u64, Arc<[u8]>> for ClusterBytes {
    fn weight(&self, _: &u64, cluster: &Arc<[u8]>) -> u64 {
        cluster.len() as u64
    }
}

impl fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Disk")
            .field("storage", &self.storage)
            .field("size", &self.size)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl Qcow2Disk {
    /// Opens an image as [`DiskOptions::open`] does, with the usual options.
    pub fn open(
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        backing: Option<Arc<dyn Disk>>,
    ) -> Result<Self> {
        DiskOptions::default().open(storage, data_file, backing)
    }

    /// The header as it is on the disk.
    pub fn header(&self) -> Header {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Flushes, stores what the bitmaps have recorded, and reports what could not be made durable, which dropping the disk cannot.
    pub fn close(self) -> Result<()> {
        self.settle()?;
        self.store_bitmaps()?;
        self.give_space_back()
    }

    /// Gives back what was found ahead. Nobody may be writing.
    fn give_space_back(&self) -> Result<()> {
        let used = self.meta().refcounts.used();
        self.ahead.give_back(self.data_storage(), used)
    }

    pub(super) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by every request that uses a host offset.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slice has changed, and waits to be written.
    pub(super) fn slice_changed(&self, meta: &mut Meta, key: Key, slice: &Arc<Slice>) {
        meta.dirty_slices.insert(key, Arc::clone(slice));
        self.changed.store(true, Ordering::Release);
    }

    /// Waits until every request that is under way has ended; later ones do not count.
    pub(super) fn wait_for_requests(&self) {
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn l1(&self) -> RwLockReadGuard<'_, L1> {
        self.l1.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cluster_size(&self) -> u64 {
        self.layout.cluster_bits.size()
    }

    pub(super) fn cluster_of(&self, guest: u64) -> u64 {
        guest >> self.layout.cluster_bits.get()
    }

    /// Where data is: the data file, or the image itself.
    pub(super) fn data_storage(&self) -> &dyn Storage {
        match &self.data_file {
            Some(data_file) => &**data_file,
            None => &*self.storage,
        }
    }

    /// Checks that a range lies on the disk, and gives its end.
    pub(super) fn check_range(&self, offset: GuestOffset, len: u64) -> Result<u64> {
        let size = self.size.load(Ordering::Acquire);
        offset
            .0
            .checked_add(len)
            .filter(|end| *end <= size)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::OutOfBounds,
                    format!("{len} bytes at {offset} reach past the end of the disk at {size:#x}"),
                )
            })
    }

    /// What comes before every change: the disk may be written, the bitmaps know, and features that nobody here keeps are off.
    pub(super) fn prepare(&self, range: Range<u64>) -> Result<()> {
        self.check_poison()?;
        if !self.prepared.load(Ordering::Acquire) {
            self.clear_autoclear()?;
        }
        match self.recorder() {
            Some(recorder) => recorder
                .touch(range, &*self.storage)
                .inspect_err(|error| self.failed(error)),
            None => Ok(()),
        }
    }

    fn clear_autoclear(&self) -> Result<()> {
        // Nothing is written before the bits are gone from the disk.
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let now = self.header().autoclear;
        let kept = now.intersection(Autoclear::KNOWN);
        if kept != now && self.v3 {
            self.write_header_fields(&[(88, &kept.bits().to_be_bytes())])?;
            self.header
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .autoclear = kept;
        }
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Changes fields of the header's first sector, durably and in one write: where there is no space for it nothing was
    /// written.
    pub(super) fn write_header_fields(&self, fields: &[(usize, &[u8])]) -> Result<()> {
        let mut sector = vec![0; SECTOR as usize];
        self.storage.read_at(&mut sector, 0)?;
        for (offset, field) in fields {
            for (to, from) in sector.iter_mut().skip(*offset).zip(*field) {
                *to = *from;
            }
        }
        self.attempt(self.storage.write_all_at(&sector, 0))?;
        self.sync_header()
    }

    /// Makes the header durable. One that may or may not be on the disk leaves nothing to go on with.
    pub(super) fn sync_header(&self) -> Result<()> {
        self.attempt(self.storage.flush())
            .inspect_err(|error| self.poison(error.full()))
    }

    /// Whether something failed that leaves the disk in the unknown.
    pub(super) fn check_poison(&self) -> Result<()> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        let poison = self.poison.lock().unwrap_or_else(PoisonError::into_inner);
        let why = poison.as_deref().unwrap_or("an earlier write failed");
        Err(Error::new(
            ErrorKind::Io,
            format!("nothing is written until the image is opened again: {why}"),
        ))
    }

    pub(super) fn poison(&self, why: String) {
        self.poison
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
        self.poisoned.store(true, Ordering::Release);
    }

    /// Passes the outcome of a write on. After a failure nobody knows what is on the disk, except where it is just full.
    pub(super) fn attempt<T>(&self, outcome: catena_storage::Result<T>) -> Result<T> {
        outcome.map_err(|error| {
            let error = Error::from(error);
            self.failed(&error);
            error
        })
    }

    /// Takes note of a write that failed.
    pub(super) fn failed(&self, error: &Error) {
        if error.kind() != ErrorKind::NoSpace {
            self.poison(error.full());
        }
    }

    /// Passes an error on; one that shows the metadata to be damaged marks the image first, as QEMU does, and ends all writing.
    pub(super) fn damaged(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Corrupt || self.poisoned.load(Ordering::Acquire) {
            return error;
        }
        self.poison(error.to_string());
        if self.v3 {
            let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
            let incompatible = header.incompatible | Incompatible::CORRUPT;
            // Where even that fails the first error says more.
            if self
                .write_header_fields(&[(72, &incompatible.bits().to_be_bytes())])
                .is_ok()
            {
                header.incompatible = incompatible;
            }
        }
        error
    }

    /// Checks that a range holds no metadata before guest data goes there.
    pub(super) fn check_data_place(&self, offset: u64, len: u64) -> Result<()> {
        match self.data_file {
            Some(_) => Ok(()),
            None => self.check_place(offset, len),
        }
    }

    /// Checks that a range of the image holds no metadata that refers to something.
    pub(super) fn check_place(&self, offset: u64, len: u64) -> Result<()> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let checked = places.check(offset, len, None);
        drop(places);
        checked.map_err(|error| self.damaged(error))
    }

    /// Writes back where too much has changed. Not to be called by who holds the gate.
    pub(super) fn write_back_if_much(&self) -> Result<()> {
        const MOST_LET_GO: usize = 1 << 16;
        // Writes in place change no entries, and ask for no lock.
        if !self.changed.load(Ordering::Acquire) || !self.changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let much = {
            let meta = self.meta();
            let slices = meta.dirty_slices.len() as u64 * self.shape.bytes();
            slices + meta.refcounts.dirty_bytes() > DIRTY_BYTES || meta.let_go.len() > MOST_LET_GO
        };
        if much { self.flush_all() } else { Ok(()) }
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let _inside = self.enter();
        self.read_guest(buf, offset.0)
    }

    fn extents(&self, offset: GuestOffset, end: GuestOffset) -> Result<Vec<Extent>> {
        let _inside = self.enter();
        self.map_guest(offset.0, end.0.min(self.size()))
    }
}

impl WritableDisk for Qcow2Disk {
    fn write_at(&self, buf: &[u8], offset: GuestOffset) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        self.write_guest(buf, offset.0)?;
        self.write_back_if_much()
    }

    fn write_zeroes(&self, offset: GuestOffset, len: u64, unmap: Unmap) -> Result<()> {
        let end = self.check_range(offset, len)?;
        self.zero_guest(offset.0, end, unmap)?;
        self.write_back_if_much()
    }

    fn discard(&self, offset: GuestOffset, len: u64) -> Result<()> {
        let end = self.check_range(offset, len)?;
        self.discard_guest(offset.0, end)?;
        self.write_back_if_much()
    }

    fn begin_flush(&self) {
        self.data_storage().begin_flush();
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn carriage(&self, how: Carry) -> Option<Carriage> {
        if self.encrypted {
            return None;
        }
        Carriage::to(how, self.data_storage(), self.cluster_size())
            // Clusters lie at multiples of their own size.
            .filter(|carriage| carriage.unit == self.cluster_size())
    }

    fn write_from(
        &self,
        how: Carry,
        from: &dyn Storage,
        from_offset: u64,
        offset: GuestOffset,
        len: u64,
    ) -> Result<u64> {
        let end = self.check_range(offset, len)?;
        let carried = self.carry_guest(how, from, from_offset, offset.0, end)?;
        self.write_back_if_much()?;
        Ok(carried)
    }
}

impl Drop for Qcow2Disk {
    /// Writes back what it can. Only [`Qcow2Disk::close`] tells whether that worked.
    fn drop(&mut self) {
        if !self.poisoned.load(Ordering::Acquire) {
            let _ = self.settle().and_then(|()| self.store_bitmaps());
            let _ = self.give_space_back();
        }
    }
}
