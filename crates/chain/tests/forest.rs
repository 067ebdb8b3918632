//! Forests of images that QEMU made.
#![cfg(test)]

use catena::forest::{Around, Image, Index, Search, Sizes, To};
use catena::ops::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use catena::{Forest, Format, Policy};
use catena_testkit::Folder;
use std::sync::Arc;

fn grow(folder: &Folder) -> Forest {
    Forest::grow(&Search::below([folder.path()]), Some(&Policy::libvirt()), None)
}

fn number(forest: &Forest, folder: &Folder, name: &str) -> usize {
    forest.find(&folder.file(name)).unwrap().unwrap()
}

fn image<'a>(forest: &'a Forest, folder: &Folder, name: &str) -> &'a Image {
    &forest.images()[number(forest, folder, name)]
}

fn names(forest: &Forest, numbers: &[usize]) -> Vec<String> {
    let name = |number: &usize| {
        let path = forest.images()[*number].path();
        path.file_name().unwrap().to_str().unwrap().to_owned()
    };
    let mut names: Vec<_> = numbers.iter().map(name).collect();
    names.sort();
    names
}

/// base <- middle <- left, right (in a folder of its own)
fn folder() -> Folder {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("guests")).unwrap();
    folder.img("create -q -f raw base.raw 1M");
    folder.img("create -q -f qcow2 -b base.raw -F raw middle.qcow2");
    folder.img("create -q -f qcow2 -b middle.qcow2 -F qcow2 left.qcow2");
    folder.img("create -q -f qcow2 -b ../middle.qcow2 -F qcow2 guests/right.qcow2");
    folder
}

#[test]
fn images_know_who_stands_on_them_and_what_they_need() {
    let folder = folder();
    let forest = grow(&folder);
    let [base, left] = ["base.raw", "left.qcow2"].map(|name| number(&forest, &folder, name));
    assert_eq!(
        names(&forest, &forest.dependents(base)),
        ["left.qcow2", "middle.qcow2", "right.qcow2"]
    );
    assert_eq!(names(&forest, &forest.needs(left)), ["base.raw", "middle.qcow2"]);
    let middle = image(&forest, &folder, "middle.qcow2");
    assert_eq!(names(&forest, &middle.overlays), ["left.qcow2", "right.qcow2"]);
    assert!(middle.is_needed() && !image(&forest, &folder, "left.qcow2").is_needed());
}

#[test]
fn an_image_with_several_names_is_one() {
    let folder = folder();
    let link = |name: &str, other: &str| std::fs::hard_link(folder.file(name), folder.file(other)).unwrap();
    link("base.raw", "alias.raw");
    std::os::unix::fs::symlink("guests/right.qcow2", folder.file("link.qcow2")).unwrap();
    // Over the second name of the base, and reached through a link itself.
    folder.img("create -q -f qcow2 -b alias.raw -F raw other.qcow2");
    let forest = grow(&folder);
    let base = image(&forest, &folder, "base.raw");
    assert_eq!(base.names.len(), 2);
    assert_eq!(names(&forest, &base.overlays), ["middle.qcow2", "other.qcow2"]);
    let right = image(&forest, &folder, "link.qcow2");
    assert_eq!(
        right.path(),
        folder.file("guests/right.qcow2"),
        "real names come first"
    );
    assert_eq!(right.base(), Some(number(&forest, &folder, "middle.qcow2")));
}

#[test]
fn what_lies_elsewhere_is_found_where_it_is_named_and_the_policy_lets_it() {
    let folder = folder();
    let guests = Search::below([folder.file("guests")]);
    let forest = Forest::grow(&guests, Some(&Policy::libvirt()), None);
    let inside: Vec<_> = forest.images().iter().filter(|image| image.inside).collect();
    assert_eq!((inside.len(), forest.images().len()), (1, 3));
    let rules = format!("[reach]\nfolders = ['{}']", folder.file("guests").display());
    let strict = Policy::parse("strict", &rules).unwrap();
    let forest = Forest::grow(&guests, Some(&strict), None);
    assert!(matches!(
        forest.images()[0].backing.as_ref().unwrap().to,
        To::Broken(Some(_), _)
    ));
    assert_eq!(forest.images().len(), 1);
    let forest = Forest::grow(&guests, None, None);
    assert!(matches!(
        forest.images()[0].backing.as_ref().unwrap().to,
        To::Outside(_)
    ));
}

#[test]
fn what_leads_nowhere_or_back_is_told_of() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -u -b gone.qcow2 -F qcow2 orphan.qcow2 1M");
    folder.img("create -q -f qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 1M");
    folder.img("create -q -f qcow2 -u -b a.qcow2 -F qcow2 b.qcow2 1M");
    folder.img("create -q -f qcow2 -u -b nbd://localhost/x -F raw remote.qcow2 1M");
    std::fs::write(folder.file("torn.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    let forest = grow(&folder);
    let to = |name: &str| &image(&forest, &folder, name).backing.as_ref().unwrap().to;
    assert!(matches!(to("orphan.qcow2"), To::Broken(Some(_), _)));
    assert!(matches!(to("remote.qcow2"), To::Elsewhere));
    let a = number(&forest, &folder, "a.qcow2");
    assert_eq!(names(&forest, &forest.dependents(a)), ["b.qcow2"]);
    assert!(image(&forest, &folder, "torn.qcow2").header.trouble.is_some());
    assert_eq!(Sizes::of(&forest).len(), forest.images().len());
}

#[test]
fn what_overlays_take_an_image_for_counts_but_no_reference_is_forgotten() {
    let folder = Folder::new();
    folder.img("create -q -f raw base.raw 1M");
    // A guest's disk that looks like an overlay of the base.
    folder.img("create -q -f qcow2 -b base.raw -F raw guest.img");
    folder.img("create -q -f qcow2 -b guest.img -F raw top.qcow2");
    folder.img("create -q -f qcow2 -o data_file=data.raw apart.qcow2 1M");
    let forest = grow(&folder);
    let guest = image(&forest, &folder, "guest.img");
    assert_eq!(
        (guest.format(), guest.header.format),
        (Format::Raw, Format::Qcow2)
    );
    assert!(image(&forest, &folder, "base.raw").is_needed());
    let data = image(&forest, &folder, "data.raw");
    assert_eq!(names(&forest, &data.data_of), ["apart.qcow2"]);
    assert!(data.is_image() && data.overlays.is_empty());
}

#[test]
fn sizes_tell_what_deleting_an_image_would_free() {
    let folder = folder();
    for (image, kib) in [("middle.qcow2", 256), ("left.qcow2", 128)] {
        folder.io("qcow2", image, &[&format!("write 0 {kib}k")]);
    }
    let forest = grow(&folder);
    let sizes = Sizes::of(&forest);
    let of = |name: &str| sizes[number(&forest, &folder, name)];
    let (left, middle, base) = (of("left.qcow2"), of("middle.qcow2"), of("base.raw"));
    assert_eq!((left.exclusive, middle.exclusive), (left.own, 0));
    assert_eq!(left.shared, middle.own + base.own);
    std::fs::remove_file(folder.file("guests/right.qcow2")).unwrap();
    let forest = grow(&folder);
    let left = Sizes::of(&forest)[number(&forest, &folder, "left.qcow2")];
    assert_eq!(
        (left.exclusive, left.shared),
        (left.own + middle.own + base.own, 0)
    );
}

#[test]
fn an_index_saves_reading_and_never_answers_for_what_changed() {
    let folder = folder();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let elsewhere = catena_testkit::scratch().unwrap();
    let path = elsewhere.path().join("index/headers.json");
    let grow = |index: &Index| {
        Forest::grow(
            &Search::below([folder.path()]),
            Some(&Policy::libvirt()),
            Some(index),
        )
    };
    // What has just changed is not kept.
    let index = Index::load(&path);
    grow(&index);
    index.store().unwrap();
    assert!(!path.exists());
    let options = Qcow2Options {
        backing: Some(("middle.qcow2".to_owned(), Format::Qcow2)),
        ..Qcow2Options::default()
    };
    let stamped = create::Request {
        path: folder.file("stamped.qcow2"),
        existing: Existing::Refuse,
        size: None,
        kind: Kind::Qcow2(Box::new(options)),
        preallocation: Preallocation::Off,
    };
    let stamped = create::plan(&stamped, &Policy::libvirt()).unwrap();
    stamped.execute().unwrap();
    // The time of change cannot be set, but that of the clock can be waited for.
    for name in ["base.raw", "middle.qcow2", "left.qcow2", "guests/right.qcow2"] {
        std::fs::File::options()
            .write(true)
            .open(folder.file(name))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let index = Index::load(&path);
    let fresh = grow(&index);
    index.store().unwrap();
    let known = std::fs::read_to_string(&path).unwrap();
    assert!(known.contains("middle.qcow2"), "{known}");
    let again = grow(&Index::load(&path));
    let shape = |forest: &Forest| -> Vec<_> {
        forest
            .images()
            .iter()
            .map(|image| (image.path().to_owned(), image.header.clone(), image.base()))
            .collect()
    };
    assert!(image(&again, &folder, "stamped.qcow2").header.stamp.is_some());
    assert_eq!(shape(&again), shape(&fresh));
    folder.img("rebase -u -b base.raw -F raw left.qcow2");
    let changed = grow(&Index::load(&path));
    let base = number(&changed, &folder, "base.raw");
    assert_eq!(image(&changed, &folder, "left.qcow2").base(), Some(base));
    for nonsense in [
        "",
        "{",
        "{\"version\":1,\"images\":[{}]}",
        "{\"version\":9,\"images\":[]}",
    ] {
        std::fs::write(&path, nonsense).unwrap();
        assert_eq!(shape(&grow(&Index::load(&path))), shape(&changed), "{nonsense}");
    }
}

#[test]
fn pseudo_file_systems_are_not_read() {
    let search = Search::default().and(["/proc/self", "/sys/kernel"], 2);
    let forest = Forest::grow(&search, Some(&Policy::libvirt()), None);
    assert!(forest.images().is_empty());
}

#[test]
fn a_folder_that_is_reached_in_several_ways_is_walked_once() {
    let folder = folder();
    let guests = folder.file("guests");
    for search in [
        Search::below([folder.path(), &guests]),
        Search::below([&guests]).and([folder.path()], 1),
        Search::default()
            .and([&guests], 0)
            .and([folder.path()], usize::MAX),
        Search::below([folder.file("guests/../guests"), folder.file("guests/right.qcow2")])
            .and([folder.path()], usize::MAX),
    ] {
        let forest = Forest::grow(&search, Some(&Policy::libvirt()), None);
        let names: Vec<_> = forest.images().iter().map(|image| image.names.len()).collect();
        assert_eq!(names, [1, 1, 1, 1], "{search:?}");
    }
}

#[test]
fn overlays_are_found_beside_an_image_s_folder_and_where_they_were_seen() {
    let folder = Folder::new();
    for name in ["bases", "guests", "far/away/from"] {
        std::fs::create_dir_all(folder.file(name)).unwrap();
    }
    folder.img("create -q -f qcow2 bases/base.qcow2 1M");
    folder.img("create -q -f qcow2 -b ../bases/base.qcow2 -F qcow2 guests/near.qcow2");
    let far = "far/away/from/far.qcow2";
    folder.img(&format!(
        "create -q -f qcow2 -b ../../../bases/base.qcow2 -F qcow2 {far}"
    ));
    let bases = [folder.file("bases/base.qcow2")];
    let overlays = |around: &Around| {
        let forest = Forest::grow(&around.widely(&bases), Some(&Policy::libvirt()), None);
        let base = number(&forest, &folder, "bases/base.qcow2");
        names(&forest, &forest.images()[base].overlays)
    };
    let mut around = Around::default();
    assert_eq!(overlays(&around), ["near.qcow2"]);
    // What has just changed is not kept.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let elsewhere = catena_testkit::scratch().unwrap();
    let path = elsewhere.path().join("headers.json");
    let index = Index::load(&path);
    Forest::grow(&Search::below([folder.path()]), None, Some(&index));
    index.store().unwrap();
    around.index = Some(Arc::new(Index::load(&path)));
    assert_eq!(overlays(&around), ["far.qcow2", "near.qcow2"]);
    // What was seen by another name has the one by which it is met.
    let link = elsewhere.path().join("0");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let index = Index::load(&path);
    Forest::grow(&Search::below([&link]), None, Some(&index));
    index.store().unwrap();
    let linked = Around {
        folders: vec![folder.path().to_owned()],
        index: Some(Arc::new(Index::load(&path))),
    };
    let met = Forest::grow(&linked.widely(&bases), None, None);
    let names: Vec<_> = { met.images().iter().flat_map(|image| &image.names) }
        .filter(|name| name.extension().is_some_and(|suffix| suffix == "qcow2"))
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(
        names.iter().all(|name| name.starts_with(folder.path())),
        "{names:?}"
    );
    let inside = Forest::grow(&Search::below([folder.file("bases")]), None, None);
    assert_eq!(around.needed_elsewhere(&inside, &bases).unwrap().len(), 2);
    // It is looked at again, and may be gone or stand on something else.
    folder.img(&format!("create -q -f qcow2 {far} 1M"));
    std::fs::remove_file(folder.file("guests/near.qcow2")).unwrap();
    assert_eq!(overlays(&around), Vec::<String>::new());
}
