//! An image or a chain as a plain value.
//!
//! Any value can be written down; [`ChainSpec::normalised`] turns it into the nearest one that QEMU will make, so that
//! values may be drawn and shrunk field by field. What is printed for a failing test is the normalised value.

/// A chain of images, **the active layer first**. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainSpec {
    /// The layers; the last is the base.
    pub layers: Vec<LayerSpec>,
}

/// An image at its place in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The image itself.
    pub image: ImageSpec,
    /// How it names its backing image. Without meaning for the base.
    pub backing: BackingName,
    /// Whether it records the format of its backing image. Without meaning for the base.
    pub format_recorded: bool,
    /// Whether its file lies in a folder of its own instead of beside the others.
    pub own_folder: bool,
}

/// One image: what it is, and what is done to it after it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// What it is.
    pub format: Format,
    /// The virtual size in bytes.
    pub size: u64,
    /// What is written, in this order.
    pub ops: Vec<Op>,
    /// Whether the last writer died before it closed the image. Has a lasting effect on qcow2 images with lazy reference
    /// counts only, which stay marked dirty.
    pub left_open: bool,
}

/// The format of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the guest, in order. Only a base can be raw.
    Raw,
    /// qcow2.
    Qcow2(Qcow2Spec),
}

/// The options of a qcow2 image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Spec {
    /// Version 3 (`compat=1.1`), else version 2 (`compat=0.10`).
    pub v3: bool,
    /// Log2 of the cluster size: 9 to 21.
    pub cluster_bits: u32,
    /// Log2 of the width of a reference count in bits: 0 to 6.
    pub refcount_order: u32,
    /// Extended L2 entries, with subclusters.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// An external data file.
    pub data_file: Option<DataFile>,
    /// Reference counts are brought up to date only when the image is closed.
    pub lazy_refcounts: bool,
    /// What is allocated from the start.
    pub preallocation: Preallocation,
    /// Encryption of the data.
    pub encryption: Option<Encryption>,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// A zstd frame.
    Zstd,
}

/// What kind of external data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFile {
    /// Clusters may lie anywhere in it.
    Mapped,
    /// It is also a valid raw image (`data_file_raw=on`).
    Raw,
}

/// What is allocated when the image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// The tables.
    Metadata,
    /// The tables and the space.
    Falloc,
    /// The tables and zeros.
    Full,
}

/// The encryption of a qcow2 image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// LUKS, in the header extension.
    Luks,
    /// The old method: AES-CBC, keyed by the password itself.
    Aes,
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// This byte over and over; 0 makes explicit zeros.
    Byte(u8),
    /// Noise, which does not compress.
    Noise(u8),
    /// Text-like bytes, which compress to about half.
    Text(u8),
}

/// A step in the life of an image. All offsets and lengths are in bytes of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes data.
    Write {
        /// Where.
        at: u64,
        /// How many.
        len: u64,
        /// What.
        fill: Fill,
    },
    /// Writes whole clusters, compressed. The range is widened to clusters, and those of them that this image has
    /// already (and shares with no snapshot) stay as they are: QEMU writes none compressed over them.
    Compress {
        /// Where.
        at: u64,
        /// How many.
        len: u64,
        /// What.
        fill: Fill,
    },
    /// Writes zeros without data, keeping the clusters unless `unmap`.
    Zero {
        /// Where.
        at: u64,
        /// How many.
        len: u64,
        /// Whether clusters may be freed.
        unmap: bool,
    },
    /// Discards.
    Discard {
        /// Where.
        at: u64,
        /// How many.
        len: u64,
    },
    /// Takes an internal snapshot.
    Snapshot,
    /// Adds a persistent bitmap, which then records the writes that follow (unless `disabled`).
    Bitmap {
        /// Added in the disabled state.
        disabled: bool,
    },
}

/// How an overlay names its backing image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingName {
    /// Relative to the overlay's folder.
    Relative,
    /// The same, after `./`.
    Dotted,
    /// From the root.
    Absolute,
    /// `file:` and the path from the root.
    File,
    /// `json:` and a description of the node.
    Json,
}

/// The largest image: files can be no larger on the file systems where tests run.
pub const MAX_SIZE: u64 = 8 << 40;
/// The most that one step writes as data.
pub const MAX_WRITE: u64 = 4 << 20;
/// The largest image that is allocated in full when it is made.
const MAX_PREALLOCATED: u64 = 8 << 20;
/// Tables of a larger image take too long to make.
const MAX_TABLES: u64 = 1 << 20;
/// The width of 2 bits counts to 3: the active image and two snapshots.
const MAX_SNAPSHOTS: usize = 2;

impl ChainSpec {
    /// The nearest chain that QEMU will make.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        let count = self.layers.len();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.image.normalise(index + 1 < count);
        }
        self
    }
}

impl ImageSpec {
    /// The nearest image that QEMU will make, with nothing below it.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        self.normalise(false);
        self
    }

    /// The image as a chain of one.
    #[must_use]
    pub fn alone(self) -> ChainSpec {
        let layer = LayerSpec {
            image: self,
            backing: BackingName::Relative,
            format_recorded: true,
            own_folder: false,
        };
        ChainSpec { layers: vec![layer] }
    }

    fn normalise(&mut self, backed: bool) {
        if backed && self.format == Format::Raw {
            self.format = Format::Qcow2(Qcow2Spec::default());
        }
        match &mut self.format {
            Format::Raw => {
                self.size = self.size.min(MAX_SIZE);
                self.left_open = false;
                self.ops
                    .retain(|op| !matches!(op, Op::Snapshot | Op::Bitmap { .. }));
            }
            Format::Qcow2(qcow2) => {
                // qemu-img makes images of whole sectors.
                self.size = self.size.next_multiple_of(512);
                qcow2.normalise(self.size, backed);
                self.size = self.size.min(qcow2.max_size());
                self.left_open &= qcow2.lazy_refcounts;
                // A snapshot counts once more every compressed cluster in a cluster, and there may be many in one.
                let compressed = self.ops.iter().any(|op| matches!(op, Op::Compress { .. }));
                let least = if compressed { 4 } else { 1 };
                let mut snapshots = 0;
                let mut bitmaps = 0;
                let (qcow2, size) = (&*qcow2, self.size);
                self.ops.retain(|op| match op {
                    Op::Snapshot => {
                        snapshots += 1;
                        snapshots <= MAX_SNAPSHOTS
                            && qcow2.refcount_order >= least
                            && qcow2.data_file.is_none()
                    }
                    Op::Bitmap { .. } => {
                        bitmaps += 1;
                        // QEMU cannot store the bitmap of nothing.
                        qcow2.v3 && bitmaps <= 3 && size > 0
                    }
                    Op::Compress { .. } => qcow2.data_file.is_none(),
                    _ => true,
                });
            }
        }
        let cluster = self.cluster_size();
        let size = self.size;
        for op in &mut self.ops {
            op.normalise(size, cluster);
        }
        self.ops.retain(|op| op.range().is_none_or(|(_, len)| len > 0));
    }

    /// The cluster size in bytes; of a raw image, that of a sector.
    pub fn cluster_size(&self) -> u64 {
        match &self.format {
            Format::Raw => 512,
            Format::Qcow2(qcow2) => 1 << qcow2.cluster_bits,
        }
    }

    /// The name of the format, as QEMU has it.
    pub fn format_name(&self) -> &'static str {
        match self.format {
            Format::Raw => "raw",
            Format::Qcow2(_) => "qcow2",
        }
    }

    /// How the image is encrypted, if it is.
    pub fn encryption(&self) -> Option<Encryption> {
        match &self.format {
            Format::Raw => None,
            Format::Qcow2(qcow2) => qcow2.encryption,
        }
    }
}

impl Default for Qcow2Spec {
    /// What qemu-img makes by default.
    fn default() -> Self {
        Self {
            v3: true,
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: false,
            compression: Compression::Zlib,
            data_file: None,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }
}

impl Qcow2Spec {
    /// How many bytes of the guest one L2 table covers.
    pub fn l2_coverage(&self) -> u64 {
        let entry = if self.extended_l2 { 16 } else { 8 };
        ((1 << self.cluster_bits) / entry) << self.cluster_bits
    }

    fn max_size(&self) -> u64 {
        let tables = self.l2_coverage().saturating_mul(MAX_TABLES / 8);
        tables.min(MAX_SIZE)
    }

    fn normalise(&mut self, size: u64, backed: bool) {
        self.cluster_bits = self.cluster_bits.clamp(9, 21);
        self.refcount_order = self.refcount_order.min(6);
        if !self.v3 {
            self.refcount_order = 4;
            self.extended_l2 = false;
            self.compression = Compression::Zlib;
            self.data_file = None;
            self.lazy_refcounts = false;
        }
        self.extended_l2 &= self.cluster_bits >= 14;
        if backed {
            self.data_file = self.data_file.map(|_| DataFile::Mapped);
            if !self.extended_l2 {
                self.preallocation = Preallocation::Off;
            }
        }
        if self.data_file.is_some() || (self.encryption == Some(Encryption::Luks) && !self.v3) {
            self.encryption = None;
        }
        if self.encryption == Some(Encryption::Luks) {
            // Each combination costs seconds when it is first made (see `build`), so there are only a few.
            self.cluster_bits = match self.cluster_bits {
                ..12 => 9,
                12..14 => 12,
                14..18 => 16,
                _ => 20,
            };
            self.extended_l2 &= self.cluster_bits == 16;
            self.refcount_order = 4;
            self.compression = Compression::Zlib;
            self.lazy_refcounts = false;
            self.preallocation = Preallocation::Off;
        }
        let tables = size.div_ceil(self.l2_coverage()) << self.cluster_bits;
        if size > MAX_PREALLOCATED && self.preallocation != Preallocation::Off {
            self.preallocation = Preallocation::Metadata;
        }
        if tables > MAX_PREALLOCATED {
            self.preallocation = Preallocation::Off;
        }
    }
}

impl Op {
    /// The range it touches: offset and length.
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Op::Write { at, len, .. }
            | Op::Compress { at, len, .. }
            | Op::Zero { at, len, .. }
            | Op::Discard { at, len } => Some((at, len)),
            Op::Snapshot | Op::Bitmap { .. } => None,
        }
    }

    fn normalise(&mut self, size: u64, cluster: u64) {
        let within = |at: &mut u64, len: &mut u64| {
            *at = if size == 0 { 0 } else { *at % size };
            *len = (*len).min(size - *at);
        };
        match self {
            Op::Write { at, len, .. } => {
                within(at, len);
                *len = (*len).min(MAX_WRITE);
            }
            Op::Compress { at, len, .. } => {
                within(at, len);
                let start = *at / cluster * cluster;
                let most = MAX_WRITE.max(cluster);
                let end = (*at + *len).next_multiple_of(cluster).min(start + most).min(size);
                *len = if *len == 0 { 0 } else { end - start };
                *at = start;
            }
            Op::Zero { at, len, .. } => within(at, len),
            Op::Discard { at, len } => within(at, len),
            Op::Snapshot | Op::Bitmap { .. } => {}
        }
    }
}
