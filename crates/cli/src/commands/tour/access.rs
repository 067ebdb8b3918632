//! Does what `setfacl -m u:USER:rw FILE` does, for a file that has no access control list yet.
//!
//! The stored form is that of the kernel (`linux/posix_acl_xattr.h`): a version, then entries of 8 bytes, little-endian.

use super::stage::{astray, set_mode, system};
use catena::Result;
use catena::doctor::User;
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
/// The tags of entries, in the order in which they are stored.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
/// The id of an entry that is about nobody in particular.
const NO_ID: u32 = u32::MAX;

/// Grants a user what an entry such as `u:nobody:rw` says.
///
/// Where the file system has no access control lists, everybody is granted it.
pub fn grant(path: &Path, entry: &str) -> Result<()> {
    let parts: Vec<_> = entry.split(':').collect();
    let &["u", user, letters] = parts.as_slice() else {
        return Err(astray(&format!("'{entry}' is no entry for a user")));
    };
    let uid = User::find(user)?.uid;
    let bit = |letter, bit| if letters.contains(letter) { bit } else { 0 };
    let granted: u16 = bit('r', 4) | bit('w', 2) | bit('x', 1);
    let mode = path
        .metadata()
        .map_err(|error| system(error, "cannot look at the file").with_path(path))?
        .permissions()
        .mode();
    let class = |shift: u32| u16::try_from(mode >> shift & 0o7).unwrap_or_default();

    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (OWNER, class(6), NO_ID),
        (USER, granted, uid),
        (GROUP, class(3), NO_ID),
        // What users and groups by name may have at most.
        (MASK, class(3) | granted, NO_ID),
        (OTHERS, class(0), NO_ID),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    match setxattr(path, ATTRIBUTE, &list, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => set_mode(path, (mode & 0o777) | u32::from(granted)),
        Err(error) => Err(system(error.into(), "cannot set the access control list").with_path(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_what_setfacl_would() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        set_mode(&path, 0o640).unwrap();
        grant(&path, "u:3999999:rw").unwrap();
        let output = std::process::Command::new("getfacl")
            .args(["--absolute-names", "--numeric", "--omit-header"])
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim(),
            "user::rw-\nuser:3999999:rw-\ngroup::r--\nmask::rw-\nother::---"
        );
        assert!(grant(&path, "g:0:r").is_err());
    }
}
