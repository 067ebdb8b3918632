//! What this crate says of the images that `qemu-img` makes, against what `qemu-img` says of them.

#![cfg(test)]

use catena_format::{Bytes, Encryption, Format, ParentId, describe, probe_as_qemu, recognise};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const SIZE: u64 = 10 << 20;

/// An image file as bytes.
struct Image(File, u64);

impl Image {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Self(file, len)
    }
}

impl Bytes for Image {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(buf, offset)
    }
}

fn qemu_img(folder: &Path, args: &[&str]) -> Output {
    Command::new("qemu-img")
        .current_dir(folder)
        .args(args)
        .output()
        .expect("these tests need qemu-img")
}

fn create(folder: &Path, args: &[&str]) {
    let output = qemu_img(folder, &[&["create", "-q"], args].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
}

fn info(folder: &Path, format: Option<&str>, name: &str) -> Value {
    let mut args = vec!["info", "--output=json"];
    args.extend(format.iter().flat_map(|format| ["-f", format]));
    args.push(name);
    let output = qemu_img(folder, &args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Compares everything that both sides tell.
fn compare(folder: &Path, format: Format, name: &str) {
    let bytes = Image::open(&folder.join(name));
    let theirs = info(folder, format.qemu(), name);
    let ours = describe(format, &bytes).unwrap();
    let expected = if format == Format::Raw {
        vec![]
    } else {
        vec![format]
    };
    assert_eq!(recognise(&bytes).unwrap(), expected, "{name}");
    let probed = info(folder, None, name);
    assert_eq!(
        probe_as_qemu(&bytes, Some(name)).unwrap().qemu(),
        probed["format"].as_str(),
        "{name}"
    );
    let size = ours.virtual_size.unwrap_or(bytes.len());
    assert_eq!(Some(size), theirs["virtual-size"].as_u64(), "{name}");
    if let Some(cluster) = theirs["cluster-size"].as_u64()
        && ours.data_file.is_none()
    {
        assert_eq!(ours.cluster_size, Some(cluster), "{name}");
    }
    let backing = ours.backing.as_ref();
    assert_eq!(
        backing.map(|backing| backing.name.as_str()),
        theirs["backing-filename"].as_str(),
        "{name}"
    );
    if let Some(backing) = backing {
        let at = backing.offset.unwrap();
        assert_eq!(
            bytes.read_exact(at, backing.name.len()).unwrap(),
            backing.name.as_bytes()
        );
    }
    assert_eq!(
        ours.encryption.is_some(),
        theirs["encrypted"].as_bool().unwrap_or(false),
        "{name}"
    );
    assert_eq!(ours.oddities, Vec::<String>::new(), "{name}");
}

#[test]
fn every_image_that_qemu_img_makes_is_described_as_qemu_img_describes_it() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let images: &[(Format, &[&str])] = &[
        (Format::Raw, &[]),
        (Format::Qcow, &[]),
        (Format::Qcow2, &[]),
        (Format::Qcow2, &["compat=0.10"]),
        (Format::Qed, &[]),
        (Format::Qed, &["cluster_size=131072,table_size=8"]),
        (Format::Vmdk, &["subformat=monolithicSparse"]),
        (Format::Vmdk, &["subformat=monolithicSparse,compat6"]),
        (Format::Vmdk, &["subformat=monolithicFlat"]),
        (Format::Vmdk, &["subformat=twoGbMaxExtentSparse"]),
        (Format::Vmdk, &["subformat=twoGbMaxExtentFlat"]),
        (Format::Vmdk, &["subformat=streamOptimized"]),
        (Format::Vpc, &[]),
        (Format::Vpc, &["force_size"]),
        (Format::Vpc, &["subformat=fixed"]),
        (Format::Vhdx, &[]),
        (Format::Vhdx, &["subformat=fixed,block_size=1M"]),
        (Format::Vdi, &[]),
        (Format::Vdi, &["static"]),
        (Format::Parallels, &[]),
        (Format::Parallels, &["cluster_size=512k"]),
    ];
    for (i, (format, options)) in images.iter().enumerate() {
        let name = format!("image-{i}");
        let qemu = format.qemu().unwrap();
        let mut args = vec!["-f", qemu];
        args.extend(options.iter().flat_map(|options| ["-o", options]));
        args.extend([name.as_str(), "10M"]);
        create(folder, &args);
        compare(folder, *format, &name);
    }
}

#[test]
fn an_image_with_data_in_it_is_described_as_qemu_img_describes_it() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let data: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    std::fs::write(folder.join("raw"), data).unwrap();
    for (format, options) in [
        (Format::Vmdk, "subformat=streamOptimized"),
        (Format::Vpc, "subformat=dynamic"),
        (Format::Vhdx, "subformat=dynamic"),
        (Format::Vdi, "static=off"),
        (Format::Qcow, "encryption=off"),
    ] {
        let qemu = format.qemu().unwrap();
        let output = qemu_img(
            folder,
            &["convert", "-f", "raw", "-O", qemu, "-o", options, "raw", qemu],
        );
        assert!(output.status.success(), "{output:?}");
        compare(folder, format, qemu);
    }
}

#[test]
fn overlays_name_their_backing_and_only_qed_can_say_that_it_is_raw() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    create(folder, &["-f", "raw", "base.raw", "10M"]);
    create(folder, &["-f", "vmdk", "base.vmdk", "10M"]);
    create(folder, &["-f", "qcow2", "base.qcow2", "10M"]);
    create(folder, &["-f", "qcow", "-b", "base.raw", "-F", "raw", "a.qcow"]);
    create(folder, &["-f", "qed", "-b", "base.raw", "-F", "raw", "a.qed"]);
    create(folder, &["-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "a.vmdk"]);
    for (format, name) in [
        (Format::Qcow, "a.qcow"),
        (Format::Qed, "a.qed"),
        (Format::Vmdk, "a.vmdk"),
    ] {
        compare(folder, format, name);
    }
    let backing = |format, name: &str| {
        describe(format, &Image::open(&folder.join(name)))
            .unwrap()
            .backing
            .unwrap()
    };
    assert_eq!(backing(Format::Qed, "a.qed").format.as_deref(), Some("raw"));
    assert_eq!(backing(Format::Qcow, "a.qcow").format, None);

    create(folder, &["-f", "qed", "-b", "base.qcow2", "-F", "qcow2", "b.qed"]);
    let d = describe(Format::Qed, &Image::open(&folder.join("b.qed"))).unwrap();
    assert_eq!(d.backing.unwrap().format, None);
    assert_eq!(d.oddities, Vec::<String>::new());
}

#[test]
fn a_vmdk_knows_its_parent_by_the_content_id_that_qemu_img_tells() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    create(folder, &["-f", "vmdk", "base.vmdk", "10M"]);
    create(folder, &["-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "a.vmdk"]);
    let ours = describe(Format::Vmdk, &Image::open(&folder.join("a.vmdk"))).unwrap();
    let theirs = info(folder, None, "a.vmdk");
    let data = &theirs["format-specific"]["data"];
    let cid = |key: &str| Some(ParentId::Cid(data[key].as_u64().unwrap().try_into().unwrap()));
    assert_eq!(ours.id, cid("cid"));
    assert_eq!(ours.backing.unwrap().parent_id, cid("parent-cid"));
    assert_eq!(ours.variant.as_deref(), data["create-type"].as_str());
}

#[test]
fn a_luks_header_is_read_alone_and_inside_qcow2() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let secret = "secret,id=s,data=x";
    for (format, options) in [
        ("luks", "key-secret=s,iter-time=10"),
        (
            "qcow2",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        ),
    ] {
        create(
            folder,
            &["--object", secret, "-f", format, "-o", options, format, "10M"],
        );
        let theirs = info(folder, None, format);
        let data = &theirs["format-specific"]["data"];
        let data = if format == "qcow2" { &data["encrypt"] } else { data };
        let d = describe(
            Format::from_qemu(format).unwrap(),
            &Image::open(&folder.join(format)),
        )
        .unwrap();
        assert_eq!(d.virtual_size, theirs["virtual-size"].as_u64());
        let Some(Encryption::Luks(header)) = d.encryption else {
            panic!("{:?}", d.encryption)
        };
        assert_eq!(header.version, 1);
        assert_eq!(header.cipher.as_deref(), Some("aes-xts-plain64"));
        assert_eq!(header.hash.as_deref(), data["hash-alg"].as_str());
        assert_eq!(header.uuid.as_deref(), data["uuid"].as_str());
        assert_eq!(header.payload_offset, data["payload-offset"].as_u64());
        assert_eq!(header.active_key_slots, Some(1));
    }
}

#[test]
fn which_of_a_vhds_two_sizes_counts_is_as_qemu_decides_by_its_creator() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    create(folder, &["-f", "vpc", "-o", "subformat=fixed", "disk", "10M"]);
    let original = std::fs::read(folder.join("disk")).unwrap();
    let at = original.len() - 512;
    for creator in [
        b"qemu",
        b"qem2",
        b"win ",
        b"d2v ",
        b"tap\0",
        b"CTXS",
        b"wa\0\0",
        b"vpc ",
        b"vs  ",
        b"vbox",
        b"\0\0\0\0",
    ] {
        let mut bytes = original.clone();
        let footer = &mut bytes[at..];
        footer[28..32].copy_from_slice(creator);
        footer[48..56].copy_from_slice(&SIZE.to_be_bytes());
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
        std::fs::write(folder.join("disk"), &bytes).unwrap();
        assert_eq!(
            describe(Format::Vpc, &bytes).unwrap().virtual_size,
            info(folder, Some("vpc"), "disk")["virtual-size"].as_u64(),
            "{creator:?}"
        );
    }
}

#[test]
fn a_bochs_disk_and_a_cloop_image_have_the_size_that_qemu_img_tells() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let mut bochs = vec![0u8; 512];
    bochs[..22].copy_from_slice(b"Bochs Virtual HD Image");
    bochs[32..39].copy_from_slice(b"Redolog");
    bochs[48..55].copy_from_slice(b"Growing");
    for (at, number) in [(64, 0x20000u32), (68, 512), (72, 20), (76, 128), (80, 512 << 10)] {
        bochs[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    bochs[88..96].copy_from_slice(&SIZE.to_le_bytes());
    bochs.extend([0xff; 80]);
    let mut cloop =
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n".to_vec();
    cloop.resize(128, 0);
    cloop.extend([65536u32, 1].iter().flat_map(|number| number.to_be_bytes()));
    cloop.extend([152u64, 252].iter().flat_map(|number| number.to_be_bytes()));
    cloop.resize(512, 0);
    for (format, bytes) in [(Format::Bochs, bochs), (Format::Cloop, cloop)] {
        let name = format.as_str();
        std::fs::write(folder.join(name), &bytes).unwrap();
        let theirs = info(folder, None, name);
        assert_eq!(theirs["format"].as_str(), format.qemu());
        let ours = describe(format, &bytes).unwrap();
        assert_eq!(ours.virtual_size, theirs["virtual-size"].as_u64());
    }
}

/// Whether `qemu-img` takes a file for `format`: what it says is the same as when told so.
fn qemu_takes_it_for(folder: &Path, name: &str, format: Format) -> bool {
    let said = |args: &[&str]| {
        let output = qemu_img(folder, &[args, &[name]].concat());
        (output.stderr, output.stdout)
    };
    said(&["info"]) == said(&["info", "-f", format.qemu().unwrap()])
}

#[test]
fn a_first_sector_is_probed_as_qemu_probes_it() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    const BOCHS: [(usize, &[u8]); 3] = [
        (0, b"Bochs Virtual HD Image"),
        (32, b"Redolog"),
        (64, &[0, 0, 2, 0]),
    ];
    let vdi: (usize, &[u8]) = (64, &[0x7f, 0x10, 0xda, 0xbe]);
    let starts: &[&[u8]] = &[
        b"QFI\xfb\0\0\0\0",
        b"QFI\xfb\0\0\0\x01",
        b"QFI\xfb\0\0\0\x02",
        b"QFI\xfb\0\0\0\x04",
        b"QFIx\0\0\0\x02",
        b"QED\0",
        b"QEDx",
        b"KDMV\x09",
        b"COWD\x09",
        b"conectix",
        b"vhdxfile",
        b"WithoutFreeSpace\x02\0\0\0",
        b"WithouFreSpacExt\x02\0\0\0",
        b"WithouFreSpacExt\x03\0\0\0",
        b"LUKS\xba\xbe\0\x01",
        b"LUKS\xba\xbe\0\x02",
        b"version=1\n",
        b"# x\r\n  \r\nversion=3\r\n",
        b"# x\n\nversion=1\n",
        b" \nversion=2",
        b"version=2",
        b"version=4\n",
        b" version=2\n",
        b"  \r \nversion=2\n",
        b"OOOM\0\0\0\x02",
        b"",
    ];
    let mut sectors: Vec<Vec<u8>> = starts.iter().map(|start| start.to_vec()).collect();
    for parts in starts
        .iter()
        .map(|start| vec![(0, *start), vdi])
        .chain([b"Growing".as_slice(), b"Undoable"].map(|subtype| [&BOCHS[..], &[(48, subtype)]].concat()))
    {
        let mut sector = vec![0u8; 512];
        for (at, part) in parts {
            sector[at..at + part.len()].copy_from_slice(part);
        }
        sectors.push(sector);
    }
    for sector in sectors {
        for name in ["image", "image.dmg", ".dmg", "./.dmg"] {
            std::fs::write(folder.join(name), &sector).unwrap();
            let ours = probe_as_qemu(&sector, Some(name)).unwrap();
            assert!(
                qemu_takes_it_for(folder, name, ours),
                "{:?} in {name} is not {ours}",
                String::from_utf8_lossy(&sector)
            );
        }
    }
}
