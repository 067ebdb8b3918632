//! Bench: how long so many requests take, as `qemu-img bench` counts them.

use super::line::MOST_THREADS;
use super::observer::Observer;
use catena_engine::{Disk, Error, ErrorKind, GuestOffset, Result, WritableDisk};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What to time. Defaults are those of qemu-img.
#[derive(Clone, Debug)]
pub struct Request {
    /// How many requests.
    pub count: u64,
    /// How many of them at once.
    pub depth: usize,
    /// Bytes of each.
    pub bytes: usize,
    /// Where the first one is.
    pub offset: u64,
    /// How far each is behind the one before; as far as it is long where `None`. Behind the end of the disk it goes on at its start; what
    /// reaches across the end fails.
    pub step: Option<u64>,
    /// Whether they write, and what.
    pub write: Option<Write>,
}

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// The byte.
    pub pattern: u8,
    /// After how many requests there is a flush; 0 for none.
    pub flush_interval: u64,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            count: 75_000,
            depth: 64,
            bytes: 4096,
            offset: 0,
            step: None,
            write: None,
        }
    }
}

/// The disk that is asked.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// One that is only read.
    Read(&'a dyn Disk),
    /// One that is written.
    Write(&'a dyn WritableDisk),
}

impl Target<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::Read(disk) => disk.size(),
            Self::Write(disk) => disk.size(),
        }
    }
}

/// Sends the requests, and tells how long they took.
pub fn bench(request: &Request, target: Target<'_>, observer: &dyn Observer) -> Result<Duration> {
    let size = target.size();
    let step = request.step.unwrap_or(request.bytes as u64);
    let next = AtomicU64::new(0);
    let stopped = AtomicBool::new(false);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let begun = Instant::now();
    let one = |number: u64, buffer: &mut [u8]| -> Result<()> {
        // The first one is where it was asked for, be that on the disk or not.
        let place = match number {
            0 => Some(request.offset),
            _ => number
                .checked_mul(step)
                .and_then(|far| far.checked_add(request.offset))
                .and_then(|far| far.checked_rem(size)),
        };
        let place = place.ok_or_else(|| Error::new(ErrorKind::OutOfBounds, "a request lies nowhere"))?;
        let at = GuestOffset(place);
        match (target, request.write) {
            (Target::Write(disk), Some(write)) => {
                disk.write_at(buffer, at)?;
                let done = number + 1;
                if write.flush_interval > 0 && done.is_multiple_of(write.flush_interval) {
                    disk.flush()?;
                }
                Ok(())
            }
            (Target::Write(disk), None) => disk.read_at(buffer, at),
            (Target::Read(disk), None) => disk.read_at(buffer, at),
            (Target::Read(_), Some(_)) => Err(Error::new(
                ErrorKind::Conflict,
                "a disk that is only read cannot be written",
            )),
        }
    };
    let work = || {
        let pattern = request.write.map_or(0, |write| write.pattern);
        let mut buffer = vec![pattern; request.bytes];
        while !stopped.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= request.count {
                break;
            }
            if let Err(error) = observer.check().and_then(|()| one(number, &mut buffer)) {
                stopped.store(true, Ordering::Relaxed);
                failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
            }
            let bytes = |requests: u64| requests.saturating_mul(request.bytes as u64);
            observer.progress(bytes(number), bytes(request.count));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..request.depth.clamp(1, MOST_THREADS) {
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    if let (Target::Write(disk), Some(_), None) = (
        target,
        request.write,
        &*failed.lock().unwrap_or_else(PoisonError::into_inner),
    ) {
        disk.flush()?;
    }
    let taken = begun.elapsed();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(taken),
    }
}
