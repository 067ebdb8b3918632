//! Removing and pruning: what stays shows what it did, wherever it is cut off, and what others need is not touched.

use crate::lab::{self, Guest, Task, copy, journals, killed, listing, shown};
use catena::forest::Around;
use catena::ops::gc::{self, Why};
use catena::ops::keep::Keep;
use catena::ops::prune::{self, Fate};
use catena::ops::remove::{self, Overlays};
use catena::ops::script::Direction;
use catena::ops::{Observer, Silent};
use catena::{Error, ErrorKind, Policy};
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CREATE: &str = "create -q -f qcow2 -o cluster_size=4k";

/// A chain of so many layers, `l0` being the base, written at noon of days that follow one another; each holds something of its own, and
/// something that those above hold too.
fn chain(layers: u32) -> Folder {
    let folder = Folder::new();
    folder.img(&format!("{CREATE} l0.qcow2 256k"));
    folder.io("qcow2", "l0.qcow2", &["write -P 100 0 128k"]);
    for number in 1..layers {
        let below = number - 1;
        folder.img(&format!("{CREATE} -b l{below}.qcow2 -F qcow2 l{number}.qcow2"));
        let own = format!("write -P {number} {}k 12k", number * 8);
        let common = format!("write -P {} 240k 8k", number + 50);
        let zeros = format!("write -z {}k 4k", 100 + number * 4);
        folder.io("qcow2", &format!("l{number}.qcow2"), &[&own, &common, &zeros]);
    }
    for number in 0..layers {
        let time = format!("2026-03-{:02} 12:00:00 UTC", number + 1);
        folder.run("touch", &["-d", &time, &format!("l{number}.qcow2")]);
    }
    folder
}

fn names(folder: &Path) -> Vec<String> {
    listing(folder)
        .into_iter()
        .filter(|name| name.ends_with(".qcow2"))
        .collect()
}

/// What every image shows, by name.
fn views(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder)
        .into_iter()
        .map(|name| (name.clone(), shown(&folder.join(name))))
        .collect()
}

fn is_same(folder: &Folder, before: &BTreeMap<String, Vec<u8>>, when: &str) {
    for (name, bytes) in views(folder.path()) {
        assert!(before.get(&name) == Some(&bytes), "{name} {when}");
        folder.img(&format!("check -q {name}"));
    }
}

fn pruning(folder: &Path, keep: Keep, base: bool) -> prune::Request {
    prune::Request {
        image: names(folder).last().map(|name| folder.join(name)).unwrap(),
        keep,
        base,
        around: Around::default(),
        zone: TimeZone::UTC,
        now: "2026-03-31T00:00:00Z".parse().unwrap(),
    }
}

fn prune(folder: &Path, keep: Keep, base: bool, observer: &dyn Observer) -> Result<prune::Plan, Error> {
    let policy = Policy::libvirt();
    let plan = prune::plan(&pruning(folder, keep, base), &policy)?;
    plan.execute(&policy, observer)?;
    Ok(plan)
}

/// All of them but the second and the last but one go, the base too.
fn prune_most(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let keep = Keep {
        last: 1,
        within: Some(Duration::from_secs(60)),
        ..Keep::default()
    };
    prune(folder, keep, true, observer).map(drop)
}

#[test]
fn process_that_prunes() {
    lab::obey("housekeeping::process_that_prunes", prune_most);
}

fn remove_middle(folder: &Path, observer: &dyn Observer) -> Result<(), Error> {
    let policy = Policy::libvirt();
    let request = removal(folder, &["l1.qcow2", "l2.qcow2"], Overlays::Merge, true);
    remove::plan(&request, &policy)?.execute(&policy, observer)
}

#[test]
fn process_that_removes() {
    lab::obey("housekeeping::process_that_removes", remove_middle);
}

fn removal(folder: &Path, images: &[&str], overlays: Overlays, trash: bool) -> remove::Request {
    remove::Request {
        images: images.iter().map(|name| folder.join(name)).collect(),
        around: Around::default(),
        overlays,
        trash,
    }
}

fn remove(folder: &Folder, images: &[&str], overlays: Overlays, trash: bool) -> Result<(), Error> {
    let policy = Policy::libvirt();
    let plan = remove::plan(&removal(folder.path(), images, overlays, trash), &policy)?;
    plan.execute(&policy, &Silent)
}

/// Whatever is left when it is killed at any point shows what it did, and is finished.
fn survives(process: &str, images: &Folder, left: &[&str], points: u32) {
    let before = views(images.path());
    for nth in 0.. {
        let folder = copy(images);
        let finished = killed(process, folder.path(), Task::Perform, nth);
        let when = format!("killed at {nth}");
        // What goes may show anything once the base is being written.
        let kept: Vec<_> = left.iter().filter(|name| !name.starts_with('.')).collect();
        for name in &kept {
            assert!(
                before.get(**name) == Some(&shown(&folder.file(name))),
                "{name} {when}"
            );
        }
        if !finished && journals(folder.path()).is_empty() {
            continue;
        }
        lab::resume(folder.path(), Direction::Finish).unwrap();
        for name in &kept {
            assert!(
                before.get(**name) == Some(&shown(&folder.file(name))),
                "{name} {when}"
            );
            folder.img(&format!("check -q {name}"));
        }
        assert_eq!(
            names(folder.path())
                .iter()
                .filter(|name| !name.starts_with('.'))
                .collect::<Vec<_>>(),
            kept,
            "{when}"
        );
        if finished {
            assert!(nth > points, "only {nth} points");
            return;
        }
    }
}

#[test]
fn pruning_that_is_killed_anywhere_is_finished() {
    let images = chain(6);
    survives(
        "housekeeping::process_that_prunes",
        &images,
        &["l4.qcow2", "l5.qcow2"],
        12,
    );
}

#[test]
fn a_removal_that_is_killed_anywhere_is_finished() {
    let images = chain(5);
    survives(
        "housekeeping::process_that_removes",
        &images,
        &["l0.qcow2", "l3.qcow2", "l4.qcow2"],
        12,
    );
}

#[test]
fn drawn_rules_leave_what_is_kept_as_it_was() {
    for seed in 0..24 {
        let mut dice = Dice::new(seed);
        let layers = dice.within(2..9);
        let folder = chain(u32::try_from(layers).unwrap());
        let before = views(folder.path());
        let keep = Keep {
            last: dice.index(3),
            daily: dice.index(4),
            weekly: dice.index(3),
            ..Keep::default()
        };
        let shared = dice
            .chance(30)
            .then(|| dice.index(usize::try_from(layers).unwrap()));
        if let Some(shared) = shared {
            folder.img(&format!("{CREATE} -b l{shared}.qcow2 -F qcow2 also.qcow2"));
        }
        let before = match shared {
            Some(_) => views(folder.path()),
            None => before,
        };
        let plan = prune(folder.path(), keep, dice.chance(60), &Silent).unwrap();
        is_same(&folder, &before, &format!("seed {seed}"));
        for point in &plan.points {
            let stays = point.fate != Fate::Goes;
            assert_eq!(
                point.path.exists(),
                stays,
                "seed {seed}: {}",
                point.path.display()
            );
        }
        if let Some(shared) = shared {
            assert!(folder.file(&format!("l{shared}.qcow2")).exists(), "seed {seed}");
        }
        assert!(journals(folder.path()).is_empty(), "seed {seed}");
        // Nothing is left to do.
        let again = prune::plan(&pruning(folder.path(), keep, false), &Policy::libvirt()).unwrap();
        assert!(
            again.script.is_empty() || shared.is_some(),
            "seed {seed}: {}",
            again.script
        );
    }
}

#[test]
fn the_oldest_point_becomes_the_base_by_what_moves_less() {
    let folder = chain(4);
    folder.io("qcow2", "l0.qcow2", &["write -P 9 0 236k"]);
    let before = views(folder.path());
    let time = std::fs::metadata(folder.file("l2.qcow2"))
        .unwrap()
        .modified()
        .unwrap();
    let keep = Keep {
        last: 1,
        ..Keep::default()
    };
    let plan = prune(folder.path(), keep, true, &Silent).unwrap();
    // A base of 236 KiB stays where it is, and gets the other's name.
    assert!(plan.copied < 64 << 10, "{}", plan.copied);
    assert_eq!(names(folder.path()), ["l2.qcow2", "l3.qcow2"]);
    is_same(&folder, &before, "after");
    let dated = std::fs::metadata(folder.file("l2.qcow2"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(dated.duration_since(time).unwrap(), Duration::from_secs(1));
}

#[test]
fn a_base_is_kept_unless_it_is_asked_for() {
    let folder = chain(3);
    let keep = Keep {
        within: Some(Duration::from_secs(1)),
        ..Keep::default()
    };
    let plan = prune(folder.path(), keep, false, &Silent).unwrap();
    let fates: Vec<_> = plan.points.iter().map(|point| point.fate).collect();
    assert_eq!(fates, [Fate::Active, Fate::Goes, Fate::Base]);
    let first: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
    assert_eq!(plan.points[2].time, first);
}

#[test]
fn what_is_needed_is_not_removed() {
    let folder = chain(3);
    let error = remove(&folder, &["l0.qcow2"], Overlays::Refuse, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ViewWouldChange);
    assert!(error.full().contains("l1.qcow2"), "{}", error.full());
    assert!(error.full().contains("1 more on those"), "{}", error.full());
    // With all that needs it, it may go.
    remove(
        &folder,
        &["l0.qcow2", "l1.qcow2", "l2.qcow2"],
        Overlays::Refuse,
        false,
    )
    .unwrap();
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn overlays_take_in_what_is_removed() {
    for (overlays, backing) in [(Overlays::Merge, Some("l0.qcow2")), (Overlays::Flatten, None)] {
        let folder = chain(4);
        folder.img(&format!("{CREATE} -b l1.qcow2 -F qcow2 l9.qcow2"));
        let before = views(folder.path());
        remove(&folder, &["l1.qcow2"], overlays, false).unwrap();
        assert_eq!(
            names(folder.path()),
            ["l0.qcow2", "l2.qcow2", "l3.qcow2", "l9.qcow2"]
        );
        is_same(&folder, &before, "after");
        for overlay in ["l2.qcow2", "l9.qcow2"] {
            let info = folder.img(&format!("info {overlay}"));
            let named = info.lines().find_map(|line| line.strip_prefix("backing file: "));
            assert_eq!(
                named.map(|name| name.split(' ').next().unwrap()),
                backing,
                "{info}"
            );
        }
    }
}

#[test]
fn an_image_in_use_is_not_removed_nor_is_its_base() {
    let folder = chain(3);
    let before = views(folder.path());
    let guest = Guest::of(&folder, "qcow2", "l2.qcow2");
    for images in [&["l2.qcow2"][..], &["l2.qcow2", "l1.qcow2"]] {
        let error = remove(&folder, images, Overlays::Refuse, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{}", error.full());
    }
    let error = remove(&folder, &["l1.qcow2"], Overlays::Merge, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{}", error.full());
    drop(guest);
    assert_eq!(names(folder.path()).len(), 3);
    is_same(&folder, &before, "after");
}

#[test]
fn a_data_file_goes_with_its_image_and_never_before() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -o data_file=disk.data disk.qcow2 1M");
    let error = remove(&folder, &["disk.data"], Overlays::Merge, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
    remove(&folder, &["disk.qcow2"], Overlays::Refuse, false).unwrap();
    assert_eq!(listing(folder.path()), Vec::<String>::new());
}

fn look(folder: &Folder, kept_for: Duration, used: &[&str]) -> gc::Plan {
    let request = gc::Request {
        folders: vec![folder.path().to_owned()],
        index: None,
        kept_for,
        used: used.iter().map(|name| folder.file(name)).collect(),
    };
    gc::plan(&request, &Policy::libvirt()).unwrap()
}

fn found(plan: &gc::Plan) -> Vec<(PathBuf, Why)> {
    let names = plan.found.iter().map(|found| {
        let name = found.path.file_name().unwrap();
        (PathBuf::from(name), found.why)
    });
    names.collect()
}

#[test]
fn the_trash_is_kept_for_a_while_and_can_be_moved_back() {
    let folder = chain(3);
    let before = views(folder.path());
    remove(&folder, &["l2.qcow2"], Overlays::Refuse, true).unwrap();
    assert!(!folder.file("l2.qcow2").exists());
    // What lies in the trash is no reason against anything.
    remove(&folder, &["l1.qcow2"], Overlays::Refuse, true).unwrap();
    assert_eq!(found(&look(&folder, Duration::from_secs(3600), &[])), []);
    for name in ["l1.qcow2", "l2.qcow2"] {
        folder.run("sh", &["-c", &format!("mv .catena-trash/*/{name} .")]);
    }
    is_same(&folder, &before, "moved back");
    remove(&folder, &["l2.qcow2"], Overlays::Refuse, true).unwrap();
    let plan = look(&folder, Duration::ZERO, &[]);
    assert_eq!(found(&plan), [("l2.qcow2".into(), Why::Trash)]);
    plan.execute(&[Why::Trash], &Policy::libvirt(), &Silent).unwrap();
    assert_eq!(listing(folder.path()), ["l0.qcow2", "l1.qcow2"]);
}

#[test]
fn what_was_left_and_what_nothing_needs_is_found() {
    let folder = chain(3);
    for name in ["new.qcow2.catena-part", ".catena-1-2-3.part"] {
        std::fs::write(folder.file(name), "part").unwrap();
    }
    folder.img(&format!("{CREATE} -b l0.qcow2 -F qcow2 forgotten.qcow2"));
    folder.img(&format!("{CREATE} -b forgotten.qcow2 -F qcow2 older.qcow2"));
    let parts = [
        (".catena-1-2-3.part".into(), Why::Part),
        ("new.qcow2.catena-part".into(), Why::Part),
    ];
    assert_eq!(found(&look(&folder, Duration::ZERO, &[])), parts);
    let plan = look(&folder, Duration::ZERO, &["l2.qcow2"]);
    let unneeded = ["older.qcow2", "forgotten.qcow2"].map(|name| (name.into(), Why::Unneeded));
    assert_eq!(found(&plan), [parts.as_slice(), &unneeded].concat());
    plan.execute(&[Why::Part, Why::Unneeded], &Policy::libvirt(), &Silent)
        .unwrap();
    assert_eq!(listing(folder.path()), ["l0.qcow2", "l1.qcow2", "l2.qcow2"]);
}

#[test]
fn what_is_used_from_elsewhere_is_needed_and_what_is_not_known_stops_it() {
    let folder = chain(2);
    std::fs::create_dir(folder.file("bases")).unwrap();
    folder.img(&format!("{CREATE} bases/base.qcow2 256k"));
    folder.img(&format!("{CREATE} bases/lost.qcow2 256k"));
    folder.img(&format!("{CREATE} -b bases/base.qcow2 -F qcow2 vm.qcow2"));
    let request = gc::Request {
        folders: vec![folder.file("bases")],
        index: None,
        kept_for: Duration::ZERO,
        used: vec![folder.file("vm.qcow2")],
    };
    let plan = gc::plan(&request, &Policy::libvirt()).unwrap();
    assert_eq!(found(&plan), [("lost.qcow2".into(), Why::Unneeded)]);
    std::fs::rename(folder.file("bases/base.qcow2"), folder.file("bases/moved.qcow2")).unwrap();
    let error = gc::plan(&request, &Policy::libvirt()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
    assert!(error.full().contains("base.qcow2"), "{}", error.full());
}
