//! An image that is open to be changed, without what it stands on.

use super::open::Opened;
use super::program::{Result, error};
use catena_engine::qcow2::Qcow2Disk;
use catena_storage::Storage;
use std::sync::Arc;

/// The image itself, of which no guest data is to be written: what it stands on is not there.
pub fn image_alone(opened: &Opened) -> Result<Qcow2Disk> {
    let data_file = opened.top()?.data_file.as_ref();
    let data_file = data_file
        .and_then(|data_file| data_file.file.as_ref().ok())
        .map(|file| Arc::new(file.storage.clone()) as Arc<dyn Storage>);
    let storage: Arc<dyn Storage> = Arc::new(opened.held.clone());
    Qcow2Disk::open(storage, data_file, None).map_err(|failure| error(failure.full()))
}
