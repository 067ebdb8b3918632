//! Several threads write one disk, each its own sectors, and it is cut off from power at every point.
//!
//! Neighbouring sectors belong to different threads, so that these meet in clusters, in tables and in what is free. A sector holds after a
//! cut what its thread made of it before the last flush that had ended, or what the thread made of it since.

use std::sync::{Arc, Barrier};
use std::thread;

use catena_engine::{Disk, GuestOffset, Image, Qcow2Disk, Unmap, WritableDisk};
use catena_storage::Storage;
use catena_testkit::Dice;
use catena_testkit::storage::{Content, Log, SECTOR, Shared};

use crate::cuts::effort;
use crate::history::{look, sound};
use crate::layouts::{self, Layout, Start, pattern, stack};
use crate::model::Seen;

const THREADS: u64 = 3;
/// What each of them asks for.
const REQUESTS: u64 = 70;
/// Cuts of a history.
const CUTS: usize = 400;
/// Cuts in all, at least.
const ALL_CUTS: usize = 8000;

/// What a request made of a sector, and where in the log it began and ended.
struct Version {
    begin: usize,
    end: usize,
    bytes: Vec<u8>,
}

/// What happened in one thread.
#[derive(Default)]
struct Told {
    /// By sector.
    versions: Vec<(u64, Version)>,
    flushes: Vec<(usize, usize)>,
}

/// A thread, and what is its own.
struct Guest<'a> {
    disk: &'a Qcow2Disk,
    log: &'a Log,
    number: u64,
    /// Sectors in a row that belong to the same thread.
    grain: u64,
    cluster: u64,
    live: Vec<u8>,
    dice: Dice,
    told: Told,
}

impl Guest<'_> {
    fn run(mut self) -> Told {
        for request in 0..REQUESTS {
            self.ask(request);
        }
        self.told
    }

    fn ask(&mut self, request: u64) {
        let kind = self.dice.below(100);
        if kind < 12 {
            let begin = self.log.reached(0);
            self.disk.flush().unwrap();
            self.told.flushes.push((begin, self.log.reached(0)));
            return;
        }
        let size = self.live.len() as u64;
        let stretch = self.grain * SECTOR;
        let rounds = (size / stretch).saturating_sub(self.number).div_ceil(THREADS);
        // Few places, which are asked for again and again.
        let start = (self.dice.below(rounds.min(12)) * THREADS + self.number) * stretch;
        let unit = *self.dice.one_of(&[SECTOR, SECTOR, 8, stretch]);
        let from = start + self.dice.below(stretch / unit) * unit;
        let to = from + (1 + self.dice.below((start + stretch - from) / unit)) * unit;
        let tag = (self.number + 1) << 16 | request;
        let whole = self.cluster.is_multiple_of(SECTOR) && stretch.is_multiple_of(self.cluster);
        let begin = self.log.reached(0);
        let (offset, bytes) = match kind {
            12..55 => {
                let bytes = pattern(tag, from, to - from);
                self.disk.write_at(&bytes, GuestOffset(from)).unwrap();
                (from, bytes)
            }
            55..75 if whole => {
                let at = start + self.dice.below(stretch / self.cluster) * self.cluster;
                let mut bytes = vec![tag as u8; self.cluster as usize];
                bytes[..64].copy_from_slice(&pattern(tag, 0, 64));
                self.disk.write_compressed(&bytes, GuestOffset(at)).unwrap();
                (at, bytes)
            }
            75..85 => {
                let unmap = if kind < 80 { Unmap::Allow } else { Unmap::Keep };
                self.disk
                    .write_zeroes(GuestOffset(from), to - from, unmap)
                    .unwrap();
                (from, vec![0; (to - from) as usize])
            }
            _ => {
                self.disk.discard(GuestOffset(start), stretch).unwrap();
                // Clusters that belong to several are left.
                let mut bytes = vec![0xa5; stretch as usize];
                self.disk.read_at(&mut bytes, GuestOffset(start)).unwrap();
                (start, bytes)
            }
        };
        let end = self.log.reached(0);
        self.live[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        let mut now = vec![0xa5; bytes.len()];
        self.disk.read_at(&mut now, GuestOffset(offset)).unwrap();
        assert!(now == bytes, "request {tag:#x} reads back as something else");
        for sector in offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR) {
            let at = (sector * SECTOR) as usize;
            let stop = (at + SECTOR as usize).min(self.live.len());
            let bytes = self.live[at..stop].to_vec();
            self.told.versions.push((sector, Version { begin, end, bytes }));
        }
    }
}

/// What all threads did to an image, and what it was before.
struct History {
    log: Log,
    backing: Option<Arc<dyn Image>>,
    before: Seen,
    /// By sector.
    versions: Vec<Vec<Version>>,
    flushes: Vec<(usize, usize)>,
}

fn run(layout: Layout, seed: u64) -> History {
    let Start { image, backing, .. } = layout.start();
    let before = look(std::slice::from_ref(&image), backing.as_ref()).unwrap();
    let log = Log::new();
    let store: Arc<dyn Storage> = Arc::new(log.recording(image));
    let below = backing
        .clone()
        .map(|image| Arc::new(stack([image])) as Arc<dyn Disk>);
    let disk = Qcow2Disk::open(store, None, below).unwrap();
    let cluster = 1_u64 << layout.cluster_bits;
    let mut dice = Dice::new(seed);
    let grain = *dice.one_of(&[1, 3, cluster / SECTOR, 2 * cluster / SECTOR]);
    let begin = Barrier::new(THREADS as usize);
    let told: Vec<Told> = thread::scope(|scope| {
        let (disk, log, begin) = (&disk, &log, &begin);
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let guest = Guest {
                    disk,
                    log,
                    number,
                    grain,
                    cluster,
                    live: before.disk.clone(),
                    dice: Dice::new(dice.any()),
                    told: Told::default(),
                };
                scope.spawn(move || {
                    begin.wait();
                    guest.run()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let closing = log.reached(0);
    disk.close().unwrap();
    let sectors = before.disk.chunks(SECTOR as usize);
    let first = |bytes: &[u8]| Version {
        begin: 0,
        end: 0,
        bytes: bytes.to_vec(),
    };
    let mut history = History {
        versions: sectors.map(|bytes| vec![first(bytes)]).collect(),
        flushes: vec![(closing, log.reached(0))],
        log,
        backing,
        before,
    };
    for told in told {
        history.flushes.extend(told.flushes);
        for (sector, version) in told.versions {
            history.versions[sector as usize].push(version);
        }
    }
    history
}

impl History {
    fn verify(&self, files: &[Content], position: usize) -> Result<(), String> {
        sound(&Shared::from(files[0].clone()))?;
        let seen = look(files, self.backing.as_ref())?;
        if seen.snapshots != self.before.snapshots {
            return Err("another snapshot".to_owned());
        }
        let ended = self.flushes.iter().filter(|(_, end)| *end < position);
        let durable = ended.map(|(begin, _)| *begin).max().unwrap_or(0);
        for (sector, now) in seen.disk.chunks(SECTOR as usize).enumerate() {
            let versions = &self.versions[sector];
            let oldest = versions
                .iter()
                .rposition(|version| version.end < durable)
                .unwrap_or(0);
            let mut allowed = versions[oldest..]
                .iter()
                .filter(|version| version.begin <= position);
            if !allowed.any(|version| version.bytes == now) {
                return Err(format!(
                    "sector {sector} is neither what was flushed nor anything later"
                ));
            }
        }
        Ok(())
    }
}

#[test]
fn what_several_threads_wrote_survives_cuts() {
    let layouts = [
        layouts::SMALLEST,
        layouts::SMALL,
        layouts::EXTENDED,
        layouts::USED,
    ]
    .concat();
    let (wanted, mut seed) = effort(ALL_CUTS);
    let mut cuts = 0;
    while cuts < wanted {
        for layout in &layouts {
            let history = run(*layout, seed);
            for cut in history.log.cuts(seed, CUTS) {
                if let Err(why) = history.verify(&cut.files, cut.way.position) {
                    panic!("seed {seed}, {}: {why}\n{:?}", layout.name, cut.way);
                }
                cuts += 1;
            }
        }
        seed += 1;
    }
    eprintln!("{cuts} cuts while several threads wrote");
}
