//! What is in the images: states, data files, sizes, ages, users, snapshots.

use crate::lab::{Lab, assert_at, one, two};
use catena::doctor::{Code, Options, Severity, examine_fully};
use catena::{Format, Policy, Start, detect};
use catena_format::qcow2::Extension;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

#[test]
fn a_data_file_that_went_is_an_error_and_linked_back() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o data_file=data.bin top.qcow2 1M");
    let finding = lab.finding("top.qcow2", Code::DataFileUnseen);
    assert_at(&finding, Severity::Note, 0, &lab.path("top.qcow2"));
    std::fs::create_dir(lab.path("store")).unwrap();
    std::fs::rename(lab.path("data.bin"), lab.path("store/data.bin")).unwrap();
    let policy = Policy::libvirt();
    let options = Options::new(&policy).search([lab.path("store")]);
    let found = examine_fully(&lab.chain("top.qcow2"), &options);
    let finding = one(&found, Code::DataFileMissing);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_data_file_without_a_name_is_an_error() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o data_file=data.bin top.qcow2 1M");
    lab.header("top.qcow2", |header| {
        header
            .extensions
            .retain(|extension| !matches!(extension, Extension::DataFile(_)));
    });
    let finding = lab.finding("top.qcow2", Code::DataFileUnnamed);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
}

#[test]
fn a_raw_data_file_that_is_too_short_is_a_warning() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o data_file=data.bin,data_file_raw=on top.qcow2 1M");
    lab.lacks("top.qcow2", Code::DataFileShort);
    lab.run("truncate", &["--size=512k", "data.bin"]);
    let finding = lab.finding("top.qcow2", Code::DataFileShort);
    assert_at(&finding, Severity::Warning, 0, &lab.path("data.bin"));
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_data_file_that_is_a_layer_as_well_is_an_error() {
    let lab = Lab::new();
    lab.img("create -q -f raw base.raw 1M");
    lab.img("create -q -f qcow2 -b base.raw -F raw -o data_file=data.bin top.qcow2 1M");
    let finding = lab.finding("top.qcow2", Code::DataFileUnseen);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    std::fs::remove_file(lab.path("data.bin")).unwrap();
    std::fs::hard_link(lab.path("base.raw"), lab.path("data.bin")).unwrap();
    let finding = lab.finding("top.qcow2", Code::DataFileShared);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    assert!(finding.cause.contains("is layer 1"), "{finding:#?}");
}

#[test]
fn sizes_that_differ_are_a_warning_where_data_is_cut_off_and_a_note_where_there_is_more() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 2M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 less.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 more.qcow2 3M");
    let finding = lab.finding("more.qcow2", Code::SizeDiffers);
    assert_at(&finding, Severity::Note, 0, &lab.path("more.qcow2"));
    let finding = lab.finding("less.qcow2", Code::SizeDiffers);
    assert_at(&finding, Severity::Warning, 0, &lab.path("less.qcow2"));
    assert!(finding.consequence.contains("1048576 bytes"), "{finding:#?}");
    lab.cure("less.qcow2", &finding);
}

#[test]
fn dirty_and_corrupt_images_are_found_and_repaired() {
    for (bit, code, severity) in [
        (1, Code::Dirty, Severity::Warning),
        (2, Code::Corrupt, Severity::Error),
    ] {
        let lab = two();
        for (layer, name) in ["top.qcow2", "base.qcow2"].into_iter().enumerate() {
            lab.patch(name, 79, &[bit]);
            let finding = lab.finding("top.qcow2", code);
            assert_at(&finding, severity, layer, &lab.path(name));
            lab.cure("top.qcow2", &finding);
        }
    }
}

#[test]
fn features_that_nobody_knows_are_an_error() {
    let lab = two();
    lab.patch("base.qcow2", 74, &[1]);
    let finding = lab.finding("top.qcow2", Code::UnknownFeature);
    assert_at(&finding, Severity::Error, 1, &lab.path("base.qcow2"));
    assert!(finding.cause.contains("bit 40"), "{finding:#?}");
}

#[test]
fn lazy_refcounts_of_a_backing_image_are_a_note() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o lazy_refcounts=on base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    lab.lacks("base.qcow2", Code::LazyRefcounts);
    let finding = lab.finding("top.qcow2", Code::LazyRefcounts);
    assert_at(&finding, Severity::Note, 1, &lab.path("base.qcow2"));
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_data_file_named_without_its_feature_bit_is_odd() {
    let lab = two();
    lab.header("top.qcow2", |header| {
        header
            .extensions
            .push(Extension::DataFile(b"/etc/shadow".to_vec()));
    });
    let finding = lab.finding("top.qcow2", Code::HeaderOdd);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
}

#[test]
fn a_file_cut_short_is_an_error() {
    let lab = two();
    let write = ["-f", "qcow2", "-c", "write 0 1M", "base.qcow2"];
    lab.run("qemu-io", &write);
    lab.lacks("top.qcow2", Code::Truncated);
    for (size, what) in [
        ("256k", "L2 tables"),
        ("192k", "L1 table"),
        ("100k", "refcount table"),
    ] {
        lab.run("truncate", &[&format!("--size={size}"), "base.qcow2"]);
        let finding = lab.finding("top.qcow2", Code::Truncated);
        assert_at(&finding, Severity::Error, 1, &lab.path("base.qcow2"));
        // Whichever of the tables is noticed first.
        assert!(finding.cause.contains("past the end"), "{what}: {finding:#?}");
    }
}

#[test]
fn encryption_is_told() {
    let lab = Lab::new();
    std::fs::write(lab.path("key"), "secret").unwrap();
    lab.img(
        "create -q -f qcow2 --object secret,id=s,file=key -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 1M",
    );
    let finding = lab.finding("luks.qcow2", Code::Encrypted);
    assert_at(&finding, Severity::Note, 0, &lab.path("luks.qcow2"));
    lab.img("create -q -f luks --object secret,id=s,file=key -o key-secret=s,iter-time=10 base.luks 1M");
    lab.img("create -q -u -f qcow2 -b base.luks -F raw top.qcow2 1M");
    let finding = lab.finding("top.qcow2", Code::LuksInRaw);
    assert_at(&finding, Severity::Warning, 1, &lab.path("base.luks"));
    for (method, severity) in [(1, Severity::Warning), (2, Severity::Error)] {
        let lab = two();
        lab.patch("base.qcow2", 35, &[method]);
        let finding = lab.finding("top.qcow2", Code::Encrypted);
        assert_at(&finding, severity, 1, &lab.path("base.qcow2"));
    }
}

#[test]
fn internal_snapshots_and_bitmaps_are_listed() {
    let lab = two();
    lab.img("snapshot -c before top.qcow2");
    lab.img("bitmap -f qcow2 --add top.qcow2 since-monday");
    let finding = lab.finding("top.qcow2", Code::InternalSnapshots);
    assert_at(&finding, Severity::Note, 0, &lab.path("top.qcow2"));
    assert!(
        finding.cause.ends_with("1 internal snapshot: 'before'"),
        "{finding:#?}"
    );
    let finding = lab.finding("top.qcow2", Code::Bitmaps);
    assert_at(&finding, Severity::Note, 0, &lab.path("top.qcow2"));
    assert!(
        finding.cause.ends_with("1 persistent bitmap: 'since-monday'"),
        "{finding:#?}"
    );
    lab.lacks("top.qcow2", Code::BitmapInconsistent);
}

#[test]
fn bitmaps_that_cannot_be_believed_are_warnings() {
    let lab = two();
    lab.img("bitmap -f qcow2 --add top.qcow2 killed");
    let mut writer = in_use(&lab, &["-f", "qcow2", "top.qcow2"]);
    // It is marked a moment after the image is locked.
    let start = Instant::now();
    while !lab
        .examine("top.qcow2")
        .iter()
        .any(|finding| finding.code == Code::BitmapInconsistent && finding.cause.contains("'killed'"))
    {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    let finding = lab.finding("top.qcow2", Code::BitmapInconsistent);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    assert!(finding.cause.contains("'killed'"), "{finding:#?}");
    lab.cure("top.qcow2", &finding);

    lab.img("bitmap -f qcow2 --add top.qcow2 stale");
    lab.patch("top.qcow2", 95, &[0]);
    let finding = lab.finding("top.qcow2", Code::BitmapInconsistent);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
}

#[test]
fn a_base_that_others_can_write_is_reported() {
    let lab = two();
    let set = |mode| {
        std::fs::set_permissions(lab.path("base.qcow2"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o644);
    lab.lacks("top.qcow2", Code::BaseWritable);
    set(0o646);
    let finding = lab.finding("top.qcow2", Code::BaseWritable);
    assert_at(&finding, Severity::Warning, 1, &lab.path("base.qcow2"));
    lab.cure("top.qcow2", &finding);
    lab.run("setfacl", &["-m", "u:12345:rw", "base.qcow2"]);
    let finding = lab.finding("top.qcow2", Code::BaseWritable);
    assert_at(&finding, Severity::Note, 1, &lab.path("base.qcow2"));
    assert!(finding.cause.contains("the user 12345"), "{finding:#?}");
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_base_newer_than_its_overlay_is_a_warning() {
    let lab = two();
    let later = SystemTime::now() + Duration::from_secs(300);
    let base = std::fs::File::options()
        .write(true)
        .open(lab.path("base.qcow2"))
        .unwrap();
    base.set_modified(later).unwrap();
    let finding = lab.finding("top.qcow2", Code::BaseNewer);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    assert!(
        finding.cause.contains("5 minutes") || finding.cause.contains("4 minutes"),
        "{finding:#?}"
    );
}

#[test]
fn a_parent_that_was_written_since_is_an_error_where_the_format_tells() {
    let lab = Lab::new();
    lab.img("create -q -f vmdk base.vmdk 1M");
    lab.img("create -q -f vmdk -b base.vmdk -F vmdk top.vmdk");
    lab.lacks("top.vmdk", Code::ParentChanged);
    lab.run("qemu-io", &["-f", "vmdk", "-c", "write 0 64k", "base.vmdk"]);
    let finding = lab.finding("top.vmdk", Code::ParentChanged);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.vmdk"));
    lab.lacks("top.vmdk", Code::BaseNewer);
}

/// A qemu-io that has an image open until it is killed.
fn in_use(lab: &Lab, args: &[&str]) -> Child {
    let child = Command::new("qemu-io")
        .args(args)
        .current_dir(lab.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    await_user(&lab.path(args.last().unwrap()));
    child
}

fn await_user(image: &Path) {
    let start = Instant::now();
    while catena_storage::holders(image).unwrap().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn who_has_an_image_open_is_told() {
    let lab = two();
    let mut writer = in_use(&lab, &["-f", "qcow2", "top.qcow2"]);
    await_user(&lab.path("base.qcow2"));
    let found = lab.examine("top.qcow2");
    let users: Vec<_> = found
        .iter()
        .filter(|finding| finding.code == Code::InUse)
        .collect();
    assert_eq!(users.len(), 2, "{found:#?}");
    assert_at(users[0], Severity::Note, 0, &lab.path("top.qcow2"));
    assert!(
        users[0].cause.contains(&format!("pid {}", writer.id())),
        "{users:#?}"
    );
    assert_at(users[1], Severity::Note, 1, &lab.path("base.qcow2"));
    assert!(users[1].cause.contains("being read"), "{users:#?}");
    writer.kill().unwrap();
    writer.wait().unwrap();
    lab.lacks("top.qcow2", Code::InUse);

    let mut writer = in_use(&lab, &["-f", "qcow2", "base.qcow2"]);
    let finding = lab.finding("top.qcow2", Code::BackingWritten);
    assert_at(&finding, Severity::Error, 1, &lab.path("base.qcow2"));
    writer.kill().unwrap();
    writer.wait().unwrap();
}

#[test]
fn what_cannot_be_read_is_an_error_that_says_why() {
    let lab = two();
    lab.patch("base.qcow2", 20, &[0, 0, 0, 60]);
    let finding = lab.finding("top.qcow2", Code::Unreadable);
    assert_at(&finding, Severity::Error, 1, &lab.path("base.qcow2"));
    assert!(finding.cause.contains("cluster size"), "{finding:#?}");
    let gone = detect(
        &Start::at(lab.path("gone"), Some(Format::Qcow2)),
        &Policy::libvirt(),
    );
    let policy = Policy::libvirt();
    let finding = one(&examine_fully(&gone, &Options::new(&policy)), Code::ImageMissing);
    assert_at(&finding, Severity::Error, 0, &lab.path("gone"));
}
