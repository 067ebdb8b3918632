//! Hand-made VMDKs of each kind.

use super::*;
use crate::ErrorKind;

pub(crate) const WITH_PARENT: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=0badcafe\n\
    createType=\"monolithicSparse\"\nparentFileNameHint=\"base.vmdk\"\nRW 20480 SPARSE \"x.vmdk\"\n";

pub(crate) fn sparse_image(descriptor_sector: u64, text: &str, directory: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; 64 << 10];
    bytes[..4].copy_from_slice(SPARSE_MAGIC);
    bytes[4] = 1;
    bytes[8] = 3;
    for (at, number) in [
        (12, 20480),
        (20, 128),
        (28, descriptor_sector),
        (36, 20),
        (56, directory),
    ] {
        bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
    }
    bytes[44..48].copy_from_slice(&512u32.to_le_bytes());
    bytes[73..77].copy_from_slice(b"\n \r\n");
    let at = usize::try_from(descriptor_sector * 512).unwrap();
    bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
    bytes
}

#[test]
fn a_sparse_image_tells_size_grain_parent_and_content_ids() {
    let bytes = sparse_image(1, WITH_PARENT, 21);
    let d = describe(&bytes).unwrap();
    assert_eq!((d.virtual_size, d.cluster_size), (Some(10 << 20), Some(65536)));
    assert_eq!(d.variant.as_deref(), Some("monolithicSparse"));
    assert_eq!(d.id, Some(ParentId::Cid(0x1234_5678)));
    assert!(d.oddities.is_empty() && d.data_file.is_none());
    let backing = d.backing.unwrap();
    assert_eq!(backing.name, "base.vmdk");
    assert_eq!(backing.parent_id, Some(ParentId::Cid(0x0bad_cafe)));
    let at = usize::try_from(backing.offset.unwrap()).unwrap();
    assert_eq!(&bytes[at..at + 9], b"base.vmdk");
}

#[test]
fn a_descriptor_elsewhere_and_another_where_qemu_looks_are_both_told() {
    let mut bytes = sparse_image(64, WITH_PARENT, 21);
    let d = describe(&bytes).unwrap();
    assert_eq!(d.backing.unwrap().name, "base.vmdk");
    assert_eq!(d.oddities.len(), 1);
    let other = b"parentFileNameHint=\"/etc/passwd\"";
    bytes[512..512 + other.len()].copy_from_slice(other);
    let d = describe(&bytes).unwrap();
    assert_eq!(d.backing.unwrap().alternatives, ["/etc/passwd"]);
    assert_eq!(d.oddities.len(), 2);
}

#[test]
fn a_parent_by_content_id_alone_is_no_leaf() {
    let text = "version=1\nCID=1\nparentCID=2\n";
    let d = describe(&sparse_image(1, text, 21)).unwrap();
    assert_eq!(d.backing.unwrap().name, "");
    let text = "version=1\nCID=1\nparentCID=ffffffff\n";
    assert!(describe(&sparse_image(1, text, 21)).unwrap().is_leaf());
}

#[test]
fn the_footer_of_a_stream_counts_and_its_absence_is_told() {
    let text = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n";
    let mut bytes = sparse_image(1, text, IN_FOOTER);
    let d = describe(&bytes).unwrap();
    assert_eq!((d.features.len(), d.oddities.len()), (2, 1));
    let at = bytes.len() - 1024;
    let header = sparse_image(1, "", 99)[..512].to_vec();
    bytes[at..at + 512].copy_from_slice(&header);
    bytes[at + 12..at + 20].copy_from_slice(&40960u64.to_le_bytes());
    let d = describe(&bytes).unwrap();
    assert_eq!(d.virtual_size, Some(20 << 20));
    assert!(d.oddities.is_empty());
    assert_eq!(d.features[0], "footer");
}

#[test]
fn a_descriptor_file_names_the_files_that_hold_its_data() {
    let flat = b"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
        createType=\"monolithicFlat\"\nRW 20480 FLAT \"/etc/shadow\" 0\n";
    let d = describe(&flat.to_vec()).unwrap();
    assert_eq!(d.virtual_size, Some(10 << 20));
    let data = d.data_file.unwrap();
    assert_eq!((data.name.as_deref(), data.raw), (Some("/etc/shadow"), true));
    let two = b"version=1\nRW 10 FLAT \"a\" 0\nRW 10 SPARSE \"b\"\n";
    let d = describe(&two.to_vec()).unwrap();
    assert_eq!(d.features, ["2 extent files"]);
    assert!(!d.data_file.unwrap().raw);
    assert_eq!(descriptor(&two.to_vec()).unwrap().unwrap().extents.len(), 2);
}

#[test]
fn a_header_without_capacity_defers_to_its_descriptor() {
    let mut bytes = sparse_image(1, "version=1\nRW 10 FLAT \"/etc/shadow\" 0\n", 21);
    bytes[12..20].fill(0);
    let d = describe(&bytes).unwrap();
    assert_eq!(d.virtual_size, Some(5120));
    assert_eq!(d.data_file.unwrap().name.as_deref(), Some("/etc/shadow"));
}

pub(crate) fn cowd_image() -> Vec<u8> {
    let mut bytes = vec![0u8; 4096];
    bytes[..4].copy_from_slice(COWD_MAGIC);
    for (at, number) in [(4, 1u32), (8, 3), (12, 20480), (16, 1)] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

#[test]
fn an_esx_sparse_extent_tells_its_size() {
    let d = describe(&cowd_image()).unwrap();
    assert_eq!((d.virtual_size, d.cluster_size), (Some(10 << 20), Some(512)));
}

#[test]
fn refuses_geometry_that_qemu_refuses() {
    for (at, value) in [(46, 1), (44, 0), (20, 0), (26, 1), (4, 4)] {
        let mut bytes = sparse_image(1, WITH_PARENT, 21);
        if value == 0 {
            bytes[at..at + 2].fill(0);
        }
        bytes[at] = value;
        assert_ne!(
            describe(&bytes).unwrap_err().kind(),
            ErrorKind::NotThisFormat,
            "{at}"
        );
    }
    let mut bytes = sparse_image(1, WITH_PARENT, 21);
    bytes[12..20].fill(0xff);
    assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::TooLarge);
}

#[test]
fn qemus_test_for_a_descriptor_is_repeated_to_the_blank() {
    for (text, is) in [
        (&b"# x\nversion=1\n"[..], true),
        (b"# x\r\n  \r\nversion=3\r\n", true),
        (b" \nversion=2\n", true),
        (b"# x\n\nversion=1\n", false),
        (b"version=4\n", false),
        (b" \nversion=2", false),
        (b" version=2\n", false),
        (b"  \r \nversion=2\n", false),
        (b"# no end", false),
        (b"", false),
    ] {
        assert_eq!(
            qemu_takes_for_descriptor(text),
            is,
            "{:?}",
            String::from_utf8_lossy(text)
        );
    }
}
