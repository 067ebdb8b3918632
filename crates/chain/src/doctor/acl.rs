//! POSIX access control lists, as Linux stores and applies them.
//!
//! The stored form is that of the extended attribute `system.posix_acl_access` (`linux/posix_acl_xattr.h`): a version
//! and entries of 8 bytes, little-endian. How they are applied is told by acl(5), and by the kernel where that is
//! silent.

use super::access::Access;
use super::user::{User, group_name_of, name_of};
use rustix::fs::{fgetxattr, getxattr};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::path::Path;

const ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
/// The longest extended attribute there is.
const MOST: usize = 64 << 10;

/// An access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    allows: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    Mask,
    Other,
}

impl Acl {
    /// The list of an open file; `None` where it has none beyond its mode.
    pub(super) fn of_file(file: impl AsFd) -> Result<Option<Self>, Errno> {
        let mut buffer = vec![0; MOST];
        found(fgetxattr(file, ATTRIBUTE, &mut *buffer), &buffer)
    }

    /// The list of what a name stands for; `None` where it has none beyond its mode.
    pub(super) fn of_path(path: &Path) -> Result<Option<Self>, Errno> {
        let mut buffer = vec![0; MOST];
        found(getxattr(path, ATTRIBUTE, &mut *buffer), &buffer)
    }

    /// Reads the stored form; what is not understood is an error.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<4>()?;
        let (chunks, []) = rest.as_chunks::<8>() else {
            return None;
        };
        let entries = chunks.iter().map(|[t0, t1, p0, p1, id @ ..]| {
            let id = u32::from_le_bytes(*id);
            let tag = match u16::from_le_bytes([*t0, *t1]) {
                0x01 => Tag::Owner,
                0x02 => Tag::User(id),
                0x04 => Tag::OwningGroup,
                0x08 => Tag::Group(id),
                0x10 => Tag::Mask,
                0x20 => Tag::Other,
                _ => return None,
            };
            let allows = Access::from_mode(u32::from(u16::from_le_bytes([*p0, *p1])));
            Some(Entry { tag, allows })
        });
        let entries = entries.collect::<Option<Vec<_>>>()?;
        (u32::from_le_bytes(*version) == VERSION).then_some(Self { entries })
    }

    /// Whether somebody who does not own the file may do all of `wanted`.
    pub(super) fn permits(&self, user: &User, owning_group: u32, wanted: Access) -> bool {
        let mask = self.mask();
        let named = self.entries.iter().find(|entry| entry.tag == Tag::User(user.uid));
        if let Some(entry) = named {
            return (entry.allows & mask).contains(wanted);
        }
        let mut groups = self
            .entries
            .iter()
            .filter(|entry| match entry.tag {
                Tag::OwningGroup => user.groups.contains(&owning_group),
                Tag::Group(group) => user.groups.contains(&group),
                _ => false,
            })
            .peekable();
        if groups.peek().is_some() {
            // One entry must allow all of it.
            return groups.any(|entry| (entry.allows & mask).contains(wanted));
        }
        let other = self.entries.iter().find(|entry| entry.tag == Tag::Other);
        other.is_some_and(|entry| entry.allows.contains(wanted))
    }

    fn mask(&self) -> Access {
        let mask = self.entries.iter().find(|entry| entry.tag == Tag::Mask);
        mask.map_or(Access::all(), |entry| entry.allows)
    }

    /// Users and groups that may write, other than the owner and root.
    pub(super) fn writers(&self, owning_group: u32) -> Vec<String> {
        let mask = self.mask();
        let writes = |entry: &&Entry| (entry.allows & mask).contains(Access::WRITE);
        let who = self
            .entries
            .iter()
            .filter(writes)
            .filter_map(|entry| match entry.tag {
                Tag::User(0) | Tag::Group(0) => None,
                Tag::User(user) => Some(format!("the user {}", name_of(user))),
                Tag::Group(group) => Some(format!("the group {}", group_name_of(group))),
                Tag::OwningGroup if owning_group != 0 => {
                    Some(format!("the group {}", group_name_of(owning_group)))
                }
                _ => None,
            });
        who.collect()
    }
}

fn found(read: rustix::io::Result<usize>, buffer: &[u8]) -> Result<Option<Acl>, Errno> {
    match read {
        Ok(len) => Acl::parse(buffer.get(..len).unwrap_or_default())
            .map(Some)
            .ok_or(Errno::INVAL),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    fn user(uid: u32, groups: &[u32]) -> User {
        User {
            name: uid.to_string(),
            uid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn named_users_come_before_groups_and_the_mask_is_over_both() {
        let none = u32::MAX;
        let acl = Acl::parse(&stored(&[
            (0x01, 7, none),
            (0x02, 4, 10),
            (0x04, 6, none),
            (0x08, 2, 30),
            (0x10, 6, none),
            (0x20, 1, none),
        ]))
        .unwrap();
        let permits = |user: &User, wanted| acl.permits(user, 20, wanted);
        assert!(permits(&user(10, &[20]), Access::READ));
        assert!(!permits(&user(10, &[20]), Access::WRITE));
        assert!(permits(&user(11, &[20]), Access::READ | Access::WRITE));
        assert!(!permits(&user(11, &[30]), Access::READ | Access::WRITE));
        assert!(!permits(&user(11, &[30]), Access::SEARCH));
        assert!(permits(&user(11, &[40]), Access::SEARCH));
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        for bytes in [
            &b""[..],
            b"\x02\0\0",
            b"\x03\0\0\0",
            b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff",
            b"\x02\0\0\0\x03\0\x07\0\xff\xff\xff\xff",
        ] {
            assert_eq!(Acl::parse(bytes), None, "{bytes:?}");
        }
    }
}
