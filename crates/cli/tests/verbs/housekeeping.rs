//! `rm`, `prune` and `gc`: what goes, and that nothing goes with it.

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
