//! `catena export` and `import` as they are used: files, pipes, tar, full media and images in use.
use crate::common::{Answer, Images};
use crate::{chain, done, failed, shows_the_same};
use std::io::Read;
use std::process::{Command, Stdio};

fn shell(images: &Images, script: &str) -> Answer {
    let output = Command::new("sh")
        .current_dir(images.path())
        .env("CATENA", env!("CARGO_BIN_EXE_catena"))
        .args(["-c", script])
        .output()
        .unwrap();
    Answer::of(&output)
}

#[test]
fn a_chain_is_exported_checked_and_restored_to_any_point() {
    let images = chain();
    let made = done(&images, "export tuesday.qcow2 -o full.tar --output json").json();
    assert_eq!(made["layers"][0]["name"], "base.raw");
    assert_eq!(made["bytes"], images.file("full.tar").metadata().unwrap().len());
    let view = done(&images, "hash tuesday.qcow2");
    assert_eq!(format!("blake3:{}\n", made["view"].as_str().unwrap()), view.out);
    let checked = done(&images, "import --verify full.tar");
    assert!(
        checked
            .out
            .contains("base.raw <- monday.qcow2 <- tuesday.qcow2; every digest is right"),
        "{checked:?}"
    );
    let restored = done(&images, "import full.tar -o all --output json").json();
    assert_eq!(restored["top"], "all/tuesday.qcow2");
    assert_eq!(restored["view"], made["view"]);
    shows_the_same(&images, "all/tuesday.qcow2");
    done(&images, "import full.tar -o some --at monday.qcow2");
    images.img("compare -q monday.qcow2 some/monday.qcow2");
    assert!(!images.file("some/tuesday.qcow2").exists());
    let unknown = failed(&images, "import full.tar -o other --at friday.qcow2");
    assert!(unknown.err.contains("monday.qcow2"), "{unknown:?}");
    assert!(!images.file("other").exists());
}

#[test]
fn increments_follow_each_other() {
    let images = chain();
    done(&images, "export base.raw -f raw -o base.tar");
    done(
        &images,
        "export monday.qcow2 --since base.raw -o monday.tar --compress",
    );
    done(&images, "export tuesday.qcow2 --since 1 -o tuesday.tar");
    done(&images, "import base.tar monday.tar tuesday.tar -o restored");
    shows_the_same(&images, "restored/tuesday.qcow2");
    done(&images, "import tuesday.tar -o onto --onto monday.qcow2");
    shows_the_same(&images, "onto/tuesday.qcow2");
    let wrong = failed(&images, "import tuesday.tar -o wrong --onto base.raw -F raw");
    assert!(wrong.err.contains("shows its guest something else"), "{wrong:?}");
    let gap = failed(&images, "import base.tar tuesday.tar -o wrong");
    assert!(gap.err.contains("not the uppermost layer"), "{gap:?}");
    assert!(!images.file("wrong").exists());
}

#[test]
fn a_bundle_goes_through_a_pipe() {
    let images = chain();
    for compress in ["", "--compress"] {
        let script = format!(
            "\"$CATENA\" export tuesday.qcow2 -o - {compress} | \"$CATENA\" import - -o piped{compress}"
        );
        let answer = shell(&images, &script);
        assert_eq!(answer.status, 0, "{answer:?}");
        shows_the_same(&images, &format!("piped{compress}/tuesday.qcow2"));
    }
    let cut = shell(
        &images,
        "\"$CATENA\" export tuesday.qcow2 -o - | head -c 300000 | \"$CATENA\" import - -o cut",
    );
    assert_eq!(cut.status, 1, "{cut:?}");
    assert!(cut.err.contains("ends too early"), "{cut:?}");
    assert!(!images.file("cut").exists());
}

#[test]
fn tar_makes_a_chain_of_it_that_opens() {
    let images = chain();
    images.run("mkdir", &["elsewhere", "plain"]);
    images.img("create -q -f qcow2 -b ../monday.qcow2 -F qcow2 elsewhere/monday.qcow2");
    images.io("qcow2", "elsewhere/monday.qcow2", &["write -P 9 2M 64k"]);
    images.img("convert -O raw elsewhere/monday.qcow2 seen.raw");
    done(&images, "export elsewhere/monday.qcow2 -o full.tar");
    let listed = images.run("tar", &["tf", "full.tar"]);
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        [
            "manifest.json",
            "base.raw",
            "monday.qcow2",
            "monday-2.qcow2",
            "digests.json"
        ]
    );
    images.run("tar", &["xf", "full.tar", "-C", "plain"]);
    shows_the_same(&images, "plain/monday-2.qcow2");
    images.img("compare -q monday.qcow2 plain/monday.qcow2");
    // A hole stays one.
    let blocks = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        images.file(name).metadata().unwrap().blocks()
    };
    done(&images, "import full.tar -o restored");
    for folder in ["plain", "restored"] {
        assert!(blocks(&format!("{folder}/base.raw")) <= blocks("base.raw") + 16);
    }
}

#[test]
fn a_full_medium_leaves_nothing() {
    let images = chain();
    done(&images, "export tuesday.qcow2 -o full.tar");
    images.run("mkdir", &["small"]);
    let script = "unshare -rm sh -c 'mount -t tmpfs -o size=1m tmpfs small || exit 77
        \"$CATENA\" import full.tar -o small/restored; echo status $?; ls -A small
        \"$CATENA\" export tuesday.qcow2 -o small/full.tar; echo status $?; ls -A small'";
    let answer = shell(&images, script);
    if answer.status == 77 || answer.err.contains("unshare") {
        catena_testkit::not_tested(answer.err);
        return;
    }
    assert_eq!(answer.out, "status 1\nstatus 1\n", "{answer:?}");
    assert_eq!(
        answer.err.matches("No space left on device").count(),
        2,
        "{answer:?}"
    );
}

#[test]
fn an_image_that_a_guest_writes_is_refused_unless_it_is_shared() {
    let images = chain();
    let mut guest = Command::new("qemu-io")
        .current_dir(images.path())
        .args(["-f", "qcow2", "tuesday.qcow2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It asks for commands when it has the image open.
    guest.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let refused = images.catena(&["export", "tuesday.qcow2", "-o", "full.tar"]);
    let shared = images.catena(&["export", "-U", "tuesday.qcow2", "-o", "full.tar"]);
    guest.kill().unwrap();
    guest.wait().unwrap();
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("--force-share"), "{refused:?}");
    assert_eq!(shared.status, 0, "{shared:?}");
    done(&images, "import full.tar -o restored");
}

#[test]
fn what_is_there_is_not_replaced() {
    let images = chain();
    done(&images, "export tuesday.qcow2 -o full.tar");
    let before = std::fs::read(images.file("full.tar")).unwrap();
    failed(&images, "export monday.qcow2 -o full.tar");
    assert!(std::fs::read(images.file("full.tar")).unwrap() == before);
    let taken = failed(&images, "import full.tar -o .");
    assert!(taken.err.contains("there already"), "{taken:?}");
    shows_the_same(&images, "tuesday.qcow2");
    let dry = done(&images, "export monday.qcow2 -o other.tar --dry-run");
    assert!(dry.out.contains("base.raw <- monday.qcow2"), "{dry:?}");
    assert!(!images.file("other.tar").exists());
}

#[test]
fn an_overlay_knows_the_image_that_it_is_restored_onto() {
    let images = chain();
    images.run("mkdir", &["guests"]);
    done(&images, "create -b ../tuesday.qcow2 -F qcow2 guests/vm.qcow2");
    images.io("qcow2", "guests/vm.qcow2", &["write -P 6 2M 64k"]);
    images.img("convert -O raw guests/vm.qcow2 seen.raw");
    done(&images, "export guests/vm.qcow2 -o full.tar");
    done(&images, "export tuesday.qcow2 -o tuesday.tar");
    done(&images, "export guests/vm.qcow2 --since tuesday.qcow2 -o vm.tar");
    images.img("convert -O qcow2 tuesday.qcow2 flat.qcow2");
    done(&images, "export flat.qcow2 -o flat.tar");
    // The same image by another name, a copy of it, and another image that shows the same.
    for (folder, words) in [
        ("full", "full.tar"),
        ("copy", "tuesday.tar vm.tar"),
        ("flat", "flat.tar vm.tar"),
        ("onto", "vm.tar --onto flat.qcow2"),
    ] {
        done(&images, &format!("import {words} -o {folder}"));
        shows_the_same(&images, &format!("{folder}/vm.qcow2"));
        done(&images, &format!("compare -q {folder}/vm.qcow2 seen.raw -F raw"));
        // It still has a stamp, which notices a base that is written.
        let base = done(&images, &format!("show --output json {folder}/vm.qcow2")).json();
        let base = base["layers"][1]["path"].as_str().unwrap().to_owned();
        images.io("qcow2", &base, &["write -P 99 0 3M"]);
        let noticed = images.catena(&["compare", &format!("{folder}/vm.qcow2"), "seen.raw", "-F", "raw"]);
        assert_eq!(noticed.status, 2, "{folder}: {noticed:?}");
    }
}

#[test]
fn an_import_replaces_nothing() {
    let images = chain();
    done(&images, "export tuesday.qcow2 -o full.tar");
    done(&images, "import full.tar -o restored");
    images.io("raw", "restored/base.raw", &["write -P 8 0 64k"]);
    let before = std::fs::read(images.file("restored/base.raw")).unwrap();
    // Neither where another one was cut off.
    for left in ["restored/.catena-import-abc", "restored/.catena-import-def"] {
        let taken = failed(&images, "import full.tar -o restored");
        assert!(taken.err.contains("there already"), "{taken:?}");
        assert!(std::fs::read(images.file("restored/base.raw")).unwrap() == before);
        images.run("mkdir", &[left]);
    }
}

#[test]
fn what_a_killed_import_left_is_garbage_unless_somebody_works_there() {
    let images = chain();
    images.run("mkdir", &[".catena-import-abc"]);
    images.run("cp", &["monday.qcow2", ".catena-import-abc/half.qcow2"]);
    let held = std::fs::File::open(images.file(".catena-import-abc")).unwrap();
    held.lock().unwrap();
    let busy = done(&images, "gc . --yes");
    assert!(!busy.out.contains("half.qcow2"), "{busy:?}");
    drop(held);
    let found = done(&images, "gc .");
    assert!(found.out.contains("half.qcow2"), "{found:?}");
    assert!(images.file(".catena-import-abc/half.qcow2").exists());
    assert!(
        done(&images, "resume --list")
            .out
            .contains("was cut off before all was read")
    );
    done(&images, "gc . --yes");
    assert!(!images.file(".catena-import-abc").exists());
    images.run("mkdir", &[".catena-import-abc"]);
    done(&images, "resume");
    assert!(!images.file(".catena-import-abc").exists());
    shows_the_same(&images, "tuesday.qcow2");
}
