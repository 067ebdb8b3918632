//! The three feature bit fields of a version 3 header. Bits nobody here knows are kept.

use bitflags::bitflags;

bitflags! {
    /// Features a reader must understand to open the image at all.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Incompatible: u64 {
        /// Refcounts may be stale: the image was not closed after lazy refcounting.
        const DIRTY = 1 << 0;
        /// Some structure is known to be damaged; the image must not be written.
        const CORRUPT = 1 << 1;
        /// The guest's data is in another file.
        const DATA_FILE = 1 << 2;
        /// Compressed clusters use the type named in the header, which is not deflate.
        const COMPRESSION = 1 << 3;
        /// L2 entries are 16 bytes and carry a subcluster bitmap.
        const EXTENDED_L2 = 1 << 4;
        const _ = !0;
    }
}

bitflags! {
    /// Features a reader may ignore.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Compatible: u64 {
        /// Refcount updates may be postponed.
        const LAZY_REFCOUNTS = 1 << 0;
        const _ = !0;
    }
}

bitflags! {
    /// Features a writer clears unless it keeps them up to date.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Autoclear: u64 {
        /// The bitmaps extension is consistent with the data.
        const BITMAPS = 1 << 0;
        /// The external data file is a raw image of the guest's disk.
        const RAW_EXTERNAL_DATA = 1 << 1;
        const _ = !0;
    }
}

impl Incompatible {
    /// What is understood here.
    pub const KNOWN: Self = Self::DIRTY
        .union(Self::CORRUPT)
        .union(Self::DATA_FILE)
        .union(Self::COMPRESSION)
        .union(Self::EXTENDED_L2);

    /// The bits nobody here knows.
    pub fn unknown(self) -> Self {
        self.difference(Self::KNOWN)
    }
}

impl Autoclear {
    /// What is understood here.
    pub const KNOWN: Self = Self::BITMAPS.union(Self::RAW_EXTERNAL_DATA);
}
