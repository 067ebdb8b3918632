//! The verbs that move a guest's bytes.

use crate::{chain, done, failed, interrupted, shows_the_same};

#[test]
fn a_conversion_has_its_name_when_it_is_complete_and_shows_the_same() {
    let images = chain();
    let told = done(&images, "convert tuesday.qcow2 -f qcow2 new.raw --dry-run");
    assert!(
        told.out.contains("new.raw: a new raw image of 4194304 bytes"),
        "{told:?}"
    );
    assert!(!images.file("new.raw").exists());
    let quiet = done(&images, "convert -q tuesday.qcow2 new.raw");
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
    shows_the_same(&images, "new.raw");
    assert!(!images.file("new.raw.catena-part").exists());
    let again = failed(&images, "convert -q tuesday.qcow2 new.raw");
    assert!(
        again.err.contains("it exists, and is not overwritten"),
        "{again:?}"
    );
    images.img("create -q -f raw there.raw 5M");
    images.io("raw", "there.raw", &["write -P 9 0 5M"]);
    done(&images, "convert -q tuesday.qcow2 there.raw --to raw --existing");
    images.io("raw", "there.raw", &["read -P 3 3M 128k", "read -P 0 64k 64k"]);
    let missing = failed(&images, "convert -q tuesday.qcow2 nowhere.raw --existing");
    assert!(missing.err.contains("nowhere.raw"), "{missing:?}");
}

#[test]
fn layers_are_committed_into_a_raw_base_and_deleted() {
    let images = chain();
    let told = done(
        &images,
        "commit tuesday.qcow2 -f qcow2 --base base.raw --delete --dry-run",
    );
    assert!(told.out.contains("base.raw: takes"), "{told:?}");
    images.img("create -q -f qcow2 -b base.raw -F raw other.qcow2");
    let refused = failed(&images, "commit tuesday.qcow2 -f qcow2 --base base.raw --delete");
    assert!(
        refused.err.contains("other.qcow2'") && refused.err.contains("--force"),
        "{refused:?}"
    );
    std::fs::remove_file(images.file("other.qcow2")).unwrap();
    done(&images, "commit tuesday.qcow2 -f qcow2 --base base.raw --delete");
    assert!(!images.file("monday.qcow2").exists() && !images.file("tuesday.qcow2").exists());
    shows_the_same(&images, "base.raw");
}

#[test]
fn a_layer_in_the_middle_goes_and_the_one_above_stands_on_what_was_below() {
    let images = chain();
    done(
        &images,
        "commit tuesday.qcow2 -f qcow2 --top monday.qcow2 --delete",
    );
    assert!(!images.file("monday.qcow2").exists());
    shows_the_same(&images, "tuesday.qcow2");
    let info = images.img("info tuesday.qcow2");
    assert!(info.contains("backing file: base.raw"), "{info}");
}

#[test]
fn a_rebase_without_comparing_is_a_header_change() {
    let images = chain();
    std::fs::create_dir(images.file("archive")).unwrap();
    std::fs::rename(images.file("monday.qcow2"), images.file("archive/monday.qcow2")).unwrap();
    std::fs::rename(images.file("base.raw"), images.file("archive/base.raw")).unwrap();
    let refused = failed(
        &images,
        "relink tuesday.qcow2 --backing archive/monday.qcow2 -F qcow2",
    );
    assert!(refused.err.contains("catena rebase --unsafe"), "{refused:?}");
    let unknown = failed(
        &images,
        "rebase tuesday.qcow2 --backing archive/monday.qcow2 --unsafe",
    );
    assert!(unknown.err.contains("--backing-format qcow2"), "{unknown:?}");
    done(
        &images,
        "rebase tuesday.qcow2 --backing archive/monday.qcow2 -F qcow2 --unsafe",
    );
    shows_the_same(&images, "tuesday.qcow2");
}

#[test]
fn blocks_are_copied_as_dd_counts_them() {
    let images = chain();
    done(
        &images,
        "dd tuesday.qcow2 part.raw --bs 64k --skip 15 --count 2 -q",
    );
    let bytes = std::fs::read(images.file("part.raw")).unwrap();
    assert!(bytes == [vec![1; 64 << 10], vec![2; 64 << 10]].concat());
    failed(&images, "dd tuesday.qcow2 part.raw --bs 64k");
}

#[test]
fn requests_are_timed() {
    let images = chain();
    let timed = done(&images, "bench tuesday.qcow2 -f qcow2 --count 100 --output json");
    assert_eq!(timed.json()["requests"], 100);
    done(
        &images,
        "bench base.raw -f raw --count 16 --bytes 64k --write --pattern 5",
    );
    images.io("raw", "base.raw", &["read -P 5 0 1M"]);
}

#[test]
fn a_conversion_to_qcow2_can_be_compressed_or_stand_on_what_it_shares() {
    let images = chain();
    done(
        &images,
        "convert -q tuesday.qcow2 flat.qcow2 --compress -o compression_type=zstd",
    );
    shows_the_same(&images, "flat.qcow2");
    assert!(images.img("check flat.qcow2").contains("% compressed clusters"));
    done(
        &images,
        "convert -q flat.qcow2 thin.qcow2 --backing monday.qcow2 -F qcow2",
    );
    shows_the_same(&images, "thin.qcow2");
    let map = images.catena(&["map", "thin.qcow2", "--output", "json"]).json();
    let own: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["layer"] == 0)
        .map(|extent| extent["length"].as_u64().unwrap())
        .sum();
    assert_eq!(own, 128 << 10, "{map}");
}

#[test]
fn an_image_takes_in_what_is_below_it() {
    let images = chain();
    done(&images, "stream tuesday.qcow2 -f qcow2 --base base.raw");
    shows_the_same(&images, "tuesday.qcow2");
    assert!(
        images
            .img("info tuesday.qcow2")
            .contains("backing file: base.raw")
    );
    done(&images, "flatten tuesday.qcow2 -o flat.raw");
    shows_the_same(&images, "flat.raw");
    done(&images, "flatten tuesday.qcow2 -f qcow2");
    shows_the_same(&images, "tuesday.qcow2");
    assert!(!images.img("info tuesday.qcow2").contains("backing file"));
    let again = done(&images, "flatten tuesday.qcow2");
    assert!(
        again.out.contains("stands on no other image already"),
        "{again:?}"
    );
}

#[test]
fn a_rebase_copies_what_would_change() {
    let images = chain();
    done(&images, "rebase tuesday.qcow2 -f qcow2 --backing base.raw -F raw");
    shows_the_same(&images, "tuesday.qcow2");
    done(&images, "rebase tuesday.qcow2 -f qcow2 --no-backing");
    shows_the_same(&images, "tuesday.qcow2");
}

#[test]
fn an_interrupted_change_is_consistent_and_the_same_command_finishes_it() {
    let images = chain();
    let stopped = interrupted(&images, "stream tuesday.qcow2 -f qcow2 --rate-limit 1M");
    assert_eq!(stopped.status, 130, "{stopped:?}");
    assert!(
        stopped.err.contains("run the same command again to finish"),
        "{stopped:?}"
    );
    shows_the_same(&images, "tuesday.qcow2");
    done(&images, "stream tuesday.qcow2 -f qcow2");
    shows_the_same(&images, "tuesday.qcow2");

    let stopped = interrupted(&images, "convert tuesday.qcow2 new.raw --rate-limit 1M");
    assert_eq!(stopped.status, 130, "{stopped:?}");
    assert!(!images.file("new.raw").exists() && !images.file("new.raw.catena-part").exists());
    done(&images, "convert -q tuesday.qcow2 new.raw");
    shows_the_same(&images, "new.raw");
}

#[test]
fn a_committed_layer_stays_as_an_empty_overlay() {
    let images = chain();
    done(&images, "commit tuesday.qcow2 -f qcow2");
    shows_the_same(&images, "monday.qcow2");
    shows_the_same(&images, "tuesday.qcow2");
    let map = images.img("map --output json tuesday.qcow2");
    assert!(!map.contains("\"depth\": 0"), "{map}");
    // Everything is in monday.qcow2 now: once more, there is nothing to copy.
    let again = done(&images, "commit tuesday.qcow2 -f qcow2");
    assert!(again.out.contains("takes 0 bytes"), "{again:?}");
}

#[test]
fn a_dry_run_says_who_uses_an_image_as_the_run_itself_would() {
    let images = chain();
    images.img("create -q -f raw other.raw 4M");
    let user = catena::detect(
        &catena::Start::at(images.file("tuesday.qcow2"), Some(catena::Format::Qcow2)),
        &catena::Policy::libvirt(),
    );
    let _user = user.open_writable(0, catena::open::Sharing::Locked).unwrap();
    for words in [
        "commit tuesday.qcow2 -f qcow2",
        "rebase tuesday.qcow2 -f qcow2 -b other.raw -F raw",
        "stream tuesday.qcow2 -f qcow2",
        "flatten tuesday.qcow2 -f qcow2",
    ] {
        let told = failed(&images, &format!("{words} --dry-run"));
        let done = failed(&images, words);
        assert_eq!(told.err, done.err, "{words}");
        let process = std::process::id().to_string();
        assert!(told.err.contains(&process), "{words}: {told:?}");
    }
    // What it stands on is read, and so must not be written meanwhile, but others may read it.
    let told = failed(&images, "commit tuesday.qcow2 -f qcow2 --base base.raw --dry-run");
    assert!(told.err.contains("tuesday.qcow2"), "{told:?}");
}
