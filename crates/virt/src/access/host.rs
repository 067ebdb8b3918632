//! What the host has configured: QEMU's user and group, and the contexts of SELinux's policy.

use super::AccessError;
use catena::doctor::User;
use std::path::Path;

/// Where libvirt's driver for QEMU is configured.
const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";
/// Two lines: the context of a guest's own images, and that of what guests only read.
const CONTEXTS: &str = "/etc/selinux/targeted/contexts/virtual_image_context";
/// Users as which distributions run QEMU.
const USERS: [&str; 2] = ["libvirt-qemu", "qemu"];
/// The longest configuration that is read, in bytes.
const MOST: u64 = 1 << 20;

/// The settings that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `user` and `group`: as whom QEMU runs.
    pub ids: Ids,
    /// `dynamic_ownership`: whether files are given to them.
    pub dynamic_ownership: bool,
    /// `remember_owner`: whether files are given back.
    pub remember_owner: bool,
    /// The SELinux context of a guest's own images.
    pub image_context: String,
    /// That of what guests only read.
    pub content_context: String,
}

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

impl Ids {
    /// `USER:GROUP`, each a name, a number, or `+` and a number.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let (user, group) = text
            .split_once(':')
            .ok_or_else(|| AccessError(format!("missing separator ':' in DAC label \"{text}\"")))?;
        Ok(Self {
            uid: user_id(user)?,
            gid: group_id(group)?,
        })
    }

    /// The same, where the user alone has the group that the system has for it.
    ///
    /// # Errors
    /// Where there is no such user or group.
    pub fn parse_user(text: &str) -> Result<Self, AccessError> {
        if text.contains(':') {
            return Self::parse(text);
        }
        let user = User::find(number(text)).map_err(|_| no_user(text))?;
        let gid = user.groups.first().copied();
        Ok(Self {
            uid: user.uid,
            gid: gid.ok_or_else(|| AccessError(format!("user '{text}' has no group: give USER:GROUP")))?,
        })
    }
}

/// A `+` says that a number follows.
fn number(text: &str) -> &str {
    text.strip_prefix('+').unwrap_or(text)
}

fn no_user(text: &str) -> AccessError {
    AccessError(format!("Failed to parse user '{text}'"))
}

fn user_id(text: &str) -> Result<u32, AccessError> {
    User::find(number(text))
        .map(|user| user.uid)
        .map_err(|_| no_user(text))
}

fn group_id(text: &str) -> Result<u32, AccessError> {
    let found = User::find(&format!("0:{}", number(text)));
    found
        .ok()
        .and_then(|user| user.groups.first().copied())
        .ok_or_else(|| AccessError(format!("Failed to parse group '{text}'")))
}

impl Host {
    /// This host, as far as it lets itself be read; QEMU's user and group are those given, if any are.
    ///
    /// # Errors
    /// Where no user is known, or the configuration names one that there is not.
    pub fn this(user: Option<&str>) -> Result<Self, AccessError> {
        let text = read(Path::new(QEMU_CONF)).unwrap_or_default();
        let contexts = read(Path::new(CONTEXTS)).unwrap_or_default();
        Self::new(&text, &contexts, user)
    }

    /// A host with these two files.
    ///
    /// # Errors
    /// As [`Host::this`].
    pub fn new(qemu_conf: &str, contexts: &str, user: Option<&str>) -> Result<Self, AccessError> {
        let mut contexts = contexts.lines().map(str::trim).filter(|line| !line.is_empty());
        let is_on = |key| setting(qemu_conf, key, false) != Some("0");
        let ids = match user {
            Some(user) => Ids::parse_user(user)?,
            None => ids(qemu_conf)?,
        };
        Ok(Self {
            ids,
            dynamic_ownership: is_on("dynamic_ownership"),
            remember_owner: is_on("remember_owner"),
            image_context: contexts
                .next()
                .unwrap_or("system_u:object_r:svirt_image_t:s0")
                .to_owned(),
            content_context: contexts
                .next()
                .unwrap_or("system_u:object_r:virt_content_t:s0")
                .to_owned(),
        })
    }
}

/// What is set; else what the comments say is the default of this build; else the user that is there.
fn ids(text: &str) -> Result<Ids, AccessError> {
    let default = |key| setting(text, key, true);
    let known = || USERS.into_iter().find(|name| User::find(name).is_ok());
    let user = setting(text, "user", false)
        .or_else(|| default("user").filter(|name| user_id(name).is_ok()))
        .or_else(known)
        .ok_or_else(|| {
            AccessError(format!(
                "as whom QEMU runs is not known: {QEMU_CONF} does not tell, and there is neither of the users {}",
                USERS.join(", ")
            ))
        })?;
    let group =
        setting(text, "group", false).or_else(|| default("group").filter(|name| group_id(name).is_ok()));
    match group {
        Some(group) => Ids::parse(&format!("{user}:{group}")),
        None => Ids::parse_user(user),
    }
}

/// The value of a key, without its quotes; of one that is commented out, if that is asked for.
fn setting<'a>(text: &'a str, key: &str, commented: bool) -> Option<&'a str> {
    text.lines().rev().find_map(|line| {
        let line = line.trim();
        let line = if commented { line.strip_prefix('#')? } else { line };
        let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
        let quote = value.chars().next().filter(|first| "\"'".contains(*first));
        match quote {
            Some(quote) => value.get(1..)?.split(quote).next(),
            None => value.split([' ', '\t', '#']).next(),
        }
    })
}

fn read(path: &Path) -> Option<String> {
    let length = std::fs::metadata(path).ok()?.len();
    (length <= MOST)
        .then(|| std::fs::read_to_string(path).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_comes_before_what_comments_say_and_that_before_what_is_there() {
        let ids = |text: &str| Host::new(text, "", None).unwrap().ids;
        let of = |uid, gid| Ids { uid, gid };
        assert_eq!(ids("user = \"root\"\ngroup = \"+7\"\n"), of(0, 7));
        assert_eq!(ids("#user = \"root\"\n  group='5' # so\n"), of(0, 5));
        assert_eq!(
            ids("user = \"+3999999\"\ngroup=\"root\"\nuser_x = 1\n"),
            of(3_999_999, 0)
        );
        assert_eq!(ids("user = \"root\"\n#group = \"no such group\"\n"), of(0, 0));
        assert!(Host::new("user = \"no such user\"", "", None).is_err());
        assert_eq!(
            Host::new("user = \"no such user\"", "", Some("root"))
                .unwrap()
                .ids,
            of(0, 0)
        );
        assert!(Host::new("", "", Some("3999999")).is_err());
    }

    #[test]
    fn owners_are_given_and_remembered_unless_they_are_told_not_to() {
        let host = |text: &str| Host::new(text, "a:b:c:s0\n\nd:e:f:s0\n", Some("1:2")).unwrap();
        let plain = host("#dynamic_ownership = 0\n");
        assert!(plain.dynamic_ownership && plain.remember_owner);
        assert_eq!(
            (plain.image_context.as_str(), plain.content_context.as_str()),
            ("a:b:c:s0", "d:e:f:s0")
        );
        let off = host("dynamic_ownership=0\nremember_owner = 0 # why\n");
        assert!(!off.dynamic_ownership && !off.remember_owner);
    }
}
