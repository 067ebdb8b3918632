//! VMware disks: hosted sparse extents (`KDMV`), ESX sparse extents (`COWD`) and text descriptors.
//!
//! Source: VMware's Virtual Disk Format 5.0, and QEMU's vmdk driver. Binary fields are little-endian, sizes in sectors of
//! 512 bytes.
//!
//! A descriptor is either the file itself, and then names the files that hold the data, or embedded in a sparse extent.
//! QEMU and libvirt look for an embedded descriptor's parent from byte 0x200, wherever the header says that the descriptor
//! is; both places are searched here, and a difference is told.

mod descriptor;

pub use descriptor::{Descriptor, Extent};

use crate::error::{Error, Result};
use crate::field::{before_nul, has_magic, not_this, structure, virtual_size};
use crate::limits::{DESCRIPTOR_BYTES, VMDK_GRAIN_SECTORS, VMDK_GRAIN_TABLE_ENTRIES};
use crate::{Bytes, DataFile, Description, Format, ParentId, RecordedReference};
use descriptor::parent_hints;

pub(crate) const SPARSE_MAGIC: &[u8; 4] = b"KDMV";
pub(crate) const COWD_MAGIC: &[u8; 4] = b"COWD";
/// How VMware begins a descriptor.
const DESCRIPTOR_MAGIC: &[u8] = b"# Disk DescriptorFile";
const SECTOR: u64 = 512;
/// Where QEMU and libvirt take an embedded descriptor to be, and how far the longer-sighted of them, libvirt, looks.
const USUAL_DESCRIPTOR: u64 = 0x200;
const USUAL_DESCRIPTOR_END: u64 = 33_280;
/// The grain directory offset that says that the real header is in the footer.
const IN_FOOTER: u64 = u64::MAX;
/// The footer's header: the file ends with a marker, it, and an end-of-stream marker, a sector each.
const FOOTER_FROM_END: u64 = 2 * SECTOR;

bitflags::bitflags! {
    #[derive(Clone, Copy)]
    struct Flags: u32 {
        const NEWLINE_TEST = 1;
        const REDUNDANT_GRAIN_DIRECTORY = 1 << 1;
        const ZERO_GRAINS = 1 << 2;
        const COMPRESSED = 1 << 16;
        const MARKERS = 1 << 17;
    }
}

mod raw {
    use zerocopy::byteorder::little_endian::{U16, U32, U64};
    use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Sparse {
        pub magic: [u8; 4],
        pub version: U32,
        pub flags: U32,
        pub capacity: U64,
        pub grain_size: U64,
        pub descriptor_offset: U64,
        pub descriptor_size: U64,
        /// Entries of a grain table.
        pub table_entries: U32,
        pub redundant_directory_offset: U64,
        pub directory_offset: U64,
        pub overhead: U64,
        pub unclean_shutdown: u8,
        /// `\n \r\n`, which a transfer as text would change.
        pub newline_test: [u8; 4],
        pub compression: U16,
    }

    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub(super) struct Cowd {
        pub magic: [u8; 4],
        pub version: U32,
        pub flags: U32,
        pub sectors: U32,
        pub grain_size: U32,
        pub directory_offset: U32,
        pub directory_entries: U32,
        pub next_free_sector: U32,
    }
}

/// Whether this is a sparse extent of a known version or a text that QEMU or VMware would take for a descriptor.
pub fn matches(bytes: &dyn Bytes) -> Result<bool> {
    let start = bytes.read_some(0, SECTOR as usize)?;
    let version = start
        .get(4..8)
        .and_then(|version| <[u8; 4]>::try_from(version).ok())
        .map(u32::from_le_bytes);
    Ok(
        (start.starts_with(SPARSE_MAGIC) && version.is_some_and(|version| (1..=3).contains(&version)))
            || (start.starts_with(COWD_MAGIC) && version == Some(1))
            || is_descriptor(&start),
    )
}

/// Whether a text's first sector is that of a descriptor, for VMware or for QEMU.
fn is_descriptor(start: &[u8]) -> bool {
    start
        .get(..DESCRIPTOR_MAGIC.len())
        .is_some_and(|first| first.eq_ignore_ascii_case(DESCRIPTOR_MAGIC))
        || qemu_takes_for_descriptor(start)
}

/// QEMU's test: behind comment lines and lines of blanks comes `version=1`, `2` or `3` and the end of the line.
///
/// A line with nothing in it at all ends the search, and so does a line that starts with blanks but goes on.
pub(crate) fn qemu_takes_for_descriptor(start: &[u8]) -> bool {
    let mut rest = start;
    loop {
        let line_end = rest.iter().position(|byte| *byte == b'\n');
        let line = line_end.and_then(|end| rest.get(..end));
        let skip = match (rest.first(), line) {
            (Some(b'#'), Some(_)) => true,
            (Some(b' '), Some(line)) => {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                line.iter().all(|byte| *byte == b' ')
            }
            _ => false,
        };
        match line_end.filter(|_| skip).and_then(|end| rest.get(end + 1..)) {
            Some(next) => rest = next,
            None => {
                return matches!(
                    line,
                    Some(
                        b"version=1"
                            | b"version=2"
                            | b"version=3"
                            | b"version=1\r"
                            | b"version=2\r"
                            | b"version=3\r"
                    )
                );
            }
        }
    }
}

/// The descriptor of an image: its text if it is one, the embedded one of a sparse extent, `None` where there is none.
///
/// # Errors
/// `NotThisFormat`, and what reading and the header's checks give.
pub fn descriptor(bytes: &dyn Bytes) -> Result<Option<Descriptor>> {
    let text = if has_magic(bytes, 0, SPARSE_MAGIC)? {
        let header: raw::Sparse = structure(bytes, 0)?;
        embedded(bytes, &header)?.map(|(_, text)| text)
    } else if has_magic(bytes, 0, COWD_MAGIC)? {
        None
    } else if is_descriptor(&bytes.read_some(0, SECTOR as usize)?) {
        Some(text_at(bytes, 0, DESCRIPTOR_BYTES)?)
    } else {
        return Err(not_this(Format::Vmdk));
    };
    Ok(text.map(|text| Descriptor::parse(&text)))
}

/// Describes a VMDK.
///
/// The virtual size of a descriptor is the sum of its extents. Its `data_file` is the first file that holds data;
/// [`descriptor()`] tells them all. An image whose `parentCID` says that it has a parent, but which does not name it, has a
/// reference with an empty name: it is not complete by itself.
pub fn describe(bytes: &dyn Bytes) -> Result<Description> {
    if has_magic(bytes, 0, SPARSE_MAGIC)? {
        sparse(bytes)
    } else if has_magic(bytes, 0, COWD_MAGIC)? {
        cowd(bytes)
    } else if is_descriptor(&bytes.read_some(0, SECTOR as usize)?) {
        let mut description = Description::new(Format::Vmdk);
        let text = text_at(bytes, 0, DESCRIPTOR_BYTES)?;
        if bytes.len() > DESCRIPTOR_BYTES {
            description
                .oddities
                .push("the descriptor is longer than 1 MiB; the rest is not read".into());
        }
        from_extents(&text, &mut description)?;
        parents(&[(0, text)], &mut description)?;
        Ok(description)
    } else {
        Err(not_this(Format::Vmdk))
    }
}

/// The text at an offset, up to a NUL.
fn text_at(bytes: &dyn Bytes, offset: u64, most: u64) -> Result<Vec<u8>> {
    let most = usize::try_from(most.min(DESCRIPTOR_BYTES)).unwrap_or(0);
    let text = bytes.read_some(offset, most)?;
    Ok(before_nul(&text).to_vec())
}

/// Where a sparse extent's header says that its descriptor is, and its text.
fn embedded(bytes: &dyn Bytes, header: &raw::Sparse) -> Result<Option<(u64, Vec<u8>)>> {
    let (offset, size) = (header.descriptor_offset.get(), header.descriptor_size.get());
    if offset == 0 {
        return Ok(None);
    }
    let offset = offset
        .checked_mul(SECTOR)
        .ok_or_else(|| Error::invalid("the descriptor's offset is beyond any file").at(28))?;
    // QEMU passes over the size of a descriptor that stands for the whole image.
    let size = match header.capacity.get() {
        0 => DESCRIPTOR_BYTES,
        _ => size.saturating_mul(SECTOR),
    };
    Ok(Some((offset, text_at(bytes, offset, size)?)))
}

fn sparse(bytes: &dyn Bytes) -> Result<Description> {
    let mut description = Description::new(Format::Vmdk);
    let mut header: raw::Sparse = structure(bytes, 0)?;
    let usual = text_at(bytes, USUAL_DESCRIPTOR, USUAL_DESCRIPTOR_END - USUAL_DESCRIPTOR)?;
    let mut texts = vec![(USUAL_DESCRIPTOR, usual)];
    if let Some((offset, text)) = embedded(bytes, &header)? {
        if offset != USUAL_DESCRIPTOR {
            description
                .oddities
                .push("the embedded descriptor is not at byte 512, where QEMU and libvirt look".into());
        }
        texts.insert(0, (offset, text));
    }
    if header.capacity.get() == 0 && header.descriptor_offset.get() != 0 {
        let (_, text) = texts.first().cloned().unwrap_or_default();
        from_extents(&text, &mut description)?;
    } else {
        if header.directory_offset.get() == IN_FOOTER {
            description.features.push("footer".into());
            match footer(bytes)? {
                Some(footer) => header = footer,
                None => description
                    .oddities
                    .push("the header says that there is a footer, but there is none".into()),
            }
        }
        geometry(&header, &mut description)?;
    }
    parents(&texts, &mut description)?;
    Ok(description)
}

fn footer(bytes: &dyn Bytes) -> Result<Option<raw::Sparse>> {
    let Some(offset) = bytes.len().checked_sub(FOOTER_FROM_END) else {
        return Ok(None);
    };
    if !has_magic(bytes, offset, SPARSE_MAGIC)? {
        return Ok(None);
    }
    structure(bytes, offset).map(Some)
}

fn geometry(header: &raw::Sparse, description: &mut Description) -> Result<()> {
    let version = header.version.get();
    if !(1..=3).contains(&version) {
        return Err(Error::unsupported(format!("VMDK version {version} is not 1 to 3")).at(4));
    }
    let entries = header.table_entries.get();
    if entries == 0 || entries > VMDK_GRAIN_TABLE_ENTRIES {
        return Err(Error::invalid(format!("grain tables of {entries} entries are not 1 to 512")).at(44));
    }
    let grain = header.grain_size.get();
    if grain == 0 || grain > VMDK_GRAIN_SECTORS {
        return Err(Error::invalid(format!("grains of {grain} sectors are not 1 to 2,097,152")).at(20));
    }
    description.virtual_size = Some(virtual_size(header.capacity.get(), SECTOR)?);
    description.cluster_size = Some(grain * SECTOR);
    let flags = Flags::from_bits_retain(header.flags.get());
    for (flag, word) in [
        (Flags::REDUNDANT_GRAIN_DIRECTORY, "redundant grain directory"),
        (Flags::ZERO_GRAINS, "zero grains"),
        (Flags::COMPRESSED, "compressed grains"),
        (Flags::MARKERS, "markers"),
    ] {
        if flags.contains(flag) {
            description.features.push(word.into());
        }
    }
    if flags.contains(Flags::COMPRESSED) != (header.compression.get() == 1) {
        description
            .oddities
            .push("the flags and the compression field disagree about compression".into());
    }
    if flags.contains(Flags::NEWLINE_TEST) && header.newline_test != *b"\n \r\n" {
        description
            .oddities
            .push("the line ends in the header have been changed: the image was transferred as text".into());
    }
    if header.unclean_shutdown != 0 {
        description
            .oddities
            .push("the image was not closed cleanly".into());
    }
    Ok(())
}

fn cowd(bytes: &dyn Bytes) -> Result<Description> {
    let header: raw::Cowd = structure(bytes, 0)?;
    if header.version.get() != 1 {
        return Err(Error::unsupported(format!("COWD version {} is not 1", header.version)).at(4));
    }
    let grain = u64::from(header.grain_size.get());
    if grain == 0 || grain > VMDK_GRAIN_SECTORS {
        return Err(Error::invalid(format!("grains of {grain} sectors are not 1 to 2,097,152")).at(16));
    }
    let mut description = Description::new(Format::Vmdk);
    description.variant = Some("vmfsSparse".into());
    description.virtual_size = Some(virtual_size(header.sectors.get().into(), SECTOR)?);
    description.cluster_size = Some(grain * SECTOR);
    // An ESX sparse extent's parent is in a descriptor of its own, but QEMU looks for a hint here too.
    let text = text_at(bytes, USUAL_DESCRIPTOR, USUAL_DESCRIPTOR_END - USUAL_DESCRIPTOR)?;
    parents(&[(USUAL_DESCRIPTOR, text)], &mut description)?;
    Ok(description)
}

/// Size and data files of an image that is the sum of extents.
fn from_extents(text: &[u8], description: &mut Description) -> Result<()> {
    let descriptor = Descriptor::parse(text);
    let mut sectors = 0u64;
    for extent in &descriptor.extents {
        sectors = sectors
            .checked_add(extent.sectors)
            .ok_or_else(|| Error::too_large("the extents are larger than what can be addressed"))?;
    }
    description.virtual_size = Some(virtual_size(sectors, SECTOR)?);
    if descriptor.extents.is_empty() {
        description
            .oddities
            .push("the descriptor names no extents".into());
    }
    if descriptor.extents.iter().any(|extent| extent.access != "RW") {
        description
            .oddities
            .push("some extents are not writable, which QEMU leaves out".into());
    }
    let mut files = descriptor.extents.iter().filter(|extent| extent.file.is_some());
    if let Some(first) = files.next() {
        let alone = descriptor.extents.len() == 1;
        description.data_file = Some(DataFile {
            name: first.file.clone(),
            raw: alone && first.is_flat() && first.offset.unwrap_or(0) == 0,
        });
        let count = 1 + files.count();
        if count > 1 {
            description.features.push(format!("{count} extent files"));
        }
    }
    Ok(())
}

/// Variant, identity and parent from the places where a descriptor may be, the most trusted first.
fn parents(texts: &[(u64, Vec<u8>)], description: &mut Description) -> Result<()> {
    let mut parent_cid = None;
    let mut hints: Vec<(u64, Vec<u8>)> = Vec::new();
    for (offset, text) in texts {
        let descriptor = Descriptor::parse(text);
        if description.variant.is_none() {
            description.variant = descriptor.create_type;
        }
        if description.id.is_none() {
            description.id = descriptor.cid.map(ParentId::Cid);
        }
        parent_cid = parent_cid.or(descriptor.parent_cid);
        for (at, name) in parent_hints(text).map_err(|error| {
            let at = error.offset().unwrap_or(0).saturating_add(*offset);
            error.at(at)
        })? {
            if hints.iter().all(|(_, hint)| *hint != name) {
                hints.push((offset.saturating_add(at), name));
            }
        }
    }
    let parent_id = parent_cid.map(ParentId::Cid);
    let mut hints = hints.into_iter();
    match hints.next() {
        Some((offset, name)) => {
            let backing = RecordedReference {
                offset: Some(offset),
                parent_id,
                alternatives: hints
                    .map(|(_, name)| String::from_utf8_lossy(&name).into_owned())
                    .collect(),
                ..RecordedReference::new(&name)
            };
            if !backing.alternatives.is_empty() {
                description
                    .oddities
                    .push("the image names different parents, and which counts depends on the reader".into());
            }
            description.backing = Some(backing);
        }
        None if parent_id.is_some() => {
            description
                .oddities
                .push("the image has a parent by its content id, but does not name it".into());
            description.backing = Some(RecordedReference {
                parent_id,
                ..RecordedReference::new(b"")
            });
        }
        None => {}
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
