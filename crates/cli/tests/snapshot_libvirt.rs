//! `catena snapshot --domain NAME` of domains that a libvirt knows: beside libvirt's own snapshot, killed at many instants, and
//! started afterwards.
#![cfg(test)]

mod common;

use catena_testkit::libvirt::{Daemon, Guest};
use catena_virt::Document;
use common::Images;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const OVERLAYS: [&str; 3] = ["a.monday", "b.monday", "c.monday"];

/// Three disks with bytes of their own; `seen-vda.raw` and so on are what their guest sees.
fn images() -> Images {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 2M");
    images.io("qcow2", "base.qcow2", &["write -P 1 0 1M"]);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
    images.io("qcow2", "a.qcow2", &["write -P 2 512k 64k"]);
    images.img("create -q -f raw b.img 1M");
    images.io("raw", "b.img", &["write -P 3 0 128k"]);
    images.img("create -q -f qcow2 -o data_file=c.raw c 1M");
    images.io("qcow2", "c", &["write -P 4 64k 64k"]);
    for (disk, image, format) in [
        ("vda", "a.qcow2", "qcow2"),
        ("vdb", "b.img", "raw"),
        ("vdc", "c", "qcow2"),
    ] {
        images.img(&format!("convert -f {format} -O raw {image} seen-{disk}.raw"));
    }
    images
}

/// Each disk says its bus: of a domain where one does not, libvirt reorders the disks, and its own snapshot was seen to put an
/// overlay on another disk's image.
fn guest(images: &Images) -> Guest {
    let folder = images.path().display();
    Guest::with(format!(
        "<disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='{folder}/a.qcow2'/><target dev='vda' bus='virtio'/></disk>\
         <disk type='file'><source file='{folder}/b.img'/><target dev='vdb' bus='virtio'/></disk>\
         <disk type='file'><driver name='qemu' type='qcow2'/><source file='{folder}/c'/><target dev='vdc' bus='virtio'/></disk>\
         <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
    ))
}

fn virsh(daemon: &Daemon, commands: &str) -> String {
    daemon.virsh(commands).unwrap().unwrap()
}

/// What the domain starts with next time.
fn definition(daemon: &Daemon, name: &str) -> String {
    virsh(daemon, &format!("dumpxml --inactive {name}"))
}

/// The words that take it.
fn words(daemon: &Daemon, name: &str) -> Vec<String> {
    [
        "snapshot",
        "--domain",
        name,
        "--connect",
        &daemon.uri(),
        "--name",
        "monday",
    ]
    .map(str::to_owned)
    .into()
}

fn catena(images: &Images, words: &[String]) -> common::Answer {
    let answer = images.catena(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(answer.status, 0, "{words:?}: {answer:?}");
    answer
}

/// Whether the disks of the definition show their guest what they did, and libvirt starts it on them.
fn runs_and_shows_the_same(daemon: &Daemon, images: &Images, name: &str) {
    virsh(daemon, &format!("start --paused {name}; destroy {name}"));
    let document = Document::parse(definition(daemon, name)).unwrap();
    for disk in document.disks.iter().filter(|disk| !disk.readonly) {
        let active = disk.active().unwrap();
        let path = active.source().unwrap().path().unwrap().display();
        let format = active.real_format().as_str();
        images.img(&format!(
            "compare -q -f raw -F {format} seen-{}.raw {path}",
            disk.name()
        ));
    }
}

/// What a definition says of disks, wherever they are. libvirt puts those of a bus in another order whenever it copies them.
fn disks(images: &Images, definition: &str) -> Vec<String> {
    let text = definition.replace(&images.path().display().to_string(), "");
    let disks = text.split("<disk ").skip(1);
    let mut disks: Vec<_> = disks
        .map(|disk| disk.split("</disk>").next().unwrap().to_owned())
        .collect();
    disks.sort();
    disks
}

#[test]
fn the_definition_is_what_libvirts_own_snapshot_makes_of_it() {
    let daemon = Daemon::start().unwrap();
    let (ours, theirs) = (images(), images());
    daemon.define("ours", &guest(&ours));
    daemon.define("theirs", &guest(&theirs));
    virsh(&daemon, "snapshot-create-as theirs monday --disk-only");
    // Written before, for it has the domain as it was.
    let connect = daemon.uri();
    let taken = [
        "snapshot-xml",
        "ours",
        "--connect",
        &connect,
        "--name",
        "monday",
        "--taken",
    ];
    let taken = catena(&ours, &taken.map(str::to_owned)).out;
    catena(&ours, &words(&daemon, "ours"));
    assert_eq!(
        disks(&ours, &definition(&daemon, "ours")),
        disks(&theirs, &definition(&daemon, "theirs"))
    );
    for (images, name) in [(&ours, "ours"), (&theirs, "theirs")] {
        runs_and_shows_the_same(&daemon, images, name);
        for overlay in OVERLAYS {
            images.img(&format!("check -q {overlay}"));
        }
    }
    let shown = [
        "show",
        "--domain",
        "ours",
        "--connect",
        &connect,
        "--output",
        "json",
    ];
    let shown = catena(&ours, &shown.map(str::to_owned)).json();
    let views = |disk: usize| &shown["disks"][disk]["views"];
    assert!(
        (0..3).all(|disk| views(disk)["differences"] == serde_json::json!([])),
        "{shown:#}"
    );
    assert_eq!(views(0)["on_disk"].as_array().unwrap().len(), 3);
    // libvirt knows of no snapshot until it is told, and then what it would know of its own.
    let known = |name: &str| {
        virsh(&daemon, &format!("snapshot-list --name {name}"))
            .trim()
            .to_owned()
    };
    assert_eq!((known("ours").as_str(), known("theirs").as_str()), ("", "monday"));
    std::fs::write(ours.file("monday.xml"), taken).unwrap();
    ours.run("virt-xml-validate", &["monday.xml", "domainsnapshot"]);
    let file = ours.file("monday.xml");
    virsh(
        &daemon,
        &format!("snapshot-create ours --redefine {}", file.display()),
    );
    assert_eq!(known("ours"), "monday");
    let kept = |images: &Images, name: &str| {
        let text = virsh(&daemon, &format!("snapshot-dumpxml {name} monday"));
        let (own, domain) = text.split_once("<domain ").unwrap();
        let mut lines: Vec<_> = own.lines().map(|line| line.trim().to_owned()).collect();
        lines.retain(|line| !line.starts_with("<creationTime>"));
        lines.sort();
        let lines = lines.join("\n").replace(&images.path().display().to_string(), "");
        (lines, disks(images, domain))
    };
    assert_eq!(kept(&ours, "ours"), kept(&theirs, "theirs"));
    // A second time it has nothing to do.
    let again = catena(&ours, &words(&daemon, "ours"));
    assert!(again.out.contains("already"), "{}", again.out);
}

#[test]
fn killed_at_any_instant_the_domain_starts_and_the_same_command_finishes() {
    const INSTANTS: u32 = 8;
    let daemon = Daemon::start().unwrap();
    let images = images();
    daemon.define("vm", &guest(&images));
    let before = definition(&daemon, "vm");
    let words = words(&daemon, "vm");
    let begun = Instant::now();
    catena(&images, &words);
    let took = begun.elapsed();
    let now = || disks(&images, &definition(&daemon, "vm"));
    let after = now();
    std::fs::write(images.file("before.xml"), &before).unwrap();
    let before = disks(&images, &before);
    assert_ne!(before, after);
    let file = images.file("before.xml");
    for instant in 0..INSTANTS {
        virsh(&daemon, &format!("define {}", file.display()));
        for overlay in OVERLAYS {
            for name in [overlay.to_owned(), format!("{overlay}.catena-part")] {
                std::fs::remove_file(images.file(&name)).ok();
            }
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_catena"))
            .current_dir(images.path())
            .args(&words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let asleep = took * (INSTANTS + 3 * instant) / (4 * INSTANTS);
        std::thread::sleep(asleep.max(Duration::from_millis(1)));
        // It is not waited for yet, so its number is its own also when it has ended.
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        let finished = child.wait().unwrap().success();
        let found = now();
        assert!(
            found == after || (found == before && !finished),
            "{instant}: {found:?}"
        );
        runs_and_shows_the_same(&daemon, &images, "vm");
        catena(&images, &words);
        assert_eq!(now(), after, "{instant}");
    }
    runs_and_shows_the_same(&daemon, &images, "vm");
}

#[test]
fn a_domain_that_runs_is_refused_with_no_byte_changed() {
    let daemon = Daemon::start().unwrap();
    let images = images();
    daemon.define("vm", &guest(&images));
    let before = definition(&daemon, "vm");
    virsh(&daemon, "start --paused vm");
    let words = words(&daemon, "vm");
    let answer = images.catena(&words.iter().map(String::as_str).collect::<Vec<_>>());
    virsh(&daemon, "destroy vm");
    assert_eq!(answer.status, 1, "{answer:?}");
    assert!(answer.err.contains("domain 'vm' is paused"), "{}", answer.err);
    assert!(
        answer.err.contains("virsh snapshot-create-as vm --disk-only"),
        "{}",
        answer.err
    );
    assert_eq!(
        disks(&images, &definition(&daemon, "vm")),
        disks(&images, &before)
    );
    assert!(OVERLAYS.iter().all(|overlay| !images.file(overlay).exists()));
}
