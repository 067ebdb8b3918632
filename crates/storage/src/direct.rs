//! Requests that bypass the page cache (`O_DIRECT`): the kernel takes only aligned ones, callers may ask for any.
//!
//! What is not aligned goes through a bounded, aligned copy. A write of part of a block reads the rest of the block first;
//! such writes have the file to themselves, so that two of them, or one and an aligned write, never undo each other.
//! A file whose length is no multiple of the block keeps its length.

#![forbid(unsafe_code)]

use crate::hole::length;
use crate::open::Kind;
use crate::storage::Alignment;
use crate::transfer::{self, OFFSET_LIMIT, check_reach, reachable, uninterrupted, wide};
use rustix::fs::{AtFlags, StatxFlags, ftruncate, ioctl_blksszget, statx};
use rustix::io::{Errno, pread, pwrite};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::{PoisonError, RwLock};

/// The largest copy made at once, in bytes.
const BOUNCE: usize = 1 << 20;

/// No file system or device asks for more, in bytes; also what is assumed where nothing can be found out.
const LARGEST: u32 = 1 << 16;
const COMMON: u32 = 4096;
const SMALLEST: u32 = 512;

/// The way around the page cache for one open file.
#[derive(Debug)]
pub(crate) struct Direct {
    request: usize,
    memory: usize,
    alignment: Alignment,
    kind: Kind,
    /// Held for writing while a block is read, changed and written back.
    whole_blocks: RwLock<()>,
}

impl Direct {
    /// Finds out what the file, which is open with `O_DIRECT`, asks for. `None` where it cannot bypass the cache.
    pub(crate) fn new(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<Option<Self>> {
        let Some(found) = find_alignment(fd, kind)? else {
            return Ok(None);
        };
        let usable = |bytes: u32| {
            if bytes.is_power_of_two() && bytes <= LARGEST {
                bytes
            } else {
                COMMON
            }
        };
        let alignment = Alignment {
            request: usable(found.request),
            memory: usable(found.memory),
        };
        Ok(Some(Self {
            // Both are at most `LARGEST`.
            request: usize::try_from(alignment.request).unwrap_or(4096),
            memory: usize::try_from(alignment.memory).unwrap_or(4096),
            alignment,
            kind,
            whole_blocks: RwLock::new(()),
        }))
    }

    /// What requests must be aligned to that need no copy.
    pub(crate) fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Runs `change`, which is no write but changes bytes or length, while no write is under way.
    pub(crate) fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        let _alone = self.whole_blocks.write().unwrap_or_else(PoisonError::into_inner);
        change()
    }

    fn offset_fits(&self, offset: u64) -> bool {
        offset.is_multiple_of(wide(self.request))
    }

    fn len_fits(&self, len: usize) -> bool {
        len.is_multiple_of(self.request)
    }

    fn memory_fits(&self, buf: &[u8]) -> bool {
        buf.as_ptr().addr().is_multiple_of(self.memory)
    }

    fn round_up(&self, len: usize) -> usize {
        len.checked_next_multiple_of(self.request).unwrap_or(usize::MAX)
    }

    fn bounce(&self, len: usize) -> Bounce {
        Bounce::new(self.round_up(len).min(BOUNCE), self.memory.max(self.request))
    }

    /// Fills `buf` from `offset` or until the bytes end; tells how many there were.
    pub(crate) fn read(&self, fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // Blocks are whole: none can reach past the last offset.
        let limit = OFFSET_LIMIT - OFFSET_LIMIT % wide(self.request);
        let within = reachable(buf.len(), offset, limit);
        let mut bounce = None;
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..within).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(wide(done));
            let straight = rest.len() - rest.len() % self.request;
            let (asked, got) = if straight > 0 && self.offset_fits(at) && self.memory_fits(rest) {
                let into = rest.get_mut(..straight).unwrap_or_default();
                let n = uninterrupted(|| pread(fd, &mut *into, at))?;
                done = done.saturating_add(n);
                (straight, n)
            } else {
                let skip = usize::try_from(at % wide(self.request)).unwrap_or(0);
                let start = at.saturating_sub(wide(skip));
                let asked = self.round_up(skip.saturating_add(rest.len())).min(BOUNCE);
                let copy = bounce.get_or_insert_with(|| self.bounce(asked)).bytes();
                let into = copy.get_mut(..asked).unwrap_or_default();
                let n = uninterrupted(|| pread(fd, &mut *into, start))?;
                let found = into.get(skip..n).unwrap_or_default();
                done = done.saturating_add(put(rest, found));
                if found.is_empty() {
                    break;
                }
                (asked, n)
            };
            // A call that ends within a block has met the end of the file.
            if got == 0 || (got < asked && !self.len_fits(got)) {
                break;
            }
        }
        Ok(done)
    }

    /// Like [`Direct::read`] into several buffers in turn.
    pub(crate) fn read_vectored(
        &self,
        fd: BorrowedFd<'_>,
        bufs: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        let mut done = 0_usize;
        for buf in bufs {
            let n = self.read(fd, buf, offset.saturating_add(wide(done)))?;
            done = done.saturating_add(n);
            if n < buf.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of `buf`.
    pub(crate) fn write(&self, fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
        check_reach(self.round_up(buf.len().saturating_add(self.request)), offset)?;
        if self.offset_fits(offset) && self.len_fits(buf.len()) {
            let _shared = self.whole_blocks.read().unwrap_or_else(PoisonError::into_inner);
            if self.memory_fits(buf) {
                return self.write_blocks(fd, buf, offset);
            }
            let mut bounce = self.bounce(buf.len());
            let mut at = offset;
            for piece in buf.chunks(BOUNCE) {
                let copy = bounce.bytes().get_mut(..piece.len()).unwrap_or_default();
                put(copy, piece);
                self.write_blocks(fd, copy, at)?;
                at = at.saturating_add(wide(piece.len()));
            }
            return Ok(());
        }
        let _alone = self.whole_blocks.write().unwrap_or_else(PoisonError::into_inner);
        self.write_parts(fd, buf, offset)
    }

    /// Writes parts of blocks; the caller has seen to it that nobody else writes.
    fn write_parts(&self, fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
        let len_before = length(fd, self.kind)?;
        let mut bounce = self.bounce(buf.len().saturating_add(self.request));
        let mut done = 0_usize;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(wide(done));
            let skip = usize::try_from(at % wide(self.request)).unwrap_or(0);
            let start = at.saturating_sub(wide(skip));
            let copy = bounce.bytes();
            let whole = self.round_up(skip.saturating_add(rest.len())).min(copy.len());
            let piece = rest
                .get(..rest.len().min(whole.saturating_sub(skip)))
                .unwrap_or_default();
            let end = skip.saturating_add(piece.len());
            let copy = copy.get_mut(..whole).unwrap_or_default();
            if skip > 0 {
                self.read_block(fd, copy, 0, start)?;
            }
            let last = whole.saturating_sub(self.request);
            if end < whole && (last > 0 || skip == 0) {
                self.read_block(fd, copy, last, start)?;
            }
            put(copy.get_mut(skip..).unwrap_or_default(), piece);
            self.write_blocks(fd, copy, start)?;
            done = done.saturating_add(piece.len());
        }
        // The last block was written whole: what of it lies past the end must not count.
        let len = len_before.max(offset.saturating_add(wide(buf.len())));
        if self.kind == Kind::Regular && length(fd, self.kind)? > len {
            uninterrupted(|| ftruncate(fd, len))?;
        }
        Ok(())
    }

    /// Reads one block of the stretch that starts at `start` into its place in `copy`; zeros past the end.
    fn read_block(&self, fd: BorrowedFd<'_>, copy: &mut [u8], place: usize, start: u64) -> io::Result<()> {
        let block = copy
            .get_mut(place..place.saturating_add(self.request))
            .unwrap_or_default();
        let n = uninterrupted(|| pread(fd, &mut *block, start.saturating_add(wide(place))))?;
        block.get_mut(n..).unwrap_or_default().fill(0);
        Ok(())
    }

    /// Writes whole blocks from aligned memory.
    fn write_blocks(&self, fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0_usize;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let n = uninterrupted(|| pwrite(fd, rest, offset.saturating_add(wide(done))))?;
            // What was written of a block that was cut short is written again.
            match n - n % self.request {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done = done.saturating_add(n),
            }
        }
        Ok(())
    }

    /// Like [`Direct::write`] from several buffers in turn.
    pub(crate) fn write_vectored(
        &self,
        fd: BorrowedFd<'_>,
        bufs: &[IoSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        if self.offset_fits(offset)
            && bufs
                .iter()
                .all(|buf| self.len_fits(buf.len()) && self.memory_fits(buf))
        {
            let _shared = self.whole_blocks.read().unwrap_or_else(PoisonError::into_inner);
            return transfer::write_vectored(fd, bufs, offset);
        }
        let mut at = offset;
        for buf in bufs {
            self.write(fd, buf, at)?;
            at = at.saturating_add(wide(buf.len()));
        }
        Ok(())
    }
}

/// Copies as much as fits; tells how much that was.
fn put(to: &mut [u8], from: &[u8]) -> usize {
    let n = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..n), from.get(..n)) {
        to.copy_from_slice(from);
    }
    n
}

/// Memory at an aligned address.
struct Bounce {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn new(len: usize, align: usize) -> Self {
        let memory = vec![0; len.saturating_add(align)];
        let start = match memory.as_ptr().addr() % align.max(1) {
            0 => 0,
            over => align - over,
        };
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start.saturating_add(self.len))
            .unwrap_or_default()
    }
}

/// What the kernel says it asks for (Linux 6.1), else the device, else what is found by trying.
fn find_alignment(fd: BorrowedFd<'_>, kind: Kind) -> io::Result<Option<Alignment>> {
    if let Ok(stat) = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        return Ok((stat.stx_dio_offset_align > 0).then_some(Alignment {
            request: stat.stx_dio_offset_align,
            memory: stat.stx_dio_mem_align.max(1),
        }));
    }
    let same = |bytes| Alignment {
        request: bytes,
        memory: bytes,
    };
    if kind == Kind::Block
        && let Ok(sector) = ioctl_blksszget(fd)
    {
        return Ok(Some(same(sector)));
    }
    let len = length(fd, kind)?;
    let mut request = SMALLEST;
    // A file without a whole block of data shows nothing.
    while u64::from(request) <= len && request < COMMON {
        let size = usize::try_from(request).unwrap_or(512);
        let mut bounce = Bounce::new(size, 4096);
        match uninterrupted(|| pread(fd, bounce.bytes(), 0)) {
            Ok(_) => return Ok(Some(same(request))),
            Err(Errno::INVAL) => request = request.saturating_mul(2),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(Some(same(COMMON)))
}
