//! Detection and reading on chains that qemu-img made.
#![cfg(test)]

use catena::chain::{Consent, End, Origin};
use catena::open::Sharing;
use catena::{Chain, Disk, ErrorKind, Format, GuestOffset, Policy, Start, detect};
use catena_testkit::Folder;
use std::path::Path;

fn found(dir: &Path, top: &str) -> Chain {
    detect(&Start::at(dir.join(top), None), &Policy::libvirt())
}

/// What the guest sees must be what qemu-img converts.
fn same_as_qemu(folder: &Folder, top: &str) {
    let dir = folder.path();
    folder.img(&format!("convert -f qcow2 -O raw {top} expected.raw"));
    let expected = std::fs::read(dir.join("expected.raw")).unwrap();
    let disk = found(dir, top).open(Sharing::Locked).unwrap();
    assert_eq!(disk.size(), expected.len() as u64);
    let mut bytes = vec![0xaa; expected.len()];
    disk.read_at(&mut bytes, GuestOffset(0)).unwrap();
    assert!(bytes == expected, "{top} reads differently");
    let mut at = GuestOffset(0);
    while at.0 < disk.size() {
        for extent in disk.extents(at, GuestOffset(disk.size())).unwrap() {
            assert_eq!(extent.start, at);
            let part = &expected[usize::try_from(at.0).unwrap()..][..usize::try_from(extent.len).unwrap()];
            assert!(!extent.kind.is_zero() || part.iter().all(|byte| *byte == 0));
            at = extent.end();
        }
    }
}

#[test]
fn a_recorded_chain_is_followed_to_its_end_and_reads_as_qemu_reads_it() {
    let folder = Folder::new();
    let dir = folder.path();
    folder.img("create -q -f raw base.raw 3M");
    folder.run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 2M", "base.raw"]);
    folder.img("create -q -f qcow2 -b base.raw -F raw -o cluster_size=4k mid.qcow2 2M");
    folder.io(
        "qcow2",
        "mid.qcow2",
        &["write -P 2 100k 300k", "write -z 1M 64k", "write -c -P 7 512k 4k"],
    );
    folder
        .img("create -q -f qcow2 -b mid.qcow2 -F qcow2 -o extended_l2=on,compression_type=zstd top.qcow2 5M");
    folder.io(
        "qcow2",
        "top.qcow2",
        &[
            "write -P 3 110k 3k",
            "write -c -P 4 4M 64k",
            "write -z -u 130k 10k",
            "discard 0 64k",
        ],
    );
    let chain = found(dir, "top.qcow2");
    assert!(matches!(chain.end, End::Terminated), "{:?}", chain.end);
    let formats: Vec<_> = chain
        .layers
        .iter()
        .map(|layer| (layer.format, layer.origin))
        .collect();
    assert_eq!(
        formats,
        [
            (Format::Qcow2, Origin::Probed(Consent::UserArgument)),
            (Format::Qcow2, Origin::Recorded),
            (Format::Raw, Origin::Recorded)
        ]
    );
    same_as_qemu(&folder, "top.qcow2");
    same_as_qemu(&folder, "mid.qcow2");
}

#[test]
fn data_files_of_both_kinds_read_as_qemu_reads_them() {
    for raw in ["off", "on"] {
        let folder = Folder::new();
        folder.img(&format!(
            "create -q -f qcow2 -o data_file=data.bin,data_file_raw={raw} top.qcow2 2M"
        ));
        folder.io(
            "qcow2",
            "top.qcow2",
            &["write -P 3 0 64k", "write -P 5 1M 100k", "write -z 64k 64k"],
        );
        same_as_qemu(&folder, "top.qcow2");
    }
}

#[test]
fn an_unrecorded_format_is_accepted_of_a_leaf_alone() {
    let folder = Folder::new();
    let dir = folder.path();
    folder.img("create -q -f qcow2 base.qcow2 1M");
    folder.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    folder.img("create -q -f qcow2 -b base.qcow2 -F qcow2 leaf.qcow2");
    folder.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    folder.forget_format("leaf.qcow2");
    folder.forget_format("top.qcow2");
    let chain = found(dir, "leaf.qcow2");
    assert_eq!(chain.layers[1].origin, Origin::Probed(Consent::Leaf));
    assert!(chain.broken().is_none());

    let chain = found(dir, "top.qcow2");
    assert_eq!(chain.layers.len(), 1);
    let broken = chain.broken().unwrap();
    assert_eq!(broken.error.kind(), ErrorKind::FormatUnknown);
    let sentence = format!(
        "format of backing image 'mid.qcow2' of image '{}' was not specified in the image metadata (See \
         https://libvirt.org/kbase/backing_chains.html for troubleshooting)",
        dir.join("top.qcow2").display()
    );
    assert_eq!(broken.error.message(), sentence);
    assert!(broken.error.hint().unwrap().contains("--backing-format qcow2"));
    assert_eq!(broken.probed.as_ref().unwrap().0, Format::Qcow2);

    let strict = detect(&Start::at(dir.join("leaf.qcow2"), None), &Policy::strict());
    assert_eq!(strict.broken().unwrap().error.kind(), ErrorKind::FormatUnknown);
}

#[test]
fn a_loop_is_found_by_identity_before_depth() {
    let folder = Folder::new();
    let dir = folder.path();
    folder.img("create -q -f qcow2 a.qcow2 1M");
    folder.img("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
    std::os::unix::fs::symlink("b.qcow2", dir.join("link")).unwrap();
    folder.img("rebase -u -f qcow2 -b link -F qcow2 a.qcow2");
    let chain = found(dir, "b.qcow2");
    assert_eq!(chain.layers.len(), 2);
    assert_eq!(chain.broken().unwrap().error.kind(), ErrorKind::Loop);
}

#[test]
fn a_missing_backing_image_breaks_the_chain_in_libvirts_words() {
    let folder = Folder::new();
    let dir = folder.path();
    folder.img("create -q -f qcow2 -u -b gone.qcow2 -F qcow2 top.qcow2 1M");
    let chain = found(dir, "top.qcow2");
    let broken = chain.broken().unwrap();
    assert_eq!(broken.error.kind(), ErrorKind::NotFound);
    assert!(
        broken.error.message().starts_with("Cannot access backing file '"),
        "{}",
        broken.error
    );
    assert!(
        broken
            .error
            .message()
            .ends_with("No such file or directory (os error 2)"),
        "{}",
        broken.error
    );
    assert_eq!(
        chain.open(Sharing::Locked).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn snapshots_read_as_qemu_reads_them() {
    let folder = Folder::new();
    let dir = folder.path();
    folder.img("create -q -f raw base.raw 2M");
    folder.run("qemu-io", &["-f", "raw", "-c", "write -P 1 1M 512k", "base.raw"]);
    folder.img("create -q -f qcow2 -b base.raw -F raw top.qcow2 2M");
    folder.io("qcow2", "top.qcow2", &["write -P 3 0 64k"]);
    folder.img("snapshot -c first top.qcow2");
    folder.io("qcow2", "top.qcow2", &["write -P 5 1000 100k"]);
    let chain = found(dir, "top.qcow2");
    let mut bytes = vec![0; 2 << 20];
    for name in ["1", "first"] {
        let stack = chain.open_snapshot(name, Sharing::Locked).unwrap();
        stack.read_at(&mut bytes, GuestOffset(0)).unwrap();
    }
    assert_eq!(
        chain.open_snapshot("second", Sharing::Locked).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    folder.img("convert -l snapshot.name=first -f qcow2 -O raw top.qcow2 first.raw");
    assert!(bytes == std::fs::read(dir.join("first.raw")).unwrap());
}

#[test]
fn a_probed_format_counts_only_where_qemu_and_libvirt_would_find_it_too() {
    let folder = Folder::new();
    let dir = folder.path();
    let mut footer = vec![0; 1 << 20];
    folder.img("create -q -f raw disk 1M");
    folder.img("convert -f raw -O vpc -o subformat=fixed,force_size=on disk disk.vhd");
    let vhd = std::fs::read(dir.join("disk.vhd")).unwrap();
    footer[(1 << 20) - 512..].copy_from_slice(&vhd[vhd.len() - 512..]);
    let mut descriptor = vec![0; 1 << 20];
    descriptor[..20].copy_from_slice(b"# Disk DescriptorFil");
    let mut trailer = vec![0; 1 << 20];
    trailer[(1 << 20) - 512..][..4].copy_from_slice(b"koly");
    let mut future = vec![0; 1 << 20];
    future[..8].copy_from_slice(b"QFI\xfb\0\0\0\x09");
    for (bytes, raw) in [
        (footer, true),
        (descriptor, true),
        (trailer, true),
        (future, false),
    ] {
        let _ = std::fs::remove_file(dir.join("top.qcow2"));
        std::fs::write(dir.join("base"), vec![0; 1 << 20]).unwrap();
        folder.img("create -q -f qcow2 -b base -F raw top.qcow2");
        folder.forget_format("top.qcow2");
        std::fs::write(dir.join("base"), bytes).unwrap();
        let chain = found(dir, "top.qcow2");
        if raw {
            assert_eq!(chain.layers[1].format, Format::Raw);
        } else {
            let broken = chain.broken().unwrap();
            assert_eq!(broken.error.kind(), ErrorKind::FormatUnknown);
            let hint = broken.error.hint().unwrap();
            assert!(
                hint.starts_with("the image is qcow2 to QEMU, but raw to libvirt"),
                "{hint}"
            );
        }
    }
}

#[test]
fn a_directory_is_no_backing_image() {
    let folder = Folder::new();
    let dir = folder.path();
    std::fs::create_dir(dir.join("folder")).unwrap();
    folder.img("create -q -f qcow2 -u -b folder -F qcow2 top.qcow2 1M");
    let chain = found(dir, "top.qcow2");
    assert_eq!(chain.broken().unwrap().error.kind(), ErrorKind::Unsupported);
}
