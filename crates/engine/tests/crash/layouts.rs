//! The images that histories begin with: every layout there is, as small as shows all of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use catena_engine::qcow2::bitmap::Ground;
use catena_engine::{Disk, GuestOffset, Image, Qcow2Disk, Raw, Stack};
use catena_format::qcow2::{ClusterBits, Compression, CreateOptions, NewImage, Version};
use catena_storage::LocalFile;
use catena_testkit::Folder;
use catena_testkit::storage::{Content, Shared};

/// What an image is like.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub name: &'static str,
    /// Bytes of the disk.
    pub size: u64,
    pub version: Version,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended_l2: bool,
    pub zstd: bool,
    pub lazy: bool,
    /// An external data file, and whether it is also a raw image.
    pub data_file: Option<bool>,
    /// Bytes of the backing image.
    pub backing: Option<u64>,
    /// Made by QEMU, with data, compressed clusters and an internal snapshot in it.
    pub used: bool,
    /// Clusters that nobody uses but that are counted, so that tables of refcounts are nearly full.
    pub leaked: u64,
}

const PLAIN: Layout = Layout {
    name: "",
    size: 96 << 10,
    version: Version::V3,
    cluster_bits: 9,
    refcount_order: 4,
    extended_l2: false,
    zstd: false,
    lazy: false,
    data_file: None,
    backing: None,
    used: false,
    leaked: 0,
};

/// Clusters of one sector: tables are small, so there are many, and they grow soon.
pub const SMALLEST: &[Layout] = &[
    Layout {
        name: "version 2, 512 byte clusters",
        version: Version::V2,
        ..PLAIN
    },
    Layout {
        name: "512 byte clusters, refcounts of 1 bit",
        refcount_order: 0,
        ..PLAIN
    },
    Layout {
        name: "512 byte clusters, refcounts of 64 bits, over a backing image",
        refcount_order: 6,
        backing: Some((80 << 10) + 512),
        ..PLAIN
    },
    Layout {
        name: "512 byte clusters, refcounts of 64 bits, the refcount table nearly full",
        refcount_order: 6,
        leaked: 3990,
        ..PLAIN
    },
];

/// Clusters of a few sectors, which are torn.
pub const SMALL: &[Layout] = &[
    Layout {
        name: "4 KiB clusters",
        cluster_bits: 12,
        size: (128 << 10) + 1536,
        ..PLAIN
    },
    Layout {
        name: "4 KiB clusters over a backing image, refcounts of 2 bits",
        cluster_bits: 12,
        refcount_order: 1,
        backing: Some((100 << 10) + 512),
        size: 128 << 10,
        ..PLAIN
    },
    Layout {
        name: "2 KiB clusters, zstd, lazy refcounts, refcounts of 32 bits",
        cluster_bits: 11,
        refcount_order: 5,
        zstd: true,
        lazy: true,
        size: 128 << 10,
        ..PLAIN
    },
];

/// Subclusters.
pub const EXTENDED: &[Layout] = &[
    Layout {
        name: "extended L2 entries",
        cluster_bits: 14,
        extended_l2: true,
        size: (192 << 10) + 512,
        ..PLAIN
    },
    Layout {
        name: "extended L2 entries over a backing image, refcounts of 8 bits",
        cluster_bits: 14,
        refcount_order: 3,
        extended_l2: true,
        size: 192 << 10,
        backing: Some((150 << 10) + 1024),
        ..PLAIN
    },
];

/// The guest's data in another file.
pub const DATA_FILES: &[Layout] = &[
    Layout {
        name: "a data file, over a backing image",
        cluster_bits: 12,
        data_file: Some(false),
        backing: Some(70 << 10),
        size: 128 << 10,
        ..PLAIN
    },
    Layout {
        name: "a raw data file",
        cluster_bits: 12,
        data_file: Some(true),
        size: 128 << 10,
        ..PLAIN
    },
    Layout {
        name: "a data file and extended L2 entries",
        cluster_bits: 14,
        data_file: Some(false),
        extended_l2: true,
        size: 192 << 10,
        ..PLAIN
    },
];

/// What has been used: compressed clusters, and clusters shared with a snapshot.
pub const USED: &[Layout] = &[
    Layout {
        name: "512 byte clusters, used",
        used: true,
        ..PLAIN
    },
    Layout {
        name: "version 2, 4 KiB clusters, used, over a backing image",
        version: Version::V2,
        cluster_bits: 12,
        used: true,
        size: 128 << 10,
        backing: Some(90 << 10),
        ..PLAIN
    },
    Layout {
        name: "extended L2 entries, used",
        cluster_bits: 14,
        extended_l2: true,
        used: true,
        size: 192 << 10,
        ..PLAIN
    },
];

/// Clusters as they are by default.
pub const DEFAULT: &[Layout] = &[
    Layout {
        name: "64 KiB clusters",
        cluster_bits: 16,
        size: 640 << 10,
        ..PLAIN
    },
    Layout {
        name: "64 KiB clusters over a backing image, used",
        cluster_bits: 16,
        size: (640 << 10) + 512,
        backing: Some(500 << 10),
        used: true,
        ..PLAIN
    },
];

/// A new image and what belongs to it.
pub struct Start {
    pub image: Content,
    pub data_file: Option<Content>,
    pub backing: Option<Arc<dyn Image>>,
}

impl Layout {
    /// Makes the image.
    pub fn start(&self) -> Start {
        let backing = self.backing.map(|size| {
            let store = Shared::from(Content::from(pattern(0xbac_0000, 0, size).as_slice()));
            Arc::new(Raw::open(Arc::new(store)).unwrap()) as Arc<dyn Image>
        });
        Start {
            image: self.image(),
            data_file: self
                .data_file
                .map(|raw| Content::zeros(if raw { self.size } else { 0 })),
            backing,
        }
    }

    /// The same for each history: QEMU is asked once.
    fn image(&self) -> Content {
        static MADE: Mutex<BTreeMap<&'static str, Content>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap();
        let image = made.entry(self.name).or_insert_with(|| match self.used {
            true => self.by_qemu(),
            false => self.leak(self.created()),
        });
        image.clone()
    }

    fn created(&self) -> Content {
        let mut options = CreateOptions::new(self.size).unwrap();
        options.version = self.version;
        options.cluster_bits = ClusterBits::new(self.cluster_bits).unwrap();
        options.refcount_order = self.refcount_order;
        options.lazy_refcounts = self.lazy;
        options.extended_l2 = self.extended_l2;
        options.compression = if self.zstd {
            Compression::Zstd
        } else {
            Compression::Deflate
        };
        options.backing = self.backing.map(|_| (b"base".to_vec(), b"raw".to_vec()));
        options.data_file = self.data_file.map(|raw| (b"data".to_vec(), raw));
        let new = NewImage::lay_out(&options).unwrap();
        let mut content = Content::zeros(new.len);
        for (offset, bytes) in new.writes {
            content.write(&bytes, offset);
        }
        content
    }

    fn leak(&self, content: Content) -> Content {
        if self.leaked == 0 {
            return content;
        }
        let store = Arc::new(Shared::from(content));
        let disk = Qcow2Disk::open(store.clone(), None, None).unwrap();
        disk.allocate(self.leaked).unwrap();
        disk.close().unwrap();
        store.content()
    }

    fn by_qemu(&self) -> Content {
        let folder = Folder::new();
        if let Some(size) = self.backing {
            Content::from(pattern(0xbac_0000, 0, size).as_slice())
                .save(&folder.file("base"))
                .unwrap();
        }
        let compat = match self.version {
            Version::V2 => "0.10",
            Version::V3 => "1.1",
        };
        let mut options = format!("compat={compat},cluster_size={}", 1 << self.cluster_bits);
        if self.extended_l2 {
            options.push_str(",extended_l2=on");
        }
        let backing = if self.backing.is_some() {
            "-b base -F raw "
        } else {
            ""
        };
        folder.img(&format!(
            "create -q -f qcow2 -o {options} {backing}image.qcow2 {}",
            self.size
        ));
        let cluster = 1_u64 << self.cluster_bits;
        let half = self.size / 2 / cluster * cluster;
        let compressed = |n: u64| format!("write -c -P {n} {} {cluster}", n * cluster);
        folder.io(
            "qcow2",
            "image.qcow2",
            &[
                &format!("write -P 77 {half} {}", cluster * 5 / 2),
                &compressed(1),
                &compressed(2),
                &compressed(4),
            ],
        );
        folder.img("snapshot -c first image.qcow2");
        folder.io(
            "qcow2",
            "image.qcow2",
            &[
                &format!("write -P 78 {} {}", half + 512, cluster),
                &format!("discard {} {cluster}", 4 * cluster),
            ],
        );
        let path = folder.file("image.qcow2");
        Content::read_from(&LocalFile::from_file(File::open(&path).unwrap(), &path).unwrap()).unwrap()
    }
}

/// Bytes that say who wrote them and where they belong, eight at a time.
pub fn pattern(tag: u64, offset: u64, len: u64) -> Vec<u8> {
    let first = offset / 8;
    let words = (first..(offset + len).div_ceil(8)).flat_map(|at| (tag << 32 | at).to_le_bytes());
    words.skip((offset % 8) as usize).take(len as usize).collect()
}

/// All bytes of a disk.
pub fn read_all(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xa5; disk.size() as usize];
    disk.read_at(&mut bytes, GuestOffset(0)).unwrap();
    bytes
}

/// Images as one disk.
pub fn stack(images: impl IntoIterator<Item = Arc<dyn Image>>) -> Stack {
    Stack::new(images.into_iter().map(|image| (image, "layer".into())))
}
