//! Why QEMU would not open a qcow2 image, in its words and in the order in which it looks.

use catena_engine::StorageBytes;
use catena_format::Bytes;
use catena_format::limits;
use catena_format::qcow2::header::MAGIC;
use catena_storage::LocalFile;

const DIRTY_CORRUPT_DATA_COMPRESSION_EXTENDED: u64 = 0x1f;
const CORRUPT: u64 = 1 << 1;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const BITMAPS: u32 = 0x2385_2875;
const VM_STATE_LIMIT: u64 = i32::MAX as u64;

/// The first fault that QEMU would report.
pub fn fault(file: &LocalFile, write: bool, check: bool) -> Option<String> {
    let bytes = StorageBytes::new(file).ok()?;
    let start = bytes.read_some(0, 24).ok()?;
    let (least, most) = limits::QCOW2_CLUSTER_BITS.into_inner();
    let bits = Fields { area: &start }.u32(20).clamp(least, most);
    // All of it lies in the first cluster.
    let area = bytes.read_some(0, 1 << bits).ok()?;
    Fields { area: &area }.fault(write, check)
}

struct Fields<'a> {
    area: &'a [u8],
}

impl Fields<'_> {
    fn u32(&self, offset: usize) -> u32 {
        let raw = self.area.get(offset..).and_then(|rest| rest.first_chunk());
        raw.map_or(0, |raw| u32::from_be_bytes(*raw))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) << 32 | u64::from(self.u32(offset.saturating_add(4)))
    }

    fn fault(&self, write: bool, check: bool) -> Option<String> {
        let fault = |text: &str| Some(text.to_owned());
        if !self.area.starts_with(&MAGIC) {
            return fault("Image is not in qcow2 format");
        }
        let version = self.u32(4);
        if !(2..=3).contains(&version) {
            return Some(format!("Unsupported qcow2 version {version}"));
        }
        let bits = self.u32(20);
        if !limits::QCOW2_CLUSTER_BITS.contains(&bits) {
            return Some(format!("Unsupported cluster size: 2^{bits}"));
        }
        let cluster = 1_u64 << bits;
        let (mut incompatible, mut order, mut header_length) = (0, 4, 72);
        if version == 3 {
            incompatible = self.u64(72);
            order = self.u32(96);
            header_length = self.u32(100);
            if header_length < 104 {
                return fault("qcow2 header too short");
            }
        }
        if u64::from(header_length) > cluster {
            return fault("qcow2 header exceeds cluster size");
        }
        let backing = self.u64(8);
        if backing > cluster {
            return fault("Invalid backing file offset");
        }
        let extensions_end = if backing > 0 { backing } else { cluster };
        let compression = match header_length {
            105.. => self.area.get(104).copied().unwrap_or_default(),
            _ => 0,
        };
        if let Some(text) = compression_fault(compression, incompatible) {
            return Some(text);
        }
        let unknown = incompatible & !DIRTY_CORRUPT_DATA_COMPRESSION_EXTENDED;
        if unknown != 0 {
            return Some(self.unknown_features(unknown, header_length, extensions_end));
        }
        if write && incompatible & CORRUPT != 0 && !check {
            return fault("qcow2: Image is corrupt; cannot be opened read/write");
        }
        if order > 6 {
            return fault("Reference count entry width too large; may not exceed 64 bits");
        }
        let method = self.u32(32);
        if method > 2 {
            // It is a signed number to QEMU.
            return Some(format!("Unsupported encryption method {}", method.cast_signed()));
        }
        let refcount_clusters = u64::from(self.u32(56));
        if refcount_clusters == 0 && !check {
            return fault("Image does not contain a reference count table");
        }
        let table = |what: &str, offset: u64, entries: u64, entry: u64, limit: u64| -> Option<String> {
            let bytes = entries.saturating_mul(entry);
            if bytes > limit {
                return Some(format!("{what} too large"));
            }
            if i64::try_from(offset.saturating_add(bytes)).is_err() || !offset.is_multiple_of(cluster) {
                return Some(format!("{what} offset invalid"));
            }
            None
        };
        let entries = refcount_clusters.saturating_mul(cluster / 8);
        if let Some(text) = table("Reference count table", self.u64(48), entries, 8, 8 << 20) {
            return Some(text);
        }
        let snapshots = u64::from(self.u32(60));
        if let Some(text) = table("Snapshot table", self.u64(64), snapshots, 40, 65_536 * 40) {
            return Some(text);
        }
        let l1_entries = u64::from(self.u32(36));
        if let Some(text) = table(
            "Active L1 table",
            self.u64(40),
            l1_entries,
            8,
            limits::QCOW2_L1_BYTES,
        ) {
            return Some(text);
        }
        let entry = if incompatible & EXTENDED_L2 != 0 { 16 } else { 8 };
        let coverage = cluster.saturating_mul(cluster / entry);
        let needed = self.u64(24).div_ceil(coverage);
        if needed > VM_STATE_LIMIT {
            return fault("Image is too big");
        }
        if needed > l1_entries {
            return fault("L1 table is too small");
        }
        if let Some(text) = self.extensions_fault(header_length, extensions_end) {
            return Some(text);
        }
        if backing > 0 {
            let length = u64::from(self.u32(16));
            if length > cluster - backing || length > 1023 {
                return fault("Backing file name too long");
            }
        }
        None
    }

    /// The extensions: kind, offset of the data and its length.
    fn extensions(
        &self,
        header_length: u32,
        end: u64,
    ) -> impl Iterator<Item = Result<(u32, usize, u32), String>> {
        let mut at = u64::from(header_length);
        let mut done = false;
        std::iter::from_fn(move || {
            if done || at >= end {
                return None;
            }
            let offset = usize::try_from(at).ok()?;
            let (kind, length) = (self.u32(offset), self.u32(offset + 4));
            at += 8;
            if at > end || u64::from(length) > end - at {
                done = true;
                return Some(Err("Header extension too large".to_owned()));
            }
            if kind == 0 {
                return None;
            }
            at += u64::from(length).next_multiple_of(8);
            Some(Ok((kind, offset + 8, length)))
        })
    }

    fn extensions_fault(&self, header_length: u32, end: u64) -> Option<String> {
        for extension in self.extensions(header_length, end) {
            match extension {
                Err(text) => return Some(text),
                Ok((BACKING_FORMAT, _, length @ 16..)) => {
                    return Some(format!(
                        "ERROR: ext_backing_format: len={length} too large (>=16)"
                    ));
                }
                Ok((BITMAPS, offset, length)) => {
                    if let Some(text) = self.bitmaps_fault(offset, length) {
                        return Some(text);
                    }
                }
                Ok(_) => {}
            }
        }
        None
    }

    fn bitmaps_fault(&self, offset: usize, length: u32) -> Option<String> {
        if length != 24 {
            return Some("bitmaps_ext: Invalid extension length".to_owned());
        }
        // Without the bit nobody looks further.
        if self.u64(88) & 1 == 0 || self.u32(4) == 2 {
            return None;
        }
        let (count, reserved) = (self.u32(offset), self.u32(offset + 4));
        let (size, directory) = (self.u64(offset + 8), self.u64(offset + 16));
        if reserved != 0 {
            return Some("bitmaps_ext: Reserved field is not zero".to_owned());
        }
        if count > limits::QCOW2_BITMAPS {
            return Some(format!(
                "bitmaps_ext: Image has {count} bitmaps, exceeding the QEMU supported maximum of {}",
                limits::QCOW2_BITMAPS
            ));
        }
        if count == 0 {
            return Some("found bitmaps extension with zero bitmaps".to_owned());
        }
        if directory & ((1 << self.u32(20)) - 1) != 0 {
            return Some("bitmaps_ext: invalid bitmap directory offset".to_owned());
        }
        if size > limits::QCOW2_BITMAP_DIRECTORY_BYTES {
            return Some(format!(
                "bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size ({})",
                limits::QCOW2_BITMAP_DIRECTORY_BYTES
            ));
        }
        None
    }

    fn unknown_features(&self, mut unknown: u64, header_length: u32, end: u64) -> String {
        let mut names = Vec::new();
        let table = self
            .extensions(header_length, end)
            .filter_map(Result::ok)
            .find(|(kind, ..)| *kind == FEATURE_NAMES);
        if let Some((_, offset, length)) = table {
            let length = usize::try_from(length).unwrap_or_default();
            let rows = self
                .area
                .get(offset..offset.saturating_add(length))
                .unwrap_or_default();
            // The last row may be cut short. A row without a name ends the table.
            for row in rows.chunks(48) {
                let Some(([kind, bit], name)) = row.split_first_chunk::<2>() else {
                    break;
                };
                let (kind, bit) = (*kind, *bit);
                if matches!(name.first(), None | Some(0)) {
                    break;
                }
                if kind == 0 && bit < 64 && unknown >> bit & 1 == 1 {
                    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                    names.push(String::from_utf8_lossy(name).into_owned());
                    unknown &= !(1 << bit);
                }
            }
        }
        if unknown != 0 {
            names.push(format!("Unknown incompatible feature: {unknown:x}"));
        }
        format!("Unsupported qcow2 feature(s): {}", names.join(", "))
    }
}

fn compression_fault(kind: u8, incompatible: u64) -> Option<String> {
    match (kind, incompatible & COMPRESSION != 0) {
        (0, false) | (1, true) => None,
        (0, true) => Some("qcow2: Compression type incompatible feature bit must not be set".to_owned()),
        (1, false) => Some("qcow2: Compression type incompatible feature bit must be set".to_owned()),
        (kind, _) => Some(format!("qcow2: unknown compression type: {kind}")),
    }
}
