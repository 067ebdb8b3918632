//! The currency of the house: a stretch of the guest's disk, what it is, and which layer says so.

use crate::addr::{GuestOffset, HostOffset};

/// A stretch of guest addresses with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub start: GuestOffset,
    /// How many bytes; never 0.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
    /// Which layer answers, 0 being the active one; where none does, the last that was asked. An image that speaks for
    /// itself alone answers 0.
    pub layer: u32,
}

/// What a stretch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentKind {
    /// Bytes as they are.
    Data {
        /// Which of the image's files holds them.
        file: FileRole,
        /// Where they start there.
        offset: HostOffset,
    },
    /// Zeros without bytes.
    Zero {
        /// Space that is kept for the stretch, where there is some.
        offset: Option<HostOffset>,
    },
    /// One compressed cluster, or a part of its guest range.
    Compressed {
        /// Where the compressed bytes start in the image file.
        offset: HostOffset,
        /// At most how many there are.
        len: u32,
    },
    /// Bytes that are encrypted: they cannot be read without a key.
    Encrypted {
        /// Where they start in the image file.
        offset: HostOffset,
    },
    /// The layer says nothing: its backing answers, or zeros where there is none.
    Unallocated,
    /// The mapping is damaged: the stretch cannot be read.
    Corrupt {
        /// Where the damaged entry or table is in the image file.
        entry: HostOffset,
    },
}

/// Which of an image's files is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileRole {
    /// The image file itself.
    Image,
    /// Its external data file.
    Data,
}

impl Extent {
    /// Where it ends: the first address behind it.
    pub fn end(&self) -> GuestOffset {
        self.start.plus(self.len)
    }

    /// The part of it within `start..end`, `None` where they do not meet.
    pub fn clip(&self, start: GuestOffset, end: GuestOffset) -> Option<Self> {
        let from = self.start.max(start);
        let to = self.end().min(end);
        let len = to.0.checked_sub(from.0).filter(|len| *len > 0)?;
        Some(Self {
            start: from,
            len,
            kind: self.kind.skip(from.0 - self.start.0),
            layer: self.layer,
        })
    }

    /// Appends an extent to a list, growing the last one where both are one run.
    pub fn push_to(self, list: &mut Vec<Self>) {
        if self.len == 0 {
            return;
        }
        if let Some(last) = list.last_mut()
            && last.end() == self.start
            && last.layer == self.layer
            && last.kind.continues(last.len, self.kind)
        {
            last.len += self.len;
            return;
        }
        list.push(self);
    }
}

impl ExtentKind {
    /// The kind of what follows `bytes` into an extent of this kind.
    fn skip(self, bytes: u64) -> Self {
        match self {
            Self::Data { file, offset } => Self::Data {
                file,
                offset: offset.plus(bytes),
            },
            Self::Zero { offset } => Self::Zero {
                offset: offset.map(|offset| offset.plus(bytes)),
            },
            Self::Encrypted { offset } => Self::Encrypted {
                offset: offset.plus(bytes),
            },
            // A part of a compressed cluster is still named by the whole cluster's bytes.
            other @ (Self::Compressed { .. } | Self::Unallocated | Self::Corrupt { .. }) => other,
        }
    }

    /// Whether an extent of this kind and length goes on seamlessly in one of the other kind.
    fn continues(self, len: u64, next: Self) -> bool {
        !matches!(self, Self::Compressed { .. } | Self::Corrupt { .. }) && self.skip(len) == next
    }

    /// Whether there is nothing: zeros, or nobody who says otherwise.
    pub fn is_nothing(self) -> bool {
        matches!(self, Self::Zero { .. } | Self::Unallocated)
    }

    /// Whether the guest sees zeros there for certain.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Zero { .. })
    }
}
