//! Which layer of a chain is meant.

use crate::chain::Chain;
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::path::PathBuf;

/// A layer, named by its place or by its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerChoice {
    /// How many layers are above it.
    Index(usize),
    /// Its file, by whatever name.
    Path(PathBuf),
}

impl LayerChoice {
    /// How many layers are above it.
    pub(super) fn find(&self, chain: &Chain) -> Result<usize> {
        match self {
            Self::Index(index) if *index < chain.layers.len() => Ok(*index),
            Self::Index(index) => Err(Error::new(
                ErrorKind::OutOfBounds,
                format!("there is no layer {index}"),
            )
            .with_hint("'catena show' numbers them, 0 being the active one")),
            Self::Path(path) => {
                let found = LocalFile::open(path, &OpenOptions::new().lock(LockMode::None))?;
                let object = found.identity().map(|identity| identity.object());
                let mut layers = chain.layers.iter();
                layers
                    .position(|layer| {
                        object.is_some() && layer.file.as_ref().map(|file| file.identity.object()) == object
                    })
                    .ok_or_else(|| {
                        Error::new(ErrorKind::NotFound, "it is no layer of this chain")
                            .with_path(path)
                            .with_hint("'catena show' shows the chain")
                    })
            }
        }
    }

    /// Whether it names a file that is not there, as a layer that was deleted does.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Index(_) => false,
            Self::Path(path) => {
                matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
            }
        }
    }
}
