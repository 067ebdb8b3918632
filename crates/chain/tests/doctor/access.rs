//! Permissions, held against what the kernel really permits to a user.

use crate::lab::{Lab, one};
use catena::Policy;
use catena::doctor::{Access, Code, Obstacle, Options, Severity, User, examine_fully, obstacles};
use proptest::prelude::*;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

const UID: u32 = 64_055;
const GID: u32 = 64_056;
const SECOND: u32 = 64_057;

fn user() -> User {
    User {
        name: UID.to_string(),
        uid: UID,
        groups: vec![GID, SECOND],
    }
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether the kernel lets the user open a file.
fn kernel_permits(path: &Path, wanted: Access) -> bool {
    let flags = if wanted.contains(Access::WRITE) { "<>" } else { "<" };
    let output = Command::new("setpriv")
        .args([
            format!("--reuid={UID}"),
            format!("--regid={GID}"),
            format!("--groups={GID},{SECOND}"),
            "--".to_owned(),
            "sh".to_owned(),
            "-c".to_owned(),
            format!("exec 3{flags} \"$1\""),
            "sh".to_owned(),
        ])
        .arg(path)
        .current_dir("/")
        .output()
        .unwrap();
    output.status.success()
}

/// A lab that anybody may enter.
fn open_lab() -> Lab {
    let lab = Lab::new();
    mode(&lab.path(""), 0o755);
    lab
}

#[test]
fn the_directory_and_the_file_in_the_way_are_told_and_the_commands_open_them() {
    let lab = open_lab();
    std::fs::create_dir(lab.path("images")).unwrap();
    lab.img("create -q -f qcow2 images/base.qcow2 1M");
    lab.img("create -q -f qcow2 -b images/base.qcow2 -F qcow2 top.qcow2");
    mode(&lab.path("images"), 0o700);
    mode(&lab.path("images/base.qcow2"), 0o600);
    chown(lab.path("top.qcow2"), Some(UID), None).unwrap();
    let policy = Policy::libvirt();
    let options = Options::new(&policy).user(Some(user()));
    let examine = || examine_fully(&lab.chain("top.qcow2"), &options);
    let finding = one(&examine(), Code::PermissionDenied);
    assert_eq!((finding.severity, finding.layer), (Severity::Error, 1));
    let lines: Vec<_> = finding.cure.command_lines().collect();
    assert_eq!(
        lines,
        [
            format!("setfacl -m u:{UID}:x {}", lab.shown("images")),
            format!("setfacl -m u:{UID}:r {}", lab.shown("images/base.qcow2")),
        ]
    );
    assert!(!kernel_permits(&lab.path("images/base.qcow2"), Access::READ));
    for words in &finding.cure.commands {
        let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
        lab.run(words[0], &words[1..]);
    }
    assert!(kernel_permits(&lab.path("images/base.qcow2"), Access::READ));
    assert!(
        examine()
            .iter()
            .all(|finding| finding.code != Code::PermissionDenied)
    );
    // The active layer must be writable, by its owner too.
    mode(&lab.path("top.qcow2"), 0o444);
    let finding = one(&examine(), Code::PermissionDenied);
    assert_eq!(finding.layer, 0);
    let lines: Vec<_> = finding.cure.command_lines().collect();
    assert_eq!(lines, [format!("chmod u+w {}", lab.shown("top.qcow2"))]);
}

#[test]
fn a_directory_in_the_way_of_several_layers_is_told_once() {
    let lab = open_lab();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    lab.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    chown(lab.path("top.qcow2"), Some(UID), None).unwrap();
    mode(&lab.path(""), 0o700);
    let policy = Policy::libvirt();
    let options = Options::new(&policy).user(Some(user()));
    let finding = one(
        &examine_fully(&lab.chain("top.qcow2"), &options),
        Code::PermissionDenied,
    );
    assert_eq!(
        (finding.layer, finding.cure.commands.len()),
        (0, 1),
        "{finding:#?}"
    );
}

#[test]
fn an_entry_for_a_user_takes_nothing_away_that_a_group_gave() {
    let lab = open_lab();
    std::fs::write(lab.path("disk"), "x").unwrap();
    chown(lab.path("disk"), None, Some(SECOND)).unwrap();
    mode(&lab.path("disk"), 0o640);
    let found = obstacles(&lab.path("disk"), &user(), Access::READ | Access::WRITE);
    let [
        Obstacle::Closed {
            lacks, grant, own, ..
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}");
    };
    assert_eq!(
        (*lacks, *grant, *own),
        (Access::WRITE, Access::READ | Access::WRITE, false)
    );
}

#[test]
fn links_missing_parts_and_root_are_as_the_kernel_has_them() {
    let lab = open_lab();
    std::fs::create_dir_all(lab.path("a/b")).unwrap();
    std::fs::write(lab.path("a/b/disk"), "x").unwrap();
    mode(&lab.path("a/b"), 0o700);
    symlink("a/b/../b/disk", lab.path("relative")).unwrap();
    symlink(lab.path("a/b/disk"), lab.path("absolute")).unwrap();
    symlink("loop", lab.path("loop")).unwrap();
    for name in ["relative", "absolute", "a/b/disk"] {
        let found = obstacles(&lab.path(name), &user(), Access::READ);
        let closed: Vec<_> = found.iter().map(Obstacle::path).collect();
        assert_eq!(closed, [lab.path("a/b").canonicalize().unwrap()], "{name}");
        assert!(!kernel_permits(&lab.path(name), Access::READ));
        let root = User::find("root").unwrap();
        assert_eq!(
            obstacles(&lab.path(name), &root, Access::READ | Access::WRITE),
            []
        );
    }
    for name in ["loop", "a/gone", "relative/below"] {
        let found = obstacles(&lab.path(name), &User::current(), Access::READ);
        assert!(
            matches!(found.as_slice(), [Obstacle::Missing(_)]),
            "{name}: {found:?}"
        );
    }
    // A link of somebody else's in a directory that everybody may write to.
    std::fs::create_dir(lab.path("tmp")).unwrap();
    std::fs::write(lab.path("open"), "x").unwrap();
    symlink("../open", lab.path("tmp/link")).unwrap();
    std::os::unix::fs::lchown(lab.path("tmp/link"), Some(UID + 1), None).unwrap();
    mode(&lab.path("tmp"), 0o1777);
    let link = lab.path("tmp/link");
    let found = obstacles(&link, &user(), Access::READ);
    assert_eq!(found.is_empty(), kernel_permits(&link, Access::READ), "{found:?}");
}

/// Who owns something, its mode, and its access control list.
#[derive(Clone, Debug)]
struct Rights {
    owner: u32,
    group: u32,
    mode: u32,
    acl: Vec<String>,
}

fn rights() -> impl Strategy<Value = Rights> {
    let owner = prop_oneof![Just(0), Just(UID), Just(UID + 7)];
    let group = prop_oneof![Just(0), Just(GID), Just(SECOND), Just(GID + 7)];
    let who = prop_oneof![
        Just(format!("u:{UID}")),
        Just(format!("u:{}", UID + 7)),
        Just(format!("g:{GID}")),
        Just(format!("g:{SECOND}")),
        Just(format!("g:{}", GID + 7)),
        Just("m:".to_owned()),
    ];
    let entry = (who, 0..8_u32).prop_map(|(who, bits)| format!("{who}:{bits}"));
    let acl = prop::collection::vec(entry, 0..4);
    (owner, group, 0..0o1000_u32, acl).prop_map(|(owner, group, mode, acl)| Rights {
        owner,
        group,
        mode,
        acl,
    })
}

fn set(path: &Path, rights: &Rights) {
    chown(path, Some(rights.owner), Some(rights.group)).unwrap();
    mode(path, rights.mode);
    let mut entries = rights.acl.clone();
    // One entry for each, the last wins; a mask needs something to be over.
    entries.sort();
    entries.dedup_by_key(|entry| entry.rsplit_once(':').unwrap().0.to_owned());
    if entries.iter().any(|entry| !entry.starts_with("m:")) {
        let given = Command::new("setfacl")
            .args(["-m", &entries.join(",")])
            .arg(path)
            .status()
            .unwrap();
        assert!(given.success(), "{entries:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_in_the_way_is_what_the_kernel_says(
        directory in rights(),
        inner in rights(),
        file in rights(),
        write in any::<bool>(),
    ) {
        let lab = open_lab();
        let path = lab.path("directory/inner/file");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
        set(&path, &file);
        set(path.parent().unwrap(), &inner);
        set(&lab.path("directory"), &directory);
        let wanted = if write { Access::READ | Access::WRITE } else { Access::READ };
        let found = obstacles(&path, &user(), wanted);
        let permitted = kernel_permits(&path, wanted);
        prop_assert_eq!(found.is_empty(), permitted, "{:?}", found);
        // What is told to grant is enough.
        for obstacle in &found {
            let Obstacle::Closed { path, grant, own, lacks } = obstacle else {
                panic!("{obstacle:?}");
            };
            let letters: String = [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::SEARCH, 'x')]
                .into_iter()
                .filter(|(one, _)| if *own { lacks } else { grant }.contains(*one))
                .map(|(_, letter)| letter)
                .collect();
            let given = if *own {
                Command::new("chmod").arg(format!("u+{letters}")).arg(path).status()
            } else {
                Command::new("setfacl").arg("-m").arg(format!("u:{UID}:{letters}")).arg(path).status()
            };
            prop_assert!(given.unwrap().success());
        }
        prop_assert!(kernel_permits(&path, wanted));
        prop_assert_eq!(obstacles(&path, &user(), wanted), []);
    }
}
