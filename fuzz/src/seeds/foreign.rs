//! Images of the other formats, as small as they can be.

use super::put;
use catena_format::Format;

fn le32(number: u32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn le64(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn be32(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn be64(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn at(len: usize, parts: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    put(&mut bytes, parts.iter().map(|(at, part)| (*at, part.as_slice())));
    bytes
}

fn utf16_le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A LUKS 1 header with one key slot.
pub fn luks1() -> Vec<u8> {
    at(
        1024,
        &[
            (0, b"LUKS\xba\xbe\0\x01aes".to_vec()),
            (40, b"xts-plain64".to_vec()),
            (72, b"sha256".to_vec()),
            (104, be32(1)),
            (168, b"1234".to_vec()),
            (208, be32(0x00ac_71f3)),
        ],
    )
}

/// LUKS, both versions.
pub fn luks() -> Vec<Vec<u8>> {
    let json = r#"{"keyslots":{"0":{"type":"luks2"}},"segments":{"0":{"type":"crypt","offset":"32768","size":"dynamic",
        "encryption":"aes-xts-plain64"}},"digests":{"0":{"hash":"sha256"}},"config":{}}"#;
    let two = at(
        16 << 10,
        &[
            (0, b"LUKS\xba\xbe\0\x02".to_vec()),
            (8, be64(16 << 10)),
            (168, b"1234".to_vec()),
            (4096, json.as_bytes().to_vec()),
        ],
    );
    vec![luks1(), two]
}

/// VMDK: descriptor file, sparse, streamed, ESX.
pub fn vmdk() -> Vec<Vec<u8>> {
    let text = b"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=0badcafe\ncreateType=\"monolithicSparse\"\n\
        parentFileNameHint=\"base.vmdk\"\nRW 20480 SPARSE \"x.vmdk\"\nRW 10 FLAT \"y\" 0\n";
    let sparse = |directory: u64| {
        vec![
            (0, b"KDMV".to_vec()),
            (4, le32(1)),
            (8, le32(3)),
            (12, le64(20480)),
            (20, le64(128)),
            (28, le64(1)),
            (36, le64(20)),
            (44, le32(512)),
            (56, le64(directory)),
            (73, b"\n \r\n".to_vec()),
            (512, text.to_vec()),
        ]
    };
    let mut streamed = sparse(u64::MAX);
    streamed.extend(
        sparse(21)
            .into_iter()
            .filter(|(at, _)| *at < 512)
            .map(|(at, part)| (at + 2048, part)),
    );
    let esx = at(
        1024,
        &[
            (0, b"COWD".to_vec()),
            (4, le32(1)),
            (8, le32(3)),
            (12, le32(20480)),
            (16, le32(1)),
        ],
    );
    vec![text.to_vec(), at(1024, &sparse(21)), at(3072, &streamed), esx]
}

/// VHD: fixed, dynamic, differencing.
pub fn vpc() -> Vec<Vec<u8>> {
    let seal = |mut section: Vec<u8>, field: usize| {
        let sum = !section
            .iter()
            .fold(0u32, |sum, byte| sum.wrapping_add((*byte).into()));
        put(&mut section, [(field, sum.to_be_bytes().as_slice())]);
        section
    };
    let footer = |kind: u32| {
        let place = if kind == 2 { u64::MAX } else { 512 };
        let parts = [
            (0, b"conectix".to_vec()),
            (12, be32(0x10000)),
            (16, be64(place)),
            (28, b"win ".to_vec()),
            (48, be64(10 << 20)),
            (60, be32(kind)),
            (68, vec![7; 16]),
        ];
        seal(at(512, &parts), 64)
    };
    let mut images = vec![[vec![0; 512], footer(2)].concat()];
    for kind in [3, 4] {
        let mut parts = vec![
            (0, b"cxsparse".to_vec()),
            (24, be32(0x10000)),
            (28, be32(5)),
            (32, be32(2 << 20)),
        ];
        if kind == 4 {
            let name: Vec<u8> = "base.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
            parts.extend([(40, vec![9; 16]), (64, name)]);
            parts.extend([(576, b"W2ru".to_vec()), (584, be32(20)), (592, be64(1536))]);
            parts.extend([(600, b"W2ku".to_vec()), (608, be32(24)), (616, be64(1600))]);
        }
        let header = seal(at(1024, &parts), 36);
        let names = at(
            512,
            &[(0, utf16_le(".\\base.vhd")), (64, utf16_le("C:\\base.vhd"))],
        );
        images.push([footer(kind), header, names, footer(kind)].concat());
    }
    images
}

/// The sections of a VHDX that are read, as [`vhdx_image`] takes them.
pub fn vhdx() -> Vec<Vec<u8>> {
    [false, true].map(vhdx_sections).to_vec()
}

const LOCATOR: [u8; 16] = [
    0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13,
];

fn guid(printed: u128) -> Vec<u8> {
    let b = printed.to_be_bytes();
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    order.map(|i| b[i]).to_vec()
}

/// How long the header, the region table and the metadata table are in the input.
const SECTIONS: [usize; 3] = [96, 128, 256];
/// Where they are in the image; the first two are there twice.
const PLACES: [&[usize]; 3] = [&[64 << 10, 128 << 10], &[192 << 10, 256 << 10], &[METADATA]];
const METADATA: usize = 320 << 10;
/// Where the metadata items are.
const ITEMS: usize = METADATA + (64 << 10);

fn vhdx_sections(has_parent: bool) -> Vec<u8> {
    let header = at(
        SECTIONS[0],
        &[(0, b"head".to_vec()), (32, vec![5; 16]), (66, vec![1])],
    );
    let mut table = vec![(0, b"regi".to_vec()), (8, le32(2))];
    for (i, (region, offset)) in [
        (0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08, 2 << 20),
        (0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e, METADATA as u64),
    ]
    .into_iter()
    .enumerate()
    {
        let entry = 16 + 32 * i;
        table.extend([
            (entry, guid(region)),
            (entry + 16, le64(offset)),
            (entry + 24, le32(128 << 10)),
            (entry + 28, le32(1)),
        ]);
    }
    let mut locator = LOCATOR.to_vec();
    locator.extend([0, 0, 2, 0]);
    let mut text = Vec::new();
    for (key, value) in [
        ("relative_path", ".\\base.vhdx"),
        ("parent_linkage", "{00112233-4455-6677-8899-aabbccddeeff}"),
    ] {
        let (key, value) = (utf16_le(key), utf16_le(value));
        let at = (20 + 2 * 12 + text.len()) as u32;
        locator.extend([le32(at), le32(at + key.len() as u32)].concat());
        locator.extend(
            [
                (key.len() as u16).to_le_bytes(),
                (value.len() as u16).to_le_bytes(),
            ]
            .concat(),
        );
        text.extend([key, value].concat());
    }
    locator.extend(text);
    let mut metadata = vec![(0, b"metadata".to_vec()), (10, vec![3 + u8::from(has_parent)])];
    let mut items = Vec::new();
    for (i, (item, value)) in [
        (
            0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b,
            [le32(32 << 20), le32(2 * u32::from(has_parent))].concat(),
        ),
        (0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8, le64(10 << 30)),
        (0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f, le32(512)),
        (0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c, locator),
    ]
    .into_iter()
    .enumerate()
    {
        let (entry, offset) = (32 + 32 * i, ITEMS - METADATA + items.len());
        metadata.extend([
            (entry, guid(item)),
            (entry + 16, le32(offset as u32)),
            (entry + 20, le32(value.len() as u32)),
            (entry + 24, le32(4)),
        ]);
        items.extend(value);
    }
    [header, at(SECTIONS[1], &table), at(SECTIONS[2], &metadata), items].concat()
}

/// A VHDX of sections: they are put where they belong and sealed, since no mutation would ever hit a checksum.
pub fn vhdx_image(mut sections: &[u8]) -> Vec<u8> {
    let mut bytes = at(512 << 10, &[(0, b"vhdxfile".to_vec())]);
    for (len, places) in SECTIONS.into_iter().zip(PLACES) {
        let (section, rest) = sections.split_at(len.min(sections.len()));
        sections = rest;
        put(&mut bytes, places.iter().map(|place| (*place, section)));
    }
    let items = &sections[..sections.len().min(64 << 10)];
    put(&mut bytes, [(ITEMS, items)]);
    for (place, len) in [
        (64 << 10, 4 << 10),
        (128 << 10, 4 << 10),
        (192 << 10, 64 << 10),
        (256 << 10, 64 << 10),
    ] {
        let section: &mut [u8] = &mut bytes[place..place + len];
        section[4..8].fill(0);
        let sum = crc32c::crc32c(section).to_le_bytes();
        section[4..8].copy_from_slice(&sum);
    }
    bytes
}

/// One image of each of the other formats.
pub fn others() -> Vec<(Format, Vec<u8>)> {
    let ten = 10u64 << 20;
    vec![
        (Format::Qcow, at(56, &[
            (0, b"QFI\xfb\0\0\0\x01".to_vec()),
            (8, be64(48)),
            (16, be32(4)),
            (24, be64(1 << 20)),
            (32, vec![12, 9]),
            (40, be64(4096)),
            (48, b"base".to_vec()),
        ])),
        (Format::Qed, at(80, &[
            (0, b"QED\0".to_vec()),
            (4, le32(65536)),
            (8, le32(4)),
            (12, le32(1)),
            (16, le64(1)),
            (40, le64(65536)),
            (48, le64(1 << 20)),
            (56, le32(64)),
            (60, le32(4)),
            (64, b"base".to_vec()),
        ])),
        (Format::Vdi, at(512, &[
            (64, b"\x7f\x10\xda\xbe".to_vec()),
            (68, le32(0x10001)),
            (72, le32(400)),
            (76, le32(4)),
            (340, le32(512)),
            (344, le32(1024)),
            (360, le32(512)),
            (368, le64(ten)),
            (376, le32(1 << 20)),
            (384, le32(10)),
            (392, vec![1; 16]),
            (424, vec![2; 16]),
        ])),
        (Format::Parallels, at(64, &[
            (0, b"WithouFreSpacExt".to_vec()),
            (16, le32(2)),
            (20, le32(16)),
            (24, le32(20)),
            (28, le32(2048)),
            (32, le32(10)),
            (36, le64(20480)),
        ])),
        (Format::Bochs, at(512, &[
            (0, b"Bochs Virtual HD Image".to_vec()),
            (32, b"Redolog".to_vec()),
            (48, b"Growing".to_vec()),
            (64, le32(0x20000)),
            (68, le32(512)),
            (72, le32(20)),
            (76, le32(1024)),
            (80, le32(1 << 19)),
            (88, le64(ten)),
        ])),
        (Format::Cloop, at(136, &[
            (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n".to_vec()),
            (128, be32(65536)),
            (132, be32(16)),
        ])),
        (Format::Dmg, at(1024, &[
            (512, b"koly\0\0\0\x04".to_vec()),
            (520, be32(512)),
            (572, be32(1)),
            (1004, be64(2048)),
        ])),
        (Format::Cow, at(1052, &[
            (0, b"OOOM\0\0\0\x02/base".to_vec()),
            (1036, be64(1 << 20)),
            (1044, be32(512)),
        ])),
        (Format::Iso, at(36 << 10, &[(32 << 10, b"\x01CD001".to_vec()), (34 << 10, b"\x01NSR03".to_vec())])),
    ]
}
