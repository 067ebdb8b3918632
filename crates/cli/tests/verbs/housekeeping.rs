//! `rm`, `prune` and `gc`: what goes, and that nothing goes with it.

use crate::common::Images;
use crate::{chain, done, failed};
use serde_json::Value;

#[test]
fn a_base_is_removed_once_its_overlay_has_what_it_held() {
    let images = chain();
    let said = failed(&images, "rm monday.qcow2").err;
    assert!(said.contains("it is needed by 'tuesday.qcow2'"), "{said}");
    assert!(said.contains("--merge"), "{said}");
    let said = done(&images, "rm monday.qcow2 --merge --dry-run").out;
    assert!(said.contains("pull what lies above"), "{said}");
    assert!(images.path().join("monday.qcow2").exists());
    done(&images, "rm monday.qcow2 --merge --trash");
    assert!(!images.path().join("monday.qcow2").exists());
    images.img("compare -f raw -F qcow2 seen.raw tuesday.qcow2");
    // There is nothing to finish, and nothing to remove.
    failed(&images, "rm monday.qcow2 --merge --trash");
    let report: Value =
        serde_json::from_str(&done(&images, "gc . --kept-for 0h --yes --output json").out).unwrap();
    assert_eq!(report["found"][0]["why"], "trash");
    assert_eq!(report["found"][0]["deleted"], true);
    assert!(!images.path().join(".catena-trash").exists());
}

#[test]
fn overlays_in_the_folders_around_hold_on_to_what_they_stand_on() {
    let images = Images::new();
    std::fs::create_dir(images.path().join("bases")).unwrap();
    images.img("create -q -f qcow2 bases/base.qcow2 1M");
    images.img("create -q -f qcow2 -b bases/base.qcow2 -F qcow2 vm.qcow2");
    for words in [
        "rm bases/base.qcow2",
        "why bases/base.qcow2",
        "children bases/base.qcow2",
    ] {
        let answer = images.catena(&words.split(' ').collect::<Vec<_>>());
        assert!(format!("{answer:?}").contains("vm.qcow2"), "{words}: {answer:?}");
    }
    failed(&images, "rm bases/base.qcow2");
    done(&images, "rename bases/base.qcow2 first.qcow2");
    images.img("check -q vm.qcow2");
    assert!(
        images
            .img("info vm.qcow2")
            .contains("backing file: bases/first.qcow2")
    );
    done(&images, "rm bases/first.qcow2 --merge");
    images.img("check -q vm.qcow2");
}

#[test]
fn a_chain_is_pruned_to_what_rules_keep() {
    let images = chain();
    let said = failed(&images, "prune tuesday.qcow2").err;
    assert!(said.contains("nothing is said about what to keep"), "{said}");
    let words = "prune tuesday.qcow2 --keep-within 0h --output json";
    let report: Value = serde_json::from_str(&done(&images, words).out).unwrap();
    let why: Vec<_> = report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["why"])
        .collect();
    assert_eq!(why, ["active", "goes", "kept: the base"]);
    images.img("compare -f raw -F qcow2 seen.raw tuesday.qcow2");
    assert!(
        images
            .img("info tuesday.qcow2")
            .contains("backing file: base.raw")
    );
    done(&images, "prune tuesday.qcow2 --keep-last 1");
}

#[test]
fn what_domains_do_not_need_is_told_and_deleted_only_when_asked() {
    let images = chain();
    images.img("create -q -f qcow2 lost.qcow2 1M");
    let disk = images.path().join("tuesday.qcow2");
    let xml = format!(
        "<disk type='file'><driver type='qcow2'/><source file='{}'/><target dev='vda'/></disk>",
        disk.display()
    );
    std::fs::write(images.path().join("guest.xml"), xml).unwrap();
    let said = done(&images, "gc . --domain guest.xml --yes").out;
    assert!(said.contains("lost.qcow2"), "{said}");
    assert!(images.path().join("lost.qcow2").exists());
    let said = failed(&images, "gc . --unneeded --yes").err;
    assert!(said.contains("--domain"), "{said}");
    done(&images, "gc . --domain guest.xml --unneeded --yes");
    assert!(!images.path().join("lost.qcow2").exists());
    images.img("compare -f raw -F qcow2 seen.raw tuesday.qcow2");
}

/// l0 <- … <- l4, with stamps and data, in two folders.
fn stamped() -> Images {
    let images = Images::new();
    std::fs::create_dir(images.path().join("upper")).unwrap();
    done(&images, "create l0.qcow2 -s 1M");
    images.io("qcow2", "l0.qcow2", &["write -P 1 0 600k"]);
    for (below, name) in [
        ("l0.qcow2", "l1.qcow2"),
        ("l1.qcow2", "l2.qcow2"),
        ("l2.qcow2", "l3.qcow2"),
        ("../l3.qcow2", "upper/l4.qcow2"),
    ] {
        done(&images, &format!("create {name} --backing {below} -F qcow2"));
        images.io("qcow2", name, &["write -P 2 64k 64k", "write -P 3 900k 32k"]);
    }
    images.img("convert -O raw upper/l4.qcow2 seen.raw");
    images
}

#[test]
fn what_is_pruned_or_removed_leaves_the_stamps_of_overlays_true() {
    for words in [
        "prune upper/l4.qcow2 --keep-last 1",
        "prune upper/l4.qcow2 --keep-last 1 --base",
        "rm l2.qcow2 --merge --in .",
        "rm l1.qcow2 l2.qcow2 --flatten",
        "stream l2.qcow2",
    ] {
        let images = stamped();
        done(&images, words);
        images.img("compare -f raw -F qcow2 seen.raw upper/l4.qcow2");
        // A base that is not what its overlay was made on would be refused.
        done(&images, "compare -f raw -F qcow2 seen.raw upper/l4.qcow2");
        let doctor = images.catena(&["doctor", "upper/l4.qcow2", "-f", "qcow2"]).out;
        assert!(!doctor.contains("base-changed"), "{words}: {doctor}");
    }
}

#[test]
fn a_domain_whose_image_is_not_known_leaves_nothing_unneeded() {
    let images = chain();
    let xml = "<disk type='volume'><driver type='qcow2'/><source pool='vms' volume='tuesday.qcow2'/>\
               <target dev='vda' bus='virtio'/></disk>";
    std::fs::write(images.path().join("guest.xml"), xml).unwrap();
    let said = failed(&images, "gc . --domain guest.xml --unneeded --yes").err;
    assert!(
        said.contains("the volume 'tuesday.qcow2' of the pool 'vms'"),
        "{said}"
    );
    assert!(images.path().join("tuesday.qcow2").exists());
}
