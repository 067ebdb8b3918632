//! Every hand-made image is recognised as what it is, and by libvirt and QEMU as they would.

use super::*;
use crate::describe;

/// A sample of each format, and what libvirt and QEMU take it for.
pub(crate) fn samples() -> Vec<(Format, Vec<u8>, Format, Format)> {
    use Format::*;
    let mut v3 = vec![0u8; 512];
    for (at, part) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..]),
        (20, &16u32.to_be_bytes()),
        (24, &(10u64 << 20).to_be_bytes()),
        (36, &1u32.to_be_bytes()),
        (40, &0x30000u64.to_be_bytes()),
        (48, &0x10000u64.to_be_bytes()),
        (56, &1u32.to_be_bytes()),
        (96, &4u32.to_be_bytes()),
        (100, &104u32.to_be_bytes()),
    ] {
        v3[at..at + part.len()].copy_from_slice(part);
    }
    vec![
        (Qcow2, v3, Qcow2, Qcow2),
        (Qcow, qcow::tests::image(b"base"), Qcow, Qcow),
        (Qed, qed::tests::image(1, b"base"), Qed, Qed),
        (
            Vmdk,
            vmdk::tests::sparse_image(1, vmdk::tests::WITH_PARENT, 21),
            Vmdk,
            Vmdk,
        ),
        (Vmdk, vmdk::tests::cowd_image(), Raw, Vmdk),
        (Vmdk, vmdk::tests::WITH_PARENT.as_bytes().to_vec(), Raw, Vmdk),
        (Vpc, vpc::tests::fixed(b"win "), Raw, Raw),
        (Vpc, vpc::tests::sparse(3), Vpc, Vpc),
        (Vpc, vpc::tests::sparse(4), Vpc, Vpc),
        (Vhdx, vhdx::tests::image(true), Raw, Vhdx),
        (Vdi, vdi::tests::image(4, [1; 16]), Vdi, Vdi),
        (
            Parallels,
            parallels::tests::image(b"WithouFreSpacExt", 20480),
            Parallels,
            Parallels,
        ),
        (
            Parallels,
            parallels::tests::image(b"WithoutFreeSpace", 20480),
            Raw,
            Parallels,
        ),
        (Luks, luks::tests::version_1(), Raw, Luks),
        (Luks, luks::tests::version_2(luks::tests::JSON_AREA), Raw, Raw),
        (Iso, iso::tests::image(&[b"CD001"]), Iso, Raw),
        (Iso, iso::tests::image(&[b"BEA01", b"NSR03"]), Raw, Raw),
        (Dmg, dmg::tests::image(2048, 1), Raw, Raw),
        (Bochs, bochs::tests::image(b"Growing", 0x20000), Raw, Bochs),
        (Bochs, bochs::tests::image(b"Undoable", 0x20000), Raw, Raw),
        (Cloop, cloop::tests::image(65536, 16), Raw, Cloop),
        (Cow, cow::tests::image(2, b"base"), Cow, Raw),
        (Cow, cow::tests::image(3, b"base"), Raw, Raw),
    ]
}

#[test]
fn every_sample_is_recognised_as_its_format_alone() {
    for (format, bytes, ..) in samples() {
        assert_eq!(recognise(&bytes).unwrap(), [format]);
        assert_eq!(describe(format, &bytes).unwrap().format, format);
    }
    assert_eq!(recognise(&vec![0u8; 100_000]).unwrap(), []);
    assert_eq!(recognise(&Vec::new()).unwrap(), []);
}

#[test]
fn libvirt_and_qemu_take_each_sample_for_what_they_know() {
    for (format, bytes, libvirt, qemu) in samples() {
        assert_eq!(probe_as_libvirt(&bytes).unwrap(), libvirt, "{format}");
        assert_eq!(probe_as_qemu(&bytes, None).unwrap(), qemu, "{format}");
    }
}

#[test]
fn a_file_of_two_formats_is_recognised_as_both() {
    let mut bytes = iso::tests::image(&[b"CD001"]);
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    assert_eq!(recognise(&bytes).unwrap(), [Format::Qcow2, Format::Iso]);
    assert_eq!(probe_as_libvirt(&bytes).unwrap(), Format::Iso);
    assert_eq!(probe_as_qemu(&bytes, None).unwrap(), Format::Qcow2);
}

#[test]
fn libvirt_compares_three_bytes_and_the_version() {
    for (start, format) in [
        (b"QFIx\0\0\0\x02", Format::Qcow2),
        (b"QFI\xfb\0\0\0\x04", Format::Raw),
        (b"QEDx\0\0\0\x02", Format::Qed),
        (b"KDMV\x04\0\0\0", Format::Raw),
        (b"KDMV\x03\0\0\0", Format::Vmdk),
    ] {
        assert_eq!(probe_as_libvirt(&start.to_vec()).unwrap(), format);
    }
    assert_eq!(probe_as_libvirt(&b"QFI\xfb\0\0\0".to_vec()).unwrap(), Format::Raw);
}

#[test]
fn qemu_believes_the_name_of_an_apple_image_and_any_later_qcow2() {
    let zeroes = vec![0u8; 512];
    assert_eq!(probe_as_qemu(&zeroes, Some("x.dmg")).unwrap(), Format::Dmg);
    assert_eq!(probe_as_qemu(&zeroes, Some(".dmg")).unwrap(), Format::Raw);
    assert_eq!(probe_as_qemu(&Vec::new(), Some("x.dmg")).unwrap(), Format::Raw);
    let future = b"QFI\xfb\0\0\0\x09".to_vec();
    assert_eq!(probe_as_qemu(&future, Some("x.dmg")).unwrap(), Format::Qcow2);
}
