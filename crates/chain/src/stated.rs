//! A chain of which somebody states the upper layers, as domain XML does: what [`crate::detect_stated`] begins with.

use crate::reference::Source;
use catena_format::Format;

/// What somebody says of a chain beforehand, as domain XML does. It is believed whatever the images' headers say.
#[derive(Clone, Debug, Default)]
pub struct Stated {
    /// The active layer, and those below it that are stated.
    pub layers: Vec<StatedLayer>,
    /// Whether it is said that nothing is below the last of them. If not, its header is followed.
    pub closed: bool,
}

/// A layer that somebody states.
#[derive(Clone, Debug)]
pub struct StatedLayer {
    /// Where it is. What is not on this host is believed unseen.
    pub source: Source,
    /// Its format.
    pub format: Format,
    /// Its external data file, where one is stated; else its header says.
    pub data_file: Option<Source>,
}
