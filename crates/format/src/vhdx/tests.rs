//! Hand-made VHDX images.

use super::*;
use crate::ErrorKind;

fn stored(printed: u128) -> [u8; 16] {
    guid(printed.to_be_bytes())
}

fn seal(section: &mut [u8]) {
    section[CHECKSUM].fill(0);
    let sum = crc32c::crc32c(section).to_le_bytes();
    section[CHECKSUM].copy_from_slice(&sum);
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

const KEYS: [(&str, &str); 3] = [
    ("absolute_win32_path", "C:\\base.vhdx"),
    ("relative_path", ".\\base.vhdx"),
    ("parent_linkage", "{00112233-4455-6677-8899-aabbccddeeff}"),
];
const METADATA: usize = 1 << 20;

/// A 10 GiB disk with 32 MiB blocks, with a parent if asked for.
pub(crate) fn image(has_parent: bool) -> Vec<u8> {
    let mut bytes = vec![0u8; METADATA + (128 << 10)];
    put(&mut bytes, 0, MAGIC);
    for (i, at) in [64 << 10, 128 << 10].into_iter().enumerate() {
        put(&mut bytes, at, b"head");
        bytes[at + 8] = i as u8;
        bytes[at + 32..at + 48].copy_from_slice(&stored(i as u128 + 1));
        bytes[at + 66] = 1;
        seal(&mut bytes[at..at + HEADER_BYTES]);
    }
    for at in [192 << 10, 256 << 10] {
        put(&mut bytes, at, b"regi");
        bytes[at + 8] = 2;
        for (i, (region, offset)) in [(BAT_REGION, 2 << 20), (METADATA_REGION, METADATA as u64)]
            .into_iter()
            .enumerate()
        {
            let at = at + 16 + 32 * i;
            put(&mut bytes, at, &stored(region));
            put(&mut bytes, at + 16, &offset.to_le_bytes());
            put(&mut bytes, at + 24, &(128u32 << 10).to_le_bytes());
            bytes[at + 28] = 1;
        }
        seal(&mut bytes[at..at + REGION_TABLE_BYTES]);
    }
    put(&mut bytes, METADATA, b"metadata");
    bytes[METADATA + 10] = if has_parent { 4 } else { 3 };
    let mut locator = stored(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913).to_vec();
    locator.extend([0, 0, 3, 0]);
    let mut text = Vec::new();
    for (key, value) in KEYS {
        let (key, value): (Vec<u8>, Vec<u8>) = (
            key.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            value.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        );
        let at = u32::try_from(20 + 3 * 12 + text.len()).unwrap();
        locator.extend(at.to_le_bytes());
        locator.extend((at + u32::try_from(key.len()).unwrap()).to_le_bytes());
        locator.extend(u16::try_from(key.len()).unwrap().to_le_bytes());
        locator.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        text.extend(key);
        text.extend(value);
    }
    locator.extend(text);
    let mut parameters = (32u32 << 20).to_le_bytes().to_vec();
    parameters.extend([if has_parent { 2 } else { 0 }, 0, 0, 0]);
    let mut at = 64 << 10;
    for (i, (item, value)) in [
        (0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b, parameters),
        (
            0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8,
            (10u64 << 30).to_le_bytes().to_vec(),
        ),
        (
            0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f,
            512u32.to_le_bytes().to_vec(),
        ),
        (0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c, locator),
    ]
    .into_iter()
    .enumerate()
    {
        let entry = METADATA + 32 + 32 * i;
        put(&mut bytes, entry, &stored(item));
        put(&mut bytes, entry + 16, &u32::try_from(at).unwrap().to_le_bytes());
        put(
            &mut bytes,
            entry + 20,
            &u32::try_from(value.len()).unwrap().to_le_bytes(),
        );
        bytes[entry + 24] = 4;
        put(&mut bytes, METADATA + at, &value);
        at += value.len();
    }
    bytes
}

#[test]
fn the_later_header_and_the_metadata_are_described() {
    let d = describe(&image(false)).unwrap();
    assert_eq!((d.virtual_size, d.cluster_size), (Some(10 << 30), Some(32 << 20)));
    assert_eq!(d.id, Some(ParentId::Uuid(2u128.to_be_bytes())));
    assert!(d.is_leaf() && d.oddities.is_empty());
}

#[test]
fn a_differencing_disk_names_its_parent_relative_first() {
    let d = describe(&image(true)).unwrap();
    let backing = d.backing.unwrap();
    assert_eq!(backing.name, ".\\base.vhdx");
    assert_eq!(backing.alternatives, ["C:\\base.vhdx"]);
    assert_eq!(
        backing.parent_id.unwrap().to_string(),
        "00112233-4455-6677-8899-aabbccddeeff"
    );
}

#[test]
fn a_damaged_header_is_passed_over_and_told_and_two_refuse() {
    let mut bytes = image(false);
    bytes[(128 << 10) + 100] = 1;
    let d = describe(&bytes).unwrap();
    assert_eq!(d.id, Some(ParentId::Uuid(1u128.to_be_bytes())));
    assert_eq!(d.oddities.len(), 1);
    bytes[(64 << 10) + 100] = 1;
    assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn an_unreplayed_log_is_told() {
    let mut bytes = image(false);
    bytes[(128 << 10) + 48] = 1;
    seal(&mut bytes[128 << 10..(128 << 10) + HEADER_BYTES]);
    assert_eq!(describe(&bytes).unwrap().oddities.len(), 1);
}

#[test]
fn refuses_an_unknown_required_item_and_one_outside_the_region() {
    let mut bytes = image(false);
    bytes[METADATA + 32] ^= 1;
    assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    let mut bytes = image(false);
    bytes[METADATA + 32 + 18] = 0x10;
    assert_eq!(describe(&bytes).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_parent_without_a_locator_is_no_leaf() {
    let mut bytes = image(true);
    bytes[METADATA + 10] = 3;
    let d = describe(&bytes).unwrap();
    assert_eq!(d.backing.unwrap().name, "");
    assert_eq!(d.oddities.len(), 1);
}
