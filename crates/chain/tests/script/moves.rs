//! Moves: what images show, and how they record what they stand on.

use crate::lab::{journals, listing, shown};
use catena::forest::Around;
use catena::ops::Silent;
use catena::ops::relocate::{self, Destination, Request};
use catena::{ErrorKind, Policy, Reference, Start, detect};
use catena_testkit::Folder;
use catena_testkit::proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn into(sources: &[PathBuf], folder: &Path) -> Request {
    Request {
        sources: sources.to_vec(),
        destination: Destination::Place(folder.to_owned()),
        chain: false,
        around: Around::default(),
    }
}

fn perform(request: &Request) -> catena::Result<()> {
    relocate::plan(request, &Policy::libvirt())?.execute(&Policy::libvirt(), &Silent)
}

fn recorded(image: &Path) -> Option<String> {
    let chain = detect(&Start::at(image, None), &Policy::libvirt());
    let backing = chain.layers[0].description.backing.as_ref()?;
    Some(backing.name.clone())
}

/// here/base <- here/middle <- top, and below them an empty folder there.
fn folder() -> Folder {
    let folder = Folder::new();
    for name in ["here", "there"] {
        std::fs::create_dir(folder.file(name)).unwrap();
    }
    let create = "create -q -f qcow2";
    folder.img(&format!("{create} here/base.qcow2 256k"));
    folder.io("qcow2", "here/base.qcow2", &["write -P 1 0 128k"]);
    folder.img(&format!("{create} -b base.qcow2 -F qcow2 here/middle.qcow2"));
    folder.io("qcow2", "here/middle.qcow2", &["write -P 2 64k 32k"]);
    folder.img(&format!("{create} -b here/middle.qcow2 -F qcow2 top.qcow2"));
    folder.io("qcow2", "top.qcow2", &["write -P 3 90k 8k"]);
    folder
}

/// Another file system, if there is one.
fn elsewhere(than: &Folder) -> Option<tempfile::TempDir> {
    let other = tempfile::tempdir_in("/dev/shm");
    let other = other
        .inspect_err(|error| catena_testkit::not_tested(format!("/dev/shm: {error}")))
        .ok()?;
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    if device(other.path()) == device(than.path()) {
        catena_testkit::not_tested("there is only one file system");
        return None;
    }
    Some(other)
}

#[test]
fn a_base_moves_and_its_overlays_follow_relative_as_they_were() {
    let folder = folder();
    let expected = ["here/middle.qcow2", "top.qcow2"].map(|name| shown(&folder.file(name)));
    perform(&into(&[folder.file("here/base.qcow2")], &folder.file("there"))).unwrap();
    assert_eq!(
        recorded(&folder.file("here/middle.qcow2")).unwrap(),
        "../there/base.qcow2"
    );
    assert!(["here/middle.qcow2", "top.qcow2"].map(|name| shown(&folder.file(name))) == expected);
    // And QEMU says so too.
    folder.img("check -q top.qcow2");
    folder.io(
        "qcow2",
        "top.qcow2",
        &["read -P 1 0 64k", "read -P 2 64k 26k", "read -P 3 90k 8k"],
    );
}

#[test]
fn a_name_does_not_grow_however_often_files_move() {
    let folder = folder();
    let rename = |old: &str, new: &str| {
        perform(&Request {
            destination: Destination::Name(folder.file(new)),
            ..into(&[folder.file(old)], Path::new(""))
        })
        .unwrap();
    };
    let before = recorded(&folder.file("top.qcow2"));
    for _ in 0..3 {
        rename("here/middle.qcow2", "there/middle.qcow2");
        assert_eq!(
            recorded(&folder.file("there/middle.qcow2")).unwrap(),
            "../here/base.qcow2"
        );
        rename("there/middle.qcow2", "here/middle.qcow2");
    }
    assert_eq!(recorded(&folder.file("top.qcow2")), before);
    assert_eq!(recorded(&folder.file("here/middle.qcow2")).unwrap(), "base.qcow2");
}

#[test]
fn a_folder_moves_with_everything_in_it() {
    let folder = folder();
    std::fs::create_dir(folder.file("here/empty")).unwrap();
    std::fs::write(folder.file("here/notes"), "notes").unwrap();
    std::os::unix::fs::symlink("base.qcow2", folder.file("here/inside")).unwrap();
    std::os::unix::fs::symlink("../top.qcow2", folder.file("here/outside")).unwrap();
    let expected = shown(&folder.file("top.qcow2"));
    for target in [
        Some(folder.file("there")),
        elsewhere(&folder).map(|other| other.keep()),
    ] {
        let Some(target) = target else { continue };
        let source = match folder.file("here").exists() {
            true => folder.file("here"),
            false => folder.file("there/here"),
        };
        perform(&into(std::slice::from_ref(&source), &target)).unwrap();
        assert!(!source.exists());
        assert_eq!(
            listing(&target.join("here"))
                .iter()
                .map(|name| name.split(" -> ").next().unwrap())
                .collect::<Vec<_>>(),
            [
                "base.qcow2",
                "empty/",
                "inside",
                "middle.qcow2",
                "notes",
                "outside"
            ]
        );
        for link in ["inside", "outside"] {
            assert!(target.join("here").join(link).exists(), "{link}");
        }
        assert!(shown(&folder.file("top.qcow2")) == expected);
        assert_eq!(recorded(&target.join("here/middle.qcow2")).unwrap(), "base.qcow2");
        if target != folder.file("there") {
            std::fs::remove_dir_all(target).unwrap();
        }
    }
}

#[test]
fn a_whole_chain_moves_when_asked_and_else_it_is_said_what_stays() {
    let folder = folder();
    let alone = into(&[folder.file("top.qcow2")], &folder.file("there"));
    let plan = relocate::plan(&alone, &Policy::libvirt()).unwrap();
    let remark = &plan.remarks()[0];
    assert!(remark.contains("middle.qcow2' stays where it is"), "{remark}");
    let expected = shown(&folder.file("top.qcow2"));
    perform(&Request { chain: true, ..alone }).unwrap();
    assert_eq!(
        listing(folder.path()),
        [
            "here/",
            "there/",
            "there/base.qcow2",
            "there/middle.qcow2",
            "there/top.qcow2"
        ]
    );
    assert!(shown(&folder.file("there/top.qcow2")) == expected);
    assert_eq!(recorded(&folder.file("there/top.qcow2")).unwrap(), "middle.qcow2");
}

#[test]
fn nothing_that_is_there_is_moved_over_and_nothing_into_itself() {
    let folder = folder();
    let conflict = |request: &Request| {
        let error = perform(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
    };
    std::fs::write(folder.file("there/top.qcow2"), "").unwrap();
    conflict(&into(&[folder.file("top.qcow2")], &folder.file("there")));
    conflict(&into(&[folder.file("here")], &folder.file("here")));
    conflict(&into(
        &[folder.file("here"), folder.file("here/base.qcow2")],
        &folder.file("there"),
    ));
    conflict(&into(&[folder.file("top.qcow2")], folder.path()));
    assert_eq!(
        perform(&into(&[], &folder.file("there"))).unwrap_err().kind(),
        ErrorKind::Conflict
    );
    let missing = perform(&into(&[folder.file("none")], &folder.file("there"))).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn an_image_in_use_is_refused_with_who_uses_it() {
    let folder = folder();
    let before = listing(folder.path());
    // An overlay that would have to be written, and the base below it.
    let mut io = Command::new("qemu-io")
        .args(["-f", "qcow2", "here/middle.qcow2"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(io.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    for moved in ["here/base.qcow2", "here/middle.qcow2"] {
        let error = perform(&into(&[folder.file(moved)], &folder.file("there"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{}", error.full());
        assert!(error.full().contains("qemu-io"), "{}", error.full());
    }
    assert_eq!(listing(folder.path()), before);
    drop(io.stdin.take());
    io.wait().unwrap();
    perform(&into(&[folder.file("here/base.qcow2")], &folder.file("there"))).unwrap();
}

#[test]
fn a_copy_keeps_what_is_known_of_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let Some(other) = elsewhere(&folder) else { return };
    let old = folder.file("here/base.qcow2");
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o640)).unwrap();
    let hole = 64 << 20;
    std::fs::OpenOptions::new()
        .write(true)
        .open(&old)
        .unwrap()
        .set_len(hole)
        .unwrap();
    let before = std::fs::metadata(&old).unwrap();
    let expected = shown(&folder.file("top.qcow2"));
    perform(&into(std::slice::from_ref(&old), other.path())).unwrap();
    let after = std::fs::metadata(other.path().join("base.qcow2")).unwrap();
    assert_eq!(
        (
            before.mode(),
            before.uid(),
            before.gid(),
            before.mtime(),
            before.mtime_nsec(),
            before.len()
        ),
        (
            after.mode(),
            after.uid(),
            after.gid(),
            after.mtime(),
            after.mtime_nsec(),
            after.len()
        )
    );
    assert!(after.blocks() * 512 < hole / 8, "{} blocks", after.blocks());
    assert!(shown(&folder.file("top.qcow2")) == expected);
    assert!(!old.exists());
}

#[test]
fn a_format_that_was_not_recorded_is_recorded_where_it_may_be_believed() {
    let folder = folder();
    folder.forget_format("here/middle.qcow2");
    perform(&into(&[folder.file("here/base.qcow2")], &folder.file("there"))).unwrap();
    let chain = detect(
        &Start::at(folder.file("here/middle.qcow2"), None),
        &Policy::strict(),
    );
    assert_eq!(
        chain.layers[1].link.as_ref().unwrap().format.as_deref(),
        Some("qcow2")
    );
}

/// How an image names what it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Relative,
    Dotted,
    Roundabout,
    Absolute,
    FilePrefix,
    RelativeLink,
    AbsoluteLink,
}

#[derive(Clone, Debug)]
struct Drawn {
    folder: usize,
    base: Option<prop::sample::Index>,
    style: Style,
    data_file: bool,
}

const FOLDERS: [&str; 3] = ["a", "a/b", "c"];

fn styles() -> impl Strategy<Value = Style> {
    prop::sample::select(vec![
        Style::Relative,
        Style::Dotted,
        Style::Roundabout,
        Style::Absolute,
        Style::FilePrefix,
        Style::RelativeLink,
        Style::AbsoluteLink,
    ])
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let base = prop::option::weighted(0.8, any::<prop::sample::Index>());
    (0..FOLDERS.len(), base, styles(), prop::bool::weighted(0.2)).prop_map(
        |(folder, base, style, data_file)| Drawn {
            folder,
            base,
            style,
            data_file,
        },
    )
}

/// A name for a file of the folder as an image in `from` may record it.
fn written(folder: &Folder, from: &str, name: &str, style: Style, link: &str) -> String {
    let up = "../".repeat(from.split('/').count());
    let whole = folder.path().display();
    match style {
        Style::Relative => match name.rsplit_once('/') {
            Some((same, short)) if same == from => short.to_owned(),
            _ => format!("{up}{name}"),
        },
        Style::Dotted => format!("./{up}{name}"),
        Style::Roundabout => format!("{up}a/../a/b/../../{name}"),
        Style::Absolute => format!("{whole}/{name}"),
        Style::FilePrefix => format!("file:{whole}/{name}"),
        Style::RelativeLink | Style::AbsoluteLink => {
            std::os::unix::fs::symlink(folder.file(name), folder.file(link)).unwrap();
            match style {
                Style::RelativeLink => format!("{up}{link}"),
                _ => format!("{whole}/{link}"),
            }
        }
    }
}

/// Builds the images; their names in the folder.
fn build(folder: &Folder, drawn: &[Drawn]) -> Vec<String> {
    for name in FOLDERS {
        std::fs::create_dir(folder.file(name)).unwrap();
    }
    let mut names: Vec<String> = Vec::new();
    for (number, image) in drawn.iter().enumerate() {
        let from = FOLDERS[image.folder];
        let mut options = "cluster_size=4k".to_owned();
        if image.data_file {
            // QEMU takes a relative name for one that is relative to itself.
            let whole = folder.path().display();
            options += &format!(",data_file={whole}/{from}/{number}.data");
        }
        let mut words = format!("cd {from} && qemu-img create -q -f qcow2 -o {options}");
        if let Some(base) = image.base.filter(|_| number > 0) {
            let below = base.index(number);
            let through_link = matches!(image.style, Style::RelativeLink | Style::AbsoluteLink);
            let style = match drawn[below].style {
                // As seen from a link elsewhere, what is relative leads elsewhere.
                Style::Absolute | Style::FilePrefix | Style::AbsoluteLink => image.style,
                _ if through_link && below > 0 && drawn[below].base.is_some() => Style::Absolute,
                _ => image.style,
            };
            let text = written(folder, from, &names[below], style, &format!("c/link-{number}"));
            words += &format!(" -F qcow2 -b {text}");
        }
        let write = format!("write -P {} {}k 6k", number + 1, number * 8 % 56);
        words += &format!(" {number}.qcow2 64k && qemu-io -f qcow2 -c '{write}' {number}.qcow2");
        folder.run("sh", &["-c", &words]);
        let name = format!("{from}/{number}.qcow2");
        names.push(name);
    }
    names
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_moves_every_image_shows_what_it_did(
        images in prop::collection::vec(drawn(), 1..=6),
        sources in prop::collection::vec(any::<prop::sample::Index>(), 1..=3),
        target in 0..=FOLDERS.len(),
        chain in prop::bool::weighted(0.3),
        whole_folder in prop::bool::weighted(0.2),
    ) {
        let folder = Folder::new();
        let names = build(&folder, &images);
        let other = elsewhere(&folder);
        let root = std::fs::canonicalize(folder.path()).unwrap();
        let (target, sources) = if whole_folder {
            std::fs::create_dir(folder.file("d")).unwrap();
            (folder.file("d"), vec![folder.file("a")])
        } else {
            let target = match (FOLDERS.get(target), &other) {
                (Some(name), _) => folder.file(name),
                (None, Some(other)) => other.path().to_owned(),
                (None, None) => folder.path().to_owned(),
            };
            let mut sources: Vec<_> = sources.iter().map(|index| folder.file(&names[index.index(names.len())])).collect();
            sources.retain(|source| source.parent() != Some(&target));
            sources.sort();
            sources.dedup();
            prop_assume!(!sources.is_empty());
            (target, sources)
        };
        let request = Request { chain, around: Around { folders: vec![folder.path().to_owned()], ..Around::default() }, ..into(&sources, &target) };
        let expected: Vec<_> = names.iter().map(|name| shown(&folder.file(name))).collect();
        let relative = |image: &Path| {
            recorded(image).map(|text| Reference::parse(&text, catena::Reading::Catena).unwrap().is_relative())
        };
        let was_relative: Vec<_> = names.iter().map(|name| relative(&folder.file(name))).collect();
        let plan = match relocate::plan(&request, &Policy::libvirt()) {
            Ok(plan) => plan,
            // What lies below lies there already.
            Err(error) if chain && error.kind() == ErrorKind::Conflict => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(error.full())),
        };
        let moves: BTreeMap<PathBuf, PathBuf> = plan.moves().iter().cloned().collect();
        plan.execute(&Policy::libvirt(), &Silent).map_err(|error| TestCaseError::fail(error.full()))?;
        prop_assert!(journals(folder.path()).is_empty());
        for ((name, expected), was_relative) in names.iter().zip(&expected).zip(was_relative) {
            let old = root.join(name);
            let new = moves.get(&old).unwrap_or(&old);
            prop_assert_eq!(*new != old, !old.exists(), "{}", plan);
            prop_assert!(shown(new) == *expected, "{name}: {plan}");
            prop_assert_eq!(relative(new), was_relative, "{}: {}", name, plan);
            if let Some(text) = recorded(new) {
                prop_assert!(text.len() < 200, "{text}");
            }
        }
    }
}

#[test]
fn an_image_that_another_move_led_elsewhere_meanwhile_stays_and_goes_back() {
    for cross in [false, true] {
        let folder = folder();
        let other = elsewhere(&folder);
        let target = match (&other, cross) {
            (Some(other), true) => other.path().to_owned(),
            _ => folder.file("there"),
        };
        std::fs::create_dir(folder.file("third")).unwrap();
        let late = relocate::plan(
            &into(&[folder.file("here/middle.qcow2")], &target),
            &Policy::libvirt(),
        )
        .unwrap();
        let expected = shown(&folder.file("top.qcow2"));
        perform(&into(&[folder.file("here/base.qcow2")], &folder.file("third"))).unwrap();
        let error = late.execute(&Policy::libvirt(), &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.full());
        crate::lab::resume(&folder.file("here"), catena::ops::script::Direction::TakeBack).unwrap();
        assert!(folder.file("here/middle.qcow2").exists() && !target.join("middle.qcow2").exists());
        assert!(shown(&folder.file("top.qcow2")) == expected);
        folder.img("check -q top.qcow2");
    }
}
