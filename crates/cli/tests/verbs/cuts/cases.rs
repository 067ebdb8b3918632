//! The operations.

use super::lab::{Case, Way};
use super::survives;
use crate::common::Images;

const ALL: &[Way] = &[Way::Resume, Way::Undo, Way::Again];

/// l0 <- l1 <- l2 <- l3 <- l4, each with something of its own.
fn chain(images: &Images) {
    let create = "create -q -f qcow2 -o cluster_size=4k";
    images.img(&format!("{create} l0.qcow2 256k"));
    images.io("qcow2", "l0.qcow2", &["write -P 100 0 32k"]);
    for number in 1..5 {
        let below = number - 1;
        images.img(&format!("{create} -b l{below}.qcow2 -F qcow2 l{number}.qcow2"));
        let own = format!("write -P {number} {}k 8k", number * 8);
        let far = format!("write -P {} {}k 8k", number + 50, number * 50);
        images.io("qcow2", &format!("l{number}.qcow2"), &[&own, &far]);
    }
}

#[test]
fn a_removal_that_merges() {
    survives(&Case {
        name: "rm --merge",
        words: "rm l1.qcow2 l2.qcow2 --merge",
        build: chain,
        kept: &[&["l0.qcow2"], &["l3.qcow2"], &["l4.qcow2"]],
        ways: ALL,
    });
}

#[test]
fn a_removal_that_flattens() {
    survives(&Case {
        name: "rm --flatten",
        words: "rm l2.qcow2 --flatten",
        build: chain,
        kept: &[&["l0.qcow2"], &["l1.qcow2"], &["l3.qcow2"], &["l4.qcow2"]],
        ways: ALL,
    });
}

#[test]
fn a_removal_to_the_trash() {
    survives(&Case {
        name: "rm --trash",
        words: "rm l1.qcow2 l2.qcow2 --merge --trash",
        build: chain,
        kept: &[&["l0.qcow2"], &["l3.qcow2"], &["l4.qcow2"]],
        ways: ALL,
    });
}

#[test]
fn pruning() {
    survives(&Case {
        name: "prune",
        words: "prune l4.qcow2 --keep-last 1",
        build: chain,
        kept: &[&["l0.qcow2"], &["l4.qcow2"]],
        ways: ALL,
    });
}

#[test]
fn a_move_within_a_file_system() {
    survives(&Case {
        name: "move",
        words: "move l0.qcow2 l1.qcow2 l2.qcow2 sub",
        build: |images| {
            chain(images);
            images.run("mkdir", &["sub"]);
        },
        kept: &[
            &["l0.qcow2", "sub/l0.qcow2"],
            &["l1.qcow2", "sub/l1.qcow2"],
            &["l2.qcow2", "sub/l2.qcow2"],
            &["l3.qcow2"],
            &["l4.qcow2"],
        ],
        ways: ALL,
    });
}

#[test]
fn a_move_to_another_file_system() {
    survives(&Case {
        name: "move across",
        words: "move --chain l4.qcow2 THERE",
        build: chain,
        kept: &[
            &["l0.qcow2", "THERE/l0.qcow2"],
            &["l1.qcow2", "THERE/l1.qcow2"],
            &["l2.qcow2", "THERE/l2.qcow2"],
            &["l3.qcow2", "THERE/l3.qcow2"],
            &["l4.qcow2", "THERE/l4.qcow2"],
        ],
        ways: ALL,
    });
}

#[test]
fn a_new_name() {
    survives(&Case {
        name: "rename",
        words: "rename l2.qcow2 new.qcow2",
        build: chain,
        kept: &[
            &["l0.qcow2"],
            &["l1.qcow2"],
            &["l2.qcow2", "new.qcow2"],
            &["l3.qcow2"],
            &["l4.qcow2"],
        ],
        ways: ALL,
    });
}

#[test]
fn sweeping_up() {
    survives(&Case {
        name: "gc",
        words: "gc . --kept-for 0h --used l4.qcow2 --unneeded --yes",
        build: |images| {
            chain(images);
            images.img("create -q -f qcow2 -b l2.qcow2 -F qcow2 unneeded.qcow2");
            images.img("create -q -f qcow2 -b unneeded.qcow2 -F qcow2 either.qcow2");
            images.run("mkdir", &["-p", ".catena-trash/2020-01-01T000000Z"]);
            images.img("create -q -f qcow2 .catena-trash/2020-01-01T000000Z/old.qcow2 1M");
            std::fs::write(images.file("new.qcow2.catena-part"), "never complete").unwrap();
        },
        kept: &[
            &["l0.qcow2"],
            &["l1.qcow2"],
            &["l2.qcow2"],
            &["l3.qcow2"],
            &["l4.qcow2"],
        ],
        // It looks nowhere where something was cut off.
        ways: &[Way::Resume, Way::Undo],
    });
}

/// Those that show what they did, whatever is made of them.
const CHAIN: &[&[&str]] = &[
    &["l0.qcow2"],
    &["l1.qcow2"],
    &["l2.qcow2"],
    &["l3.qcow2"],
    &["l4.qcow2"],
];

#[test]
fn healing() {
    survives(&Case {
        name: "heal",
        words: "heal . --yes",
        build: |images| {
            chain(images);
            images.img("create -q -f qcow2 -b l1.qcow2 -F qcow2 other.qcow2");
            images.catena(&["stamp", "-q", "--chain", "l4.qcow2"]);
            images.catena(&["stamp", "-q", "other.qcow2"]);
            images.run("mkdir", &["sub"]);
            images.run("mv", &["l0.qcow2", "l1.qcow2", "sub"]);
        },
        kept: &[&["sub/l0.qcow2"], &["sub/l1.qcow2"]],
        ways: ALL,
    });
}

#[test]
fn stamping() {
    survives(&Case {
        name: "stamp",
        words: "stamp --chain l4.qcow2",
        build: chain,
        kept: CHAIN,
        ways: ALL,
    });
}

#[test]
fn a_fork() {
    survives(&Case {
        name: "fork",
        words: "fork l4.qcow2 -F qcow2 -n 5",
        build: chain,
        kept: CHAIN,
        ways: ALL,
    });
}

#[test]
fn a_snapshot_of_all() {
    survives(&Case {
        name: "snapshot --all",
        words: "snapshot --all . --name noon",
        build: |images| {
            chain(images);
            images.run("mkdir", &["sub"]);
            images.img("create -q -f qcow2 -b ../l2.qcow2 -F qcow2 sub/other.qcow2");
            images.img("create -q -f qcow2 -o cluster_size=4k alone.qcow2 64k");
        },
        kept: &[
            &["l3.qcow2"],
            &["l4.qcow2"],
            &["sub/other.qcow2"],
            &["alone.qcow2"],
        ],
        ways: ALL,
    });
}

#[test]
fn a_snapshot_of_a_domain() {
    survives(&Case {
        name: "snapshot --domain",
        words: "snapshot --domain vm.xml --name noon",
        build: |images| {
            chain(images);
            images.img("create -q -f qcow2 -o cluster_size=4k data.qcow2 64k");
            let folder = images.path().display();
            let disk = |image: &str, name: &str| {
                format!(
                    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                     <source file='{folder}/{image}'/><target dev='{name}' bus='virtio'/></disk>"
                )
            };
            let disks = [disk("l4.qcow2", "vda"), disk("data.qcow2", "vdb")].concat();
            let text = format!("<domain type='qemu'><name>vm</name><devices>{disks}</devices></domain>\n");
            std::fs::write(images.file("vm.xml"), text).unwrap();
        },
        kept: &[&["l3.qcow2"], &["l4.qcow2"], &["data.qcow2"]],
        ways: ALL,
    });
}

#[test]
fn an_import() {
    survives(&Case {
        name: "import",
        words: "import full.tar -o restored",
        build: |images| {
            chain(images);
            let told = images.catena(&["export", "-q", "l2.qcow2", "-o", "full.tar"]);
            assert_eq!(told.status, 0, "{told:?}");
            images.run("rm", &["l3.qcow2", "l4.qcow2"]);
        },
        kept: &[&["l0.qcow2"], &["l1.qcow2"], &["l2.qcow2"]],
        ways: &[Way::Again],
    });
}
