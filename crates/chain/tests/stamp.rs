//! Stamps, held against what QEMU's tools and we ourselves do to images.
#![cfg(test)]

use catena::open::Sharing;
use catena::ops::commit::{self, After};
use catena::ops::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use catena::ops::relink::{self, NewBacking, Safety};
use catena::ops::{LayerChoice, Moving, OtherChildren, Silent, fork, rebase, snapshot, stream};
use catena::{Chain, ErrorKind, Format, Policy, Stamped, Start, detect};
use catena_format::qcow2::Header;
use catena_testkit::Folder;
use catena_testkit::libvirt::Daemon;
use std::fs::FileTimes;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The kind of the extension, as it is in the file.
const KIND: &[u8] = b"CatS\0\0\0\x80";

fn overlay(folder: &Folder, name: &str, base: &str, format: Format, more: &dyn Fn(&mut Qcow2Options)) {
    let mut options = Qcow2Options {
        backing: Some((base.to_owned(), format)),
        ..Qcow2Options::default()
    };
    more(&mut options);
    let request = create::Request {
        path: folder.path().join(name),
        existing: Existing::Refuse,
        size: None,
        kind: Kind::Qcow2(Box::new(options)),
        preallocation: Preallocation::Off,
    };
    create::plan(&request, &Policy::libvirt())
        .unwrap()
        .execute()
        .unwrap();
}

/// A base that was written a while ago, and an overlay with something in it.
fn pair(format: Format) -> Folder {
    let folder = Folder::new();
    folder.img(&format!("create -q -f {format} base 64M"));
    let format_name = format.to_string();
    folder.io(&format_name, "base", &["write -P 1 0 3M", "write -P 2 40M 1M"]);
    age(&folder, "base", 100);
    overlay(&folder, "top", "base", format, &|_| {});
    folder.io("qcow2", "top", &["write -P 9 1M 64k"]);
    folder
}

/// Makes a file as old as that.
fn age(folder: &Folder, name: &str, seconds: u64) {
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path().join(name))
        .unwrap();
    let then = SystemTime::now() - Duration::from_secs(seconds);
    file.set_times(FileTimes::new().set_modified(then)).unwrap();
}

fn chain_of(folder: &Folder, name: &str) -> Chain {
    detect(
        &Start::at(folder.path().join(name), Some(Format::Qcow2)),
        &Policy::libvirt(),
    )
}

fn stamped(folder: &Folder, name: &str) -> Stamped {
    chain_of(folder, name).stamped(0)
}

/// The stamp in a file, by its bytes.
fn stamp(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes
        .windows(8)
        .position(|bytes| bytes == KIND)
        .expect("there is no stamp");
    bytes[at..at + 136].to_vec()
}

fn is_changed(folder: &Folder, name: &str) -> bool {
    let chain = chain_of(folder, name);
    let refused = chain
        .open(Sharing::Locked)
        .is_err_and(|error| error.kind() == ErrorKind::BaseChanged);
    let changed = matches!(chain.stamped(0), Stamped::Changed(_));
    assert_eq!(changed, refused);
    changed
}

#[test]
fn what_qemu_does_to_an_overlay_leaves_its_stamp_byte_for_byte() {
    for (compat, cluster) in [("1.1", 65_536), ("1.1", 4096), ("0.10", 65_536)] {
        let folder = Folder::new();
        folder.img("create -q -f raw base 8M");
        folder.img("create -q -f raw a-base-whose-name-takes-a-good-deal-more-room 8M");
        overlay(&folder, "top", "base", Format::Raw, &|options| {
            options.cluster_size = cluster;
            if compat == "0.10" {
                options.version = catena_format::qcow2::Version::V2;
            }
        });
        let path = folder.path().join("top");
        let before = stamp(&path);
        let check = |what: &str| {
            folder.img("check -q -f qcow2 top");
            assert!(stamp(&path) == before, "{compat}, {cluster}: {what}");
            assert!(
                Header::read(&std::fs::read(&path).unwrap())
                    .unwrap()
                    .stamp()
                    .is_some()
            );
        };
        folder.io(
            "qcow2",
            "top",
            &["write -P 3 0 100k", "write -z 1M 1M", "discard 0 64k", "flush"],
        );
        check("writing");
        for command in [
            "snapshot -c one top",
            "snapshot -a one top",
            "snapshot -d one top",
            "resize -q -f qcow2 top 16M",
            "rebase -f qcow2 -b a-base-whose-name-takes-a-good-deal-more-room -F raw top",
            "rebase -u -f qcow2 -b base -F raw top",
            "commit -q -f qcow2 top",
        ] {
            folder.img(command);
            check(command);
        }
        if compat == "1.1" {
            for command in [
                "bitmap --add -f qcow2 top map",
                "bitmap --remove -f qcow2 top map",
                "amend -q -f qcow2 -o lazy_refcounts=on top",
                "amend -q -f qcow2 -o lazy_refcounts=off top",
                "amend -q -f qcow2 -o refcount_bits=32 top",
                "amend -q -f qcow2 -o refcount_bits=16 top",
                "amend -q -f qcow2 -o compat=0.10 top",
            ] {
                folder.img(command);
                check(command);
            }
        }
        folder.img("amend -q -f qcow2 -o compat=1.1 top");
        check("amend -o compat=1.1");
        folder.img("check -q -r all -f qcow2 top");
        check("check -r all");
    }
}

#[test]
fn libvirt_starts_a_guest_on_stamped_overlays_and_leaves_their_stamps() {
    let folder = pair(Format::Qcow2);
    age(&folder, "top", 50);
    overlay(&folder, "higher", "top", Format::Qcow2, &|_| {});
    let stamps = || ["top", "higher"].map(|name| stamp(&folder.path().join(name)));
    let before = stamps();
    let daemon = Daemon::start().unwrap();
    let disk = daemon.detect(&folder.path().join("higher"), "qcow2").unwrap();
    // It follows the chain to its end, as if there were no stamps.
    for name in ["top", "base"] {
        assert!(disk.contains(&format!("/{name}'")), "{disk}");
    }
    assert!(disk.contains("<backingStore/>"), "{disk}");
    assert!(stamps() == before);
    let chain = chain_of(&folder, "higher");
    assert_eq!(
        (chain.stamped(0), chain.stamped(1)),
        (Stamped::Same, Stamped::Same)
    );
    folder.img("check -q -f qcow2 higher");
}

#[test]
fn a_base_that_nobody_wrote_is_not_read_and_a_touched_or_copied_one_is_believed() {
    for format in [Format::Qcow2, Format::Raw] {
        let folder = pair(format);
        assert_eq!(stamped(&folder, "top"), Stamped::Same);
        age(&folder, "base", 50);
        assert_eq!(stamped(&folder, "top"), Stamped::Touched);
        folder.run("cp", &["base", "copy"]);
        folder.run("mv", &["copy", "base"]);
        assert_eq!(stamped(&folder, "top"), Stamped::Touched);
        // Larger, as before a guest is given more room.
        folder.img(&format!("resize -q -f {format} base 128M"));
        assert_eq!(stamped(&folder, "top"), Stamped::Touched);
        assert!(chain_of(&folder, "top").open(Sharing::Locked).is_ok());
    }
}

#[test]
fn what_housekeeping_does_to_a_base_is_no_change() {
    let folder = pair(Format::Qcow2);
    for command in [
        "snapshot -c one base",
        "snapshot -c two base",
        "snapshot -d one base",
        "snapshot -a two base",
        "bitmap --add -f qcow2 base map",
        "bitmap --remove -f qcow2 base map",
        "amend -q -f qcow2 -o lazy_refcounts=on base",
        "amend -q -f qcow2 -o refcount_bits=64 base",
        "check -q -r all -f qcow2 base",
    ] {
        folder.img(command);
        assert_eq!(stamped(&folder, "top"), Stamped::Touched, "{command}");
    }
    // Our own snapshots write the tables elsewhere.
    let request = snapshot::Request {
        start: Start::at(folder.path().join("base"), Some(Format::Qcow2)),
        action: snapshot::Action::Create {
            name: "three".to_owned(),
        },
        children: OtherChildren::default(),
    };
    snapshot::plan(&request, &Policy::libvirt())
        .and_then(|plan| plan.execute(&Silent))
        .unwrap();
    assert_eq!(stamped(&folder, "top"), Stamped::Touched);
    // Back to another state is another image.
    folder.io("qcow2", "base", &["write -P 7 0 64k"]);
    assert!(is_changed(&folder, "top"));
    folder.img("snapshot -a two base");
    assert_eq!(stamped(&folder, "top"), Stamped::Touched);
}

#[test]
fn a_base_that_was_edited_rebuilt_swapped_or_cut_off_is_refused() {
    type Harm = (Format, &'static str, fn(&Folder));
    let harms: [Harm; 8] = [
        (Format::Qcow2, "a new cluster", |folder| {
            folder.io("qcow2", "base", &["write -P 5 20M 64k"])
        }),
        (Format::Qcow2, "an old cluster", |folder| {
            folder.io("qcow2", "base", &["write -P 5 0 512"])
        }),
        (Format::Qcow2, "zeros", |folder| {
            folder.io("qcow2", "base", &["write -z 40M 64k"])
        }),
        (Format::Qcow2, "converted again", |folder| {
            folder.img("convert -q -f qcow2 -O qcow2 -c base new");
            folder.run("mv", &["new", "base"]);
        }),
        (Format::Qcow2, "another format", |folder| {
            folder.img("convert -q -f qcow2 -O raw base new");
            folder.run("mv", &["new", "base"]);
        }),
        (Format::Qcow2, "smaller", |folder| {
            folder.img("resize -q --shrink -f qcow2 base 32M");
        }),
        (Format::Raw, "the first partition", |folder| {
            folder.io("raw", "base", &["write -P 5 1M 512"])
        }),
        (Format::Raw, "cut off", |folder| {
            folder.img("resize -q --shrink -f raw base 32M").truncate(0)
        }),
    ];
    for (format, what, harm) in harms {
        let folder = pair(format);
        harm(&folder);
        if what == "another format" {
            // Nothing can be opened in the recorded format.
            assert!(chain_of(&folder, "top").open(Sharing::Locked).is_err());
            continue;
        }
        assert!(is_changed(&folder, "top"), "{what}");
        let accepting = Policy::libvirt().accepting_changed_bases();
        let start = Start::at(folder.path().join("top"), None);
        for policy in [accepting, Policy::qemu()] {
            assert!(detect(&start, &policy).open(Sharing::Locked).is_ok(), "{what}");
        }
        let error = chain_of(&folder, "top")
            .open_writable(0, Sharing::Locked)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BaseChanged);
        assert!(error.hint().unwrap().contains("--accept-base"), "{error:?}");
    }
}

#[test]
fn a_base_of_many_tables_is_noticed_to_change_wherever_a_cluster_is_added() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 base 64G");
    let writes: Vec<_> = (0..40).map(|gib| format!("write -P 3 {gib}G 64k")).collect();
    folder.io(
        "qcow2",
        "base",
        &writes.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    age(&folder, "base", 100);
    overlay(&folder, "top", "base", Format::Qcow2, &|_| {});
    folder.io("qcow2", "top", &["write 0 64k"]);
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    folder.io("qcow2", "base", &["write -P 4 17G 64k", "write -P 5 17408M 128k"]);
    assert!(is_changed(&folder, "top"));
}

#[test]
fn an_overlay_that_holds_nothing_fits_whatever_its_base_became() {
    for version in ["1.1", "0.10"] {
        let folder = Folder::new();
        folder.img("create -q -f raw base 8M");
        age(&folder, "base", 100);
        overlay(&folder, "top", "base", Format::Raw, &|options| {
            if version == "0.10" {
                options.version = catena_format::qcow2::Version::V2;
            }
        });
        folder.io("qcow2", "top", &["write -P 9 0 1M"]);
        // QEMU's commit writes the base and empties the overlay; it knows no stamps.
        folder.img("commit -q -f qcow2 top");
        assert!(matches!(stamped(&folder, "top"), Stamped::Emptied(_)));
        assert!(chain_of(&folder, "top").open(Sharing::Locked).is_ok());
        folder.io("qcow2", "top", &["write -P 9 0 512"]);
        assert!(is_changed(&folder, "top"));
    }
}

#[test]
fn a_base_that_is_being_written_is_neither_stamped_nor_judged() {
    let folder = pair(Format::Qcow2);
    let base = chain_of(&folder, "base");
    let writer = base.open_writable(0, Sharing::Locked).unwrap();
    overlay(&folder, "second", "base", Format::Qcow2, &|_| {});
    assert_eq!(stamped(&folder, "second"), Stamped::Not);
    writer.disk().write_at(&[8; 512], catena::GuestOffset(0)).unwrap();
    writer.disk().flush().unwrap();
    let chain = chain_of(&folder, "top");
    assert!(matches!(chain.stamped(0), Stamped::Unknown(_)));
    assert_eq!(chain.open(Sharing::Locked).unwrap_err().kind(), ErrorKind::Locked);
    assert!(chain.open(Sharing::Force).is_ok());
    writer.finish().unwrap();
    drop((base, chain));
    assert!(is_changed(&folder, "top"));
}

#[test]
fn a_reference_that_another_program_changed_is_not_refused() {
    let folder = pair(Format::Qcow2);
    folder.run("cp", &["base", "moved"]);
    folder.img("rebase -u -f qcow2 -b moved -F qcow2 top");
    assert_eq!(stamped(&folder, "top"), Stamped::Touched);
    folder.img("create -q -f qcow2 other 64M");
    folder.img("rebase -u -f qcow2 -b other -F qcow2 top");
    assert_eq!(stamped(&folder, "top"), Stamped::OtherReference);
    assert!(chain_of(&folder, "top").open(Sharing::Locked).is_ok());
}

#[test]
fn our_own_changes_of_a_reference_renew_the_stamp_but_accept_no_changed_base() {
    let policy = Policy::libvirt();
    let folder = pair(Format::Qcow2);
    let start = || Start::at(folder.path().join("top"), Some(Format::Qcow2));
    let record = |name: &str, safety| relink::Request {
        image: folder.path().join("top"),
        backing: Some(NewBacking {
            name: name.to_owned(),
            format: Format::Qcow2,
        }),
        safety,
    };
    let relink = |name: &str, safety| {
        let plan = relink::plan(&record(name, safety), &policy, &Silent)?;
        plan.execute()
    };
    // Another name of the same file; a copy; one layer further down; and none.
    relink("./base", Safety::Checked).unwrap();
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    folder.run("cp", &["base", "copy"]);
    age(&folder, "copy", 10);
    relink("copy", Safety::Checked).unwrap();
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    overlay(&folder, "between", "copy", Format::Qcow2, &|_| {});
    folder.io("qcow2", "between", &["write -P 4 10M 64k"]);
    age(&folder, "between", 10);
    let put = |name: Option<&str>| {
        let request = rebase::Request {
            start: start(),
            backing: name.map(|name| NewBacking {
                name: name.to_owned(),
                format: Format::Qcow2,
            }),
            moving: Moving::default(),
            compressed: false,
        };
        rebase::plan(&request, &policy)?.execute(&Silent)
    };
    put(Some("between")).unwrap();
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    // A changed base stays one, whatever name it gets; nothing is read through it.
    folder.io("qcow2", "between", &["write -P 5 11M 64k"]);
    relink("./between", Safety::Checked).unwrap();
    assert!(is_changed(&folder, "top"));
    assert_eq!(put(Some("copy")).unwrap_err().kind(), ErrorKind::BaseChanged);
    put(Some("between")).unwrap();
    assert!(is_changed(&folder, "top"));
    relink("base", Safety::Unsafe).unwrap();
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    relink("between", Safety::Unsafe).unwrap();
    let pull = |base| stream::Request {
        start: start(),
        base,
        moving: Moving::default(),
        compressed: false,
        dated: None,
    };
    let plan = stream::plan(&pull(Some(LayerChoice::Index(2))), &policy).unwrap();
    plan.execute(&Silent).unwrap();
    drop(plan);
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    stream::plan(&pull(None), &policy)
        .unwrap()
        .execute(&Silent)
        .unwrap();
    let alone = Header::read(&std::fs::read(folder.path().join("top")).unwrap()).unwrap();
    assert_eq!((alone.backing.is_none(), alone.stamp()), (true, None));
    for name in ["top", "between"] {
        folder.img(&format!("check -q -f qcow2 {name}"));
    }
}

#[test]
fn a_commit_gives_the_layers_that_go_on_new_stamps() {
    let policy = Policy::libvirt();
    for (after, top, base) in [
        (After::Empty, 0, 1),
        (After::Empty, 1, 2),
        (After::Keep, 0, 2),
        (After::Delete, 1, 2),
        (After::Delete, 1, 3),
    ] {
        let folder = pair(Format::Raw);
        for (name, below) in [("second", "top"), ("third", "second")] {
            age(&folder, below, 100);
            overlay(&folder, name, below, Format::Qcow2, &|_| {});
            folder.io("qcow2", name, &["write -P 4 2M 192k"]);
        }
        let before = catena::ops::hash::hash(
            &chain_of(&folder, "third").open(Sharing::Locked).unwrap(),
            catena::ops::hash::Request {
                blake3: true,
                sha256: false,
            },
            &Silent,
        )
        .unwrap();
        let request = commit::Request {
            start: Start::at(folder.path().join("third"), Some(Format::Qcow2)),
            top: LayerChoice::Index(top),
            base: Some(LayerChoice::Index(base)),
            after,
            children: OtherChildren::default(),
            moving: Moving::default(),
        };
        let plan = commit::plan(&request, &policy).unwrap();
        plan.execute(&Silent).unwrap();
        drop(plan);
        let chain = chain_of(&folder, "third");
        let view = chain.open(Sharing::Locked).unwrap();
        let request = catena::ops::hash::Request {
            blake3: true,
            sha256: false,
        };
        let now = catena::ops::hash::hash(&view, request, &Silent).unwrap();
        assert_eq!(now.blake3, before.blake3);
        for layer in 0..chain.layers.len() - 1 {
            let stamped = chain.stamped(layer);
            assert!(
                matches!(stamped, Stamped::Same | Stamped::Touched),
                "{after:?} {top} {base}: layer {layer}: {stamped:?}"
            );
        }
    }
}

#[test]
fn a_layer_that_a_commit_leaves_with_another_view_says_so() {
    let folder = pair(Format::Raw);
    age(&folder, "top", 100);
    overlay(&folder, "second", "top", Format::Qcow2, &|_| {});
    folder.io("qcow2", "second", &["write -P 4 0 192k"]);
    let request = commit::Request {
        start: Start::at(folder.path().join("second"), Some(Format::Qcow2)),
        top: LayerChoice::Index(0),
        base: Some(LayerChoice::Index(2)),
        after: After::Empty,
        children: OtherChildren::default(),
        moving: Moving::default(),
    };
    let plan = commit::plan(&request, &Policy::libvirt()).unwrap();
    plan.execute(&Silent).unwrap();
    drop(plan);
    assert!(is_changed(&folder, "top"));
    assert!(chain_of(&folder, "second").open(Sharing::Locked).is_ok());
}

#[test]
fn overlays_that_were_forked_at_different_times_are_taken_for_what_they_are() {
    let folder = pair(Format::Qcow2);
    let request = fork::Request {
        names: (1..=3)
            .map(|number| folder.path().join(format!("vm-{number}")))
            .collect(),
        size: None,
        options: Qcow2Options {
            backing: Some(("base".to_owned(), Format::Qcow2)),
            ..Qcow2Options::default()
        },
    };
    let plan = || fork::plan(&request, &Policy::libvirt());
    plan().unwrap().execute(&Policy::libvirt(), &Silent).unwrap();
    assert_eq!(stamped(&folder, "vm-2"), Stamped::Same);
    std::fs::remove_file(folder.path().join("vm-2")).unwrap();
    // As if a second or more had passed, and somebody had touched the base.
    let path = folder.path().join("vm-1");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|bytes| bytes == KIND).unwrap();
    bytes[at + 8 + 39] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    age(&folder, "base", 20);
    assert_eq!(plan().unwrap().len(), 1);
    folder.io("qcow2", "base", &["write -P 6 0 64k"]);
    assert_eq!(plan().unwrap_err().kind(), ErrorKind::Conflict);
}

#[test]
fn a_stamp_knows_the_data_file_of_a_base() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 -o data_file=data,data_file_raw=on base 8M");
    folder.io("qcow2", "base", &["write -P 1 0 1M"]);
    age(&folder, "base", 100);
    age(&folder, "data", 100);
    overlay(&folder, "top", "base", Format::Qcow2, &|_| {});
    folder.io("qcow2", "top", &["write -P 9 1M 64k"]);
    assert_eq!(stamped(&folder, "top"), Stamped::Same);
    folder.io("raw", "data", &["write -P 7 0 4k"]);
    assert!(is_changed(&folder, "top"));
}

#[test]
fn what_rewrites_a_layer_and_keeps_its_view_keeps_the_stamps_of_all_that_stand_on_it() {
    let policy = Policy::libvirt();
    let start = |folder: &Folder, name: &str| Start::at(folder.path().join(name), Some(Format::Qcow2));
    let family = || {
        let folder = pair(Format::Qcow2);
        age(&folder, "top", 100);
        overlay(&folder, "middle", "top", Format::Qcow2, &|_| {});
        folder.io("qcow2", "middle", &["write -P 5 2M 64k"]);
        age(&folder, "middle", 50);
        for name in ["child", "other"] {
            overlay(&folder, name, "middle", Format::Qcow2, &|_| {});
            folder.io("qcow2", name, &["write -P 6 3M 64k"]);
        }
        folder
    };
    let pull = |folder: &Folder, base| {
        let request = stream::Request {
            start: start(folder, "middle"),
            base,
            moving: Moving::default(),
            compressed: false,
            dated: None,
        };
        stream::plan(&request, &policy).unwrap().execute(&Silent).unwrap();
    };
    let stay = |folder: &Folder, what: &str| {
        for name in ["child", "other"] {
            assert_eq!(stamped(folder, name), Stamped::Touched, "{what}");
            assert!(chain_of(folder, name).open(Sharing::Locked).is_ok());
        }
        folder.img("check -q -f qcow2 middle");
    };
    let folder = family();
    pull(&folder, Some(LayerChoice::Index(2)));
    stay(&folder, "stream");
    pull(&folder, None);
    stay(&folder, "stream again");
    // Somebody else writes it: it is another image, whatever it was.
    folder.io("qcow2", "middle", &["write -P 7 30M 64k"]);
    assert!(is_changed(&folder, "child"));

    let folder = family();
    let request = rebase::Request {
        start: start(&folder, "middle"),
        backing: Some(NewBacking {
            name: "base".to_owned(),
            format: Format::Qcow2,
        }),
        moving: Moving::default(),
        compressed: false,
    };
    rebase::plan(&request, &policy).unwrap().execute(&Silent).unwrap();
    stay(&folder, "rebase");

    let folder = family();
    let request = commit::Request {
        start: start(&folder, "child"),
        top: LayerChoice::Index(1),
        base: Some(LayerChoice::Index(2)),
        after: After::Empty,
        children: OtherChildren::default(),
        moving: Moving::default(),
    };
    commit::plan(&request, &policy).unwrap().execute(&Silent).unwrap();
    stay(&folder, "commit");
}
