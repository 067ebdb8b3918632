//! Names of files in a bundle: plain ones, which mean the same in every folder and to everybody.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::manifest::{DIGESTS, MANIFEST};

/// Most bytes of a file's name.
const MOST: usize = 255;

/// Whether a name is that of a file in a folder, and nothing else to anybody: no path, no option, no protocol, not hidden.
pub(super) fn is_plain(name: &str) -> bool {
    (1..=MOST).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.chars().all(is_plain_character)
        && name != MANIFEST
        && name != DIGESTS
}

fn is_plain_character(c: char) -> bool {
    !c.is_control() && !matches!(c, '/' | '\\' | ':')
}

/// A plain name like a file's, and unlike those that are taken.
pub(super) fn plain(name: &OsStr, taken: &mut BTreeSet<String>) -> String {
    let mut plain: String = name
        .to_string_lossy()
        .chars()
        .map(|c| if is_plain_character(c) { c } else { '_' })
        .collect();
    if plain.is_empty() || plain.starts_with(['.', '-']) {
        plain.insert(0, '_');
    }
    // What a number takes is left for it.
    while plain.len() > MOST - 8 {
        plain.pop();
    }
    let (stem, extension) = match plain.rfind('.') {
        Some(dot) => plain.split_at(dot),
        None => (plain.as_str(), ""),
    };
    let numbered = (2_u32..).map(|number| format!("{stem}-{number}{extension}"));
    let mut candidates = std::iter::once(plain.clone()).chain(numbered);
    let found = candidates
        .find(|name| is_plain(name) && !taken.contains(name))
        .unwrap_or_default();
    taken.insert(found.clone());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_becomes_a_plain_one_of_its_own() {
        let mut taken = BTreeSet::new();
        let mut plain = |name: &str| plain(OsStr::new(name), &mut taken);
        assert_eq!(plain("vm.qcow2"), "vm.qcow2");
        assert_eq!(plain("vm.qcow2"), "vm-2.qcow2");
        assert_eq!(plain("vm.qcow2"), "vm-3.qcow2");
        assert_eq!(plain("nbd:x"), "nbd_x");
        assert_eq!(plain(".hidden"), "_.hidden");
        assert_eq!(plain("manifest.json"), "manifest-2.json");
        assert_eq!(plain("base"), "base");
        assert_eq!(plain("base"), "base-2");
        let long = plain(&"é".repeat(127));
        assert!(is_plain(&long), "{long}");
    }
}
