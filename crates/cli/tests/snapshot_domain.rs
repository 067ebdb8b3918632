//! `catena snapshot --domain` and `catena snapshot-xml`: external snapshots of all disks of a domain, cut off at every step, and
//! started by libvirt.
#![cfg(test)]

mod common;

use catena_testkit::libvirt::Daemon;
use catena_virt::Document;
use common::{Answer, Images};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SNAPSHOT: [&str; 5] = ["snapshot", "--domain", "vm.xml", "--name", "monday"];

/// A domain of three disks with bytes of their own, one read only and an empty drive; `seen-vda.raw` and so on are what its
/// guest sees.
fn domain() -> Images {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 2M");
    images.io("qcow2", "base.qcow2", &["write -P 1 0 1M"]);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    images.io("qcow2", "a.qcow2", &["write -P 2 512k 64k"]);
    images.img("create -q -f raw b.img 1M");
    images.io("raw", "b.img", &["write -P 3 0 128k"]);
    images.img("create -q -f qcow2 -o data_file=c.raw c 1M");
    images.io("qcow2", "c", &["write -P 4 64k 64k"]);
    images.img("create -q -f raw fixed.img 1M");
    for (disk, image, format) in [
        ("vda", "a.qcow2", "qcow2"),
        ("vdb", "b.img", "raw"),
        ("vdc", "c", "qcow2"),
    ] {
        images.img(&format!("convert -f {format} -O raw {image} seen-{disk}.raw"));
    }
    let folder = images.path().display();
    let text = format!(
        r#"<?xml version="1.0"?>
<!-- kept -->
<domain type="qemu">
  <name>vm</name>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu"	type="qcow2" cache="none"/>
      <source file="{folder}/a.qcow2"/>
      <target dev="vda" bus="virtio"/>
    </disk>
    <disk type='file' device='disk'><source file='{folder}/b.img'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{folder}/c' startupPolicy='optional'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{folder}/fixed.img'/><target dev='vdd' bus='virtio'/><readonly/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
  </devices>
</domain>
"#
    );
    std::fs::write(images.file("vm.xml"), text).unwrap();
    images
}

fn text(images: &Images) -> String {
    std::fs::read_to_string(images.file("vm.xml")).unwrap()
}

/// What the document has after the snapshot.
fn expected(before: &str) -> String {
    before
        .replace("a.qcow2", "a.monday")
        .replace("b.img", "b.monday")
        .replace("/c'", "/c.monday'")
        .replace(
            "<disk type='file' device='disk'><source",
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source",
        )
}

/// Whether the disks that the document names show the guest what they did.
fn shows_the_same(images: &Images, when: &str) {
    let document = Document::parse(text(images)).unwrap();
    for disk in document.disks.iter().filter(|disk| !disk.readonly) {
        let active = disk.active().unwrap();
        let path = active.source().unwrap().path().unwrap();
        let format = active.real_format().as_str();
        let seen = format!("seen-{}.raw", disk.name());
        let compare = Command::new("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", format, &seen])
            .arg(path)
            .current_dir(images.path())
            .output()
            .unwrap();
        assert!(compare.status.success(), "{} {when}: {compare:?}", disk.name());
    }
}

fn done(images: &Images, words: &[&str]) -> Answer {
    let answer = images.catena(words);
    assert_eq!(answer.status, 0, "{words:?}: {answer:?}");
    answer
}

fn refused(images: &Images, words: &[&str]) -> String {
    let answer = images.catena(words);
    assert_eq!(answer.status, 1, "{words:?}: {answer:?}");
    answer.err
}

#[test]
fn every_disk_gets_an_overlay_and_the_document_changes_in_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let images = domain();
    let before = text(&images);
    for (name, mode) in [("vm.xml", 0o640), ("b.img", 0o400)] {
        std::fs::set_permissions(images.file(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let dry = done(&images, &[&SNAPSHOT[..], &["--dry-run"]].concat());
    assert_eq!(text(&images), before);
    assert!(!images.file("a.monday").exists());
    let told = done(&images, &SNAPSHOT);
    assert_eq!(told.out, dry.out);
    assert!(told.out.contains("a new overlay of"), "{}", told.out);
    assert!(
        told.out.contains("to go back: catena xml replace"),
        "{}",
        told.out
    );
    assert_eq!(text(&images), expected(&before));
    shows_the_same(&images, "afterwards");
    let mode = |name| std::fs::metadata(images.file(name)).unwrap().permissions().mode() & 0o777;
    // Nobody reads an overlay who could not read what it stands on; its owner writes it.
    assert_eq!((mode("vm.xml"), mode("b.monday")), (0o640, 0o600));
    assert!(!images.file("fixed.monday").exists() && !images.file("vm.xml.catena-part").exists());
    let again = done(&images, &SNAPSHOT);
    assert!(again.out.contains("already"), "{}", again.out);
    assert_eq!(text(&images), expected(&before));
    // What is printed leads back.
    for line in told
        .out
        .lines()
        .filter_map(|line| line.strip_prefix("to go back: "))
    {
        let (command, _) = line.split_once("; ").unwrap();
        let words: Vec<_> = command.split(' ').skip(1).collect();
        done(&images, &words);
    }
    shows_the_same(&images, "gone back");
    // Written since, it is another snapshot.
    std::fs::write(images.file("vm.xml"), expected(&before)).unwrap();
    images.io("qcow2", "a.monday", &["write -P 9 0 64k"]);
    let said = refused(&images, &SNAPSHOT);
    assert!(
        said.contains("external snapshot file for disk vda already exists"),
        "{said}"
    );
    // And the next one stands on it.
    done(
        &images,
        &["snapshot", "--domain", "vm.xml", "--name", "tuesday", "-q"],
    );
    assert_eq!(text(&images), expected(&before).replace(".monday", ".tuesday"));
}

#[test]
fn what_the_document_says_of_the_chain_it_says_of_the_images_below() {
    let images = domain();
    let folder = images.path().display().to_string();
    let stated = format!(
        "<backingStore type=\"file\">\n        <format type=\"qcow2\"/>\n        <source file=\"{folder}/base.qcow2\"/>\n        <backingStore/>\n      </backingStore>"
    );
    let store =
        format!("<dataStore type='file'><format type='raw'/><source file='{folder}/c.raw'/></dataStore>");
    let before = text(&images)
        .replace("a.qcow2\"/>", &format!("a.qcow2\"/>\n      {stated}"))
        .replace(
            "startupPolicy='optional'/>",
            &format!("startupPolicy='optional'>{store}</source>"),
        );
    std::fs::write(images.file("vm.xml"), &before).unwrap();
    done(&images, &SNAPSHOT);
    let after = text(&images);
    assert!(after.contains(&stated), "{after}");
    let document = Document::parse(after).unwrap();
    let names = |disk: &str| -> Vec<String> {
        let layers = &document.disk(disk).unwrap().layers;
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        layers
            .iter()
            .map(|layer| name(layer.source().unwrap().path().unwrap()))
            .collect()
    };
    assert_eq!(names("vda"), ["a.monday", "a.qcow2", "base.qcow2"]);
    assert_eq!(names("vdc"), ["c.monday", "c"]);
    let layers = &document.disk("vdc").unwrap().layers;
    assert!(layers[0].data_store.is_none() && layers[1].data_store.is_some());
    assert_eq!(layers[0].details.startup_policy.as_deref(), Some("optional"));
    let answer = images.catena(&["show", "--domain", "vm.xml", "--output", "json"]);
    for disk in answer.json()["disks"].as_array().unwrap() {
        let findings = disk["chain"]["findings"].as_array();
        let wrong = findings
            .into_iter()
            .flatten()
            .filter(|finding| finding["severity"] == "error");
        assert_eq!(wrong.count(), 0, "{disk:#}");
    }
    shows_the_same(&images, "afterwards");
}

/// Runs it and kills it after a while; whether it had finished.
fn killed(images: &Images, after: Duration) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_catena"))
        .current_dir(images.path())
        .args(SNAPSHOT)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    // It is not waited for yet, so its number is its own also when it has ended.
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap().success()
}

#[test]
fn killed_at_any_instant_the_domain_shows_the_same_and_it_is_finished_or_taken_back() {
    const INSTANTS: u32 = 12;
    let images = domain();
    let before = text(&images);
    let reset = || {
        for name in ["a", "b", "c"] {
            std::fs::remove_file(images.file(&format!("{name}.monday"))).ok();
        }
        std::fs::write(images.file("vm.xml"), &before).unwrap();
    };
    let left = || {
        let entries = std::fs::read_dir(images.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.contains("catena") || name.contains("monday"))
            .count()
    };
    let begun = Instant::now();
    done(&images, &SNAPSHOT);
    let took = begun.elapsed();
    for instant in 0..INSTANTS {
        reset();
        // The first half of the run is the system's, which loads the program.
        let after = took * (INSTANTS + 2 * instant) / (3 * INSTANTS);
        let finished = killed(&images, after);
        let when = format!("{after:?} of {took:?}");
        let now = text(&images);
        assert!(now == before || now == expected(&before), "{when}: {now}");
        assert!(!finished || now == expected(&before), "{when}");
        shows_the_same(&images, &when);
        // Where it was killed before it began, or after its end, there is nothing to resume.
        match instant % 3 {
            0 => {
                done(&images, &["resume"]);
                assert!(now == before || text(&images) == expected(&before), "{when}");
            }
            1 if !catena::ops::script::find(&[images.path()]).unwrap().is_empty() => {
                done(&images, &["resume", "--undo"]);
                assert_eq!((text(&images), left()), (before.clone(), 0), "{when}");
            }
            _ => {}
        }
        shows_the_same(&images, &format!("resumed after {when}"));
        done(&images, &SNAPSHOT);
        assert_eq!((text(&images), left()), (expected(&before), 3), "{when}");
        shows_the_same(&images, &format!("finished after {when}"));
    }
}

#[test]
fn libvirt_starts_the_domain_on_its_overlays() {
    let images = domain();
    // Where the images lie is all that libvirt's guest needs.
    done(&images, &SNAPSHOT);
    let after = text(&images);
    let from = after.find("<disk ").unwrap();
    let to = after.find("    <disk type='file' device='cdrom'>").unwrap();
    let started = Daemon::start()
        .unwrap()
        .detect_disk(after.get(from..to).unwrap())
        .unwrap();
    let at = |name: &str| {
        let path = images.file(name);
        started
            .find(path.to_str().unwrap())
            .unwrap_or_else(|| panic!("{name}: {started}"))
    };
    assert!(
        at("a.monday") < at("a.qcow2") && at("a.qcow2") < at("base.qcow2"),
        "{started}"
    );
    shows_the_same(&images, "after it ran");
}

#[test]
fn an_image_in_use_and_what_libvirt_refuses_are_refused_with_no_byte_changed() {
    let images = domain();
    let before = text(&images);
    let mut writer = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(images.file("b.img"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has the image open when it answers.
    writer.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
    writer.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let said = refused(&images, &SNAPSHOT);
    assert!(said.contains("b.img"), "{said}");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    for (words, sentence) in [
        (vec!["--disk", "vdz"], "no disk named 'vdz'"),
        (
            vec!["--disk", "vda", "--disk", "vda"],
            "disk 'vda' specified twice",
        ),
        (
            vec!["--disk", "sda,snapshot=external"],
            "cannot generate external snapshot name for disk 'sda' without source",
        ),
        (
            vec!["--disk", "vda,snapshot=internal"],
            "mixing internal and external targets for a snapshot is not yet supported",
        ),
        (
            vec!["--disk", "vda,driver=raw"],
            "external snapshot format for disk vda is unsupported: raw",
        ),
        (
            vec!["--disk", "vda=b.monday"],
            "cannot generate external snapshot name for disk 'vdb': collision with disk 'vda'",
        ),
        (
            vec!["--disk", "vda=b.img"],
            "external snapshot file for disk vda already exists and is not a block device",
        ),
    ] {
        let said = refused(&images, &[&SNAPSHOT[..], &words].concat());
        assert!(said.contains(sentence), "{words:?}: {said}");
        assert_eq!(text(&images), before);
        assert!(!images.file("a.monday").exists() && !images.file("c.monday").exists());
    }
    let all: Vec<_> = ["vda", "vdb", "vdc"]
        .map(|disk| format!("{disk},snapshot=no"))
        .into();
    let words: Vec<_> = all.iter().flat_map(|word| ["--disk", word.as_str()]).collect();
    let said = refused(&images, &[&SNAPSHOT[..], &words].concat());
    assert!(said.contains("nothing selected for snapshot"), "{said}");
}

#[test]
fn a_snapshot_is_written_as_libvirt_takes_it_and_looked_at() {
    let images = domain();
    let folder = images.path().display().to_string();
    for taken in [&[][..], &["--taken"]] {
        let words = [
            &[
                "snapshot-xml",
                "vm.xml",
                "--name",
                "monday",
                "--description",
                "a < b",
            ],
            taken,
        ]
        .concat();
        let written = done(&images, &words);
        std::fs::write(images.file("monday.xml"), &written.out).unwrap();
        images.run("virt-xml-validate", &["monday.xml", "domainsnapshot"]);
        for line in [
            "<name>monday</name>".to_owned(),
            "<description>a &lt; b</description>".to_owned(),
            format!(
                "<disk name='vda' snapshot='external' type='file'>\n      <driver type='qcow2'/>\n      <source file='{folder}/a.monday'/>"
            ),
            format!("<source file='{folder}/c.monday'/>"),
            "<disk name='vdd' snapshot='no'/>".to_owned(),
        ] {
            assert!(written.out.contains(&line), "{line}: {}", written.out);
        }
    }
    let check = ["snapshot-xml", "--check", "monday.xml", "--output", "json"];
    let checked = done(&images, &check).json();
    assert_eq!(checked["disks"][0]["exists"], false);
    // One stands on the disk's image, another on something else.
    images.img("create -q -f qcow2 -b a.qcow2 -F qcow2 a.monday");
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 b.monday");
    let checked = images.catena(&check);
    assert_eq!(checked.status, 1, "{checked:?}");
    let disks = &checked.json()["disks"];
    assert_eq!(
        (
            &disks[0]["exists"],
            disks[0]["findings"].as_array().unwrap().len()
        ),
        (&true.into(), 0)
    );
    assert_eq!(disks[1]["findings"][0]["code"], "xml-snapshot-base-differs");
    let human = images.catena(&["snapshot-xml", "--check", "monday.xml"]);
    assert!(
        human.out.contains("vda: ") && human.out.contains("error xml-snapshot-base-differs"),
        "{}",
        human.out
    );
}
