//! What an image's header says of itself, for the forest: its format, its size, and what it names.

use super::stamps::Known;
use super::walk::Stat;
use crate::detect;
use catena_engine::{Error, Result, StorageBytes};
use catena_format::{Description, Format, qcow2, recognise};
use catena_storage::LocalFile;
use std::path::Path;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format that QEMU would take the file for.
    pub format: Format,
    /// Bytes the guest sees; of a raw image the file's length.
    pub virtual_size: Option<u64>,
    /// What it records of its backing image.
    pub backing: Option<Recorded>,
    /// The name of its data file; empty where it has one of no name.
    pub data_file: Option<Vec<u8>>,
    /// What its stamp says of its backing image's file.
    pub stamp: Option<Known>,
    /// Why the rest of it is not known.
    pub trouble: Option<String>,
}

/// What an image records of its backing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The names by which it may be found, the one to be tried first before the others. Never none.
    pub names: Vec<Vec<u8>>,
    /// The word recorded as its format.
    pub format: Option<String>,
}

impl Header {
    /// Of a file that is nothing but data.
    pub(super) fn raw(len: u64) -> Self {
        Self {
            format: Format::Raw,
            virtual_size: Some(len),
            backing: None,
            data_file: None,
            stamp: None,
            trouble: None,
        }
    }

    /// Reads it. A header that makes no sense is told of in the result.
    pub(super) fn read(file: &LocalFile, path: &Path, stat: &Stat) -> Result<Self> {
        let bytes = StorageBytes::new(file)?;
        let format = recognise::probe_as_qemu(&bytes, path.to_str())?;
        if format == Format::Raw {
            return Ok(Self::raw(stat.len));
        }
        Ok(match detect::read_header(format, &bytes) {
            Ok((description, header)) => Self::of(format, &description, header.as_ref()),
            Err(error) => Self {
                format,
                virtual_size: None,
                trouble: Some(Error::from(error).message().to_owned()),
                ..Self::raw(0)
            },
        })
    }

    fn of(format: Format, description: &Description, header: Option<&qcow2::Header>) -> Self {
        let backing = description.backing.as_ref().map(|backing| Recorded {
            names: detect::recorded_names(format, backing, header),
            format: backing.format.clone(),
        });
        let data_file = description.data_file.as_ref().map(|file| {
            let recorded = header.and_then(qcow2::Header::data_file_name);
            recorded
                .or(file.name.as_ref().map(String::as_bytes))
                .unwrap_or_default()
                .to_owned()
        });
        Self {
            format,
            virtual_size: description.virtual_size,
            backing,
            data_file,
            stamp: header.and_then(Known::of),
            trouble: None,
        }
    }
}
