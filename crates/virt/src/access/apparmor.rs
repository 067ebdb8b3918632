//! AppArmor rules, as libvirt's helper (`virt-aa-helper`) writes them, and as AppArmor reads them.
//!
//! The helper writes names as they are, and AppArmor reads them as patterns: a name with `[`, `{` or `\` in it is granted
//! to other files. [`Profile::escaped`] is the rule that means the file itself. It also lets the data file of a read-only
//! disk be written, which QEMU does not; here it is read.

use super::{Kept, labels, resolved};
use crate::model::{DomainLabel, LabelKind};
use catena::doctor::Access;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What nobody's guest may have.
const RESTRICTED: [&str; 16] = [
    "/bin/",
    "/etc/",
    "/lib",
    "/lost+found/",
    "/proc/",
    "/sbin/",
    "/selinux/",
    "/sys/",
    "/usr/bin/",
    "/usr/lib",
    "/usr/sbin/",
    "/usr/share/",
    "/usr/local/bin/",
    "/usr/local/etc/",
    "/usr/local/lib",
    "/usr/local/sbin/",
];
/// What guests may read: kernels and firmware.
const READABLE: [&str; 16] = [
    "/boot/",
    "/vmlinuz",
    "/initrd",
    "/initrd.img",
    "/usr/share/edk2/",
    "/usr/share/edk2-ovmf/",
    "/usr/share/OVMF/",
    "/usr/share/ovmf/",
    "/usr/share/AAVMF/",
    "/usr/share/qemu-efi/",
    "/usr/share/qemu-efi-aarch64/",
    "/usr/share/qemu/",
    "/usr/share/qemu-efi-loongarch64/",
    "/usr/share/qemu-efi-riscv64/",
    "/usr/lib/u-boot/",
    "/usr/lib/riscv64-linux-gnu/opensbi",
];
/// What they may have all the same.
const ALLOWED: [&str; 3] = [
    "/sys/devices/pci",
    "/sys/kernel/config/target/vhost",
    "/etc/libvirt-sandbox/services/",
];

/// What a guest's profile has for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The file, without links.
    pub path: PathBuf,
    /// Whether it may be written; if not, that it may not is not audited.
    pub write: bool,
}

/// The rules for a path.
pub(super) fn profile(path: &Path, access: Access, domain: &[DomainLabel]) -> Result<Profile, Kept> {
    if labels::of(domain, "apparmor").is_some_and(|label| label.kind != LabelKind::Dynamic) {
        return Err(Kept::Domain);
    }
    let write = access.contains(Access::WRITE);
    let path = resolved(path);
    if is_valid(&path, write) {
        Ok(Profile { path, write })
    } else {
        Err(Kept::Refused)
    }
}

fn is_valid(path: &Path, write: bool) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let begins = |list: &[&str]| list.iter().any(|prefix| bytes.starts_with(prefix.as_bytes()));
    if bytes.contains(&b'"') || !path.is_absolute() {
        return false;
    }
    if begins(&ALLOWED) {
        return true;
    }
    if begins(&READABLE) {
        return !write;
    }
    !begins(&RESTRICTED)
}

impl Profile {
    /// The permissions in AppArmor's letters.
    pub fn letters(&self) -> &'static str {
        if self.write { "rwk" } else { "rk" }
    }

    /// Whether AppArmor reads the name that libvirt writes as a pattern that is about other files.
    pub fn is_misread(&self) -> bool {
        let bytes = self.path.as_os_str().as_bytes();
        bytes.iter().any(|byte| b"[]{}\\\n".contains(byte))
    }

    /// The rule that means this file and no other, one line each.
    pub fn escaped(&self) -> Vec<String> {
        rules(&escape(&self.path), self.letters(), !self.write)
    }
}

/// A rule that lets a path be opened so, in AppArmor's letters.
pub fn rule(path: &Path, letters: &str) -> String {
    rules(&escape(path), letters, false).concat()
}

fn rules(quoted: &str, letters: &str, denies: bool) -> Vec<String> {
    let mut lines = vec![format!("\"{quoted}\" {letters},")];
    if denies {
        lines.push(format!("deny \"{quoted}\" w,"));
    }
    lines
}

/// A path in which nothing is a pattern, a variable, or the end of the quotes.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' | '*' | '?' | '[' | ']' | '{' | '}' | '^' => text.extend(['\\', c]),
                c if c.is_control() => octal(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut text),
                c => text.push(c),
            }
        }
        octal(chunk.invalid(), &mut text);
    }
    text
}

fn octal(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "\\{byte:03o}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_themselves() {
        let path = Path::new("/i/a \"b\" [c]{d}*?^\\\n@{HOME}ü");
        assert_eq!(
            rule(path, "rk"),
            r#""/i/a \"b\" \[c\]\{d\}\*\?\^\\\012@\{HOME\}ü" rk,"#
        );
        let bytes = std::ffi::OsStr::from_bytes(b"/i/\xff");
        assert_eq!(rule(Path::new(bytes), "rwk"), r#""/i/\377" rwk,"#);
    }

    #[test]
    fn what_the_system_stands_on_is_not_granted() {
        for (path, read, write) in [
            ("/etc/shadow", false, false),
            ("/library/x", false, false),
            ("/boot/x", true, false),
            ("/usr/share/OVMF/x.fd", true, false),
            ("/usr/share/x", false, false),
            ("/sys/devices/pci0000:00/x", true, true),
            ("/images/x", true, true),
            ("/images/\"x\"", false, false),
            ("images/x", false, false),
        ] {
            let path = Path::new(path);
            assert_eq!(
                (is_valid(path, false), is_valid(path, true)),
                (read, write),
                "{path:?}"
            );
        }
    }
}
