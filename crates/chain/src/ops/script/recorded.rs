//! What a qcow2 image records of other files: read from its header, and rewritten in it.

use super::super::relink::change_header;
use crate::chain::Link;
use crate::stamp::Renewal;
use catena_engine::{Error, ErrorKind, Result, StorageBytes};
use catena_format::limits;
use catena_format::qcow2::{Autoclear, BackingName, Extension, Header, Incompatible};
use catena_storage::Storage;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What an image records of other files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its backing image.
    pub backing: Option<Link>,
    /// The name of its data file.
    pub data_file: Option<String>,
}

impl Recorded {
    /// What a header says.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a name or the format's word is not UTF-8.
    pub fn of(header: &Header) -> Result<Self> {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| {
                Error::new(
                    ErrorKind::Unsupported,
                    "the image records a name that is not UTF-8, which is not rewritten",
                )
            })
        };
        let backing = match &header.backing {
            None => None,
            Some(backing) => Some(Link {
                text: text(&backing.name)?,
                format: header.backing_format().map(text).transpose()?,
            }),
        };
        let data_file = { header.data_file_name() }
            .filter(|_| header.has_data_file())
            .map(text)
            .transpose()?;
        Ok(Self { backing, data_file })
    }

    /// What an open image records.
    ///
    /// # Errors
    /// Where it is no qcow2 image; else as [`Recorded::of`].
    pub fn read(file: &dyn Storage) -> Result<Self> {
        Self::of(&Header::read(&StorageBytes::new(file)?)?)
    }

    /// Has an open image record it, in writes each of which leaves the old or the new. The caller has locked it.
    pub(super) fn write(&self, file: &dyn Storage) -> Result<()> {
        change_header(file, |header| self.put_in(header))
    }

    /// The header that records it.
    ///
    /// # Errors
    /// Where that cannot be, or the image may not be written.
    pub(crate) fn put_in(&self, header: &Header) -> Result<Header> {
        header.check_readable().map_err(Error::from)?;
        if header.incompatible.contains(Incompatible::CORRUPT) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the image is marked corrupt and is not written",
            )
            .with_hint("repair it first: 'catena check --repair all' mends what can be mended"));
        }
        if self.data_file.is_some() != header.has_data_file() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "an image gets or loses its data file by conversion alone",
            ));
        }
        let names = [
            self.backing.as_ref().map(|backing| &backing.text),
            self.data_file.as_ref(),
        ];
        let limit = limits::BACKING_NAME_BYTES as usize;
        if let Some(name) = { names.into_iter().flatten() }.find(|name| name.is_empty() || name.len() > limit)
        {
            let message = format!(
                "a recorded name has 1 to {limit} bytes, and '{name}' has {}",
                name.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let mut new = header.clone();
        new.extensions
            .retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
        for extension in &mut new.extensions {
            if let (Extension::DataFile(name), Some(text)) = (extension, &self.data_file) {
                *name = text.as_bytes().to_vec();
            }
        }
        if let Some(format) = self.backing.as_ref().and_then(|backing| backing.format.as_ref()) {
            // libvirt finds the backing format only where it comes first.
            new.extensions
                .insert(0, Extension::BackingFormat(format.as_bytes().to_vec()));
        }
        new.backing = self.backing.as_ref().map(|backing| BackingName {
            offset: 0,
            name: backing.text.as_bytes().to_vec(),
        });
        // Whoever writes an image takes back the promises of features it does not know.
        new.autoclear &= Autoclear::KNOWN;
        // The base is what it was, by whatever name.
        Renewal::Follow.apply(header, &mut new);
        Ok(new)
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backing {
            None => f.write_str("no backing image")?,
            Some(link) => match &link.format {
                Some(format) => write!(f, "'{}' ({format})", link.shown())?,
                None => write!(f, "'{}' (format not recorded)", link.shown())?,
            },
        }
        match &self.data_file {
            Some(name) => write!(f, " and the data file '{name}'"),
            None => Ok(()),
        }
    }
}
