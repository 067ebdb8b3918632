//! The devices that a guest's control group lets be opened: block and character devices of a chain, and what a device of
//! the device mapper stands on.

use catena::doctor::Access;
use rustix::fs::{FileType, major, makedev, minor, stat};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A device that may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceGrant {
    /// Its node.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub block: bool,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Whether it may be written.
    pub write: bool,
}

/// The devices of a path; none where it is a file, or nothing.
pub(super) fn of(path: &Path, access: Access) -> Vec<DeviceGrant> {
    let Ok(stat) = stat(path) else {
        return Vec::new();
    };
    let block = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => true,
        FileType::CharacterDevice => false,
        _ => return Vec::new(),
    };
    let grant = |path: PathBuf, block, number| DeviceGrant {
        path,
        block,
        major: major(number),
        minor: minor(number),
        write: access.contains(Access::WRITE),
    };
    let mut grants = vec![grant(path.to_owned(), block, stat.st_rdev)];
    if block {
        for number in below(stat.st_rdev) {
            let node = format!("/dev/block/{}:{}", major(number), minor(number));
            grants.push(grant(node.into(), true, number));
        }
    }
    grants
}

/// All devices that one of the device mapper's stands on.
fn below(number: u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut open = vec![number];
    while let Some(number) = open.pop() {
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)));
        if !folder.join("dm").exists() {
            continue;
        }
        let Ok(slaves) = std::fs::read_dir(folder.join("slaves")) else {
            continue;
        };
        for slave in slaves.flatten() {
            let text = std::fs::read_to_string(slave.path().join("dev")).unwrap_or_default();
            let numbers = text
                .trim()
                .split_once(':')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            let slave = numbers.map(|(major, minor)| makedev(major, minor));
            if let Some(slave) = slave.filter(|slave| found.insert(*slave)) {
                open.push(slave);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_granted_and_files_are_not() {
        let null = DeviceGrant {
            path: "/dev/null".into(),
            block: false,
            major: 1,
            minor: 3,
            write: false,
        };
        assert_eq!(of(Path::new("/dev/null"), Access::READ), [null]);
        for path in ["/dev", "/proc/self/status", "/no such file"] {
            assert_eq!(of(Path::new(path), Access::READ), []);
        }
    }
}
