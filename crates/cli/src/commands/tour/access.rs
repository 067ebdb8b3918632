//! Does what `setfacl -m u:USER:rw FILE` does, for a file that has no access control list yet.

use super::stage::{astray, set_mode, system};
use catena::Result;
use catena::doctor::{ACL_ATTRIBUTE, Access, Acl, User};
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    let granted: u32 = bit('r', 4) | bit('w', 2) | bit('x', 1);
    let mode = path
        .metadata()
        .map_err(|error| system(error, "cannot look at the file").with_path(path))?
        .permissions()
        .mode();
    let list = Acl::of_mode(mode)
        .granting(uid, Access::from_mode(granted))
        .encode();
    match setxattr(path, ACL_ATTRIBUTE, &list, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => set_mode(path, (mode & 0o777) | granted),
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
