//! Stamps, and images that have moved.

use super::{Images, done, failed};
use catena_storage::{LocalFile, LockMode, OpenOptions};
use serde_json::{Value, json};

/// base.qcow2 <- monday.qcow2 <- tuesday.qcow2, each made by us.
fn family() -> Images {
    let images = Images::new();
    images.img("create -q -f qcow2 base.qcow2 16M");
    images.io("qcow2", "base.qcow2", &["write -P 1 0 2M"]);
    for (name, base) in [("monday", "base"), ("tuesday", "monday")] {
        done(
            &images,
            &format!("create {name}.qcow2 --backing {base}.qcow2 -F qcow2"),
        );
        images.io("qcow2", &format!("{name}.qcow2"), &["write -P 2 1M 64k"]);
    }
    images
}

#[test]
fn a_changed_base_is_refused_told_and_accepted() {
    let images = family();
    let fine = done(&images, "stamp --chain --check tuesday.qcow2");
    assert!(!fine.out.contains("is not what it was"), "{fine:?}");
    // It is written by somebody who should not.
    images.io("qcow2", "base.qcow2", &["write -P 7 8M 64k"]);
    let refused = failed(&images, "convert -f qcow2 tuesday.qcow2 out.raw");
    assert!(
        refused.err.contains("not the one that this overlay was made on"),
        "{refused:?}"
    );
    assert!(refused.err.contains("--accept-base"), "{refused:?}");
    failed(&images, "stamp --chain --check tuesday.qcow2");
    let told = images.catena(&["stamp", "--chain", "--check", "--output", "json", "tuesday.qcow2"]);
    assert_eq!(told.status, 1);
    let words: Vec<_> = told.json()["overlays"]
        .as_array()
        .unwrap()
        .iter()
        .map(|overlay| overlay["stamped"].clone())
        .collect();
    assert_eq!(words[1], json!("changed"));
    let found = images
        .catena(&["doctor", "--output", "json", "tuesday.qcow2"])
        .json();
    assert!(found.to_string().contains("base-changed"));
    let shown = images.catena(&["show", "--output", "json", "tuesday.qcow2"]);
    assert!(shown.out.contains("base-changed"), "{shown:?}");
    failed(&images, "stamp monday.qcow2");
    done(&images, "hash -f qcow2 --accept-base tuesday.qcow2");
    done(&images, "qemu-img convert -f qcow2 -O raw tuesday.qcow2 out.raw");
    std::fs::write(
        images.path().join("policy.toml"),
        "[bases]\nchanged = \"accept\"\n",
    )
    .unwrap();
    done(&images, "hash -f qcow2 --policy policy.toml tuesday.qcow2");
    let plan = done(&images, "stamp --accept-base --dry-run monday.qcow2");
    assert!(plan.out.contains("base.qcow2' as it is"), "{plan:?}");
    failed(&images, "hash -f qcow2 tuesday.qcow2");
    done(&images, "stamp --accept-base monday.qcow2");
    done(&images, "hash -f qcow2 tuesday.qcow2");
    done(&images, "stamp --chain --remove tuesday.qcow2");
    let bare = done(&images, "stamp --check tuesday.qcow2");
    assert!(bare.out.contains("there is no stamp"), "{bare:?}");
    images.img("check -q -f qcow2 monday.qcow2");
}

#[test]
fn a_tree_tells_what_stands_on_a_changed_base() {
    let images = family();
    done(&images, "create empty.qcow2 --backing base.qcow2 -F qcow2");
    let of = |name: &str| {
        let told = images.catena(&["tree", ".", "--no-index", "--output", "json"]);
        let all = told.json()["images"].clone();
        let all = all.as_array().unwrap();
        let image = all.iter().find(|image| image["path"] == name).unwrap();
        (told.status, image["stamped"].clone())
    };
    assert_eq!(of("monday.qcow2"), (0, json!("same")));
    assert_eq!(of("base.qcow2"), (0, json!("not")));
    // Touched, and then changed.
    let base = std::fs::File::open(images.path().join("base.qcow2")).unwrap();
    base.set_modified(std::time::SystemTime::now()).unwrap();
    assert_eq!(of("monday.qcow2"), (0, json!("touched")));
    images.io("qcow2", "base.qcow2", &["write -P 7 8M 64k"]);
    assert_eq!(of("monday.qcow2"), (1, json!("changed")));
    assert_eq!(of("empty.qcow2"), (1, json!("emptied")));
    for form in ["human", "dot", "svg"] {
        let drawn = failed(&images, &format!("tree . --no-index --output {form}"));
        assert!(drawn.out.contains("not what it was"), "{form}: {drawn:?}");
    }
}

#[test]
fn a_full_stamp_notices_what_samples_do_not() {
    let images = Images::new();
    images.img("create -q -f raw base.raw 64M");
    done(&images, "create top.qcow2 --backing base.raw -F raw --no-stamp");
    assert!(done(&images, "stamp --check top.qcow2").out.contains("no stamp"));
    done(&images, "stamp --full top.qcow2");
    images.io("qcow2", "top.qcow2", &["write 0 64k"]);
    // Between two samples.
    images.io("raw", "base.raw", &["write -P 1 1548800 512"]);
    assert!(
        done(&images, "stamp --check top.qcow2")
            .out
            .contains("by its fingerprint")
    );
    let noticed = failed(&images, "stamp --check --full top.qcow2");
    assert!(
        noticed.out.contains("what it shows is not the same"),
        "{noticed:?}"
    );
    // It stays a full one.
    done(&images, "stamp top.qcow2");
    done(&images, "stamp --check --full top.qcow2");
}

#[test]
fn pruning_and_removing_leave_no_overlay_without_its_base() {
    let images = family();
    for (name, base) in [("wednesday", "tuesday"), ("thursday", "wednesday")] {
        done(
            &images,
            &format!("create {name}.qcow2 --backing {base}.qcow2 -F qcow2"),
        );
        images.io("qcow2", &format!("{name}.qcow2"), &["write -P 4 3M 64k"]);
    }
    let before = done(&images, "hash -f qcow2 thursday.qcow2").out;
    done(&images, "rm --merge tuesday.qcow2");
    assert_eq!(done(&images, "hash -f qcow2 thursday.qcow2").out, before);
    done(&images, "prune --keep-last 1 --base thursday.qcow2");
    assert_eq!(done(&images, "hash -f qcow2 thursday.qcow2").out, before);
}

#[test]
fn what_has_moved_is_found_by_its_stamp_and_else_told() {
    let images = family();
    let before = done(&images, "hash -f qcow2 tuesday.qcow2").out;
    std::fs::create_dir_all(images.path().join("guests")).unwrap();
    for folder in ["bases/old", "bases/new"] {
        std::fs::create_dir_all(images.path().join(folder)).unwrap();
    }
    // Another image of the base's name is there, too.
    images.img("create -q -f qcow2 bases/new/base.qcow2 16M");
    for (from, to) in [
        ("base.qcow2", "bases/old/golden.qcow2"),
        ("monday.qcow2", "bases/monday.qcow2"),
        ("tuesday.qcow2", "guests/tuesday.qcow2"),
    ] {
        std::fs::rename(images.path().join(from), images.path().join(to)).unwrap();
    }
    let heal = |words: &[&str]| images.catena(&[&["heal", "guests", "--in", "bases"], words].concat());
    let told = heal(&[]);
    assert_eq!(told.status, 3, "{told:?}");
    assert!(
        told.out.contains("bases/monday.qcow2") && told.out.contains("golden.qcow2"),
        "{told:?}"
    );
    let mended = heal(&["--yes"]);
    assert_eq!(mended.status, 0, "{mended:?}");
    let info = images.img("info --output=json guests/tuesday.qcow2");
    assert!(info.contains("\"../bases/monday.qcow2\""), "{info}");
    assert_eq!(heal(&[]).out, "nothing is missing\n");
    assert_eq!(done(&images, "hash -f qcow2 guests/tuesday.qcow2").out, before);
    images.img("check -q -f qcow2 guests/tuesday.qcow2");
}

#[test]
fn a_name_alone_is_taken_only_when_that_is_said_and_an_image_in_use_is_left() {
    let images = Images::new();
    std::fs::create_dir(images.path().join("new")).unwrap();
    images.img("create -q -f qcow2 base.qcow2 16M");
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 one.qcow2");
    images.img("create -q -f qcow2 -o data_file=one.data data.qcow2 16M");
    for name in ["base.qcow2", "one.data"] {
        let to = images.path().join("new").join(name);
        std::fs::rename(images.path().join(name), to).unwrap();
    }
    let doubtful = images.catena(&["heal", ".", "--yes"]);
    assert_eq!(doubtful.status, 1);
    assert!(doubtful.out.contains("--by-name takes it"), "{doubtful:?}");
    let named = images.catena(&["heal", ".", "--yes", "--by-name", "--output", "json"]);
    assert_eq!(named.status, 0, "{named:?}");
    let missing = named.json()["missing"].clone();
    assert_eq!(missing[0]["records"], json!("new/one.data"));
    assert_eq!(missing[1]["records"], json!("new/base.qcow2"));
    assert_eq!(missing[1]["by"], json!("name"));
    images.img("check -q -f qcow2 one.qcow2");
    images.img("check -q -f qcow2 data.qcow2");
    // Two of that name: nobody knows which.
    std::fs::create_dir(images.path().join("newer")).unwrap();
    std::fs::create_dir(images.path().join("newest")).unwrap();
    for folder in ["newer", "newest"] {
        std::fs::copy(
            images.path().join("new/base.qcow2"),
            images.path().join(folder).join("base.qcow2"),
        )
        .unwrap();
    }
    std::fs::remove_file(images.path().join("new/base.qcow2")).unwrap();
    let several = images.catena(&["heal", ".", "--yes", "--by-name"]);
    assert_eq!(several.status, 1);
    assert!(several.out.contains("each of these could be it"), "{several:?}");
}

/// A disk of 8 MiB with an MBR and no two sectors alike.
fn disk(images: &Images, name: &str, seed: u64) {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u8
    };
    let mut bytes: Vec<u8> = (0..8 << 20).map(|_| next()).collect();
    bytes[446..510].fill(0);
    bytes[446 + 4] = 0x83;
    bytes[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(images.path().join("disk.raw"), bytes).unwrap();
    images.img(&format!("convert -f raw -O qcow2 disk.raw {name}"));
    std::fs::remove_file(images.path().join("disk.raw")).unwrap();
}

/// What a guest does: small writes here and there.
fn used(images: &Images, name: &str) {
    let writes = ["512", "1M", "2100k", "3333k", "5M", "6004k", "7M"];
    let writes = writes.map(|at| format!("write -P 9 {at} 4k"));
    images.io("qcow2", name, &writes.each_ref().map(String::as_str));
}

fn moved(images: &Images, from: &str, to: &str) {
    let to = images.path().join(to);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::rename(images.path().join(from), to).unwrap();
}

/// What is missing, by the image that lacks it.
fn missing(images: &Images, words: &str, image: &str) -> Value {
    let told = images.catena(&words.split(' ').chain(["--output", "json"]).collect::<Vec<_>>());
    let told = told.json()["missing"].clone();
    let found = told.as_array().unwrap().iter().find(|one| one["image"] == image);
    found.unwrap().clone()
}

#[test]
fn without_a_stamp_a_name_is_believed_where_the_overlay_holds_what_it_copied() {
    let images = Images::new();
    disk(&images, "base.qcow2", 1);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 one.qcow2");
    used(&images, "one.qcow2");
    let before = done(&images, "hash -f qcow2 one.qcow2").out;
    moved(&images, "base.qcow2", "new/base.qcow2");
    // Another disk of that name contradicts.
    std::fs::create_dir(images.path().join("other")).unwrap();
    disk(&images, "other/base.qcow2", 2);
    let other = std::fs::File::open(images.path().join("other/base.qcow2")).unwrap();
    other.set_modified(std::time::UNIX_EPOCH).unwrap();
    let told = missing(&images, "heal .", "one.qcow2");
    assert_eq!(
        (&told["by"], &told["found"]),
        (&json!("name_and_content"), &json!("new/base.qcow2"))
    );
    assert_eq!(told["evidence"][0]["agreeing"], told["evidence"][0]["compared"]);
    assert_eq!(
        told["evidence"][0]["identifiers"],
        json!([{ "of": "mbr", "same": true }])
    );
    let alone = images.catena(&["heal", "one.qcow2", "--in", "other", "--by-name", "--yes"]);
    assert_eq!(alone.status, 1);
    assert!(
        alone.out.contains("the identifier of its mbr is another"),
        "{alone:?}"
    );
    // An older or newer state of the disk agrees as well: then it is not for us to say.
    images.img("convert -f qcow2 -O qcow2 new/base.qcow2 other/base.qcow2");
    images.io("qcow2", "other/base.qcow2", &["write -P 8 4M 64k"]);
    let several = images.catena(&["heal", ".", "--yes", "--by-name"]);
    assert_eq!(several.status, 1);
    assert!(several.out.contains("each of these could be it"), "{several:?}");
    assert!(
        several.out.contains("it was written after the image was"),
        "{several:?}"
    );
    // What was written later is not taken for its content alone.
    let later = missing(&images, "heal one.qcow2 --in other", "one.qcow2");
    assert_eq!(
        (&later["by"], &later["evidence"][0]["written_later"]),
        (&json!("name"), &json!(true))
    );
    std::fs::remove_dir_all(images.path().join("other")).unwrap();
    let mended = done(&images, "heal . --yes");
    assert!(mended.out.contains("by its name and content"), "{mended:?}");
    assert_eq!(done(&images, "hash -f qcow2 one.qcow2").out, before);
}

#[test]
fn what_has_another_name_is_told_with_what_speaks_for_it_and_not_taken() {
    let images = Images::new();
    disk(&images, "base.qcow2", 1);
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 one.qcow2");
    used(&images, "one.qcow2");
    let before = done(&images, "hash -f qcow2 one.qcow2").out;
    moved(&images, "base.qcow2", "golden.qcow2");
    disk(&images, "unrelated.qcow2", 3);
    let told = failed(&images, "heal . --yes --by-name");
    assert!(
        told.out
            .contains("this could be it: 'golden.qcow2' (7 of 7 pieces agree")
            && !told.out.contains("unrelated"),
        "{told:?}"
    );
    // As the help says.
    done(&images, "rebase --unsafe -b golden.qcow2 -F qcow2 one.qcow2");
    assert_eq!(done(&images, "hash -f qcow2 one.qcow2").out, before);
    assert_eq!(done(&images, "heal .").out, "nothing is missing\n");
}

#[test]
fn the_stamp_of_one_overlay_finds_the_base_of_others_and_a_lineage_is_followed() {
    let images = family();
    images.img("create -q -f qcow2 -b base.qcow2 -F qcow2 bare.qcow2");
    images.img("create -q -f qcow2 -b monday.qcow2 -F qcow2 second.qcow2");
    // Else the two would have the same fingerprint.
    images.io("qcow2", "tuesday.qcow2", &["write -P 4 5M 64k"]);
    let before = done(&images, "hash -f qcow2 tuesday.qcow2").out;
    // It is another file by its tables, and says that it shows the same.
    done(&images, "flatten monday.qcow2");
    done(&images, "create more.qcow2 --backing base.qcow2 -F qcow2");
    for (from, to) in [
        ("base.qcow2", "bases/golden.qcow2"),
        ("monday.qcow2", "bases/first.qcow2"),
    ] {
        moved(&images, from, to);
    }
    for (image, by) in [
        ("tuesday.qcow2", "lineage"),
        ("second.qcow2", "sibling"),
        ("more.qcow2", "stamp"),
        ("bare.qcow2", "sibling"),
    ] {
        assert_eq!(missing(&images, "heal .", image)["by"], json!(by), "{image}");
    }
    done(&images, "heal . --yes");
    assert_eq!(done(&images, "hash -f qcow2 tuesday.qcow2").out, before);
    images.img("check -q -f qcow2 bare.qcow2");
}

#[test]
fn an_image_that_a_process_holds_is_told_of_and_not_healed() {
    let images = family();
    moved(&images, "base.qcow2", "bases/base.qcow2");
    let writing = OpenOptions::new().write(true).lock(LockMode::Write);
    let guest = LocalFile::open(images.path().join("monday.qcow2"), &writing).unwrap();
    let told = images.catena(&["heal", "."]);
    assert_eq!(told.status, 3);
    assert!(told.out.contains("the image is used by"), "{told:?}");
    assert!(missing(&images, "heal .", "monday.qcow2")["users"][0].is_string());
    let refused = failed(&images, "heal . --yes");
    assert!(refused.out.contains("not mended"), "{refused:?}");
    drop(guest);
    done(&images, "heal . --yes");
    done(&images, "hash -f qcow2 tuesday.qcow2");
}
