//! The document as libvirt shows it while the guest runs, as far as chains go.
//!
//! `<source>` and `<backingStore>` of each disk are written as libvirt writes them, with `index` attributes, detected
//! layers and the end of the chain; every other byte stays.

use crate::edit::{Edit, EditError};
use crate::generation::Generation;
use crate::model::Document;
use crate::numbered::{Running, number};
use crate::write::{self, Indices};
use catena::Chain;

/// Writes it. `chains` has each disk's chain, from [`crate::Disk::chain`]; a disk without one stays as it is.
///
/// # Errors
///
/// Where a document cannot be changed so, which is a fault of this library.
pub fn live(
    document: &Document,
    chains: &[Option<Chain>],
    generation: Generation,
) -> Result<String, EditError> {
    let mut edit = Edit::new(document);
    for disk in number(document, chains, generation).into_iter().flatten() {
        below(&disk, &mut edit)?;
    }
    edit.finish()
}

fn below(disk: &Running<'_>, edit: &mut Edit<'_>) -> Result<(), EditError> {
    let mut nested = disk.terminated.then(|| "<backingStore/>\n".to_owned());
    for (number, layer) in disk.layers.iter().enumerate().rev() {
        let indices = Indices {
            layer: Some(layer.index),
            store: layer.store.as_ref().map(|store| store.index),
        };
        let mut given = disk.disk.layers.get(number).cloned();
        if let Some(given) = &mut given {
            given.details = layer.details.clone();
            match &layer.store {
                Some(store) if given.data_store.is_none() => {
                    given.data_store = Some(Box::new(write::found_store(given, store)));
                }
                Some(store) => {
                    if let Some(given) = &mut given.data_store {
                        given.details = store.details.clone();
                    }
                }
                // libvirt 9.0 knows none.
                None => given.data_store = None,
            }
        }
        match (number, given) {
            (0, Some(given)) => edit.rewrite_source(&given, &write::given_source(&given, indices).finish()),
            (_, Some(given)) => {
                nested = Some(write::given_backing_store(&given, indices, nested.as_deref()));
            }
            (_, None) => {
                let store = layer
                    .store
                    .as_ref()
                    .map(|store| (&store.source, Some(store.index)));
                nested = Some(write::found_backing_store(layer, store, nested.as_deref()));
            }
        }
    }
    edit.rewrite_below(disk.disk, nested.as_deref())
}
