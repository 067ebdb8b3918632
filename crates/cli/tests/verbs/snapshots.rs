//! `catena snapshot IMAGE…` and `--all` as they are used: overlays over images, all or none.

use crate::common::Images;
use crate::{chain, done, failed, shows_the_same};
use std::process::{Command, Stdio};

const ALL: &str = "snapshot --all . --name noon";

/// A chain with a base, a disk with a data file, a text, a lone raw disk and an image in a folder below.
fn host() -> Images {
    let images = chain();
    images.run("mkdir", &["below"]);
    images.img("create -q -f qcow2 below/deep.qcow2 1M");
    images.img("create -q -f qcow2 -o data_file=blob.raw data.qcow2 1M");
    images.img("create -q -f raw lone.img 1M");
    images.img("create -q -f vmdk old.vmdk 1M");
    std::fs::write(images.file("notes.txt"), "not a disk").unwrap();
    images
}

fn overlays(images: &Images) -> Vec<String> {
    let mut names: Vec<_> = [".", "below"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(images.file(folder)).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("noon") || name.contains("catena"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_active_image_gets_an_overlay_that_records_it_by_its_name() {
    let images = host();
    let told = done(&images, &format!("{ALL} --dry-run"));
    assert!(told.out.contains("old.vmdk: left out"), "{told:?}");
    assert_eq!(told.out.lines().count(), 4, "{told:?}");
    assert_eq!(overlays(&images), [""; 0]);
    let made = done(&images, &format!("{ALL} --output json")).json();
    assert_eq!(
        overlays(&images),
        ["data.noon.qcow2", "deep.noon.qcow2", "tuesday.noon.qcow2"]
    );
    assert_eq!(made["overlays"].as_array().unwrap().len(), 3, "{made}");
    assert_eq!(made["overlays"][0]["there"], false);
    let info = images.img("info --output json below/deep.noon.qcow2");
    assert!(
        info.contains("\"backing-filename\": \"deep.qcow2\"")
            && info.contains("\"backing-filename-format\": \"qcow2\""),
        "{info}"
    );
    shows_the_same(&images, "tuesday.noon.qcow2");
    done(&images, "stamp --check tuesday.noon.qcow2");
    // Both move together.
    images.run("mv", &["below", "elsewhere"]);
    images.img("compare -q elsewhere/deep.qcow2 elsewhere/deep.noon.qcow2");
}

#[test]
fn a_lone_raw_file_is_a_disk_where_that_is_said() {
    let images = host();
    done(
        &images,
        &format!("{ALL} --raw lone.img --names {{file}}-{{name}}"),
    );
    assert!(overlays(&images).contains(&"lone.img-noon".to_owned()));
    let info = images.img("info --output json lone.img-noon");
    assert!(info.contains("\"backing-filename-format\": \"raw\""), "{info}");
    let needed = failed(&images, "snapshot --all . --name dusk --raw base.raw");
    assert!(needed.err.contains("nothing stands"), "{needed:?}");
    let nowhere = failed(&images, "snapshot --all . --names {name}/x");
    assert!(nowhere.err.contains("no name of a file"), "{nowhere:?}");
}

#[test]
fn images_that_are_named_get_one_each_or_nothing_is_done() {
    let images = host();
    let raw = failed(&images, "snapshot data.qcow2 lone.img --name noon");
    assert!(raw.err.contains("--raw"), "{raw:?}");
    let below = failed(&images, "snapshot monday.qcow2 tuesday.qcow2 --name noon");
    assert!(
        below.err.contains("monday.qcow2: an image stands on it"),
        "{below:?}"
    );
    let other = failed(&images, "snapshot data.qcow2 old.vmdk --name noon");
    assert!(other.err.contains("'vmdk'"), "{other:?}");
    failed(&images, "snapshot data.qcow2 nothing.qcow2 --name noon");
    assert_eq!(overlays(&images), [""; 0]);
    let words = "snapshot tuesday.qcow2 below/deep.qcow2 --raw lone.img --name noon";
    done(&images, words);
    assert_eq!(
        overlays(&images),
        ["deep.noon.qcow2", "lone.noon.qcow2", "tuesday.noon.qcow2"]
    );
    shows_the_same(&images, "tuesday.noon.qcow2");
    let again = done(&images, words);
    assert!(again.out.contains("3 overlays are there already"), "{again:?}");
    // What others stand on may get one more overlay.
    done(&images, "snapshot monday.qcow2 --name noon");
}

#[test]
fn what_is_missing_is_made_and_what_was_written_is_kept() {
    let images = host();
    done(&images, ALL);
    images.run("rm", &["below/deep.noon.qcow2"]);
    let told = done(&images, &format!("{ALL} --output json")).json();
    let there: Vec<_> = { told["overlays"].as_array().unwrap().iter() }
        .map(|overlay| overlay["there"].as_bool().unwrap())
        .collect();
    assert_eq!(there.iter().filter(|there| !**there).count(), 1, "{told}");
    assert_eq!(
        overlays(&images),
        ["data.noon.qcow2", "deep.noon.qcow2", "tuesday.noon.qcow2"]
    );
    assert!(done(&images, ALL).out.contains("3 overlays are there already"));
    images.io("qcow2", "data.noon.qcow2", &["write -P 7 0 64k"]);
    let refused = failed(&images, ALL);
    assert!(refused.err.contains("--name"), "{refused:?}");
    done(&images, "snapshot --all . --name dusk");
    assert!(images.file("data.noon.dusk.qcow2").exists());
    assert!(!images.file("data.dusk.qcow2").exists());
}

#[test]
fn a_guest_that_runs_refuses_all_of_it() {
    let images = host();
    let mut guest = Command::new("qemu-io")
        .args(["-f", "qcow2", "below/deep.qcow2"])
        .current_dir(images.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The prompt comes when it has the image open.
    std::io::Read::read_exact(guest.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let refused = failed(&images, ALL);
    assert!(
        refused.err.contains("deep.qcow2") && refused.err.contains(&guest.id().to_string()),
        "{refused:?}"
    );
    assert_eq!(overlays(&images), [""; 0]);
    drop(guest.stdin.take());
    guest.wait().unwrap();
}
