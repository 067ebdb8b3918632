//! What is asked of a library that is timed in process: the same places in the same order, whoever is asked.
//!
//! A work is described by words (`image=disk.qcow2 op=read block=4096 …`), so that the program that drives the runs can hand it to any
//! other program. A run prints one line of figures ([`Figures::print`]), which the driver reads back.

use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Reads of the pass that is not timed, which warms caches and gives the digest.
const FIRST_READS: usize = 2000;
/// Offsets that random reads are taken from, in turn.
const READ_OFFSETS: usize = 1 << 16;

/// What is done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Random reads for a while, after a first pass that is not timed.
    Read,
    /// Each place once, in random order.
    Write,
    /// Opening the disk and reading its first block, opening included in the time.
    Open,
}

/// A work.
#[derive(Clone, Debug)]
pub struct Work {
    /// The image; what backs it is found by its own references.
    pub image: PathBuf,
    /// What is done.
    pub op: Op,
    /// Bytes of each request.
    pub block: usize,
    /// Threads that ask.
    pub threads: usize,
    /// Requests of each thread that are under way at once.
    pub queue: usize,
    /// How long reads go on, in seconds.
    pub seconds: f64,
    /// Whether the file is opened with `O_DIRECT`.
    pub direct: bool,
    /// Guest bytes, from 0, among which the places are.
    pub span: u64,
    /// Distance between places; each is a multiple of this.
    pub stride: u64,
    /// How many places are written, at most.
    pub count: usize,
    /// How many descriptors the process may have; as many as it has been given where it is not said.
    pub descriptors: Option<u64>,
}

impl Work {
    /// Reads the words of a work.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut work = Self {
            image: PathBuf::new(),
            op: Op::Read,
            block: 4096,
            threads: 1,
            queue: 1,
            seconds: 1.0,
            direct: false,
            span: 0,
            stride: 0,
            count: usize::MAX,
            descriptors: None,
        };
        for word in words {
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("`{word}` has no value"))?;
            let bad = || word.clone();
            match key {
                "image" => work.image = value.into(),
                "op" => {
                    work.op = match value {
                        "read" => Op::Read,
                        "write" => Op::Write,
                        "open" => Op::Open,
                        _ => bail!("there is no op `{value}`"),
                    }
                }
                "block" => work.block = value.parse().with_context(bad)?,
                "threads" => work.threads = value.parse().with_context(bad)?,
                "queue" => work.queue = value.parse().with_context(bad)?,
                "seconds" => work.seconds = value.parse().with_context(bad)?,
                "direct" => work.direct = value.parse().with_context(bad)?,
                "span" => work.span = value.parse().with_context(bad)?,
                "stride" => work.stride = value.parse().with_context(bad)?,
                "count" => work.count = value.parse().with_context(bad)?,
                "descriptors" => work.descriptors = Some(value.parse().with_context(bad)?),
                _ => bail!("a work has no `{key}`"),
            }
        }
        if work.stride == 0 {
            work.stride = work.block as u64;
        }
        ensure!(
            work.block > 0 && work.threads > 0 && work.queue > 0,
            "a work of nothing"
        );
        ensure!(
            work.op == Op::Open || work.span >= work.stride.max(work.block as u64),
            "the span is too small"
        );
        Ok(work)
    }

    /// The places, in the order in which they are asked for.
    pub fn offsets(&self) -> Vec<u64> {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let places = self.span / self.stride;
        if self.op == Op::Read {
            return (0..READ_OFFSETS)
                .map(|_| dice.below(places) * self.stride)
                .collect();
        }
        let mut order: Vec<u64> = (0..places).map(|place| place * self.stride).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, dice.below(last as u64 + 1) as usize);
        }
        order.truncate(self.count);
        order
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(bound)) >> 64) as u64
    }
}

/// A block of bytes at an address that `O_DIRECT` takes.
pub struct Block {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Block {
    /// A block that is full of what does not compress to nothing.
    pub fn new(len: usize) -> Self {
        let mut bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        for (number, byte) in bytes.iter_mut().skip(start).enumerate() {
            *byte = (number * 167 + (number >> 8) * 13) as u8 | 1;
        }
        Self { bytes, start, len }
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    /// Its bytes, with the place they are for written into them, so that no two places get the same.
    pub fn marked(&mut self, offset: u64) -> &mut [u8] {
        let bytes = self.bytes();
        bytes[..8].copy_from_slice(&(offset + 1).to_be_bytes());
        bytes
    }
}

/// The part of the places that one asker asks for: each so manieth, until they or the time are up.
pub struct Lane<'a> {
    offsets: &'a [u64],
    next: usize,
    step: usize,
    until: Option<Instant>,
    done: u64,
}

impl<'a> Lane<'a> {
    /// Lane `number` of `lanes`. With a time that is up at some point, the places are asked for again and again.
    pub fn new(offsets: &'a [u64], number: usize, lanes: usize, seconds: Option<f64>) -> Self {
        Self {
            offsets,
            next: number,
            step: lanes,
            until: seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds)),
            done: 0,
        }
    }

    /// How many places were asked for.
    pub fn done(&self) -> u64 {
        self.done
    }
}

impl Iterator for Lane<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if let Some(until) = self.until {
            if self.done % 16 == 15 && Instant::now() >= until {
                return None;
            }
            if self.next >= self.offsets.len() {
                self.next %= self.offsets.len();
            }
        }
        let offset = *self.offsets.get(self.next)?;
        self.next += self.step;
        self.done += 1;
        Some(offset)
    }
}

/// What a run has measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests answered in the time.
    pub ops: u64,
    /// Seconds on the clock.
    pub seconds: f64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// The process's most memory in KiB.
    pub peak_kib: u64,
    /// A digest of what was read in the pass that is not timed.
    pub digest: u64,
}

impl Figures {
    /// Writes the figures as a line that [`Figures::parse`] reads.
    pub fn print(&self) {
        println!(
            "figures {} {} {} {} {}",
            self.ops, self.seconds, self.cpu, self.peak_kib, self.digest
        );
    }

    /// Reads the figures out of what a program printed; `None` where there are none.
    pub fn parse(output: &str) -> Option<Self> {
        let line = output.lines().find_map(|line| line.strip_prefix("figures "))?;
        let mut words = line.split(' ');
        Some(Self {
            ops: words.next()?.parse().ok()?,
            seconds: words.next()?.parse().ok()?,
            cpu: words.next()?.parse().ok()?,
            peak_kib: words.next()?.parse().ok()?,
            digest: words.next()?.parse().ok()?,
        })
    }
}

/// Time and processor time since some point.
pub struct Watch {
    start: Instant,
    cpu: f64,
}

impl Watch {
    /// Starts.
    pub fn start() -> Result<Self> {
        Ok(Self {
            cpu: processor_seconds()?,
            start: Instant::now(),
        })
    }

    /// What was measured since.
    pub fn figures(&self, ops: u64, digest: u64) -> Result<Figures> {
        let seconds = self.start.elapsed().as_secs_f64();
        Ok(Figures {
            ops,
            seconds,
            cpu: processor_seconds()? - self.cpu,
            peak_kib: peak_kib()?,
            digest,
        })
    }
}

/// Processor time of this process so far, to the ten milliseconds in which the kernel tells it without being asked by a system call.
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks = |number: usize| {
        let word = after.split_whitespace().nth(number).context("/proc/self/stat")?;
        word.parse::<f64>().context("/proc/self/stat")
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("VmHWM")?;
    line.trim().trim_end_matches(" kB").parse().context("VmHWM")
}

/// Adds a block to a digest.
pub fn digest(so_far: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(so_far, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(0x9fb2_1c65_1e98_df25)
            .rotate_left(29)
    })
}

/// The places of the pass that is not timed.
pub fn first_reads(offsets: &[u64]) -> &[u64] {
    &offsets[..offsets.len().min(FIRST_READS)]
}

/// A disk whose requests return when they are answered.
pub trait SyncDisk: Sync {
    /// Fills `buf`.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Writes `buf`.
    fn write(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// Makes everything durable.
    fn flush(&self) -> Result<()>;
}

/// Does a work on a disk whose requests return when they are answered: each of the requests that are under way at once has a thread.
///
/// The time of writes ends when all are written, before they are flushed.
pub fn work_sync<D: SyncDisk>(work: &Work, open: impl FnOnce() -> Result<D>) -> Result<Figures> {
    let mut block = Block::new(work.block);
    if work.op == Op::Open {
        let watch = Watch::start()?;
        let disk = open()?;
        disk.read(block.bytes(), 0)?;
        return watch.figures(1, digest(0, block.bytes()));
    }
    let disk = open()?;
    let offsets = work.offsets();
    let mut sum = 0;
    if work.op == Op::Read {
        for offset in first_reads(&offsets) {
            disk.read(block.bytes(), *offset)?;
            sum = digest(sum, block.bytes());
        }
    }
    let lanes = work.threads * work.queue;
    let gate = Barrier::new(lanes + 1);
    let figures = std::thread::scope(|scope| -> Result<Figures> {
        let (disk, gate, offsets) = (&disk, &gate, &offsets);
        let askers: Vec<_> = (0..lanes)
            .map(|number| {
                scope.spawn(move || -> Result<u64> {
                    let mut block = Block::new(work.block);
                    gate.wait();
                    let seconds = (work.op == Op::Read).then_some(work.seconds);
                    let mut lane = Lane::new(offsets, number, lanes, seconds);
                    for offset in lane.by_ref() {
                        match work.op {
                            Op::Read => disk.read(block.bytes(), offset)?,
                            _ => disk.write(block.marked(offset), offset)?,
                        }
                    }
                    Ok(lane.done())
                })
            })
            .collect();
        let watch = Watch::start()?;
        gate.wait();
        let mut ops = 0;
        for asker in askers {
            ops += asker.join().expect("an asker does not panic")?;
        }
        watch.figures(ops, sum)
    })?;
    if work.op == Op::Write {
        disk.flush()?;
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::{Figures, Lane, Op, Work};

    fn work(words: &str) -> Work {
        Work::parse(words.split(' ').map(str::to_owned)).unwrap()
    }

    #[test]
    fn writes_go_to_each_place_once() {
        let work = work("image=x op=write block=4096 stride=65536 span=6553600");
        assert_eq!(work.op, Op::Write);
        let mut offsets = work.offsets();
        assert!(!offsets.is_sorted());
        offsets.sort_unstable();
        assert_eq!(offsets, (0..100).map(|place| place * 65536).collect::<Vec<_>>());
    }

    #[test]
    fn lanes_share_the_places_out() {
        let offsets: Vec<u64> = (0..10).collect();
        let mut all: Vec<u64> = (0..3)
            .flat_map(|number| Lane::new(&offsets, number, 3, None))
            .collect();
        all.sort_unstable();
        assert_eq!(all, offsets);
    }

    #[test]
    fn figures_are_read_as_they_are_printed() {
        let text = "chatter\nfigures 5 0.25 0.5 1024 77\n";
        let figures = Figures {
            ops: 5,
            seconds: 0.25,
            cpu: 0.5,
            peak_kib: 1024,
            digest: 77,
        };
        assert_eq!(Figures::parse(text), Some(figures));
        assert_eq!(Figures::parse("nothing"), None);
    }
}
