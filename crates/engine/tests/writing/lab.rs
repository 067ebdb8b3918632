//! Images on the disk, what their guest should see, and QEMU's opinion of them.

use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Disk, GuestOffset, Image, Qcow2, Raw, Result, Stack, StorageBytes, Unmap, WritableDisk};
use catena_format::qcow2::{ClusterBits, Compression, CreateOptions, Header, NewImage, Version};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// What kind of image is written.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub size: u64,
    pub version: Version,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended: bool,
    pub compression: Compression,
    /// Size of a backing image full of bytes.
    pub backing: Option<u64>,
    /// An external data file, raw or not.
    pub data_file: Option<bool>,
}

pub const PLAIN: Shape = Shape {
    name: "plain",
    size: 5 << 20,
    version: Version::V3,
    cluster_bits: 16,
    refcount_order: 4,
    extended: false,
    compression: Compression::Deflate,
    backing: None,
    data_file: None,
};

impl Shape {
    /// The image itself, without backing and data file.
    pub fn options(&self) -> CreateOptions {
        let mut options = CreateOptions::new(self.size).unwrap();
        options.version = self.version;
        options.cluster_bits = ClusterBits::new(self.cluster_bits).unwrap();
        options.refcount_order = self.refcount_order;
        options.extended_l2 = self.extended;
        options.compression = self.compression;
        options
    }
}

/// Makes an empty image.
pub fn make(options: &CreateOptions, storage: &dyn Storage) {
    let new = NewImage::lay_out(options).unwrap();
    for (offset, bytes) in &new.writes {
        storage.write_all_at(bytes, *offset).unwrap();
    }
    storage.set_len(new.len).unwrap();
}

/// Opens a file for writing, without locks: QEMU's tools look at it in between.
pub fn file(path: &Path) -> Arc<dyn Storage> {
    let options = OpenOptions::new().write(true).lock(LockMode::None);
    Arc::new(LocalFile::open(path, &options).unwrap())
}

/// An image, and what its guest should see.
pub struct Lab {
    pub folder: Folder,
    pub shape: Shape,
    pub model: Vec<u8>,
}

impl Lab {
    pub fn new(shape: &Shape, dice: &mut Dice) -> Self {
        let folder = Folder::new();
        let mut model = vec![0; shape.size as usize];
        let mut options = shape.options();
        if let Some(size) = shape.backing {
            let mut bytes = vec![0; size as usize];
            // Bytes with holes in between.
            for piece in bytes.chunks_mut(100_000).step_by(2) {
                piece.fill(1 + dice.below(255) as u8);
            }
            std::fs::write(folder.file("base.raw"), &bytes).unwrap();
            let len = model.len().min(bytes.len());
            model[..len].copy_from_slice(&bytes[..len]);
            options.backing = Some((b"base.raw".to_vec(), b"raw".to_vec()));
        }
        if let Some(raw) = shape.data_file {
            options.data_file = Some((b"data.raw".to_vec(), raw));
            let data = std::fs::File::create(folder.file("data.raw")).unwrap();
            if raw {
                data.set_len(shape.size).unwrap();
            }
        }
        std::fs::write(folder.file("image.qcow2"), b"").unwrap();
        make(&options, &*file(&folder.file("image.qcow2")));
        Self {
            folder,
            shape: shape.clone(),
            model,
        }
    }

    pub fn data_file(&self) -> Option<Arc<dyn Storage>> {
        let path = self.folder.file("data.raw");
        self.shape.data_file.map(|_| file(&path))
    }

    pub fn backing(&self) -> Option<Arc<dyn Disk>> {
        let path = self.folder.file("base.raw");
        self.shape.backing.map(|_| {
            let raw = Arc::new(Raw::open(file(&path)).unwrap());
            Arc::new(Stack::new([(raw as _, path)])) as Arc<dyn Disk>
        })
    }

    pub fn open(&self) -> Qcow2Disk {
        let image = file(&self.folder.file("image.qcow2"));
        Qcow2Disk::open(image, self.data_file(), self.backing()).unwrap()
    }

    /// The header on the disk.
    pub fn header(&self) -> Header {
        let image = file(&self.folder.file("image.qcow2"));
        Header::read(&StorageBytes::new(&*image).unwrap()).unwrap()
    }

    /// The image and its backing, to be read.
    pub fn layers(&self) -> Vec<(Arc<dyn Image>, PathBuf)> {
        let path = self.folder.file("image.qcow2");
        let image = Arc::new(Qcow2::open(file(&path), self.data_file()).unwrap());
        let mut layers: Vec<(Arc<dyn Image>, _)> = vec![(image, path)];
        if self.shape.backing.is_some() {
            let path = self.folder.file("base.raw");
            layers.push((Arc::new(Raw::open(file(&path)).unwrap()), path));
        }
        layers
    }

    /// What the disk holds is what the model holds.
    pub fn compare(&self, disk: &dyn Disk, when: &str) {
        let mut bytes = vec![0xee; self.model.len()];
        disk.read_at(&mut bytes, GuestOffset(0)).unwrap();
        assert_same(&bytes, &self.model, &format!("{} {when}", self.shape.name));
    }

    /// QEMU finds nothing wrong, and sees what the model says; so do our own readers.
    pub fn settle(&self, when: &str) {
        // Names are relative to where QEMU runs.
        let check = Command::new("qemu-img")
            .current_dir(self.folder.path())
            .args(["check", "-f", "qcow2", "image.qcow2"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&check.stdout) + String::from_utf8_lossy(&check.stderr);
        assert!(
            check.status.success() && said.contains("No errors were found on the image."),
            "{} {when}: {said}",
            self.shape.name
        );
        let raw = self.folder.file("out.raw");
        self.folder
            .img("convert -f qcow2 -O raw -t unsafe image.qcow2 out.raw");
        let bytes = std::fs::read(&raw).unwrap();
        assert_same(
            &bytes,
            &self.model,
            &format!("{} {when}, read by QEMU", self.shape.name),
        );
        self.compare(&Stack::new(self.layers()), &format!("{when}, read as a stack"));
        if self.shape.data_file == Some(true) {
            let bytes = std::fs::read(self.folder.file("data.raw")).unwrap();
            assert_same(
                &bytes,
                &self.model,
                &format!("{} {when}, data file", self.shape.name),
            );
        }
    }
}

pub fn assert_same(bytes: &[u8], model: &[u8], what: &str) {
    if bytes == model {
        return;
    }
    assert_eq!(bytes.len(), model.len(), "{what}: length");
    if let Some(at) = bytes.iter().zip(model).position(|(a, b)| a != b) {
        let len = bytes[at..]
            .iter()
            .zip(&model[at..])
            .take_while(|(a, b)| a != b)
            .count();
        panic!(
            "{what}: at {at:#x} for {len:#x} bytes: {:#x} where {:#x} should be",
            bytes[at], model[at]
        );
    }
}

/// One thing a guest does.
#[derive(Clone)]
pub enum Action {
    Write(u64, Vec<u8>),
    Zero(u64, u64, Unmap),
    Discard(u64, u64),
    Compress(u64, Vec<u8>),
    Flush,
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Write(at, bytes) => write!(f, "write {at:#x}+{:#x}", bytes.len()),
            Self::Zero(at, len, unmap) => write!(f, "zero {at:#x}+{len:#x} {unmap:?}"),
            Self::Discard(at, len) => write!(f, "discard {at:#x}+{len:#x}"),
            Self::Compress(at, bytes) => write!(f, "compress {at:#x}+{:#x}", bytes.len()),
            Self::Flush => f.write_str("flush"),
        }
    }
}

impl Action {
    /// Something to do within a range of a disk.
    pub fn draw(header: &Header, range: Range<u64>, dice: &mut Dice) -> Self {
        let cluster = header.cluster_bits.size();
        let unit = *dice.one_of(&[1, 512, 4096, cluster]);
        let most = *dice.one_of(&[512, 5000, cluster, 3 * cluster + 7]);
        let start = (dice.within(range.clone()) / unit * unit).max(range.start);
        let len = ((1 + dice.below(most)).div_ceil(unit) * unit).min(range.end - start);
        match dice.below(12) {
            0..=5 => {
                let byte = dice.any() as u8;
                let bytes = (0..len).map(|n| byte.wrapping_add((n / 300) as u8)).collect();
                Self::Write(start, bytes)
            }
            6 | 7 => Self::Zero(start, len, *dice.one_of(&[Unmap::Allow, Unmap::Keep])),
            8 | 9 => Self::Discard(start, len),
            10 if !header.has_data_file() => {
                let at = start / cluster * cluster;
                let end = (at + cluster).min(header.virtual_size);
                if at < range.start || end > range.end {
                    return Self::Flush;
                }
                let incompressible = dice.chance(20);
                let bytes = (at..end).map(|n| match incompressible || n % 4 == 0 {
                    true => dice.any() as u8,
                    false => 0,
                });
                Self::Compress(at, bytes.collect())
            }
            _ => Self::Flush,
        }
    }

    pub fn range(&self) -> Range<usize> {
        let (at, len) = match self {
            Self::Write(at, bytes) | Self::Compress(at, bytes) => (*at, bytes.len() as u64),
            Self::Zero(at, len, _) | Self::Discard(at, len) => (*at, *len),
            Self::Flush => (0, 0),
        };
        at as usize..(at + len) as usize
    }

    pub fn perform(&self, disk: &Qcow2Disk) -> Result<()> {
        match self {
            Self::Write(at, bytes) => disk.write_at(bytes, GuestOffset(*at)),
            Self::Zero(at, len, unmap) => disk.write_zeroes(GuestOffset(*at), *len, *unmap),
            Self::Discard(at, len) => disk.discard(GuestOffset(*at), *len),
            Self::Compress(at, bytes) => disk.write_compressed(bytes, GuestOffset(*at)),
            Self::Flush => disk.flush(),
        }
    }

    /// What it makes of the model, after it was done.
    pub fn note(&self, disk: &Qcow2Disk, model: &mut [u8]) {
        let part = &mut model[self.range()];
        match self {
            Self::Write(_, bytes) | Self::Compress(_, bytes) => part.copy_from_slice(bytes),
            Self::Zero(..) => part.fill(0),
            Self::Discard(at, _) => {
                let mut now = vec![0; part.len()];
                disk.read_at(&mut now, GuestOffset(*at)).unwrap();
                for (now, before) in now.iter().zip(part.iter_mut()) {
                    assert!(*now == 0 || *now == *before, "{self:?} uncovers the backing");
                    *before = *now;
                }
            }
            Self::Flush => {}
        }
    }
}

/// Does something on disk and model alike.
pub fn act(disk: &Qcow2Disk, model: &mut [u8], range: Range<u64>, dice: &mut Dice) -> String {
    let action = Action::draw(&disk.header(), range, dice);
    action.perform(disk).unwrap();
    action.note(disk, model);
    format!("{action:?}")
}
