//! Which format an image is in: what it could be, and what libvirt and QEMU would take it for.
//!
//! A guess is no proof: whoever writes an image's first bytes, and that may be a guest, decides what these functions
//! answer. They are for telling, for comparing with what is declared, and for images whose writer is trusted.

use crate::error::Result;
use crate::{Bytes, Format, bochs, cloop, cow, dmg, iso, luks, parallels, qcow, qed, vdi, vhdx, vmdk, vpc};

/// Every format other than raw whose magic number and least structure are there, in the order of [`Format::ALL`].
///
/// One is certain as far as bytes go; none means raw; two or more mean that the image was made to deceive, or was reused
/// without being wiped. Partition tables are no formats. Looks at the start, at 32 KiB and at the end of the image.
///
/// # Errors
/// Only those of reading.
pub fn recognise(bytes: &dyn Bytes) -> Result<Vec<Format>> {
    type Test = fn(&dyn Bytes) -> Result<bool>;
    let tests: [(Format, Test); 14] = [
        (Format::Qcow2, qcow2),
        (Format::Qcow, qcow::matches),
        (Format::Qed, qed::matches),
        (Format::Vmdk, vmdk::matches),
        (Format::Vpc, vpc::matches),
        (Format::Vhdx, vhdx::matches),
        (Format::Vdi, vdi::matches),
        (Format::Parallels, parallels::matches),
        (Format::Luks, luks::matches),
        (Format::Iso, iso::matches),
        (Format::Dmg, dmg::matches),
        (Format::Bochs, bochs::matches),
        (Format::Cloop, cloop::matches),
        (Format::Cow, cow::matches),
    ];
    let mut found = Vec::new();
    for (format, test) in tests {
        if test(bytes)? {
            found.push(format);
        }
    }
    Ok(found)
}

fn qcow2(bytes: &dyn Bytes) -> Result<bool> {
    let start = bytes.read_some(0, 8)?;
    Ok(start.starts_with(qcow::MAGIC) && matches!(start.get(4..), Some([0, 0, 0, 2 | 3])))
}

/// How many bytes of an image libvirt reads.
const LIBVIRT_WINDOW: usize = 33_280;

/// What libvirt's prober takes the image for (libvirt 11.3).
///
/// The first entry of its table whose magic and version match wins; ISO is before all others. It compares three
/// bytes of the magics of qcow, qcow2 and QED, and knows neither VHDX nor Apple, Bochs or cloop images nor VMDK descriptors
/// nor fixed VHDs: they are raw, and so is a LUKS container.
///
/// # Errors
/// Only those of reading.
pub fn probe_as_libvirt(bytes: &dyn Bytes) -> Result<Format> {
    /// Bytes that must be at an offset.
    type At = (usize, &'static [u8]);
    const TABLE: [(Format, At, &[At]); 8] = [
        (Format::Iso, (iso::ISO_MAGIC_OFFSET as usize, iso::ISO_MAGIC), &[]),
        (Format::Vpc, (0, vpc::MAGIC), &[(12, &[0, 1, 0, 0])]),
        (Format::Vdi, (64, vdi::MAGIC), &[(68, &[1, 0, 1, 0])]),
        (Format::Parallels, (0, parallels::MAGIC_EXTENDED), &[]),
        (Format::Cow, (0, cow::MAGIC), &[(4, &[0, 0, 0, 2])]),
        (Format::Qcow, (0, b"QFI"), &[(4, &[0, 0, 0, 1])]),
        (
            Format::Qcow2,
            (0, b"QFI"),
            &[(4, &[0, 0, 0, 2]), (4, &[0, 0, 0, 3])],
        ),
        (Format::Qed, (0, b"QED"), &[]),
    ];
    const VMDK_VERSIONS: [At; 3] = [(4, &[1, 0, 0, 0]), (4, &[2, 0, 0, 0]), (4, &[3, 0, 0, 0])];

    let window = bytes.read_some(0, LIBVIRT_WINDOW)?;
    let has = |(offset, expected): &At| {
        window
            .get(*offset..)
            .is_some_and(|rest| rest.starts_with(expected))
    };
    let vmdk: (Format, At, &[At]) = (Format::Vmdk, (0, vmdk::SPARSE_MAGIC), &VMDK_VERSIONS);
    Ok(TABLE
        .iter()
        .chain([&vmdk])
        .find(|(_, magic, versions)| has(magic) && (versions.is_empty() || versions.iter().any(has)))
        .map_or(Format::Raw, |(format, ..)| *format))
}

/// How many bytes QEMU's probes are shown (`BLOCK_PROBE_BUF_SIZE`).
const QEMU_WINDOW: usize = 512;

/// What QEMU takes the image for where it is given no format (QEMU 10.0).
///
/// Each of QEMU's drivers scores the first sector, zeroes behind a short file's end included; a magic number scores 100, and
/// at equal scores the driver that was registered first wins. The name counts too: one that ends in `.dmg` scores 2, as
/// the script of a cloop image does, and raw scores 1. `file_name` is the name as QEMU is given it, folders included: `.dmg`
/// alone does not count, `./.dmg` does. Fixed VHDs, ISO images and Apple images by another name are raw.
///
/// # Errors
/// Only those of reading.
pub fn probe_as_qemu(bytes: &dyn Bytes, file_name: Option<&str>) -> Result<Format> {
    if bytes.is_empty() {
        return Ok(Format::Raw);
    }
    let mut sector = bytes.read_some(0, QEMU_WINDOW)?;
    sector.resize(QEMU_WINDOW, 0);
    let starts = |magic: &[u8]| sector.starts_with(magic);
    let word = |offset: usize| {
        let field = sector.get(offset..offset + 4)?;
        <[u8; 4]>::try_from(field).ok()
    };
    let big = |offset| word(offset).map_or(0, u32::from_be_bytes);
    let little = |offset| word(offset).map_or(0, u32::from_le_bytes);

    // In the order in which QEMU asks: VDI's magic is at 64, so that an image may have it beside another.
    Ok(if bochs::qemu_takes_for_bochs(&sector) {
        Format::Bochs
    } else if (starts(parallels::MAGIC) || starts(parallels::MAGIC_EXTENDED)) && little(16) == 2 {
        Format::Parallels
    } else if starts(qed::MAGIC) {
        Format::Qed
    } else if starts(vhdx::MAGIC) {
        Format::Vhdx
    } else if starts(vmdk::SPARSE_MAGIC)
        || starts(vmdk::COWD_MAGIC)
        || vmdk::qemu_takes_for_descriptor(&sector)
    {
        Format::Vmdk
    } else if starts(vpc::MAGIC) {
        Format::Vpc
    } else if word(64) == Some(*vdi::MAGIC) {
        Format::Vdi
    } else if starts(luks::MAGIC) && sector.get(6..8) == Some(&[0, 1]) {
        Format::Luks
    } else if starts(qcow::MAGIC) && big(4) == 1 {
        Format::Qcow
    } else if starts(qcow::MAGIC) && big(4) >= 2 {
        Format::Qcow2
    } else if file_name.is_some_and(|name| name.len() > ".dmg".len() && name.ends_with(".dmg")) {
        Format::Dmg
    } else if starts(cloop::SCRIPT) {
        Format::Cloop
    } else {
        Format::Raw
    })
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
