//! The other formats, files that are several formats at once, and what must not be believed of any.

use super::Expected::{Broken, Unreadable};
use super::images::{empty, empty_with, extended, over, put, with, with32, write};
use super::{Row, seen};
use catena::ErrorKind::{BadReference, FormatUnknown, NotFound, TooLarge, Unsupported};
use catena::{Format, Policy};
use std::path::Path;
use std::process::Command;

fn qemu_img(dir: &Path, args: &[&str]) {
    let output = Command::new("qemu-img")
        .current_dir(dir)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
}

fn patch(dir: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.join("top"))
        .unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// An image that qemu-img makes, with bytes of it changed.
fn patched(
    name: &'static str,
    format: &'static str,
    at: u64,
    bytes: &'static [u8],
    expected: super::Expected,
) -> Row {
    Row::made(
        name,
        move |dir| {
            qemu_img(dir, &["create", "-q", "-f", format, "top", "4M"]);
            patch(dir, at, bytes);
        },
        expected,
    )
}

fn descriptor(extent: &str) -> Vec<u8> {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n{extent}\n"
    )
    .into_bytes()
}

/// An overlay without a recorded format over a file `base` of these bytes.
fn unrecorded(name: &'static str, base: Vec<u8>, expected: super::Expected) -> Row {
    Row::made(
        name,
        move |dir| {
            write(dir, "base", &base);
            write(dir, "top", &over(b"base", b""));
        },
        expected,
    )
}

pub fn rows() -> Vec<Row> {
    let mut rows = vmdk();
    rows.extend(others());
    rows.extend(polyglots());
    rows
}

fn vmdk() -> Vec<Row> {
    let mut huge = descriptor("RW 1 FLAT \"x\" 0");
    huge.resize(3 << 20, b'\n');
    vec![
        Row::image(
            "a VMDK whose extent is a file of the host",
            descriptor("RW 2 FLAT \"/etc/shadow\" 0"),
            seen(1, |chain| assert!(!chain.layers[0].description.is_leaf())),
        ),
        unrecorded(
            "such a VMDK as a backing image nobody vouches for",
            descriptor("RW 2 FLAT \"/etc/shadow\" 0"),
            Broken(FormatUnknown, "was not specified"),
        ),
        Row::image(
            "a VMDK descriptor of 3 MiB",
            huge,
            seen(1, |chain| {
                let oddities = &chain.layers[0].description.oddities;
                assert!(
                    oddities.iter().any(|oddity| oddity.contains("longer than 1 MiB")),
                    "{oddities:?}"
                );
            }),
        ),
        Row::image(
            "a VMDK of extents beyond 2^64 sectors",
            descriptor("RW 18446744073709551615 FLAT \"a\" 0\nRW 18446744073709551615 FLAT \"b\" 0"),
            Broken(TooLarge, "larger than what can be addressed"),
        ),
        Row::image(
            "a VMDK that names its parent without end",
            [descriptor(""), b"parentFileNameHint=\"xxxx".to_vec()].concat(),
            Broken(catena::ErrorKind::Corrupt, "no closing quote"),
        ),
        Row::image(
            "a VMDK whose parent's name is of 2,000 bytes",
            [
                descriptor(""),
                b"parentFileNameHint=\"".to_vec(),
                vec![b'x'; 2000],
                b"\"".to_vec(),
            ]
            .concat(),
            Broken(TooLarge, "exceeds 1023"),
        ),
        patched(
            "a VMDK descriptor at 2^64 sectors",
            "vmdk",
            28,
            &[0xff; 8],
            Broken(catena::ErrorKind::Corrupt, "beyond any file"),
        ),
        patched(
            "a VMDK with grains of 2^64 sectors",
            "vmdk",
            20,
            &[0xff; 8],
            Broken(catena::ErrorKind::Corrupt, "grains"),
        ),
    ]
}

fn others() -> Vec<Row> {
    let luks2 = |size: u64| {
        let bytes = with(vec![0; 64 << 10], 0, b"LUKS\xba\xbe\0\x02");
        with(bytes, 8, &size.to_be_bytes())
    };
    vec![
        Row::made(
            "a differencing VHD follows its parent by name, as a VHD",
            |dir| {
                write(dir, "base.vhd", b"no VHD at all");
                write(dir, "top", &differencing_vhd("base.vhd"));
            },
            Broken(catena::ErrorKind::InvalidFormat, "vpc"),
        ),
        Row::image(
            "a differencing VHD whose parent is a file of the host",
            differencing_vhd("/etc/passwd"),
            Broken(catena::ErrorKind::InvalidFormat, "vpc"),
        ),
        patched(
            "a differencing VDI",
            "vdi",
            76,
            &[4, 0, 0, 0],
            Broken(BadReference, "identity alone"),
        ),
        patched(
            "a VDI of 2^64 bytes",
            "vdi",
            368,
            &[0xff; 8],
            Broken(TooLarge, ""),
        ),
        patched(
            "a VDI with blocks of no bytes",
            "vdi",
            376,
            &[0; 4],
            Broken(catena::ErrorKind::Corrupt, ""),
        ),
        patched(
            "a VHDX with both headers damaged",
            "vhdx",
            65_600,
            &[0xff; 66_000],
            Broken(catena::ErrorKind::Corrupt, "neither header"),
        ),
        Row::made(
            "a VHDX of 2^32-1 regions",
            |dir| {
                qemu_img(dir, &["create", "-q", "-f", "vhdx", "top", "4M"]);
                for table in [192 << 10, 256 << 10] {
                    patch(dir, table, &region_table());
                }
            },
            Broken(TooLarge, "regions exceed"),
        ),
        Row::image(
            "a LUKS 2 header of 2^64-1 bytes",
            luks2(u64::MAX),
            Broken(TooLarge, "16 KiB to 4 MiB"),
        ),
        Row::image(
            "a LUKS 2 header longer than its file",
            luks2(4 << 20),
            Broken(catena::ErrorKind::Corrupt, "ends before"),
        ),
        patched(
            "a LUKS 1 payload past the end",
            "qcow2",
            0,
            b"LUKS\xba\xbe\0\x01",
            seen(1, |chain| {
                assert_eq!(chain.layers[0].format, Format::Luks);
            }),
        ),
        patched(
            "a QED of unknown features",
            "qed",
            16,
            &[0xf0, 0xff, 0, 0, 0, 0, 0, 0],
            Broken(Unsupported, ""),
        ),
        patched(
            "a QED with clusters of no bytes",
            "qed",
            4,
            &[0; 4],
            Broken(catena::ErrorKind::Corrupt, ""),
        )
        .with_format(Format::Qed),
        patched(
            "a QED with a backing name past the end",
            "qed",
            16,
            &[1, 0, 0, 0, 0, 0, 0, 0],
            seen(1, |_| ()),
        ),
        Row::made(
            "a QED whose backing image is to be probed",
            |dir| {
                write(dir, "base", &over(b"/etc/passwd", b"raw"));
                qemu_img(
                    dir,
                    &[
                        "create", "-q", "-f", "qed", "-u", "-b", "base", "-F", "qed", "top", "1M",
                    ],
                );
            },
            seen(3, |chain| {
                assert_eq!(
                    chain.layers[1].origin,
                    catena::Origin::Probed(catena::Consent::Qed)
                )
            }),
        ),
        patched(
            "a Parallels image of clusters of 2^32 sectors",
            "parallels",
            28,
            &[0xff; 4],
            Broken(TooLarge, ""),
        ),
        Row::image("a folder's format", empty(), Broken(Unsupported, "folder")).with_format(Format::Dir),
    ]
}

impl Row {
    fn with_format(self, format: Format) -> Self {
        Self {
            format: Some(format),
            ..self
        }
    }
}

/// A region table with its checksum, for more regions than there may be.
fn region_table() -> Vec<u8> {
    let mut table = with32(vec![0; 64 << 10], 8, u32::MAX);
    put(&mut table, 0, b"regi");
    let sum = crc32c::crc32c(&table).to_le_bytes();
    put(&mut table, 4, &sum);
    table
}

fn differencing_vhd(parent: &str) -> Vec<u8> {
    let mut bytes = vec![0; 512 + 1024];
    put(&mut bytes, 0, b"conectix");
    put(&mut bytes, 12, &0x10000u32.to_be_bytes());
    put(&mut bytes, 16, &512u64.to_be_bytes());
    put(&mut bytes, 48, &(4u64 << 20).to_be_bytes());
    put(&mut bytes, 60, &4u32.to_be_bytes());
    put(&mut bytes, 512, b"cxsparse");
    put(&mut bytes, 512 + 28, &2u32.to_be_bytes());
    put(&mut bytes, 512 + 32, &(2u32 << 20).to_be_bytes());
    let name: Vec<u8> = parent.encode_utf16().flat_map(u16::to_be_bytes).collect();
    put(&mut bytes, 512 + 64, &name);
    let footer = bytes[..512].to_vec();
    [bytes, footer].concat()
}

fn polyglots() -> Vec<Row> {
    let iso = |bytes: Vec<u8>| with(with(bytes, 0x8000, b"\x01CD001"), 0x8800, &[0]);
    let leaf = |format: Format| {
        seen(2, move |chain| {
            assert_eq!(chain.layers[1].format, format);
            assert_eq!(
                chain.layers[1].origin,
                catena::Origin::Probed(catena::Consent::Leaf)
            );
        })
    };
    let data_file = |name: &[u8]| empty_with(|options| options.data_file = Some((name.to_vec(), false)));
    vec![
        Row::image(
            "an ISO image that is a qcow2",
            iso(empty()),
            Broken(FormatUnknown, "several formats at once: qcow2, iso"),
        ),
        Row::image(
            "a fixed VHD that is a qcow2",
            fixed_vhd(empty()),
            Broken(FormatUnknown, "several formats"),
        ),
        Row::image(
            "a VDI that is a qcow2",
            with(empty(), 64, b"\x7f\x10\xda\xbe\x01\0\x01\0"),
            Broken(FormatUnknown, "several formats"),
        ),
        unrecorded(
            "such a one as a backing image",
            iso(empty()),
            Broken(FormatUnknown, "was not specified"),
        ),
        unrecorded(
            "a raw disk with a qcow2 leaf's header in it",
            empty(),
            leaf(Format::Qcow2),
        ),
        unrecorded(
            "a raw disk with a qcow2 overlay's header in it",
            over(b"/etc/passwd", b"raw"),
            Broken(FormatUnknown, "was not specified"),
        ),
        unrecorded(
            "a raw disk with the header of a qcow2 with a data file",
            data_file(b"/etc/passwd"),
            Broken(FormatUnknown, "was not specified"),
        ),
        unrecorded(
            "a raw disk with a differencing VHD's footer in it",
            differencing_vhd("/etc/passwd"),
            Broken(FormatUnknown, "was not specified"),
        ),
        unrecorded("a raw disk", vec![7; 4096], leaf(Format::Raw)),
        Row::made(
            "a qcow2 that is recorded as raw is raw",
            |dir| {
                write(dir, "base", &over(b"/etc/passwd", b"raw"));
                write(dir, "top", &over(b"base", b"raw"));
            },
            super::Expected::Reads(b"QFI\xfb".to_vec()),
        ),
        Row::made(
            "a raw disk that is recorded as qcow2 is refused",
            |dir| {
                write(dir, "base", &[7; 4096]);
                write(dir, "top", &over(b"base", b"qcow2"));
            },
            Broken(catena::ErrorKind::InvalidFormat, "not in qcow2 format"),
        ),
        Row::made(
            "a format word that is none",
            |dir| {
                write(dir, "base", &[7; 4096]);
                write(dir, "top", &over(b"base", b"evil"));
            },
            Broken(FormatUnknown, "is no format"),
        ),
        unrecorded(
            "a strict policy believes no probe",
            vec![7; 4096],
            Broken(FormatUnknown, "was not specified"),
        )
        .under(|_| Policy::strict()),
        Row::image(
            "a data file named with the raw bit and no backing image",
            extended(&[]),
            seen(1, |_| ()),
        ),
        Row::image(
            "a data file that is not there",
            data_file(b"gone"),
            Unreadable(NotFound, "No such file"),
        ),
    ]
}

fn fixed_vhd(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 12, &0x10000u32.to_be_bytes());
    put(&mut footer, 48, &(bytes.len() as u64).to_be_bytes());
    put(&mut footer, 60, &2u32.to_be_bytes());
    bytes.extend(footer);
    bytes
}
