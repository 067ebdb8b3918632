//! What libvirt 11.3 sees of a qcow2 header: less than there is.
//!
//! It reads 33,280 bytes and steps through the extensions without rounding their lengths up to 8, as the format
//! requires, so that it loses its way behind the first one of an uneven length. Later versions repaired this; 9.0
//! does not look for data files at all.

use catena_format::Bytes;
use catena_format::qcow2::{Extension, Header, Version};

/// How many bytes of an image libvirt reads.
pub(super) const WINDOW: u64 = 33_280;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;

/// What libvirt sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The backing name.
    pub backing: bool,
    /// The backing format, where there is a backing name.
    pub backing_format: bool,
    /// The data file, where the feature bit is set.
    pub data_file: bool,
}

/// Looks at a header through libvirt's eyes. Nothing is read where the header is as QEMU writes it.
pub(super) fn look(header: &Header, bytes: &dyn Bytes) -> Seen {
    let len = bytes.len().min(WINDOW);
    let backing = header
        .backing
        .as_ref()
        .is_some_and(|name| name.offset <= len && name.end() <= len);
    let start = match header.version {
        Version::V2 => 72,
        Version::V3 => u64::from(header.header_length),
    };
    let end = match &header.backing {
        None => Some(u64::MAX),
        Some(name) => Some(name.offset).filter(|offset| *offset <= len),
    };
    let finds = |kind| {
        let Some(end) = end else { return false };
        if let Some(first) = header.extensions.first().filter(|first| first.kind() == kind) {
            let size = match first {
                Extension::BackingFormat(data) | Extension::DataFile(data) => data.len() as u64,
                _ => 0,
            };
            let fits = start.saturating_add(8).saturating_add(size) <= len;
            return fits && start < len.saturating_sub(8) && start < end.saturating_sub(8);
        }
        let window = bytes.read_some(0, usize::try_from(len).unwrap_or_default());
        window.is_ok_and(|window| walk(&window, start, end, kind))
    };
    Seen {
        backing,
        backing_format: backing && finds(BACKING_FORMAT),
        data_file: header.has_data_file() && finds(DATA_FILE),
    }
}

/// Whether the walk meets an extension of a type.
fn walk(window: &[u8], start: u64, end: u64, wanted: u32) -> bool {
    let word = |offset: u64| {
        let at = usize::try_from(offset).ok()?;
        let bytes = window.get(at..at.checked_add(4)?)?;
        bytes.try_into().ok().map(u32::from_be_bytes)
    };
    let len = window.len() as u64;
    let mut offset = start;
    // Each turn goes on by at least 8 bytes.
    while offset < len.saturating_sub(8) && offset < end.saturating_sub(8) {
        let (Some(kind), Some(length)) = (word(offset), word(offset.saturating_add(4))) else {
            return false;
        };
        let next = offset.saturating_add(8).saturating_add(length.into());
        if next > len || kind == 0 {
            return false;
        }
        if kind == wanted {
            return true;
        }
        offset = next;
    }
    false
}
