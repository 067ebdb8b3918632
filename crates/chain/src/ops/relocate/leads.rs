//! Where names lead while files move, and afterwards: worked out beforehand, link by link as the kernel does.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Links on one way; the kernel's own limit.
const LINKS: usize = 40;

/// When a name is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// While files have their old names and their new ones.
    During,
    /// When they have the new ones alone.
    After,
}

/// What moves: old names, free of links, and new ones.
#[derive(Debug, Default)]
pub(super) struct Leads {
    new_of: HashMap<PathBuf, PathBuf>,
    /// What the new names are: links with what they lead to, or anything else.
    news: HashMap<PathBuf, Option<PathBuf>>,
}

impl Leads {
    /// Adds a file or folder; of a link, what it will lead to.
    pub fn add(&mut self, old: &Path, new: &Path, target: Option<PathBuf>) {
        self.new_of.insert(old.to_owned(), new.to_owned());
        self.news.insert(new.to_owned(), target);
    }

    /// The new name of what has this one, free of links.
    pub fn new_of(&self, old: &Path) -> Option<&Path> {
        self.new_of.get(old).map(PathBuf::as_path)
    }

    /// The name, free of links, to which one leads; `None` where it leads nowhere.
    pub fn follow(&self, path: &Path, when: When) -> Option<PathBuf> {
        let mut rest: VecDeque<OsString> = parts(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            let target = match self.news.get(&next) {
                Some(target) => target.clone(),
                None if when == When::After && self.new_of.contains_key(&next) => return None,
                None if next.symlink_metadata().ok()?.is_symlink() => Some(std::fs::read_link(&next).ok()?),
                None => None,
            };
            let Some(target) = target else {
                at = next;
                continue;
            };
            links += 1;
            if links > LINKS {
                return None;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                rest.push_front(part);
            }
        }
        Some(at)
    }
}

/// The names on the way, `..` among them.
fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

/// The shortest name of a file as seen from a folder; both are free of links.
pub(super) fn relative(folder: &Path, file: &Path) -> PathBuf {
    let (mut from, mut to) = (parts(folder), parts(file));
    while from.front().is_some() && from.front() == to.front() {
        from.pop_front();
        to.pop_front();
    }
    from.iter().map(|_| OsString::from("..")).chain(to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_name_is_as_short_as_can_be() {
        for (folder, file, name) in [
            ("/a/b", "/a/b/c", "c"),
            ("/a/b", "/a/c", "../c"),
            ("/a/b", "/c/b", "../../c/b"),
            ("/", "/c/b", "c/b"),
        ] {
            assert_eq!(relative(Path::new(folder), Path::new(file)), Path::new(name));
        }
    }

    #[test]
    fn names_are_followed_to_where_they_will_lead() {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| root.join(name);
        for name in ["here", "there"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("here/base"), "").unwrap();
        std::os::unix::fs::symlink("here/base", at("link")).unwrap();
        let mut leads = Leads::default();
        leads.add(&at("here/base"), &at("there/base"), None);
        leads.add(&at("link"), &at("there/link"), Some("base".into()));
        let follow = |name: &str, when| leads.follow(&at(name), when);
        assert_eq!(follow("here/../link", When::During), Some(at("here/base")));
        assert_eq!(follow("link", When::After), None);
        assert_eq!(follow("here/base", When::After), None);
        assert_eq!(follow("there/link", When::After), Some(at("there/base")));
        assert_eq!(follow("there/none", When::After), None);
    }
}
