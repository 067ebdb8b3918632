//! What a guest may see after a cut: what was flushed, and of what came later, each sector old or new.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use catena_engine::qcow2::bitmap::Bits;
use catena_testkit::storage::SECTOR;

const BYTES: usize = SECTOR as usize;

/// What is known of an image's content over a history.
#[derive(Debug)]
pub struct Model {
    /// What the guest reads now.
    pub live: Vec<u8>,
    /// What was durable when: the first since the beginning.
    epochs: Vec<Epoch>,
}

/// From one durable state to the next.
#[derive(Debug)]
struct Epoch {
    /// The step that made it durable.
    step: u64,
    /// Whether that step changed everything at once.
    at_once: bool,
    base: Arc<Vec<u8>>,
    snapshots: Snapshots,
    /// What the disk held when a bitmap that records had no bit set.
    clean: BTreeMap<String, Arc<Vec<u8>>>,
    /// What steps since made of sectors.
    written: HashMap<usize, Vec<Written>>,
}

/// What a step made of a sector.
#[derive(Debug)]
struct Written {
    step: u64,
    bytes: Box<[u8]>,
}

/// Names of internal snapshots and the disks they hold.
pub type Snapshots = Vec<(String, Arc<Vec<u8>>)>;

/// What is seen in an image after a cut.
#[derive(Debug)]
pub struct Seen {
    pub disk: Vec<u8>,
    pub snapshots: Snapshots,
    /// The bitmaps that record and are believed.
    pub bitmaps: Vec<(String, Bits)>,
}

impl Model {
    /// An image at the beginning.
    pub fn new(live: Vec<u8>, snapshots: Snapshots) -> Self {
        let first = Epoch {
            step: 0,
            at_once: false,
            base: Arc::new(live.clone()),
            snapshots,
            clean: BTreeMap::new(),
            written: HashMap::new(),
        };
        Self {
            live,
            epochs: vec![first],
        }
    }

    fn epoch(&mut self) -> &mut Epoch {
        self.epochs.last_mut().unwrap()
    }

    /// The snapshots there are now.
    pub fn snapshots(&self) -> &Snapshots {
        &self.epochs.last().unwrap().snapshots
    }

    /// A step changed bytes from there on to these.
    pub fn change(&mut self, step: u64, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        let end = start + bytes.len();
        if bytes.is_empty() {
            return;
        }
        self.live[start..end].copy_from_slice(bytes);
        for sector in start / BYTES..end.div_ceil(BYTES) {
            let range = sector * BYTES..((sector + 1) * BYTES).min(self.live.len());
            let now = Box::from(&self.live[range]);
            self.epochs
                .last_mut()
                .unwrap()
                .written
                .entry(sector)
                .or_default()
                .push(Written { step, bytes: now });
        }
    }

    /// A step made everything durable.
    pub fn flushed(&mut self, step: u64) {
        let snapshots = self.epoch().snapshots.clone();
        self.durable(step, false, snapshots);
    }

    /// A step made everything what it is now, at once: after a cut it is all as it was before, or all as it is now.
    pub fn replaced(&mut self, step: u64, live: Vec<u8>, snapshots: Snapshots) {
        self.live = live;
        self.durable(step, true, snapshots);
    }

    fn durable(&mut self, step: u64, at_once: bool, snapshots: Snapshots) {
        let base = Arc::new(self.live.clone());
        let mut clean = self.epoch().clean.clone();
        for then in clean.values_mut() {
            // What a larger disk has gained is clean.
            Arc::make_mut(then).resize(self.live.len(), 0);
        }
        self.epochs.push(Epoch {
            step,
            at_once,
            base,
            snapshots,
            clean,
            written: HashMap::new(),
        });
    }

    /// A bitmap that records has no bit set, or is no more.
    pub fn clean(&mut self, step: u64, name: &str, there: bool) {
        self.flushed(step);
        let live = Arc::new(self.live.clone());
        let clean = &mut self.epoch().clean;
        if there {
            clean.insert(name.to_owned(), live);
        } else {
            clean.remove(name);
        }
    }

    /// Whether an image may be like that after a cut that came when `reached` was the last step that had ended.
    pub fn check(&self, seen: &Seen, reached: u64) -> Result<(), String> {
        let index = self.epochs.partition_point(|epoch| epoch.step <= reached) - 1;
        let outcome = self.epochs[index].check(seen, reached + 1);
        let later = &self.epochs[index + 1..];
        let next = later.iter().find(|next| next.at_once && next.step == reached + 1);
        match next {
            Some(next) => {
                outcome.or_else(|old| next.check(seen, next.step).map_err(|new| format!("{old}; {new}")))
            }
            None => outcome,
        }?;
        let during = later.iter().take_while(|epoch| epoch.step == reached + 1);
        let epochs: Vec<&Epoch> = std::iter::once(&self.epochs[index]).chain(during).collect();
        for (name, bits) in &seen.bitmaps {
            let told = epochs
                .iter()
                .filter_map(|epoch| epoch.clean.get(name))
                .any(|clean| tells_all(bits, clean, &seen.disk));
            if !told {
                return Err(format!("{name} does not tell all that has changed"));
            }
        }
        Ok(())
    }
}

/// Whether a bitmap has a bit for everything that has changed since it had none.
fn tells_all(bits: &Bits, clean: &[u8], now: &[u8]) -> bool {
    let sectors = (0_u64..)
        .step_by(BYTES)
        .zip(clean.chunks(BYTES).zip(now.chunks(BYTES)));
    let same_size = clean.len() == now.len() && bits.size() == now.len() as u64;
    same_size && { sectors }.all(|(at, (then, now))| then == now || bits.is_set(at))
}

impl Epoch {
    /// Whether an image may be like that in this epoch when steps up to one had begun.
    fn check(&self, seen: &Seen, begun: u64) -> Result<(), String> {
        if seen.disk.len() != self.base.len() {
            return Err(format!(
                "the disk has {} bytes, not {}",
                seen.disk.len(),
                self.base.len()
            ));
        }
        let sectors = seen.disk.chunks(BYTES).zip(self.base.chunks(BYTES));
        for (sector, (now, base)) in sectors.enumerate() {
            if now == base {
                continue;
            }
            let written = self.written.get(&sector).map(Vec::as_slice).unwrap_or_default();
            let allowed = written
                .iter()
                .any(|written| written.step <= begun && *written.bytes == *now);
            if !allowed {
                return Err(format!(
                    "sector {sector} is {}, not {} as at step {} nor one of {:?}",
                    show(now),
                    show(base),
                    self.step,
                    written
                        .iter()
                        .map(|written| format!("{} at step {}", show(&written.bytes), written.step))
                        .collect::<Vec<_>>()
                ));
            }
        }
        if seen.snapshots.len() != self.snapshots.len() {
            return Err(format!(
                "there are {} snapshots, not {}",
                seen.snapshots.len(),
                self.snapshots.len()
            ));
        }
        for (seen, known) in seen.snapshots.iter().zip(&self.snapshots) {
            if seen != known {
                return Err(format!("snapshot {} is not as it was", known.0));
            }
        }
        Ok(())
    }
}

/// A sector in few words.
fn show(sector: &[u8]) -> String {
    if sector.iter().all(|byte| *byte == 0) {
        return "zeros".to_owned();
    }
    let word = |chunk: &[u8]| chunk.try_into().map_or(0, u64::from_le_bytes);
    let mut chunks = sector.chunks(8).map(word);
    let (first, last) = (chunks.next().unwrap_or(0), chunks.next_back().unwrap_or(0));
    format!("{first:#x}..{last:#x}")
}
