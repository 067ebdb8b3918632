//! The images of a forest.

use super::Layer;
use crate::Folder;

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
pub(super) fn plant(folder: &Folder) -> (Vec<Vec<Layer>>, Vec<Layer>) {
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
        folder.img(&format!(
            "create -q -f {format} -b {} -F {} {name} 1M",
            next.path,
            recorded(next)
        ));
        let mut chain = vec![file(folder, name, format)];
        chain.extend(below.iter().cloned());
        chain
    };
    for format in ["raw", "qcow2", "vmdk", "vdi", "vpc", "qed", "qcow"] {
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
    let luks = |name: &str, format: &'static str, options: &str| {
        let secret = "--object secret,id=s,data=secret";
        folder.img(&format!(
            "create -q {secret} -f {format} -o {options}key-secret=s {name} 1M"
        ));
        Layer {
            luks: true,
            ..file(folder, name, if format == "luks" { "raw" } else { format })
        }
    };
    chains.push(vec![luks("luks", "luks", "iter-time=10,")]);
    chains.push(vec![luks(
        "luks.qcow2",
        "qcow2",
        "encrypt.iter-time=10,encrypt.format=luks,encrypt.",
    )]);
    let encrypted = luks("luks.base", "luks", "iter-time=10,");
    folder.img(&format!(
        "create -q -u -f qcow2 -b {} -F luks over-luks 1M",
        encrypted.path
    ));
    chains.push(vec![file(folder, "over-luks", "qcow2"), encrypted]);
    // A name that XML escapes, by a way that is not the shortest.
    std::fs::create_dir(folder.file("sub")).expect("a folder");
    folder.img("create -q -f qcow2 -b ../raw.base -F raw sub/it's&<odd>");
    chains.push(vec![file(folder, "sub/it's&<odd>", "qcow2")]);
    std::os::unix::fs::symlink("two-over-raw", folder.file("link")).expect("a link");
    let mut odd = odd(folder);
    // Nobody says how to decrypt them.
    odd.push(file(folder, "over-luks", "qcow2"));
    odd.push(file(folder, "luks.qcow2", "qcow2"));
    (chains, odd)
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
    ];
    for (name, format, reference) in references {
        folder.img(&format!("create -q -u -f qcow2 -b placeholder -F raw {name} 1M"));
        let reference = reference.replace('%', &folder.path().display().to_string());
        // qemu-img does not write what it does not know.
        write_reference(folder, name, &reference, format);
        odd.push(file(folder, name, "qcow2"));
    }
    for (name, below, format) in [
        ("forgot-raw", "raw.base", "raw"),
        ("forgot-qcow2", "qcow2.base", "qcow2"),
        ("forgot-chain", "middle", "qcow2"),
        ("forgot-vdi", "vdi.base", "vdi"),
    ] {
        folder.img(&format!("create -q -f qcow2 -b {below} -F {format} {name}"));
        folder.forget_format(name);
        odd.push(file(folder, name, "qcow2"));
    }
    odd.push(file(folder, "absent", "qcow2"));
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
