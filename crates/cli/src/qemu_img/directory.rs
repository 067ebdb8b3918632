//! What is wrong with the bitmap directory of a qcow2 image, in QEMU's words and in the order in which it looks. It opens no image
//! whose bitmaps it cannot all load.

use catena_format::Bytes;
use catena_format::limits;
use catena_format::qcow2::Header;
use catena_format::qcow2::bitmap::{BitmapCluster, table_entries};
use std::collections::HashSet;

/// Bytes of a directory entry before its extra data and its name.
const FIXED: usize = 24;
const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const DIRTY_TRACKING: u8 = 1;
const ALIGNMENT: u32 = 8;

/// An entry of the directory.
struct Entry {
    name: String,
    name_len: u16,
    extra: u32,
    table_offset: u64,
    table_entries: u32,
    flags: u32,
    kind: u8,
    granularity_bits: u8,
}

impl Entry {
    fn read(fixed: &[u8; FIXED]) -> Self {
        let [table @ .., a, b, c, d] = fixed;
        let number = |at: usize, len: usize| {
            let bytes = table.iter().skip(at).take(len);
            bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        Self {
            name: String::new(),
            name_len: u16::try_from(number(18, 2)).unwrap_or(u16::MAX),
            extra: u32::from_be_bytes([*a, *b, *c, *d]),
            table_offset: number(0, 8),
            table_entries: u32::try_from(number(8, 4)).unwrap_or(u32::MAX),
            flags: u32::try_from(number(12, 4)).unwrap_or(u32::MAX),
            kind: u8::try_from(number(16, 1)).unwrap_or(u8::MAX),
            granularity_bits: u8::try_from(number(17, 1)).unwrap_or(u8::MAX),
        }
    }

    fn in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    /// Bytes up to the next entry. QEMU counts them in a signed number of 32 bits, and goes on behind the end where it gets
    /// a negative one.
    fn len(&self) -> Option<usize> {
        let len = (FIXED as u32)
            .wrapping_add(self.name_len.into())
            .wrapping_add(self.extra)
            .wrapping_add(ALIGNMENT - 1);
        usize::try_from((len & !(ALIGNMENT - 1)).cast_signed()).ok()
    }

    fn keeps_to_the_rules(&self, header: &Header) -> bool {
        let bytes = u64::from(self.table_entries).saturating_mul(header.cluster_bits.size());
        let covers = || {
            let granularity = 1_u64 << self.granularity_bits;
            self.in_use() || header.virtual_size <= bytes.saturating_mul(8).saturating_mul(granularity)
        };
        self.table_entries != 0
            && self.table_entries <= limits::QCOW2_BITMAP_TABLE_ENTRIES
            && self.table_offset != 0
            && header.cluster_bits.offset_in_cluster(self.table_offset) == 0
            && self.flags & !(IN_USE | AUTO) == 0
            && self.name_len <= limits::QCOW2_BITMAP_NAME_BYTES
            && self.kind == DIRTY_TRACKING
            && limits::QCOW2_BITMAP_GRANULARITY_BITS.contains(&self.granularity_bits)
            && bytes <= limits::QCOW2_BITMAP_BYTES
            && covers()
    }
}

/// The first fault that QEMU would report.
pub fn fault(header: &Header, bytes: &dyn Bytes) -> Option<String> {
    let extension = header.bitmaps()?;
    let size = extension.directory_size;
    if size == 0 {
        return Some("Requested bitmap directory size is zero".to_owned());
    }
    // The header was found to be right, which bounds it; once more, since it is to be read whole.
    if size > limits::QCOW2_BITMAP_DIRECTORY_BYTES {
        return None;
    }
    let Some(directory) = read(bytes, extension.directory_offset, size) else {
        return Some("Failed to read bitmap directory: Input/output error".to_owned());
    };
    let entries = match entries(header, &directory, extension.count) {
        Ok(entries) => entries,
        Err(text) => return Some(text),
    };
    let mut names = HashSet::new();
    entries
        .iter()
        .find_map(|entry| load(header, bytes, entry, names.insert(entry.name.as_str())).err())
}

/// Bytes of a file, behind whose end there are zeros.
fn read(bytes: &dyn Bytes, offset: u64, len: u64) -> Option<Vec<u8>> {
    let end = offset.checked_add(len)?;
    i64::try_from(end).ok()?;
    let len = usize::try_from(len).ok()?;
    let mut found = bytes.read_some(offset, len).ok()?;
    found.resize(len, 0);
    Some(found)
}

fn entries(header: &Header, directory: &[u8], count: u32) -> Result<Vec<Entry>, String> {
    let broken = || "Broken bitmap directory".to_owned();
    let mut entries = Vec::new();
    let mut rest = directory;
    while !rest.is_empty() {
        let (fixed, behind) = rest.split_first_chunk().ok_or_else(broken)?;
        if entries.len() as u64 >= u64::from(count) {
            return Err("More bitmaps found than specified in header extension".to_owned());
        }
        let mut entry = Entry::read(fixed);
        let next = match entry.len() {
            Some(len) => rest.get(len..).ok_or_else(broken)?,
            None => &[],
        };
        if entry.extra != 0 {
            return Err("Bitmap extra data is not supported".to_owned());
        }
        let name = behind.get(..usize::from(entry.name_len)).unwrap_or(behind);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        entry.name = String::from_utf8_lossy(name).into_owned();
        if !entry.keeps_to_the_rules(header) {
            return Err(format!("Bitmap '{}' doesn't satisfy the constraints", entry.name));
        }
        entries.push(entry);
        rest = next;
    }
    match entries.len() as u64 == u64::from(count) {
        true => Ok(entries),
        false => Err("Less bitmaps found than specified in header extension".to_owned()),
    }
}

/// Whether one can be loaded. What a writer that died left is not looked into.
fn load(header: &Header, bytes: &dyn Bytes, entry: &Entry, is_first: bool) -> Result<(), String> {
    let name = &entry.name;
    let no_table = |why: &str| {
        Err(format!(
            "Could not read bitmap_table table from image for bitmap '{name}': {why}"
        ))
    };
    if !entry.in_use() {
        let len = u64::from(entry.table_entries).saturating_mul(8);
        let Some(table) = read(bytes, entry.table_offset, len) else {
            return no_table("Input/output error");
        };
        let is_sound = |raw: &[u8]| {
            let entry = raw.try_into().map_or(0, u64::from_be_bytes);
            BitmapCluster::decode(entry, header.cluster_bits).is_ok()
        };
        if !table.chunks_exact(8).all(is_sound) {
            return no_table("Invalid argument");
        }
    }
    if !is_first {
        return Err(format!("Bitmap already exists: {name}"));
    }
    let granularity = 1_u64 << entry.granularity_bits;
    let needed = table_entries(header.virtual_size, granularity, header.cluster_bits);
    if !entry.in_use() && u64::from(entry.table_entries) != needed {
        return Err(format!(
            "Could not read bitmap '{name}' from image: Invalid argument"
        ));
    }
    Ok(())
}
