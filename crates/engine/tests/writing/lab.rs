//! Images on the disk, what their guest should see, and QEMU's opinion of them.

use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Disk, GuestOffset, Qcow2, Raw, Stack, Unmap, WritableDisk};
use catena_format::qcow2::{ClusterBits, Compression, CreateOptions, NewImage, Version};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use std::path::Path;
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
        let mut options = CreateOptions::new(shape.size).unwrap();
        options.version = shape.version;
        options.cluster_bits = ClusterBits::new(shape.cluster_bits).unwrap();
        options.refcount_order = shape.refcount_order;
        options.extended_l2 = shape.extended;
        options.compression = shape.compression;
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
        let new = NewImage::lay_out(&options).unwrap();
        std::fs::write(folder.file("image.qcow2"), b"").unwrap();
        let image = file(&folder.file("image.qcow2"));
        for (offset, bytes) in &new.writes {
            image.write_all_at(bytes, *offset).unwrap();
        }
        image.set_len(new.len).unwrap();
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

    /// What the disk holds is what the model holds.
    pub fn compare(&self, disk: &dyn Disk, when: &str) {
        let mut bytes = vec![0xee; self.model.len()];
        disk.read_at(&mut bytes, GuestOffset(0)).unwrap();
        assert_same(&bytes, &self.model, &format!("{} {when}", self.shape.name));
    }

    /// QEMU finds nothing wrong, and sees what the model says; so do our own readers.
    pub fn settle(&self, when: &str) {
        let path = self.folder.file("image.qcow2");
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
        let image = Arc::new(Qcow2::open(file(&path), self.data_file()).unwrap());
        let mut layers: Vec<(Arc<dyn catena_engine::Image>, _)> = vec![(image, path)];
        if self.shape.backing.is_some() {
            let path = self.folder.file("base.raw");
            layers.push((Arc::new(Raw::open(file(&path)).unwrap()), path));
        }
        self.compare(&Stack::new(layers), &format!("{when}, read as a stack"));
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

/// One thing a guest does, within a range, on disk and model alike.
pub fn act(disk: &Qcow2Disk, model: &mut [u8], range: std::ops::Range<u64>, dice: &mut Dice) -> String {
    let cluster = disk.header().cluster_bits.size();
    let place = |dice: &mut Dice, unit: u64, most: u64| {
        let start = dice.within(range.clone()) / unit * unit;
        let start = start.max(range.start);
        let len = (1 + dice.below(most)).div_ceil(unit) * unit;
        (start, len.min(range.end - start))
    };
    let units = [1, 512, 4096, cluster];
    let unit = *dice.one_of(&units);
    let most = *dice.one_of(&[512, 5000, cluster, 3 * cluster + 7]);
    let (start, len) = place(dice, unit, most);
    let part = &mut model[start as usize..(start + len) as usize];
    let what = match dice.below(12) {
        0..=5 => {
            let byte = dice.below(256) as u8;
            for (n, to) in part.iter_mut().enumerate() {
                *to = byte.wrapping_add((n / 300) as u8);
            }
            disk.write_at(part, GuestOffset(start)).unwrap();
            "write"
        }
        6 | 7 => {
            part.fill(0);
            let unmap = *dice.one_of(&[Unmap::Allow, Unmap::Keep]);
            disk.write_zeroes(GuestOffset(start), len, unmap).unwrap();
            "zero"
        }
        8 | 9 => {
            disk.discard(GuestOffset(start), len).unwrap();
            let mut now = vec![0; part.len()];
            disk.read_at(&mut now, GuestOffset(start)).unwrap();
            for (at, (now, before)) in now.iter().zip(part.iter_mut()).enumerate() {
                assert!(*now == 0 || *now == *before, "discard uncovers {at}");
                *before = *now;
            }
            "discard"
        }
        10 if disk.header().has_data_file() => "nothing",
        10 => {
            let start = start / cluster * cluster;
            let end = (start + cluster).min(model.len() as u64);
            if start < range.start || end > range.end {
                return "nothing".to_owned();
            }
            let part = &mut model[start as usize..end as usize];
            let incompressible = dice.chance(20);
            for (n, to) in part.iter_mut().enumerate() {
                *to = if incompressible || n % 4 == 0 {
                    dice.any() as u8
                } else {
                    0
                };
            }
            disk.write_compressed(part, GuestOffset(start)).unwrap();
            "compress"
        }
        _ => {
            disk.flush().unwrap();
            "flush"
        }
    };
    format!("{what} {start:#x}+{len:#x}")
}
