//! Digests of what a guest sees: the same as those of the raw image with the same content.
//!
//! Pieces are read by several threads, and what the map says is zeros is not read at all. BLAKE3 is a tree over pieces,
//! so the threads digest theirs too; SHA-256 takes them in order. Memory is bounded by the pieces under way.

use super::observer::Observer;
use crate::extents::Extents;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use catena_engine::{Disk, Error, ErrorKind, ExtentKind, GuestOffset, Result};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that are read and digested at once: a power of two of BLAKE3's chunks, so that each is a whole subtree.
const PIECE: u64 = 1 << 20;
const PIECE_BYTES: usize = PIECE as usize;
/// Most threads.
const THREADS: usize = 16;
/// Pieces that each thread may be ahead of the one that is due.
const AHEAD: u64 = 4;

static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];

/// Which digests are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// BLAKE3, 256 bits.
    pub blake3: bool,
    /// SHA-256.
    pub sha256: bool,
}

/// The digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that were read, the rest being known to be zeros.
    pub read: u64,
    /// BLAKE3, where it was wanted.
    pub blake3: Option<[u8; 32]>,
    /// SHA-256, where it was wanted.
    pub sha256: Option<[u8; 32]>,
}

/// Digests a whole disk.
pub fn hash<D: Disk + ?Sized>(disk: &D, request: Request, observer: &dyn Observer) -> Result<Digests> {
    let job = Job {
        disk,
        request,
        // An empty disk has one piece too, of no bytes.
        pieces: disk.size().div_ceil(PIECE).max(1),
        observer,
        state: Mutex::default(),
        changed: Condvar::new(),
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads
        .clamp(1, THREADS)
        .min(usize::try_from(job.pieces).unwrap_or(THREADS));
    job.state().readers = threads;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| job.read_pieces(threads as u64 * AHEAD));
        }
        let outcome = job.collect();
        job.state().stopped = true;
        job.changed.notify_all();
        outcome
    })
}

struct Job<'a, D: ?Sized> {
    disk: &'a D,
    request: Request,
    pieces: u64,
    observer: &'a dyn Observer,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The next piece that nobody reads yet, and the next that is due to be taken.
    unread: u64,
    due: u64,
    ready: BTreeMap<u64, Result<Piece>>,
    /// Threads that still read.
    readers: usize,
    stopped: bool,
}

/// A piece that has been read.
struct Piece {
    len: u64,
    read: u64,
    tree: Option<Tree>,
    /// The bytes, where somebody wants them in order; `None` where they are zeros.
    bytes: Option<Vec<u8>>,
}

/// A piece's part in the tree.
enum Tree {
    Whole(blake3::Hash),
    Part(ChainingValue),
}

impl<D: Disk + ?Sized> Job<'_, D> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads pieces until there are none left.
    fn read_pieces(&self, window: u64) {
        let _reader = Reader(self);
        let mut buffer = vec![0; PIECE_BYTES];
        while let Some(number) = self.claim(window) {
            let piece = self.read(number, &mut buffer);
            self.state().ready.insert(number, piece);
            self.changed.notify_all();
        }
    }

    fn claim(&self, window: u64) -> Option<u64> {
        let mut state = self.state();
        while !state.stopped && state.unread < self.pieces && state.unread >= state.due + window {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let number = state.unread;
        let more = !state.stopped && number < self.pieces;
        state.unread += u64::from(more);
        more.then_some(number)
    }

    fn read(&self, number: u64, buffer: &mut Vec<u8>) -> Result<Piece> {
        self.observer.check()?;
        let start = number * PIECE;
        let end = start.saturating_add(PIECE).min(self.disk.size());
        let len = end.saturating_sub(start);
        let mut zero = true;
        for extent in Extents::within(self.disk, GuestOffset(start), GuestOffset(end)) {
            zero &= matches!(extent?.kind, ExtentKind::Zero { .. } | ExtentKind::Unallocated);
        }
        let count = usize::try_from(len).unwrap_or(PIECE_BYTES);
        let bytes = if zero {
            ZEROS.get(..count).unwrap_or(&ZEROS)
        } else {
            buffer.resize(count, 0);
            self.disk.read_at(buffer, GuestOffset(start))?;
            buffer.as_slice()
        };
        let tree = self.request.blake3.then(|| {
            let mut hasher = blake3::Hasher::new();
            if self.pieces == 1 {
                return Tree::Whole(hasher.update(bytes).finalize());
            }
            Tree::Part(hasher.set_input_offset(start).update(bytes).finalize_non_root())
        });
        Ok(Piece {
            len,
            read: if zero { 0 } else { len },
            tree,
            bytes: (self.request.sha256 && !zero).then(|| std::mem::take(buffer)),
        })
    }

    /// Takes the pieces in order.
    fn collect(&self) -> Result<Digests> {
        let mut digests = Digests {
            size: self.disk.size(),
            ..Digests::default()
        };
        let mut sha256 = sha2::Sha256::new();
        let mut subtrees = Subtrees::default();
        let mut done = 0;
        for number in 0..self.pieces {
            let piece = self.take(number)?;
            if self.request.sha256 {
                let zeros = || ZEROS.get(..usize::try_from(piece.len).ok()?);
                sha256.update(piece.bytes.as_deref().or_else(zeros).unwrap_or_default());
            }
            match piece.tree {
                Some(Tree::Whole(hash)) => digests.blake3 = Some(hash.into()),
                Some(Tree::Part(value)) => subtrees.push(value),
                None => {}
            }
            digests.read += piece.read;
            done += piece.len;
            self.observer.progress(done, digests.size);
        }
        digests.blake3 = digests.blake3.or_else(|| subtrees.root());
        digests.sha256 = self.request.sha256.then(|| sha256.finalize().into());
        Ok(digests)
    }

    fn take(&self, number: u64) -> Result<Piece> {
        let mut state = self.state();
        state.due = number;
        self.changed.notify_all();
        loop {
            if let Some(piece) = state.ready.remove(&number) {
                return piece;
            }
            if state.readers == 0 {
                return Err(Error::new(ErrorKind::Io, "reading ended before the disk did"));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A thread that reads, for as long as it does.
struct Reader<'a, 'b, D: Disk + ?Sized>(&'a Job<'b, D>);

impl<D: Disk + ?Sized> Drop for Reader<'_, '_, D> {
    fn drop(&mut self) {
        self.0.state().readers -= 1;
        self.0.changed.notify_all();
    }
}

/// The left edge of the tree: roots of complete subtrees, larger ones first, and the newest piece.
///
/// The newest is held back: only when another one follows is it known not to end the tree.
#[derive(Default)]
struct Subtrees {
    complete: Vec<ChainingValue>,
    newest: Option<ChainingValue>,
    /// Pieces that were pushed.
    count: u64,
}

impl Subtrees {
    fn push(&mut self, value: ChainingValue) {
        if let Some(mut value) = self.newest.replace(value) {
            // Two subtrees of the same size are one of twice the size; `count` has a bit for each complete one.
            let mut count = self.count;
            while count & 1 == 0
                && let Some(left) = self.complete.pop()
            {
                value = merge_subtrees_non_root(&left, &value, Mode::Hash);
                count >>= 1;
            }
            self.complete.push(value);
        }
        self.count += 1;
    }

    fn root(mut self) -> Option<[u8; 32]> {
        let mut right = self.newest?;
        let first = (!self.complete.is_empty()).then(|| self.complete.remove(0))?;
        while let Some(left) = self.complete.pop() {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        Some(merge_subtrees_root(&first, &right, Mode::Hash).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Silent;
    use catena_engine::{Raw, Stack};
    use catena_storage::{MemoryStorage, Storage};
    use std::path::PathBuf;
    use std::sync::Arc;

    const BOTH: Request = Request {
        blake3: true,
        sha256: true,
    };

    fn disk(size: u64) -> (Stack, Vec<u8>) {
        let storage = MemoryStorage::with_len(size);
        let mut expected = vec![0; usize::try_from(size).unwrap()];
        // Data in every third piece and a bit.
        for start in (0..size).step_by(PIECE_BYTES * 3 + 4096) {
            let len = (size - start).min(70_000);
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + start / 4096) as u8).collect();
            storage.write_all_at(&bytes, start).unwrap();
            let start = usize::try_from(start).unwrap();
            expected[start..start + bytes.len()].copy_from_slice(&bytes);
        }
        let image = Arc::new(Raw::open(Arc::new(storage)).unwrap());
        (Stack::new([(image as _, PathBuf::new())]), expected)
    }

    #[test]
    fn digests_are_those_of_the_bytes_whatever_the_shape_of_the_tree() {
        for pieces in 0..20 {
            for rest in [0, 512, PIECE - 512] {
                let (disk, bytes) = disk(pieces * PIECE + rest);
                let digests = hash(&disk, BOTH, &Silent).unwrap();
                assert_eq!(digests.size, bytes.len() as u64);
                let size = digests.size;
                assert_eq!(digests.blake3, Some(*blake3::hash(&bytes).as_bytes()), "{size}");
                assert_eq!(
                    digests.sha256,
                    Some(sha2::Sha256::digest(&bytes).into()),
                    "{size}"
                );
            }
        }
    }

    #[test]
    fn only_what_is_wanted_is_there() {
        let (disk, _) = disk(3 * PIECE);
        let digests = hash(
            &disk,
            Request {
                sha256: false,
                ..BOTH
            },
            &Silent,
        )
        .unwrap();
        assert!(digests.blake3.is_some() && digests.sha256.is_none());
        let digests = hash(
            &disk,
            Request {
                blake3: false,
                ..BOTH
            },
            &Silent,
        )
        .unwrap();
        assert!(digests.blake3.is_none() && digests.sha256.is_some());
    }

    struct Impatient;

    impl Observer for Impatient {
        fn progress(&self, _: u64, _: u64) {}
        fn cancelled(&self) -> bool {
            true
        }
    }

    #[test]
    fn it_can_be_stopped() {
        let (disk, _) = disk(100 * PIECE);
        assert_eq!(
            hash(&disk, BOTH, &Impatient).unwrap_err().kind(),
            ErrorKind::Cancelled
        );
    }
}
