//! A history: what is done to an image, one step after the other, with a log of everything that reached its files.

use std::sync::Arc;

use catena_engine::qcow2::bitmap::stored;
use catena_engine::qcow2::check::{CheckOptions, check};
use catena_engine::{Disk, GuestOffset, Image, Qcow2, Qcow2Disk, Unmap, WritableDisk};
use catena_storage::Storage;
use catena_testkit::Dice;
use catena_testkit::storage::{Content, Cut, Log, Recording, SECTOR, Shared};

use crate::layouts::{Layout, Start, pattern, read_all, stack};
use crate::model::{Model, Seen, Snapshots};

/// Bytes of a guest's request at most.
const MOST: u64 = 192 << 10;

/// An image and what has been done to it.
pub struct History {
    pub layout: Layout,
    pub log: Log,
    pub model: Model,
    /// The step that is taken, or was taken last; the first is 1.
    pub step: u64,
    pub image: Arc<Recording>,
    data_file: Option<Arc<Recording>>,
    /// What the disk writes to: the recordings, or something in front of them.
    stores: (Arc<dyn Storage>, Option<Arc<dyn Storage>>),
    backing: Option<Arc<dyn Image>>,
    disk: Option<Qcow2Disk>,
    pub dice: Dice,
    /// What was done, for messages.
    pub done: Vec<String>,
}

/// What a guest asks for.
#[derive(Clone, Debug)]
pub enum Request {
    Write { offset: u64, len: u64 },
    Zeroes { offset: u64, len: u64, unmap: Unmap },
    Discard { offset: u64, len: u64 },
    Compressed { cluster: u64 },
    Flush,
}

impl History {
    pub fn begin(layout: Layout, seed: u64) -> Self {
        Self::begin_behind(layout, seed, |store| store)
    }

    /// Begins with something in front of the stores.
    pub fn begin_behind(
        layout: Layout,
        seed: u64,
        front: impl Fn(Arc<dyn Storage>) -> Arc<dyn Storage>,
    ) -> Self {
        let Start {
            image,
            data_file,
            backing,
        } = layout.start();
        let log = Log::new();
        let image = Arc::new(log.recording(image));
        let data_file = data_file.map(|content| Arc::new(log.recording(content)));
        let stores = (
            front(Arc::clone(&image) as _),
            data_file.clone().map(|store| front(store as _)),
        );
        let files: Vec<Content> = [Some(&image), data_file.as_ref()]
            .into_iter()
            .flatten()
            .map(|recording| recording.content())
            .collect();
        let seen = look(&files, backing.as_ref()).unwrap();
        Self {
            layout,
            log,
            model: Model::new(seen.disk, seen.snapshots),
            step: 0,
            image,
            data_file,
            stores,
            backing,
            disk: None,
            dice: Dice::new(seed),
            done: Vec::new(),
        }
    }

    pub fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.backing.as_ref()
    }

    /// What is in the files now.
    pub fn files(&self) -> Vec<Content> {
        let data_file = self.data_file.iter().map(|recording| recording.content());
        std::iter::once(self.image.content()).chain(data_file).collect()
    }

    /// The disk, open for writing.
    pub fn disk(&mut self) -> &Qcow2Disk {
        if self.disk.is_none() {
            let backing = self
                .backing
                .clone()
                .map(|image| Arc::new(stack([image])) as Arc<dyn Disk>);
            let (image, data_file) = self.stores.clone();
            self.disk = Some(Qcow2Disk::open(image, data_file, backing).unwrap());
        }
        self.disk.as_ref().unwrap()
    }

    /// Takes so many steps, and makes the last one durable.
    pub fn go(&mut self, steps: u64) {
        let full = self.dice.chance(50);
        for step in 0..steps {
            self.begin_step();
            if step == 0 && full {
                // A disk that is all allocated, where everything that follows finds something.
                let len = self.model.live.len() as u64;
                let request = Request::Write { offset: 0, len };
                self.note("filled");
                self.take(&request).unwrap();
                self.changed(&request);
            } else if self.dice.chance(4) {
                self.note("close");
                self.close();
            } else if self.dice.chance(8) {
                self.maintain();
            } else {
                let request = self.draw();
                self.note(&format!("{request:?}"));
                if let Err(error) = self.take(&request) {
                    panic!("{}: {}", error.full(), self.told());
                }
                self.changed(&request);
            }
            self.end_step();
        }
        self.begin_step();
        self.note("close");
        self.close();
        self.end_step();
    }

    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    pub fn note(&mut self, what: &str) {
        self.done.push(format!("{}: {what}", self.step));
    }

    pub fn end_step(&mut self) {
        self.log.reached(self.step);
    }

    pub fn close(&mut self) {
        if let Some(disk) = self.disk.take() {
            disk.close().unwrap();
        }
        self.model.flushed(self.step);
    }

    /// Lets go of a disk that is of no use any more.
    pub fn abandon(&mut self) {
        drop(self.disk.take());
    }

    /// Draws what the guest asks for next.
    pub fn draw(&mut self) -> Request {
        let cluster = 1 << self.layout.cluster_bits;
        let size = self.model.live.len() as u64;
        let unit = *self.dice.one_of(&[1, SECTOR, SECTOR, cluster, cluster]);
        let offset = self.dice.below(size / unit) * unit;
        let most = *self
            .dice
            .one_of(&[unit, 3 * SECTOR, cluster * 6, cluster * 80, cluster * 80]);
        let len = (self.dice.below(most / unit) + 1) * unit;
        let len = len.min(size - offset).min(MOST);
        let kind = self.dice.below(100);
        match kind {
            0..42 => Request::Write { offset, len },
            42..50 => Request::Zeroes {
                offset,
                len,
                unmap: Unmap::Allow,
            },
            50..58 => Request::Zeroes {
                offset,
                len,
                unmap: Unmap::Keep,
            },
            58..70 => Request::Discard { offset, len },
            70..80 if self.layout.data_file.is_none() => Request::Compressed {
                cluster: self.dice.below(size / cluster),
            },
            _ => Request::Flush,
        }
    }

    pub fn written(&self, request: &Request) -> Option<(u64, Vec<u8>)> {
        match request {
            Request::Write { offset, len } => Some((*offset, pattern(self.step, *offset, *len))),
            Request::Zeroes { offset, len, .. } => Some((*offset, vec![0; *len as usize])),
            Request::Compressed { cluster } => {
                let size = 1 << self.layout.cluster_bits;
                let mut bytes = vec![self.step as u8; size];
                bytes[..64].copy_from_slice(&pattern(self.step, 0, 64));
                Some((cluster * size as u64, bytes))
            }
            Request::Discard { .. } | Request::Flush => None,
        }
    }

    /// Asks for it.
    pub fn take(&mut self, request: &Request) -> catena_engine::Result<()> {
        let written = self.written(request);
        let disk = self.disk();
        match (request, written) {
            (Request::Write { .. }, Some((offset, bytes))) => disk.write_at(&bytes, GuestOffset(offset)),
            (Request::Compressed { .. }, Some((offset, bytes))) => {
                disk.write_compressed(&bytes, GuestOffset(offset))
            }
            (Request::Zeroes { offset, len, unmap }, _) => {
                disk.write_zeroes(GuestOffset(*offset), *len, *unmap)
            }
            (Request::Discard { offset, len }, _) => disk.discard(GuestOffset(*offset), *len),
            _ => disk.flush(),
        }
    }

    /// It was done: the model follows, and the disk must agree.
    pub fn changed(&mut self, request: &Request) {
        let step = self.step;
        match (self.written(request), request) {
            (Some((offset, bytes)), _) => {
                self.model.change(step, offset, &bytes);
                let now = self.read(offset, bytes.len() as u64);
                assert!(
                    now == bytes,
                    "{}: {request:?} reads back as something else",
                    self.told()
                );
            }
            (None, Request::Discard { offset, len }) => {
                self.settled(*offset, *len, &vec![0; *len as usize]);
            }
            _ => self.model.flushed(step),
        }
    }

    /// A range holds, sector by sector, what it did or what it was to become; the model takes over which.
    pub fn settled(&mut self, offset: u64, len: u64, new: &[u8]) {
        let now = self.read(offset, len);
        let old = self.model.live[offset as usize..(offset + len) as usize].to_vec();
        let mut at = 0;
        while at < now.len() {
            let left = (SECTOR - (offset + at as u64) % SECTOR) as usize;
            let end = (at + left).min(now.len());
            let part = &now[at..end];
            assert!(
                part == &old[at..end] || part == &new[at..end],
                "{}: neither old nor new at {:#x}",
                self.told(),
                offset + at as u64
            );
            at = end;
        }
        // Both may be on the disk after a cut.
        self.model.change(self.step, offset, new);
        self.model.change(self.step, offset, &now);
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0xa5; len as usize];
        self.disk().read_at(&mut bytes, GuestOffset(offset)).unwrap();
        bytes
    }

    /// Everything that happened, for messages.
    pub fn told(&self) -> String {
        let from = self.done.len().saturating_sub(40);
        format!("{} after\n{}\n", self.layout.name, self.done[from..].join("\n"))
    }

    /// The image can be read as a whole and holds what it should.
    pub fn check_now(&mut self) {
        let seen = look(&self.files(), self.backing.as_ref()).unwrap();
        assert!(seen.disk == self.model.live, "{}", self.told());
    }

    /// Looks at one cut: the image opens, is sound but for leaks, and holds what it may hold.
    pub fn verify(&self, cut: &Cut) -> Result<(), String> {
        let store = Shared::from(cut.files[0].clone());
        sound(&store)?;
        let seen = look(&cut.files, self.backing.as_ref())?;
        self.model.check(&seen, cut.reached.unwrap_or(0))
    }
}

/// What a check of a small image may use.
pub fn check_options() -> CheckOptions<'static> {
    CheckOptions {
        threads: 1,
        findings: 8,
        ..CheckOptions::default()
    }
}

/// No worse than leaks, by our own check.
pub fn sound(store: &dyn Storage) -> Result<(), String> {
    let report = check(store, &check_options()).map_err(|error| error.full())?;
    match report.is_sound() {
        true => Ok(()),
        false => Err(format!("{:?} {:?}", report.totals, report.findings)),
    }
}

/// What a guest sees in files, and the internal snapshots.
pub fn look(files: &[Content], backing: Option<&Arc<dyn Image>>) -> Result<Seen, String> {
    let mut stores = files
        .iter()
        .map(|content| Arc::new(Shared::from(content.clone())) as Arc<dyn Storage>);
    let image = stores.next().ok_or("no files")?;
    let image = Qcow2::open(image, stores.next()).map_err(|error| error.full())?;
    let mut snapshots = Snapshots::new();
    for snapshot in image.snapshots().map_err(|error| error.full())? {
        let then: Arc<dyn Image> = Arc::new(image.at_snapshot(&snapshot));
        let bytes = read_all(&stack(std::iter::once(then).chain(backing.cloned())));
        snapshots.push((snapshot.name, Arc::new(bytes)));
    }
    let store = Shared::from(files[0].clone());
    let mut bitmaps = Vec::new();
    for bitmap in stored::list(image.header(), &store).map_err(|error| error.full())? {
        if bitmap.auto && !bitmap.in_use {
            let bits = stored::load(&bitmap, image.header(), &store).map_err(|error| error.full())?;
            bitmaps.push((bitmap.name, bits));
        }
    }
    let image: Arc<dyn Image> = Arc::new(image);
    let disk = read_all(&stack(std::iter::once(image).chain(backing.cloned())));
    Ok(Seen {
        disk,
        snapshots,
        bitmaps,
    })
}
