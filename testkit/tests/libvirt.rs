//! libvirt can be asked for the chain of a disk.

use std::path::{Path, PathBuf};

use catena_testkit::libvirt::{Daemon, NOBODY};
use catena_testkit::qemu;

fn create(dir: &Path, name: &str, backing: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let mut words = vec!["create", "-q", "-f", "qcow2"];
    words.extend(backing);
    words.extend([path.to_str().unwrap(), "1M"]);
    qemu::img(words).unwrap();
    path
}

#[test]
fn libvirt_detects_a_chain_of_three_and_says_where_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), "base & co.qcow2", &[]);
    create(
        dir.path(),
        "middle.qcow2",
        &["-b", "base & co.qcow2", "-F", "qcow2"],
    );
    let top = create(dir.path(), "top's.qcow2", &["-b", "middle.qcow2", "-F", "qcow2"]);
    let libvirt = Daemon::start().unwrap();
    for _ in 0..2 {
        let disk = libvirt.detect(&top, "qcow2").unwrap();
        assert_eq!(disk.matches("<backingStore type='file'").count(), 2, "{disk}");
        assert!(
            disk.contains("middle.qcow2'/>") && disk.contains("base &amp; co.qcow2'/>"),
            "{disk}"
        );
        assert!(disk.contains("<backingStore/>"), "{disk}");
    }
}

#[test]
fn libvirt_says_why_it_refuses_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let base = create(dir.path(), "base.qcow2", &[]);
    let top = create(dir.path(), "top.qcow2", &["-b", "base.qcow2", "-F", "qcow2"]);
    std::fs::remove_file(base).unwrap();
    let libvirt = Daemon::start().unwrap();
    let said = libvirt.detect(&top, "qcow2").unwrap_err();
    assert!(said.contains("Cannot access backing file"), "{said}");
    assert!(!said.contains("failed to get domain"), "{said}");
    // And goes on to answer.
    let alone = create(dir.path(), "alone.qcow2", &[]);
    assert!(
        libvirt
            .detect(&alone, "qcow2")
            .unwrap()
            .contains("<backingStore/>")
    );
}

#[test]
fn images_are_given_to_the_user_of_a_guest_while_it_runs() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let image = create(dir.path(), "image.qcow2", &[]);
    let libvirt = Daemon::start_unprivileged().unwrap();
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda'/></disk>",
        image.display()
    );
    let owner = || {
        let metadata = image.metadata().unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(libvirt.running(&disk, "", owner), Ok((NOBODY, NOBODY)));
    assert_eq!(owner(), (0, 0));
    let kept = "<seclabel type='none' model='dac'/>";
    let said = libvirt.running(&disk, kept, owner).unwrap_err();
    assert!(said.contains("Permission denied"), "{said}");
}
