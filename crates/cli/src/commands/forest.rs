//! What the verbs share that look at forests: where they look, and the index that saves them reading.

use crate::error::CommandError;
use crate::target::PolicyArgs;
use catena::forest::{Around, Image, Index, Search};
use catena::{Error, ErrorKind, Forest, Policy};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Options of every verb that looks at a forest.
#[derive(Debug, clap::Args)]
pub struct ForestArgs {
    #[command(flatten)]
    policy: PolicyArgs,
}

impl ForestArgs {
    /// What may be opened.
    pub fn policy(&self) -> Result<Policy, CommandError> {
        self.policy.load()
    }

    /// Looks at these places.
    pub fn grow(&self, search: &Search, indexed: bool) -> Result<Forest, CommandError> {
        let policy = self.policy.load()?;
        let index = indexed.then(index).flatten();
        let forest = Forest::grow(search, Some(&policy), index.as_ref());
        if let Some(Err(error)) = index.map(Index::store) {
            // It only saves time.
            let _ = writeln!(anstream::stderr(), "catena: {error}");
        }
        Ok(forest)
    }
}

/// An image whose relations are asked for, and where those are looked for.
#[derive(Debug, clap::Args)]
pub struct RelationArgs {
    /// The image
    image: PathBuf,
    /// Search this folder too, with everything below it; may be given several times
    #[arg(long = "in", value_name = "DIR")]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    forest: ForestArgs,
}

impl RelationArgs {
    /// The forest, and the image's number in it. Headers are read anew: what depends on the answer may be data.
    pub fn grow(&self) -> Result<(Forest, usize), CommandError> {
        let search = around(&self.folders).widely(&[&self.image]);
        let forest = self.forest.grow(&search, false)?;
        let number = forest.find(&self.image)?.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "it is no file and no block device").with_path(&self.image)
        })?;
        Ok((forest, number))
    }
}

/// Tells of folders that could not be looked into: an answer that says "nobody" does not speak of what lies there.
pub fn warn(unknown: &[Error]) {
    for error in unknown {
        let _ = writeln!(
            anstream::stderr(),
            "catena: {error}; what lies there is not known"
        );
    }
}

/// The images of these numbers, by name.
pub fn named(forest: &Forest, numbers: &[usize]) -> Vec<String> {
    let images = numbers.iter().filter_map(|number| forest.images().get(*number));
    let mut names: Vec<_> = images
        .map(|image: &Image| image.path().display().to_string())
        .collect();
    names.sort();
    names
}

/// The places that a list names, one a line; `-` is standard input.
pub fn listed(list: &Path) -> Result<Vec<PathBuf>, CommandError> {
    let failed = |error| catena_storage::Error::from_io(error, "read").with_path(list);
    let mut text = String::new();
    if list == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    } else {
        text = std::fs::read_to_string(list).map_err(failed)?;
    }
    Ok(text
        .lines()
        .filter(|line| !line.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// Where images are looked for that stand on others: these folders, and what was seen before.
pub fn around(folders: &[PathBuf]) -> Around {
    Around {
        folders: folders.to_vec(),
        index: index().map(Arc::new),
    }
}

fn index() -> Option<Index> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(Index::load(cache.join("catena").join("headers.json")))
}
