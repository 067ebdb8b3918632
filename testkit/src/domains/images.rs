//! The images of a forest.

use super::Layer;
use crate::{Dice, Folder};
use std::fs::File;
use std::path::Path;

/// An image that is copied for each that only needs another reference.
const PATTERN: &str = "pattern";
/// Formats that libvirt knows by the word that is recorded.
const BELOW: [&str; 7] = ["raw", "qcow2", "vmdk", "vdi", "vpc", "qed", "qcow"];
/// How many chains are drawn.
const DRAWN: u64 = 40;

/// An image file, as XML gives it.
pub(super) fn file(folder: &Folder, name: &str, format: &'static str) -> Layer {
    Layer {
        path: folder.file(name).display().to_string(),
        format,
        block: false,
        luks: false,
        store: None,
    }
}

/// QEMU's word for a format of libvirt's.
fn qemu(format: &str) -> &str {
    match format {
        "vhd" => "vhdx",
        "ploop" => "parallels",
        other => other,
    }
}

/// Whole chains, and active images of odd ones.
pub(super) fn plant(folder: &Folder, dice: &mut Dice) -> (Vec<Vec<Layer>>, Vec<Layer>) {
    folder.img(&format!("create -q -f qcow2 {PATTERN} 1M"));
    let mut chains = Vec::new();
    let formats = [
        "raw", "qcow2", "vmdk", "vdi", "vpc", "qed", "qcow", "vhd", "ploop",
    ];
    for format in formats {
        // One that is written, and one that is a base.
        for name in ["alone", "base"] {
            folder.img(&format!("create -q -f {} {format}.{name} 1M", qemu(format)));
        }
        chains.push(vec![file(folder, &format!("{format}.alone"), format)]);
    }
    let base = |format| file(folder, &format!("{format}.base"), format);
    let over = |name: &str, format: &'static str, below: &[Layer]| {
        let [next, ..] = below else {
            panic!("nothing is below")
        };
        if format == "qcow2" {
            overlay(folder, name, &next.path, recorded(next));
        } else {
            folder.img(&format!(
                "create -q -f {format} -b {} -F {} {name} 1M",
                next.path,
                recorded(next)
            ));
        }
        let mut chain = vec![file(folder, name, format)];
        chain.extend(below.iter().cloned());
        chain
    };
    for format in BELOW {
        chains.push(over(&format!("over-{format}"), "qcow2", &[base(format)]));
    }
    chains.push(over("qed-over-raw", "qed", &[base("raw")]));
    let middle = over("middle", "qcow2", &[base("raw")]);
    chains.push(over("two-over-raw", "qcow2", &middle));
    let deeper = over("deeper", "qcow2", &middle);
    chains.push(over("three-over-raw", "qcow2", &deeper));
    let upper = over(
        "upper",
        "qcow2",
        &over("lower", "qcow2", &over("qed-middle", "qed", &[base("raw")])),
    );
    chains.push(over("mixed", "qcow2", &upper));
    let mut deep = vec![base("qcow2")];
    for number in 0..12 {
        deep = over(&format!("deep{number}"), "qcow2", &deep);
    }
    chains.push(deep);
    let stored = |name: &str| {
        folder.img(&format!(
            "create -q -f qcow2 -o data_file={name}.data,data_file_raw=on {name} 1M"
        ));
        Layer {
            store: Some(folder.file(&format!("{name}.data")).display().to_string()),
            ..file(folder, name, "qcow2")
        }
    };
    chains.push(vec![stored("with-data")]);
    chains.push(over("over-data", "qcow2", &[stored("base-data")]));
    let luks = |name: &str, format| Layer {
        luks: true,
        ..file(folder, name, format)
    };
    encrypted(&folder.file("luks"), "luks", "iter-time=10,");
    chains.push(vec![luks("luks", "raw")]);
    let within = "encrypt.iter-time=10,encrypt.format=luks,encrypt.";
    encrypted(&folder.file("luks.qcow2"), "qcow2", within);
    chains.push(vec![luks("luks.qcow2", "qcow2")]);
    std::fs::copy(folder.file("luks"), folder.file("luks.base")).expect("a copy");
    chains.push(over("over-luks", "qcow2", &[luks("luks.base", "raw")]));
    // A name that XML escapes, by a way that is not the shortest.
    std::fs::create_dir(folder.file("sub")).expect("a folder");
    overlay(folder, "sub/it's&<odd>", "../raw.base", "raw");
    chains.push(vec![file(folder, "sub/it's&<odd>", "qcow2")]);
    let mut bases: Vec<_> = BELOW.into_iter().map(|format| vec![base(format)]).collect();
    bases.extend([middle.clone(), vec![luks("luks.base", "raw")]]);
    for number in 0..DRAWN {
        chains.push(drawn(folder, dice, number, &bases));
    }
    std::os::unix::fs::symlink("two-over-raw", folder.file("link")).expect("a link");
    let mut odd = odd(folder);
    // Nobody says how to decrypt them.
    odd.push(file(folder, "over-luks", "qcow2"));
    odd.push(file(folder, "luks.qcow2", "qcow2"));
    (chains, odd)
}

/// Some overlays over one of these chains, each with its reference written in one way or another.
fn drawn(folder: &Folder, dice: &mut Dice, number: u64, bases: &[Vec<Layer>]) -> Vec<Layer> {
    let mut chain = dice.one_of(bases).clone();
    for layer in 0..dice.within(1..6) {
        let below = &chain[0];
        let name = format!("{}drawn{number}.{layer}", dice.one_of(&["", "", "sub/"]));
        let here = folder.path().display().to_string();
        let within = below.path.strip_prefix(&here).expect("it is of this folder");
        let up = if name.starts_with("sub/") { ".." } else { "." };
        let reference = match dice.below(3) {
            0 => below.path.clone(),
            1 => format!("{up}{within}"),
            _ => format!("{here}/.{within}"),
        };
        overlay(folder, &name, &reference, recorded(below));
        chain.insert(0, file(folder, &name, "qcow2"));
    }
    chain
}

/// A qcow2 image over another, which need not be there.
pub(super) fn overlay(folder: &Folder, name: &str, reference: &str, format: &str) {
    std::fs::copy(folder.file(PATTERN), folder.file(name)).expect("a copy");
    write_reference(folder, name, reference, format);
}

/// An image whose passphrase is `secret`. The tool takes a second to find out how often it could have mixed it.
fn encrypted(path: &Path, format: &str, options: &str) {
    let cache = crate::cache_dir().expect("a folder for what is slow to make");
    let known = cache.join(format!("encrypted.{format}"));
    let lock = File::create(cache.join("encrypted.lock")).expect("a lock");
    lock.lock().expect("the lock");
    if !known.exists() {
        let folder = Folder::new();
        folder.img(&format!(
            "create -q --object secret,id=s,data=secret -f {format} -o {options}key-secret=s new 1M"
        ));
        let new = cache.join("encrypted.new");
        std::fs::copy(folder.file("new"), &new).expect("a copy");
        std::fs::rename(new, &known).expect("its name");
    }
    std::fs::copy(known, path).expect("a copy");
}

/// The word that is recorded for a layer's format.
fn recorded(layer: &Layer) -> &str {
    if layer.luks { "luks" } else { qemu(layer.format) }
}

/// Chains that break, or of which not all is known.
fn odd(folder: &Folder) -> Vec<Layer> {
    let mut odd = Vec::new();
    let references = [
        ("missing", "raw", "nowhere"),
        ("missing-below", "qcow2", "missing"),
        ("wrong-format", "qcow2", "raw.base"),
        ("of-itself", "qcow2", "of-itself"),
        ("a-folder", "raw", "sub"),
        (
            "json-file",
            "qcow2",
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"%/qcow2.base"}}"#,
        ),
        (
            "json-plain",
            "qcow2",
            r#"json:{"file":{"driver":"file","filename":"%/qcow2.base"}}"#,
        ),
        (
            "json-raw",
            "raw",
            r#"json:{"driver":"raw","file":{"driver":"file","filename":"%/raw.base"}}"#,
        ),
        (
            "json-slice",
            "raw",
            r#"json:{"driver":"raw","offset":512,"size":65536,"file":{"driver":"file","filename":"%/raw.base"}}"#,
        ),
        ("json-bad", "raw", "json:{"),
        ("json-nothing", "raw", "json:{}"),
        ("json-driver", "raw", r#"json:{"driver":"quorum"}"#),
        (
            "json-nbd",
            "raw",
            r#"json:{"driver":"nbd","server":{"type":"inet","host":"h","port":"10809"},"export":"e"}"#,
        ),
        ("json-null", "raw", r#"json:{"driver":"null-co"}"#),
        ("uri-file", "raw", "file://%/raw.base"),
        ("uri-nbd", "raw", "nbd://host/export"),
        ("uri-nbd6", "qcow2", "nbd://[::1]:1234/export"),
        ("old-nbd", "raw", "nbd:host:10809:exportname=e"),
        ("uri-https", "raw", "https://host/dir/image?query=1"),
        ("uri-user", "raw", "https://user:word@host/image"),
        ("uri-ssh", "raw", "ssh://user@host/image"),
        ("uri-rbd", "raw", "rbd:pool/image:mon_host=a;b"),
        ("uri-iscsi", "raw", "iscsi://host/iqn.2020-01.a.b:c/1"),
        ("uri-gluster", "raw", "gluster://host/volume/image"),
        ("uri-nfs", "raw", "nfs://host/dir/image"),
        ("uri-odd", "raw", "odd://host/image"),
        ("word-file", "file", "raw.base"),
        ("word-odd", "odd", "raw.base"),
        ("word-none", "none", "raw.base"),
        ("word-empty", "", "raw.base"),
        ("word-vhdx", "vhdx", "vhd.base"),
        ("word-parallels", "parallels", "ploop.base"),
        ("not-vmdk", "vmdk", "raw.base"),
        ("round", "qcow2", "about"),
        ("about", "qcow2", "round"),
        ("dangling", "raw", "to-nowhere"),
        ("too-long", "raw", &"long".repeat(75)),
        ("under-a-file", "raw", "raw.base/image"),
    ];
    std::os::unix::fs::symlink("nowhere", folder.file("to-nowhere")).expect("a link");
    for (name, format, reference) in references {
        let reference = reference.replace('%', &folder.path().display().to_string());
        // qemu-img does not write what it does not know.
        overlay(folder, name, &reference, format);
        odd.push(file(folder, name, "qcow2"));
    }
    for (name, below, format) in [
        ("forgot-raw", "raw.base", "raw"),
        ("forgot-qcow2", "qcow2.base", "qcow2"),
        ("forgot-chain", "middle", "qcow2"),
        ("forgot-vdi", "vdi.base", "vdi"),
    ] {
        overlay(folder, name, below, format);
        folder.forget_format(name);
        odd.push(file(folder, name, "qcow2"));
    }
    odd.push(file(folder, "absent", "qcow2"));
    // Its data are gone.
    folder.img("create -q -f qcow2 -o data_file=gone.data no-data 1M");
    std::fs::remove_file(folder.file("gone.data")).expect("the data file");
    odd.push(file(folder, "no-data", "qcow2"));
    overlay(folder, "over-no-data", "no-data", "qcow2");
    odd.push(file(folder, "over-no-data", "qcow2"));
    folder.img("create -q -f qcow2 -b raw.base -F raw -o data_file=both.data backing-and-data");
    odd.push(file(folder, "backing-and-data", "qcow2"));
    // Headers that are none.
    for (name, at, bytes) in [
        ("version-9", 7, &[9][..]),
        ("huge-clusters", 20, &[0, 0, 0, 60]),
        ("unknown-feature", 72, &[0x40]),
        ("name-far-off", 8, &[0, 0, 0, 0, 1]),
    ] {
        overlay(folder, name, "raw.base", "raw");
        folder.patch(name, at, bytes);
        odd.push(file(folder, name, "qcow2"));
        let over = format!("over-{name}");
        overlay(folder, &over, name, "qcow2");
        odd.push(file(folder, &over, "qcow2"));
    }
    for (name, len) in [("nothing", 0), ("a-word", 4), ("half-a-header", 60)] {
        overlay(folder, name, "raw.base", "raw");
        let image = File::options()
            .write(true)
            .open(folder.file(name))
            .expect("an image");
        image.set_len(len).expect("its end");
        odd.push(file(folder, name, "qcow2"));
    }
    // It is not in the format that XML says.
    odd.push(file(folder, "vdi.alone", "qcow2"));
    odd.push(file(folder, "over-raw", "raw"));
    odd
}

/// Writes a reference and a format into a qcow2 image of version 3 that has no other extension behind them: the header, the
/// extension, the end of extensions, the name.
fn write_reference(folder: &Folder, image: &str, name: &str, format: &str) {
    let header = 104_u32.max(u32::from_be_bytes(read(folder, image, 100)));
    let mut bytes = vec![0xe2, 0x79, 0x2a, 0xca];
    bytes.extend((format.len() as u32).to_be_bytes());
    bytes.extend(format.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
    let at = header + bytes.len() as u32;
    bytes.extend(name.as_bytes());
    folder.patch(image, header.into(), &bytes);
    folder.patch(image, 8, &u64::from(at).to_be_bytes());
    folder.patch(image, 16, &(name.len() as u32).to_be_bytes());
}

fn read(folder: &Folder, image: &str, at: u64) -> [u8; 4] {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 4];
    let file = std::fs::File::open(folder.file(image)).expect(image);
    file.read_exact_at(&mut bytes, at).expect(image);
    bytes
}
