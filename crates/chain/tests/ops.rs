//! Creating and relinking, held against qemu-img.
#![cfg(test)]

use catena::ops::create::{self, Kind, Qcow2Options};
use catena::ops::relink::{self, NewBacking, Safety, ViewStays};
use catena::ops::{Observer, Silent};
use catena::{ErrorKind, Format, Policy, Start, detect};
use catena_format::qcow2::{Compression, Version};
use catena_testkit::Folder;
use std::path::Path;

fn create(dir: &Path, name: &str, size: Option<u64>, options: Qcow2Options) -> catena::Result<()> {
    let request = create::Request {
        path: dir.join(name),
        existing: create::Existing::Refuse,
        preallocation: create::Preallocation::Off,
        size,
        kind: Kind::Qcow2(Box::new(options)),
    };
    create::plan(&request, &Policy::qemu())?.execute()
}

fn relink(
    dir: &Path,
    name: &str,
    backing: Option<(&str, Format)>,
    safety: Safety,
) -> catena::Result<ViewStays> {
    let backing = backing.map(|(name, format)| NewBacking {
        name: name.to_owned(),
        format,
    });
    let request = relink::Request {
        image: dir.join(name),
        backing,
        safety,
    };
    let plan = relink::plan(&request, &Policy::libvirt(), &Silent)?;
    plan.execute()?;
    assert!(
        relink::plan(&request, &Policy::libvirt(), &Silent)?.is_done(),
        "running it again finds it done"
    );
    Ok(plan.view())
}

fn refused(dir: &Path, name: &str, backing: Option<(&str, Format)>) -> ErrorKind {
    let before = std::fs::read(dir.join(name)).unwrap();
    let kind = relink(dir, name, backing, Safety::Checked).unwrap_err().kind();
    assert!(
        before == std::fs::read(dir.join(name)).unwrap(),
        "a refusal changes no byte"
    );
    kind
}

#[test]
fn a_new_image_is_byte_for_byte_what_qemu_img_makes() {
    let folder = Folder::new();
    let dir = folder.path();
    folder.img("create -q -f raw base.raw 3M");
    let base = || Some(("base.raw".to_owned(), Format::Raw));
    let defaults = Qcow2Options::default;
    for (args, size, options) in [
        ("new.qcow2 1M", 1 << 20, defaults()),
        ("new.qcow2 0", 0, defaults()),
        ("new.qcow2 1000", 1000, defaults()),
        ("new.qcow2 1T", 1 << 40, defaults()),
        (
            "-b base.raw -F raw new.qcow2",
            3 << 20,
            Qcow2Options {
                backing: base(),
                ..defaults()
            },
        ),
        (
            "-o compat=0.10 -b base.raw -F raw new.qcow2",
            3 << 20,
            Qcow2Options {
                backing: base(),
                version: Version::V2,
                ..defaults()
            },
        ),
        (
            "-o cluster_size=512 new.qcow2 1M",
            1 << 20,
            Qcow2Options {
                cluster_size: 512,
                ..defaults()
            },
        ),
        (
            "-o cluster_size=2M new.qcow2 1G",
            1 << 30,
            Qcow2Options {
                cluster_size: 2 << 20,
                ..defaults()
            },
        ),
        (
            "-o refcount_bits=1 new.qcow2 1M",
            1 << 20,
            Qcow2Options {
                refcount_bits: 1,
                ..defaults()
            },
        ),
        (
            "-o refcount_bits=64,lazy_refcounts=on new.qcow2 1M",
            1 << 20,
            Qcow2Options {
                refcount_bits: 64,
                lazy_refcounts: true,
                ..defaults()
            },
        ),
        (
            "-o extended_l2=on,compression_type=zstd new.qcow2 1G",
            1 << 30,
            Qcow2Options {
                extended_l2: true,
                compression: Compression::Zstd,
                ..defaults()
            },
        ),
        (
            "-o data_file=data.bin new.qcow2 1M",
            1 << 20,
            Qcow2Options {
                data_file: Some(("data.bin".to_owned(), false)),
                ..defaults()
            },
        ),
    ] {
        folder.img(&format!("create -q -f qcow2 {args}"));
        let theirs = std::fs::read(dir.join("new.qcow2")).unwrap();
        std::fs::remove_file(dir.join("new.qcow2")).unwrap();
        let _ = std::fs::remove_file(dir.join("data.bin"));
        let size = if options.backing.is_some() {
            None
        } else {
            Some(size)
        };
        create(dir, "new.qcow2", size, options).unwrap();
        let ours = std::fs::read(dir.join("new.qcow2")).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{args}");
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{args}");
        folder.img("check -q new.qcow2");
        std::fs::remove_file(dir.join("new.qcow2")).unwrap();
        let _ = std::fs::remove_file(dir.join("data.bin"));
    }
}

#[test]
fn large_tables_are_laid_out_so_that_qemu_finds_nothing_to_complain_about() {
    for (size, cluster_size, refcount_bits) in [
        (60u64 << 30, 512, 16),
        (60 << 30, 512, 64),
        (1 << 50, 65_536, 64),
        (1 << 42, 4096, 1),
    ] {
        let folder = Folder::new();
        let options = Qcow2Options {
            cluster_size,
            refcount_bits,
            ..Qcow2Options::default()
        };
        create(folder.path(), "new.qcow2", Some(size), options).unwrap();
        let report = folder.img("check new.qcow2");
        assert!(report.contains("No errors were found"), "{report}");
        folder.run(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                "write -P 1 0 64k",
                "-c",
                "read -P 1 0 64k",
                "new.qcow2",
            ],
        );
    }
}

#[test]
fn create_refuses_what_exists_and_leaves_nothing_behind_where_it_fails() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("taken"), "x").unwrap();
    assert_eq!(
        create(folder.path(), "taken", Some(512), Qcow2Options::default())
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    let data_file = Some(("taken".to_owned(), false));
    let options = Qcow2Options {
        data_file,
        ..Qcow2Options::default()
    };
    assert_eq!(
        create(folder.path(), "new", Some(512), options)
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    let backing = Some(("missing".to_owned(), Format::Raw));
    let options = Qcow2Options {
        backing,
        ..Qcow2Options::default()
    };
    assert_eq!(
        create(folder.path(), "new", None, options).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let backing = Some(("taken".to_owned(), Format::Qcow2));
    let options = Qcow2Options {
        backing,
        ..Qcow2Options::default()
    };
    assert_eq!(
        create(folder.path(), "new", None, options).unwrap_err().kind(),
        ErrorKind::InvalidFormat
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// `base.raw` under `mid.qcow2` under `top.qcow2`, each with content of its own.
fn chain(folder: &Folder) {
    folder.img("create -q -f raw base.raw 1M");
    folder.run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 512k", "base.raw"]);
    folder.img("create -q -f qcow2 -b base.raw -F raw mid.qcow2");
    folder.run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 2 64k 64k", "mid.qcow2"],
    );
    folder.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    folder.run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 3 128k 64k", "top.qcow2"],
    );
}

#[test]
fn another_name_of_the_same_backing_is_settled_by_identity() {
    let folder = Folder::new();
    let dir = folder.path();
    chain(&folder);
    let whole = dir.join("mid.qcow2");
    let view = relink(
        dir,
        "top.qcow2",
        Some((whole.to_str().unwrap(), Format::Qcow2)),
        Safety::Checked,
    )
    .unwrap();
    assert_eq!(view, ViewStays::SameBacking);
    assert!(
        folder
            .img("info top.qcow2")
            .contains(&format!("backing file: {}", whole.display()))
    );
    folder.img("check -q top.qcow2");
}

#[test]
fn another_backing_with_the_same_content_is_accepted_and_a_different_one_refused() {
    let folder = Folder::new();
    let dir = folder.path();
    chain(&folder);
    folder.img("convert -f qcow2 -O raw mid.qcow2 flat.raw");
    assert_eq!(
        relink(dir, "top.qcow2", Some(("flat.raw", Format::Raw)), Safety::Checked).unwrap(),
        ViewStays::SameContent
    );
    assert_eq!(
        refused(dir, "top.qcow2", Some(("base.raw", Format::Raw))),
        ErrorKind::ViewWouldChange
    );
    assert_eq!(refused(dir, "top.qcow2", None), ErrorKind::ViewWouldChange);
    // What the overlay covers itself does not count.
    folder.run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 9 64k 64k", "top.qcow2"],
    );
    assert_eq!(
        relink(dir, "top.qcow2", Some(("base.raw", Format::Raw)), Safety::Checked).unwrap(),
        ViewStays::SameContent
    );
    folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 1M", "top.qcow2"]);
    assert_eq!(
        relink(dir, "top.qcow2", None, Safety::Checked).unwrap(),
        ViewStays::SameContent
    );
    assert!(!folder.img("info top.qcow2").contains("backing file"));
}

#[test]
fn a_missing_backing_or_a_wrong_format_is_refused_unless_the_caller_answers_for_it() {
    let folder = Folder::new();
    let dir = folder.path();
    chain(&folder);
    assert_eq!(
        refused(dir, "top.qcow2", Some(("gone", Format::Raw))),
        ErrorKind::NotFound
    );
    assert_eq!(
        refused(dir, "top.qcow2", Some(("base.raw", Format::Qcow2))),
        ErrorKind::InvalidFormat
    );
    assert_eq!(
        refused(dir, "top.qcow2", Some(("mid.qcow2", Format::Raw))),
        ErrorKind::ViewWouldChange
    );
    assert_eq!(
        refused(dir, "top.qcow2", Some(("top.qcow2", Format::Qcow2))),
        ErrorKind::Loop
    );
    assert_eq!(
        refused(dir, "mid.qcow2", Some(("top.qcow2", Format::Qcow2))),
        ErrorKind::Loop
    );
    std::fs::create_dir(dir.join("moved")).unwrap();
    std::fs::rename(dir.join("mid.qcow2"), dir.join("moved/mid.qcow2")).unwrap();
    std::fs::rename(dir.join("base.raw"), dir.join("moved/base.raw")).unwrap();
    assert_eq!(
        refused(dir, "top.qcow2", Some(("moved/mid.qcow2", Format::Qcow2))),
        ErrorKind::ViewWouldChange
    );
    let view = relink(
        dir,
        "top.qcow2",
        Some(("moved/mid.qcow2", Format::Qcow2)),
        Safety::Unsafe,
    )
    .unwrap();
    assert_eq!(view, ViewStays::NotChecked);
    folder.img("compare -q -f qcow2 -F qcow2 top.qcow2 top.qcow2");
}

#[test]
fn an_unrecorded_format_is_recorded_where_it_is_the_one_that_probing_finds() {
    let folder = Folder::new();
    let dir = folder.path();
    chain(&folder);
    folder.forget_format("top.qcow2");
    let policy = Policy::libvirt();
    assert_eq!(
        detect(&Start::at(dir.join("top.qcow2"), None), &policy)
            .broken()
            .unwrap()
            .error
            .kind(),
        ErrorKind::FormatUnknown
    );
    assert_eq!(
        refused(dir, "top.qcow2", Some(("mid.qcow2", Format::Raw))),
        ErrorKind::ViewWouldChange
    );
    let view = relink(
        dir,
        "top.qcow2",
        Some(("mid.qcow2", Format::Qcow2)),
        Safety::Checked,
    )
    .unwrap();
    assert_eq!(view, ViewStays::SameBacking);
    assert!(
        detect(&Start::at(dir.join("top.qcow2"), None), &policy)
            .broken()
            .is_none()
    );
    folder.img("check -q top.qcow2");
}

#[test]
fn an_image_in_use_is_not_written() {
    let folder = Folder::new();
    let dir = folder.path();
    chain(&folder);
    let _held = catena_storage::LocalFile::open(
        dir.join("top.qcow2"),
        &catena_storage::OpenOptions::new().write(true),
    )
    .unwrap();
    let whole = dir.join("mid.qcow2");
    assert_eq!(
        refused(dir, "top.qcow2", Some((whole.to_str().unwrap(), Format::Qcow2))),
        ErrorKind::Locked
    );
}

#[test]
fn a_comparison_can_be_stopped() {
    struct Stop;
    impl Observer for Stop {
        fn progress(&self, _: u64, _: u64) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let folder = Folder::new();
    let dir = folder.path();
    chain(&folder);
    let request = relink::Request {
        image: dir.join("top.qcow2"),
        backing: None,
        safety: Safety::Checked,
    };
    assert_eq!(
        relink::plan(&request, &Policy::libvirt(), &Stop)
            .unwrap_err()
            .kind(),
        ErrorKind::Cancelled
    );
}
