//! A folder with a chain of small images in it, which can be put back to what it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use catena::open::Sharing;
use catena::ops::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use catena::ops::{Observer, Silent};
use catena::{Disk, Format, GuestOffset, Policy, Start, detect};
use catena_engine::Unmap;
use catena_engine::qcow2::{CheckOptions, check};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use catena_testkit::Dice;
use catena_testkit::storage::{Content, Log, Recording};

/// Bytes of the lowest disk; those above are larger.
const SIZE: u64 = 160 << 10;

/// The folder.
pub struct Lab {
    folder: tempfile::TempDir,
    /// What is in its files at the beginning.
    files: BTreeMap<PathBuf, Content>,
}

/// Bytes that say who wrote them and where they belong, eight at a time.
fn pattern(tag: u64, offset: u64, len: u64) -> Vec<u8> {
    (offset / 8..(offset + len) / 8)
        .flat_map(|at| (tag << 32 | at).to_le_bytes())
        .collect()
}

fn content(path: &Path) -> Content {
    let file = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None)).unwrap();
    Content::read_from(&file).unwrap()
}

impl Lab {
    /// The chain `base` <- `a` <- `b` <- `c`, and `other` beside it, with something of everything in each.
    pub fn new(seed: u64) -> Self {
        let mut lab = Self {
            folder: catena_testkit::scratch().unwrap(),
            files: BTreeMap::new(),
        };
        let mut dice = Dice::new(seed);
        let raw = dice.chance(30);
        lab.create(
            "base",
            None,
            if raw { Format::Raw } else { Format::Qcow2 },
            SIZE,
            &mut dice,
        );
        let below = if raw { Format::Raw } else { Format::Qcow2 };
        lab.create("a", Some(("base", below)), Format::Qcow2, SIZE, &mut dice);
        let larger = SIZE + dice.below(64) * 512;
        lab.create("b", Some(("a", Format::Qcow2)), Format::Qcow2, larger, &mut dice);
        lab.create("c", Some(("b", Format::Qcow2)), Format::Qcow2, larger, &mut dice);
        lab.create("other", None, Format::Qcow2, SIZE - 4096, &mut dice);
        let names = std::fs::read_dir(lab.folder.path()).unwrap();
        let paths = names.map(|name| name.unwrap().path());
        lab.files = paths.map(|path| (path.clone(), content(&path))).collect();
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn create(
        &self,
        name: &str,
        backing: Option<(&str, Format)>,
        format: Format,
        size: u64,
        dice: &mut Dice,
    ) {
        let kind = match format {
            Format::Raw => Kind::Raw,
            _ => Kind::Qcow2(Box::new(Qcow2Options {
                backing: backing.map(|(name, format)| (name.to_owned(), format)),
                cluster_size: *dice.one_of(&[512, 512, 4096, 16 << 10]),
                ..Qcow2Options::default()
            })),
        };
        let request = create::Request {
            path: self.path(name),
            existing: Existing::Refuse,
            size: Some(size),
            kind,
            preallocation: Preallocation::Off,
        };
        create::plan(&request, &Policy::libvirt())
            .unwrap()
            .execute()
            .unwrap();
        let chain = detect(&Start::at(self.path(name), Some(format)), &Policy::libvirt());
        let writable = chain.open_writable(0, Sharing::Locked).unwrap();
        let disk = writable.disk();
        for write in 0..10 {
            let unit = *dice.one_of(&[512, 4096]);
            let offset = dice.below(size / unit) * unit;
            let len = ((1 + dice.below(40)) * 512).min(size - offset);
            let tag = u64::from(name.as_bytes()[0]) << 8 | write;
            let at = GuestOffset(offset);
            match (dice.below(10), writable.qcow2()) {
                (0, Some(_)) => disk.write_zeroes(at, len, Unmap::Allow).unwrap(),
                (1, Some(_)) => disk.discard(at, len).unwrap(),
                (2 | 3, Some(qcow2)) => {
                    let cluster = writable.unit();
                    let bytes = [tag as u8].repeat(cluster as usize);
                    let at = offset / cluster * cluster;
                    if at + cluster <= size {
                        qcow2.write_compressed(&bytes, GuestOffset(at)).unwrap();
                    }
                }
                _ => disk.write_at(&pattern(tag, offset, len), at).unwrap(),
            }
        }
        writable.finish().unwrap();
    }

    fn is_qcow2(&self, name: &str) -> bool {
        let mut magic = [0; 4];
        self.files[&self.path(name)].read(&mut magic, 0);
        &magic == b"QFI\xfb"
    }

    /// What an image is in.
    pub fn format_of(&self, name: &str) -> Format {
        match self.is_qcow2(name) {
            true => Format::Qcow2,
            false => Format::Raw,
        }
    }

    /// Where a chain starts.
    pub fn start(&self, name: &str) -> Start {
        Start::at(self.path(name), Some(self.format_of(name)))
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// What the guest of an image sees.
    pub fn view(&self, name: &str) -> Result<Vec<u8>, String> {
        let chain = detect(&self.start(name), &Policy::libvirt());
        let disk = chain.open(Sharing::Force).map_err(|error| error.full())?;
        let mut bytes = vec![0xa5; disk.size() as usize];
        disk.read_at(&mut bytes, GuestOffset(0))
            .map_err(|error| error.full())?;
        Ok(bytes)
    }

    /// Every image is sound but for leaks; tells how many clusters are leaked.
    pub fn check(&self) -> Result<u64, String> {
        let options = CheckOptions {
            threads: 1,
            findings: 8,
            ..CheckOptions::default()
        };
        let mut leaks = 0;
        for name in ["base", "a", "b", "c", "other"] {
            if !self.is_there(name) || !self.is_qcow2(name) {
                continue;
            }
            let file = LocalFile::open(self.path(name), &OpenOptions::new().lock(LockMode::None)).unwrap();
            let report = check(&file, &options).map_err(|error| format!("{name}: {}", error.full()))?;
            if !report.is_sound() {
                return Err(format!("{name}: {:?}", report.findings));
            }
            leaks += report.totals.leaks;
        }
        Ok(leaks)
    }

    /// Puts the folder back to what it was, but for these files.
    pub fn put_back(&self, but: &[(PathBuf, Content)]) {
        for (path, content) in &self.files {
            let other = but.iter().find(|(other, _)| other == path);
            other.map_or(content, |(_, content)| content).save(path).unwrap();
        }
    }
}

/// A log of what an operation writes to which files.
#[derive(Default)]
pub struct Taped {
    log: Log,
    files: Mutex<Vec<(PathBuf, Arc<Recording>)>>,
}

impl Taped {
    pub fn over(&self, file: LocalFile) -> Arc<dyn Storage> {
        let path = file.path().unwrap().to_owned();
        let recording = Arc::new(self.log.recording_over(Arc::new(file)).unwrap());
        self.files.lock().unwrap().push((path, Arc::clone(&recording)));
        recording
    }

    /// The files, in the order in which they were opened, and what is in them at the end. Their locks are given up.
    pub fn end(self) -> (Log, Vec<(PathBuf, Content)>) {
        let files = self.files.into_inner().unwrap().into_iter();
        (
            self.log,
            files.map(|(path, file)| (path, file.content())).collect(),
        )
    }
}

/// Nobody watches.
pub fn unwatched() -> &'static dyn Observer {
    &Silent
}
