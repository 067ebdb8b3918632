//! Several operations about the same files at once, a guest among them, and some killed on the way: whoever comes second is refused or
//! waits for nobody, and what is kept shows what it did.

use crate::common::Images;
use catena_testkit::dice::Dice;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROUNDS: u64 = 12;

/// What is begun in each round, several of them.
const COMMANDS: &[&str] = &[
    "prune top.qcow2 --keep-within 0h",
    "prune top.qcow2 --keep-last 2",
    "rm l1.qcow2 --merge",
    "rm l2.qcow2 --merge --trash",
    "rm l3.qcow2 --flatten",
    "move l1.qcow2 sub",
    "move sub/l1.qcow2 .",
    "rename l2.qcow2 renamed.qcow2",
    "stream top.qcow2 --base l0.qcow2",
    "stream l3.qcow2",
    "fork top.qcow2 -F qcow2 -n 3",
    "snapshot --all . --name noon",
    "stamp --chain top.qcow2",
    "heal . --yes",
    "gc . --kept-for 0h --yes",
    "import full.tar -o restored",
];

/// l0 <- l1 <- l2 <- l3 <- top, which shows what seen.raw holds.
fn images() -> Images {
    let images = Images::new();
    std::fs::create_dir(images.file("sub")).unwrap();
    let create = "create -q -f qcow2 -o cluster_size=4k";
    images.img(&format!("{create} l0.qcow2 8M"));
    images.io("qcow2", "l0.qcow2", &["write -P 9 0 4M"]);
    for (number, name) in ["l1.qcow2", "l2.qcow2", "l3.qcow2", "top.qcow2"]
        .iter()
        .enumerate()
    {
        images.img(&format!("{create} -b l{number}.qcow2 -F qcow2 {name}"));
        let (own, common) = (number * 512, number * 64 + 3000);
        images.io(
            "qcow2",
            name,
            &[
                &format!("write -P {} {own}k 300k", number + 1),
                &format!("write -P {} {common}k 1M", number + 20),
            ],
        );
    }
    images.img("convert -O raw top.qcow2 seen.raw");
    let told = images.catena(&["export", "-q", "l1.qcow2", "-o", "full.tar"]);
    assert_eq!(told.status, 0, "{told:?}");
    images
}

fn begin(images: &Images, program: &str, words: &[&str]) -> Child {
    Command::new(program)
        .current_dir(images.path())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn operations_that_meet_on_the_same_files_lose_nothing() {
    for seed in 0..ROUNDS {
        let mut dice = Dice::new(seed);
        let images = images();
        let catena = env!("CARGO_BIN_EXE_catena");
        let mut running = Vec::new();
        for _ in 0..dice.within(2..5) {
            let words: Vec<_> = dice.one_of(COMMANDS).split(' ').collect();
            running.push(begin(&images, catena, &words));
            std::thread::sleep(Duration::from_millis(dice.within(0..20)));
        }
        if dice.chance(60) {
            // A guest that writes what is there.
            let words = ["-f", "qcow2", "-c", "write -P 23 3200k 64k", "top.qcow2"];
            running.push(begin(&images, "qemu-io", &words));
        }
        for mut child in running {
            if dice.chance(40) {
                std::thread::sleep(Duration::from_millis(dice.within(0..30)));
                // It is not waited for yet, so its number is its own also when it has ended.
                kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
            }
            child.wait().unwrap();
        }
        images.img("compare -q -f raw -F qcow2 seen.raw top.qcow2");
        // What was killed goes on, one after the other; each of them may find that another one has been at its files.
        let resumed = images.catena(&["resume", ".", "sub"]);
        let left = images.catena(&["resume", "--list", ".", "sub"]);
        images.img("compare -q -f raw -F qcow2 seen.raw top.qcow2");
        let whole = images.catena(&["show", "top.qcow2", "-f", "qcow2"]);
        assert_eq!(whole.status, 0, "seed {seed}: {whole:?} {resumed:?} {left:?}");
        for entry in std::fs::read_dir(images.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".qcow2") {
                if name.starts_with("top") {
                    // Overlays that were made of it, too.
                    images.img(&format!("compare -q -f raw -F qcow2 seen.raw {name}"));
                }
                // What was killed may have left clusters that nothing refers to, and nothing worse.
                let status = begin(&images, "qemu-img", &["check", &name]).wait().unwrap();
                assert!(
                    matches!(status.code(), Some(0 | 3)),
                    "seed {seed}: {name}: {status}"
                );
            }
        }
    }
}
