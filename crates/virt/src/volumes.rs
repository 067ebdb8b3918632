//! Volumes of storage pools: where they are, libvirt alone knows, and whoever can ask it says so.

use crate::model::{Document, Layer, Place, Volume};
use catena::reference::Location;

impl Document {
    /// Looks for the volumes it names: `find` is given a pool's name and a volume's, and gives what libvirt says of it, if
    /// it knows it. What the pool says of the format, libvirt does not ask: what XML does not say is raw.
    ///
    /// # Errors
    ///
    /// Those of `find`, at the first.
    pub fn find_volumes<E>(
        &mut self,
        mut find: impl FnMut(&str, &str) -> Result<Option<Volume>, E>,
    ) -> Result<(), E> {
        for layer in self.disks.iter_mut().flat_map(|disk| &mut disk.layers) {
            if let Place::Volume { pool, volume, .. } = &layer.place
                && let Some(known) = find(pool, volume)?
            {
                layer.is_at(known);
            }
        }
        Ok(())
    }
}

impl Layer {
    fn is_at(&mut self, volume: Volume) {
        let Place::Volume { found, .. } = &mut self.place else {
            return;
        };
        *found = volume.path.map(|path| {
            if volume.block {
                Location::Block(path).into()
            } else {
                Location::File(path).into()
            }
        });
    }
}
