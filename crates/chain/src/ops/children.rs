//! Who else stands on an image: those that would show their guests something else if it were written.
//!
//! They are looked for where they are likely to be; see [`Around`].

use crate::chain::Layer;
use crate::forest::{Around, Forest, Object, To};
use catena_engine::{Error, ErrorKind, Result};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

/// Children that an error names.
const NAMED: usize = 4;

/// Where other children of a base are looked for, and what is done about them.
#[derive(Clone, Debug, Default)]
pub struct OtherChildren {
    /// Where they are looked for, in folders without anything below.
    pub around: Around,
    /// Whether what they show may change: the caller answers for it.
    pub forced: bool,
}

impl OtherChildren {
    /// Refuses if anybody but `own` stands on one of these layers.
    ///
    /// `doing` completes "it would change what … show": the error names the children.
    pub(super) fn check(&self, layers: &[&Layer], own: &[Layer]) -> Result<()> {
        if self.forced {
            return Ok(());
        }
        let objects = |layers: &mut dyn Iterator<Item = &Layer>| -> Vec<Object> {
            layers
                .filter_map(|layer| Some(layer.file.as_ref()?.identity.object()))
                .collect()
        };
        let wanted: HashMap<Object, &Layer> = layers
            .iter()
            .filter_map(|layer| Some((layer.file.as_ref()?.identity.object(), *layer)))
            .collect();
        let own: BTreeSet<Object> = objects(&mut own.iter()).into_iter().collect();
        let paths: Vec<_> = layers.iter().filter_map(|layer| layer.path()).collect();
        let search = self.around.closely(&paths);
        // A file of a folder is only looked at for its header; nothing that it names is opened.
        let forest = Forest::grow(&search, None, None);
        let mut found: Vec<(PathBuf, &Layer)> = forest
            .images()
            .iter()
            .filter(|image| !own.contains(&image.object))
            .filter_map(|image| {
                let mut edges = image.backing.iter().chain(&image.data_file);
                let base = edges.find_map(|edge| {
                    let object = match edge.to {
                        To::Image(number) => forest.images().get(number)?.object,
                        To::Outside(object) => object,
                        _ => return None,
                    };
                    wanted.get(&object)
                })?;
                Some((image.path().to_owned(), *base))
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        refuse(&found)
    }
}

fn refuse(found: &[(PathBuf, &Layer)]) -> Result<()> {
    let Some((_, base)) = found.first() else {
        return Ok(());
    };
    let mut names: Vec<_> = found
        .iter()
        .take(NAMED)
        .map(|(path, _)| format!("'{}'", path.display()))
        .collect();
    if found.len() > NAMED {
        names.push(format!("{} more", found.len() - NAMED));
    }
    Err(Error::new(
        ErrorKind::ViewWouldChange,
        format!(
            "other overlays stand on it, and would show their guests something else: {}",
            names.join(", ")
        ),
    )
    .with_path(base.name())
    .with_hint(
        "flatten them first, so that they hold everything themselves; or, if what they show no longer matters, add --force",
    ))
}
