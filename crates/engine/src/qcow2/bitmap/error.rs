//! Why a bitmap cannot be changed as asked.

use crate::error::{Error, ErrorKind};

/// Why a bitmap cannot be changed as asked. The conditions are QEMU's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// There is one of that name.
    #[error("bitmap already exists: {0}")]
    Exists(String),
    /// There is none of that name.
    #[error("dirty bitmap '{0}' not found")]
    NotFound(String),
    /// Its writer was killed: it can only be removed.
    #[error("bitmap '{0}' is inconsistent and cannot be used")]
    Inconsistent(String),
    /// It has flags or extra data that are not understood: it can only be left alone.
    #[error("bitmap '{0}' has extra data or flags that are not supported")]
    NotUnderstood(String),
    /// A name has at least one byte.
    #[error("bitmap name cannot be empty")]
    NameEmpty,
    /// A name has at most 1023 bytes.
    #[error("bitmap name too long: {0}")]
    NameTooLong(String),
    /// A granularity is a power of two of at least 512 bytes.
    #[error("granularity must be power of 2 and at least 512")]
    Granularity(u64),
    /// A granularity is at most 2 GiB.
    #[error("granularity is over maximum (2147483648 bytes)")]
    GranularityTooLarge(u64),
    /// The bits of so large a disk would take more than 512 MiB.
    #[error("too much space will be occupied by the bitmap; use a larger granularity")]
    TooMuchSpace,
    /// There are 65535 already, or the directory is full.
    #[error("maximum number of persistent bitmaps is already reached")]
    TooMany,
    /// Version 2 images have no bitmaps.
    #[error("cannot store dirty bitmaps in qcow2 v2 files")]
    Version2,
    /// Only bitmaps of disks of the same size can be merged.
    #[error(
        "bitmaps are of different sizes (destination size is {target}, source size is {from}) and can't be merged"
    )]
    DifferentSizes {
        /// Bytes of the disk whose bitmap would take it up.
        target: u64,
        /// Bytes of the disk it is of.
        from: u64,
    },
    /// Something about the image.
    #[error(transparent)]
    Image(#[from] Error),
}

impl From<BitmapError> for Error {
    fn from(error: BitmapError) -> Self {
        let kind = match &error {
            BitmapError::NotFound(_) => ErrorKind::NotFound,
            BitmapError::Exists(_) | BitmapError::Inconsistent(_) | BitmapError::DifferentSizes { .. } => {
                ErrorKind::Conflict
            }
            BitmapError::TooMany | BitmapError::TooMuchSpace | BitmapError::NameTooLong(_) => {
                ErrorKind::TooLarge
            }
            BitmapError::Image(_) => {
                return match error {
                    BitmapError::Image(error) => error,
                    other => Self::new(ErrorKind::Conflict, other.to_string()),
                };
            }
            _ => ErrorKind::Unsupported,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<catena_format::Error> for BitmapError {
    fn from(error: catena_format::Error) -> Self {
        Self::Image(error.into())
    }
}

impl From<catena_storage::Error> for BitmapError {
    fn from(error: catena_storage::Error) -> Self {
        Self::Image(error.into())
    }
}
