//! `catena access`, on chains that qemu-img made, for a user who is nobody.

use crate::common::Images;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

const USER: &str = "54321:54321";

/// base.raw <- top of that name, each for its owner alone.
fn chain(top: &str) -> Images {
    let images = Images::new();
    images.img("create -q -f raw base.raw 1M");
    images.run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top],
    );
    for name in ["base.raw", top] {
        mode(&images, name, 0o600);
    }
    mode(&images, ".", 0o755);
    images
}

fn mode(images: &Images, name: &str, mode: u32) {
    std::fs::set_permissions(images.file(name), std::fs::Permissions::from_mode(mode)).unwrap();
}

fn facts(images: &Images, name: &str) -> (u32, u32, u32) {
    let metadata = images.file(name).metadata().unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

fn opens(images: &Images, name: &str, mode: &str) -> bool {
    Command::new("setpriv")
        .args([
            "--reuid",
            "54321",
            "--regid",
            "54321",
            "--clear-groups",
            "sh",
            "-c",
        ])
        .arg(format!("exec 3{mode}\"$0\""))
        .arg(images.file(name))
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[test]
fn tells_what_libvirt_grants_and_what_stands_in_the_way_then() {
    let images = chain("top.qcow2");
    let words = [
        "access",
        "top.qcow2",
        "-f",
        "qcow2",
        "--user",
        USER,
        "--output",
        "json",
    ];
    let answer = images.catena(&words);
    assert_eq!(answer.status, 0, "{answer:?}");
    let json = answer.json();
    assert_eq!(
        (&json["accessible"], &json["accessible_now"]),
        (&true.into(), &false.into())
    );
    let files = json["disks"][0]["files"].as_array().unwrap();
    assert_eq!(
        (files[0]["access"].as_str(), files[1]["access"].as_str()),
        (Some("read-write"), Some("read"))
    );
    for file in files {
        assert_eq!(
            (&file["owner"]["uid"], &file["owner_now"]["uid"]),
            (&54_321.into(), &0.into())
        );
        assert_eq!(file["started"], serde_json::json!([]));
        assert_eq!(file["now"][0]["path"], file["path"]);
    }
    assert_eq!(
        (&files[0]["lease"], &files[1]["lease"]),
        (&"exclusive".into(), &"none".into())
    );
    // What libvirt does not change stands in its way.
    mode(&images, ".", 0o700);
    let answer = images.catena(&words);
    let what = answer.json()["disks"][0]["files"][0]["started"][0]["what"].clone();
    assert_eq!(
        (answer.status, what),
        (
            1,
            format!("the directory '{}' lacks x", images.path().display()).into()
        )
    );
    let text = images.catena(&["access", "top.qcow2", "-f", "qcow2", "--user", USER]);
    assert!(
        text.out.contains("started   cannot be opened: the directory"),
        "{}",
        text.out
    );
    mode(&images, ".", 0o755);
    let fixed = [&words[..], &["--dynamic-ownership", "no"]].concat();
    assert_eq!(images.catena(&fixed).status, 1);
}

#[test]
fn fragments_are_quoted_for_whoever_reads_them() {
    let name = "it's [a] \"top\"\n.qcow2";
    let images = chain(name);
    let form = |form: &str| {
        images
            .catena(&["access", name, "-f", "qcow2", "--user", USER, "--output", form])
            .out
    };
    let rules = form("apparmor");
    assert!(
        rules.contains("# no rule for"),
        "libvirt's helper takes no quotes: {rules}"
    );
    assert!(
        rules.contains("/base.raw\" rk,\n") && rules.contains("/base.raw\" w,\n"),
        "{rules}"
    );
    assert_eq!(
        form("selinux")
            .lines()
            .filter(|line| line.starts_with("chcon "))
            .count(),
        2
    );
    // A shell that is given the commands does what --apply does.
    for (form_, after) in [("chown", (54_321, 54_321, 0o600)), ("setfacl", (0, 0, 0o660))] {
        let images = chain(name);
        let script = images
            .catena(&["access", name, "-f", "qcow2", "--user", USER, "--output", form_])
            .out;
        images.run("bash", &["-e", "-c", &script]);
        assert_eq!(facts(&images, name), after, "{script}");
        assert!(
            opens(&images, name, "<>") && opens(&images, "base.raw", "<"),
            "{script}"
        );
        assert!(!opens(&images, "base.raw", ">>"), "{script}");
    }
}

#[test]
fn applies_what_is_lacking_and_puts_it_back() {
    for means in ["dac", "acl"] {
        let images = chain("top.qcow2");
        let before = images.run("getfacl", &["-R", "-n", "."]);
        let words = [
            "access",
            "top.qcow2",
            "-f",
            "qcow2",
            "--user",
            USER,
            "--apply",
            means,
        ];
        let dry = images.catena(&[&words[..], &["--dry-run"]].concat());
        assert_eq!(
            (dry.status, images.run("getfacl", &["-R", "-n", "."])),
            (0, before.clone())
        );
        let done = images.catena(&words);
        assert_eq!(done.status, 0, "{done:?}");
        assert!(
            done.out.starts_with(&dry.out) && done.out.contains("--undo catena-access-undo.json"),
            "{done:?}"
        );
        assert!(opens(&images, "top.qcow2", "<>") && opens(&images, "base.raw", "<"));
        assert!(!opens(&images, "base.raw", ">>"));
        assert_eq!(facts(&images, "catena-access-undo.json").2, 0o600);
        // The way back of something else is not written over.
        mode(&images, ".", 0o700);
        let again = images.catena(&[
            "access",
            "top.qcow2",
            "-f",
            "qcow2",
            "--user",
            "54322:54322",
            "--apply",
            means,
        ]);
        assert!(
            again.status == 1 && again.err.contains("--undo-file"),
            "{again:?}"
        );
        mode(&images, ".", 0o755);
        let undone = images.catena(&["access", "--undo", "catena-access-undo.json"]);
        assert_eq!(undone.status, 0, "{undone:?}");
        assert_eq!(images.run("getfacl", &["-R", "-n", "."]), before);
    }
}

#[test]
fn a_change_that_was_cut_off_goes_back_and_what_others_changed_stays() {
    let images = chain("top.qcow2");
    let words = [
        "access",
        "top.qcow2",
        "-f",
        "qcow2",
        "--user",
        USER,
        "--apply",
        "dac",
    ];
    assert_eq!(images.catena(&words).status, 0);
    // As if the second object had not been reached, and the first only half.
    std::os::unix::fs::chown(images.file("base.raw"), Some(0), Some(0)).unwrap();
    mode(&images, "base.raw", 0o600);
    mode(&images, "top.qcow2", 0o600);
    let saved = std::fs::read(images.file("catena-access-undo.json")).unwrap();
    assert_eq!(
        images
            .catena(&["access", "--undo", "catena-access-undo.json"])
            .status,
        0
    );
    assert_eq!(
        (facts(&images, "base.raw"), facts(&images, "top.qcow2")),
        ((0, 0, 0o600), (0, 0, 0o600))
    );
    // Somebody else's change, and somebody else's file.
    mode(&images, "base.raw", 0o644);
    std::fs::remove_file(images.file("top.qcow2")).unwrap();
    std::fs::write(images.file("top.qcow2"), "").unwrap();
    std::fs::write(images.file("undo"), saved).unwrap();
    let undone = images.catena(&["access", "--undo", "undo"]);
    assert_eq!(
        (undone.status, undone.out.matches("left as it is").count()),
        (1, 2),
        "{undone:?}"
    );
    assert_eq!(facts(&images, "base.raw"), (0, 0, 0o644));
    assert!(images.file("undo").exists());
}

#[test]
fn a_domain_tells_who_runs_it() {
    let images = chain("top.qcow2");
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>",
        images.file("top.qcow2").display()
    );
    let label = "<seclabel type='static' model='dac' relabel='no'><label>+1234:+5678</label></seclabel>";
    let text = format!("<domain type='qemu'><name>vm</name><devices>{disk}</devices>{label}</domain>");
    std::fs::write(images.file("vm.xml"), text).unwrap();
    let words = ["access", "--domain", "vm.xml", "--user", USER, "--output", "json"];
    let json = images.catena(&words).json();
    assert_eq!(json["user"]["uid"], 1234);
    let file = &json["disks"][0]["files"][0];
    assert_eq!(file["owner_kept"], "the domain's <seclabel> says so");
    assert_eq!(json["disks"][1]["no_chain"], "the drive is empty");
    assert_eq!(
        images
            .catena(&["access", "--domain", "vm.xml", "--disk", "vdz", "--user", USER])
            .status,
        1
    );
}
