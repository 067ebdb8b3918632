//! Changes to the bitmaps of an image, stored in one step.
//!
//! The conditions under which a change is refused are those of `qemu-img bitmap`.

use super::bits::Bits;
use super::error::BitmapError;
use super::{Ground, Run, stored};
use crate::error::Result;
use catena_format::limits;
use catena_format::qcow2::bitmap::{self, Bitmap, BitmapCluster};
use catena_format::qcow2::{Autoclear, BitmapsExtension, Extension, Header, Version};

/// What is asked of a new bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBitmap {
    /// Its name: 1 to 1023 bytes.
    pub name: String,
    /// Bytes a bit stands for; QEMU's choice where it is not said: a cluster, but 4 KiB to 64 KiB.
    pub granularity: Option<u64>,
    /// Whether it records writes by itself.
    pub enabled: bool,
}

/// The bitmaps of an image, with changes that are not stored yet.
///
/// Nothing is written before [`Bitmaps::store`].
#[derive(Debug)]
pub struct Bitmaps {
    header: Header,
    entries: Vec<Entry>,
    /// What nobody needs once the changes are stored.
    removed: Vec<Bitmap>,
    changed: bool,
}

/// What was written beside the bitmaps there are.
#[derive(Debug)]
pub struct Written {
    /// What the header is to say: see [`set_extension`].
    pub extension: Option<BitmapsExtension>,
    /// What is free once it says so.
    pub freed: Vec<Run>,
}

#[derive(Debug)]
struct Entry {
    bitmap: Bitmap,
    /// What is to be stored in place of what is on disk.
    bits: Option<Bits>,
    on_disk: bool,
}

/// Whether a bitmap is one to work with.
pub(in crate::qcow2) fn check_usable(bitmap: &Bitmap) -> Result<(), BitmapError> {
    if bitmap.in_use {
        return Err(BitmapError::Inconsistent(bitmap.name.clone()));
    }
    if !bitmap.is_understood() {
        return Err(BitmapError::NotUnderstood(bitmap.name.clone()));
    }
    Ok(())
}

impl Bitmaps {
    /// The bitmaps of an image as they are.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn read(ground: &dyn Ground) -> Result<Self> {
        let header = ground.header();
        let entries = stored::list(&header, ground.storage())?
            .into_iter()
            .map(|bitmap| Entry {
                bitmap,
                bits: None,
                on_disk: true,
            })
            .collect();
        // A list that does not count is dropped with the first change, as QEMU does: its clusters are leaks.
        Ok(Self {
            header,
            entries,
            removed: Vec::new(),
            changed: false,
        })
    }

    /// What there is, in its order.
    pub fn list(&self) -> impl Iterator<Item = &Bitmap> {
        self.entries.iter().map(|entry| &entry.bitmap)
    }

    /// Whether there is something to store.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The granularity that a new bitmap has unless told otherwise.
    pub fn default_granularity(&self) -> u64 {
        self.header.cluster_bits.size().clamp(4 << 10, 64 << 10)
    }

    /// Adds a bitmap without any bit set.
    ///
    /// # Errors
    /// Where the image cannot have it.
    pub fn add(&mut self, new: &NewBitmap) -> Result<(), BitmapError> {
        let granularity = new.granularity.unwrap_or_else(|| self.default_granularity());
        if new.name.is_empty() {
            return Err(BitmapError::NameEmpty);
        }
        if granularity < 512 || !granularity.is_power_of_two() {
            return Err(BitmapError::Granularity(granularity));
        }
        if self.entries.iter().any(|entry| entry.bitmap.name == new.name) {
            return Err(BitmapError::Exists(new.name.clone()));
        }
        if new.name.len() > usize::from(limits::QCOW2_BITMAP_NAME_BYTES) {
            return Err(BitmapError::NameTooLong(new.name.clone()));
        }
        if self.header.version == Version::V2 {
            return Err(BitmapError::Version2);
        }
        if granularity.trailing_zeros() > u32::from(*limits::QCOW2_BITMAP_GRANULARITY_BITS.end()) {
            return Err(BitmapError::GranularityTooLarge(granularity));
        }
        let bits = Bits::new(self.header.virtual_size, granularity);
        if bits.count().div_ceil(8) > limits::QCOW2_BITMAP_BYTES {
            return Err(BitmapError::TooMuchSpace);
        }
        let bitmap = Bitmap {
            name: new.name.clone(),
            name_bytes: new.name.clone().into_bytes(),
            granularity,
            in_use: false,
            auto: new.enabled,
            table_offset: 0,
            table_entries: 0,
            unknown_flags: 0,
            extra_data: Vec::new(),
        };
        let mut all: Vec<Bitmap> = self.list().cloned().collect();
        all.push(bitmap.clone());
        if Bitmap::encode_all(&all).is_err() {
            return Err(BitmapError::TooMany);
        }
        self.changed = true;
        self.entries.push(Entry {
            bitmap,
            bits: Some(bits),
            on_disk: false,
        });
        Ok(())
    }

    /// Removes a bitmap, whatever state it is in.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn remove(&mut self, name: &str) -> Result<(), BitmapError> {
        let index = self
            .entries
            .iter()
            .position(|entry| entry.bitmap.name == name)
            .ok_or_else(|| BitmapError::NotFound(name.to_owned()))?;
        let entry = self.entries.remove(index);
        if entry.on_disk {
            self.removed.push(entry.bitmap);
        }
        self.changed = true;
        Ok(())
    }

    /// Clears all bits of a bitmap.
    ///
    /// # Errors
    /// Where there is none of that name, or it cannot be used.
    pub fn clear(&mut self, name: &str) -> Result<(), BitmapError> {
        let size = self.header.virtual_size;
        let entry = self.usable(name)?;
        entry.bits = Some(Bits::new(size, entry.bitmap.granularity));
        self.changed = true;
        Ok(())
    }

    /// Makes a bitmap record writes by itself, or not.
    ///
    /// # Errors
    /// Where there is none of that name, or it cannot be used.
    pub fn enable(&mut self, name: &str, enabled: bool) -> Result<(), BitmapError> {
        self.usable(name)?.bitmap.auto = enabled;
        self.changed = true;
        Ok(())
    }

    /// The bits of a bitmap.
    ///
    /// # Errors
    /// Where there is none of that name, it cannot be used, or it cannot be read.
    pub fn bits(&mut self, name: &str, ground: &dyn Ground) -> Result<Bits, BitmapError> {
        let header = self.header.clone();
        let entry = self.usable(name)?;
        match &entry.bits {
            Some(bits) => Ok(bits.clone()),
            None => Ok(stored::load(&entry.bitmap, &header, ground.storage())?),
        }
    }

    /// Makes dirty in one bitmap what is dirty in other bits: those of another bitmap, of this image or of another one.
    ///
    /// # Errors
    /// Where there is no bitmap of that name, it cannot be used, or the bits are of a disk of another size.
    pub fn merge(&mut self, name: &str, bits: &Bits, ground: &dyn Ground) -> Result<(), BitmapError> {
        let mut merged = self.bits(name, ground)?;
        if merged.size() != bits.size() {
            return Err(BitmapError::DifferentSizes {
                target: merged.size(),
                from: bits.size(),
            });
        }
        merged.merge(bits);
        self.usable(name)?.bits = Some(merged);
        self.changed = true;
        Ok(())
    }

    /// Another size of the disk: what is cut off is forgotten, what is new is clean. The header that is stored then has to
    /// have that size.
    ///
    /// # Errors
    /// Where there is a bitmap that cannot be used, as QEMU has it, or it cannot be read.
    pub fn resize(&mut self, size: u64, ground: &dyn Ground) -> Result<(), BitmapError> {
        self.check_usable()?;
        for name in self.list().map(|bitmap| bitmap.name.clone()).collect::<Vec<_>>() {
            let mut bits = self.bits(&name, ground)?;
            if bits.size() != size {
                bits.resize(size);
                self.usable(&name)?.bits = Some(bits);
                self.changed = true;
            }
        }
        self.header.virtual_size = size;
        Ok(())
    }

    /// Whether all bitmaps can be used.
    ///
    /// # Errors
    /// Where one cannot.
    pub fn check_usable(&self) -> Result<(), BitmapError> {
        self.list().try_for_each(check_usable)
    }

    /// Gives a bitmap that was marked as in use by whoever asks now its bits, and takes the mark away. `found` is what it was
    /// before.
    pub(super) fn replace(&mut self, found: &Bitmap, bits: Bits) {
        let same = |entry: &&mut Entry| entry.bitmap.name_bytes == found.name_bytes;
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.bitmap.in_use = false;
            entry.bits = Some(bits);
            self.changed = true;
        }
    }

    /// The bitmap of that name, if it is one to work with.
    fn usable(&mut self, name: &str) -> Result<&mut Entry, BitmapError> {
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| entry.bitmap.name == name)
            .ok_or_else(|| BitmapError::NotFound(name.to_owned()))?;
        check_usable(&entry.bitmap)?;
        Ok(entry)
    }

    /// Makes the changes durable. At every instant the image has its old bitmaps or the new ones; what is cut off leaves at
    /// worst clusters that nobody uses.
    ///
    /// # Errors
    /// Where there is no space, or it cannot be written. The old bitmaps are still there then, unless it was only the old
    /// clusters that could not be given back.
    pub fn store(mut self, ground: &dyn Ground) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let written = self.write(ground)?;
        let mut header = ground.header();
        set_extension(&mut header, written.extension);
        ground.switch(&header)?;
        written.freed.into_iter().try_for_each(|run| ground.free(run))
    }

    /// Writes all that is new beside what is there and makes it durable, for a header that changes in other ways too.
    ///
    /// # Errors
    /// As for [`Bitmaps::store`]; what was allocated is given back.
    pub fn write(&mut self, ground: &dyn Ground) -> Result<Written> {
        // What becomes free is asked first: a table that cannot be read is an error before anything is written.
        let freed = self.old_clusters(ground)?;
        let mut taken = Vec::new();
        match self.write_new(ground, &mut taken) {
            Ok(extension) => Ok(Written { extension, freed }),
            Err(error) => {
                for run in taken {
                    // The error that is told is the first.
                    let _ = ground.free(run);
                }
                Err(error)
            }
        }
    }

    fn old_clusters(&self, ground: &dyn Ground) -> Result<Vec<Run>> {
        let bits = self.header.cluster_bits;
        let rewritten = self
            .entries
            .iter()
            .filter(|entry| entry.on_disk && entry.bits.is_some());
        let mut old = Vec::new();
        for bitmap in self.removed.iter().chain(rewritten.map(|entry| &entry.bitmap)) {
            old.extend(stored::clusters(bitmap, bits, ground.storage())?);
        }
        let counts = self.header.autoclear.contains(Autoclear::BITMAPS);
        if let Some(extension) = self.header.bitmaps().filter(|_| counts) {
            old.push(Run {
                offset: extension.directory_offset,
                clusters: bits.clusters(extension.directory_size),
            });
        }
        Ok(old)
    }

    fn write_new(&mut self, ground: &dyn Ground, taken: &mut Vec<Run>) -> Result<Option<BitmapsExtension>> {
        let cluster_bits = self.header.cluster_bits;
        let size = cluster_bits.size();
        let mut take = |bytes: u64| -> Result<u64> {
            let clusters = cluster_bits.clusters(bytes);
            let offset = ground.allocate(clusters)?;
            taken.push(Run { offset, clusters });
            Ok(offset)
        };
        for entry in &mut self.entries {
            let Some(bits) = &entry.bits else { continue };
            let count = bitmap::table_entries(bits.size(), bits.granularity(), cluster_bits);
            let mut table = vec![0; usize::try_from(count * 8).unwrap_or_default()];
            for cluster in bits.clusters(size) {
                let offset = take(size)?;
                ground.write(&bits.cluster(cluster, size), offset)?;
                let place = usize::try_from(cluster).unwrap_or(usize::MAX);
                if let Some(raw) = table.chunks_exact_mut(8).nth(place) {
                    raw.copy_from_slice(&BitmapCluster::At(offset).encode().to_be_bytes());
                }
            }
            entry.bitmap.table_entries = u32::try_from(count).unwrap_or(u32::MAX);
            entry.bitmap.table_offset = 0;
            if count > 0 {
                entry.bitmap.table_offset = take(count * 8)?;
                table.resize(
                    table.len().next_multiple_of(usize::try_from(size).unwrap_or(1)),
                    0,
                );
                ground.write(&table, entry.bitmap.table_offset)?;
            }
        }
        let all: Vec<Bitmap> = self.list().cloned().collect();
        let mut directory = Bitmap::encode_all(&all)?;
        let extension = if all.is_empty() {
            None
        } else {
            let directory_size = directory.len() as u64;
            let directory_offset = take(directory_size)?;
            directory.resize(
                directory
                    .len()
                    .next_multiple_of(usize::try_from(size).unwrap_or(1)),
                0,
            );
            ground.write(&directory, directory_offset)?;
            Some(BitmapsExtension {
                count: u32::try_from(all.len()).unwrap_or(u32::MAX),
                directory_size,
                directory_offset,
            })
        };
        ground.sync()?;
        Ok(extension)
    }
}

/// What a header says of its bitmaps.
pub fn set_extension(header: &mut Header, extension: Option<BitmapsExtension>) {
    header.autoclear.set(Autoclear::BITMAPS, extension.is_some());
    let place = header
        .extensions
        .iter()
        .position(|extension| matches!(extension, Extension::Bitmaps(_)));
    match (place, extension) {
        (Some(place), Some(new)) => {
            if let Some(old) = header.extensions.get_mut(place) {
                *old = Extension::Bitmaps(new);
            }
        }
        (None, Some(new)) => header.extensions.push(Extension::Bitmaps(new)),
        (Some(place), None) => {
            header.extensions.remove(place);
        }
        (None, None) => {}
    }
}
