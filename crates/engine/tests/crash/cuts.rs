//! Cuts at every point of a history.

use std::process::Command;

use catena_engine::StorageBytes;
use catena_format::qcow2::Header;
use catena_testkit::storage::{Content, Shared};
use catena_testkit::{Folder, oracle};

use crate::history::History;
use crate::layouts::{self, Layout};

/// Cuts that each of the tests here makes at least.
const CUTS: usize = 15_000;
/// Steps of a history.
const STEPS: u64 = 60;
/// Cuts of a history.
const CUTS_OF_HISTORY: usize = 700;
/// Every so many cuts, QEMU is asked as well.
const ASK_QEMU_EVERY: usize = 400;

/// How many cuts a test makes that usually makes so many, and the seed of its first history.
pub fn effort(usual: usize) -> (usize, u64) {
    match std::env::var("CATENA_CRASH_CUTS") {
        // Eight tests share them.
        Ok(cuts) => (cuts.parse::<usize>().unwrap().div_ceil(8), 1 << 32),
        Err(_) => (usual, 0),
    }
}

fn cut(layouts: &[Layout]) {
    let (wanted, first_seed) = effort(CUTS);
    let (mut cuts, mut asked) = (0, 0);
    let mut seed = first_seed;
    while cuts < wanted {
        for layout in layouts {
            let mut history = History::begin(*layout, seed);
            history.go(STEPS);
            history.check_now();
            for cut in history.log.cuts(seed, CUTS_OF_HISTORY) {
                if let Err(why) = history.verify(&cut) {
                    let step = cut.reached.unwrap_or(0);
                    panic!(
                        "seed {seed}, {}, cut after step {step}: {why}\n{:?}\n{}",
                        layout.name,
                        cut.way,
                        history.done.join("\n")
                    );
                }
                cuts += 1;
                if cuts % ASK_QEMU_EVERY == 0 {
                    ask_qemu(&history, &cut.files);
                    asked += 1;
                }
            }
        }
        seed += 1;
    }
    eprintln!("{cuts} cuts, {asked} of them shown to QEMU");
    assert!(cuts >= wanted && asked >= wanted / ASK_QEMU_EVERY);
}

/// QEMU finds at worst leaks too, and reads the same.
fn ask_qemu(history: &History, files: &[Content]) {
    let folder = Folder::new();
    for (content, name) in files.iter().zip(["image.qcow2", "data"]) {
        content.save(&folder.file(name)).unwrap();
    }
    if let Some(size) = history.layout.backing {
        let store = Shared::from(files[0].clone());
        let header = Header::read(&StorageBytes::new(&store).unwrap()).unwrap();
        let name = String::from_utf8(header.backing.unwrap().name).unwrap();
        std::fs::write(folder.file(&name), layouts::pattern(0xbac_0000, 0, size)).unwrap();
    }
    // In that folder, since a data file is looked for in the current one. Leaks are an exit status.
    let output = Command::new("qemu-img")
        .current_dir(folder.path())
        .args(["check", "--output=json", "-f", "qcow2", "image.qcow2"])
        .output()
        .unwrap();
    let check: oracle::Check = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}: {}", history.told()));
    assert_eq!(
        (check.corruptions, check.check_errors),
        (0, 0),
        "{}",
        history.told()
    );
    folder.img("convert -f qcow2 -O raw image.qcow2 image.raw");
    let theirs = std::fs::read(folder.file("image.raw")).unwrap();
    let ours = crate::history::look(files, history.backing()).unwrap().disk;
    assert!(theirs == ours, "QEMU reads something else: {}", history.told());
}

#[test]
fn clusters_of_one_sector_survive_cuts() {
    cut(layouts::SMALLEST);
}

#[test]
fn clusters_of_few_sectors_survive_cuts() {
    cut(layouts::SMALL);
}

#[test]
fn extended_l2_entries_survive_cuts() {
    cut(layouts::EXTENDED);
}

#[test]
fn images_with_data_files_survive_cuts() {
    cut(layouts::DATA_FILES);
}

#[test]
fn images_with_snapshots_and_compressed_clusters_survive_cuts() {
    cut(layouts::USED);
}

#[test]
fn default_clusters_survive_cuts() {
    cut(layouts::DEFAULT);
}
