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

/// The extended attribute that holds a list.
pub const ACL_ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
/// The longest extended attribute there is.
const MOST: usize = 64 << 10;

/// An access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
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

impl Tag {
    /// Number and id as they are stored. An entry that is about nobody in particular has no id.
    fn stored(self) -> (u16, u32) {
        match self {
            Self::Owner => (0x01, u32::MAX),
            Self::User(id) => (0x02, id),
            Self::OwningGroup => (0x04, u32::MAX),
            Self::Group(id) => (0x08, id),
            Self::Mask => (0x10, u32::MAX),
            Self::Other => (0x20, u32::MAX),
        }
    }
}

impl Acl {
    /// The list of an open file; `None` where it has none beyond its mode.
    ///
    /// # Errors
    /// Where it cannot be read or understood.
    pub fn of_file(file: impl AsFd) -> Result<Option<Self>, Errno> {
        let mut buffer = vec![0; MOST];
        found(fgetxattr(file, ACL_ATTRIBUTE, &mut *buffer), &buffer)
    }

    /// The list of what a name stands for; `None` where it has none beyond its mode.
    ///
    /// # Errors
    /// Where it cannot be read or understood.
    pub fn of_path(path: &Path) -> Result<Option<Self>, Errno> {
        let mut buffer = vec![0; MOST];
        found(getxattr(path, ACL_ATTRIBUTE, &mut *buffer), &buffer)
    }

    /// Reads the stored form; what is not understood is an error.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
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

    /// The list that says what a mode says.
    pub fn of_mode(mode: u32) -> Self {
        let entry = |tag, shift: u32| Entry {
            tag,
            allows: Access::from_mode(mode >> shift),
        };
        Self {
            entries: vec![
                entry(Tag::Owner, 6),
                entry(Tag::OwningGroup, 3),
                entry(Tag::Other, 0),
            ],
        }
    }

    /// The list that also allows this to a user. What anybody else may do stays what it is.
    #[must_use]
    pub fn granting(&self, uid: u32, allowed: Access) -> Self {
        let mask = self.mask();
        let mut entries: Vec<Entry> = Vec::new();
        let mut most = allowed;
        for entry in &self.entries {
            let mut entry = *entry;
            match entry.tag {
                Tag::User(_) | Tag::OwningGroup | Tag::Group(_) => entry.allows &= mask,
                Tag::Mask => continue,
                Tag::Owner | Tag::Other => {}
            }
            if entry.tag == Tag::User(uid) {
                entry.allows |= allowed;
            }
            if !matches!(entry.tag, Tag::Owner | Tag::Other) {
                most |= entry.allows;
            }
            entries.push(entry);
        }
        if !entries.iter().any(|entry| entry.tag == Tag::User(uid)) {
            entries.push(Entry {
                tag: Tag::User(uid),
                allows: allowed,
            });
        }
        entries.push(Entry {
            tag: Tag::Mask,
            allows: most,
        });
        // The kernel insists on this order.
        entries.sort_by_key(|entry| entry.tag.stored());
        Self { entries }
    }

    /// The list of the same file once it has that mode.
    #[must_use]
    pub fn with_mode(&self, mode: u32) -> Self {
        let has_mask = self.entries.iter().any(|entry| entry.tag == Tag::Mask);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            let shift = match entry.tag {
                Tag::Owner => 6,
                Tag::Mask => 3,
                Tag::OwningGroup if !has_mask => 3,
                Tag::Other => 0,
                _ => continue,
            };
            entry.allows = Access::from_mode(mode >> shift);
        }
        Self { entries }
    }

    /// The bits of the group's digit in the mode of a file with this list.
    pub fn group_bits(&self) -> u32 {
        let group = self.entries.iter().find(|entry| entry.tag == Tag::Mask);
        let group = group.or_else(|| self.entries.iter().find(|entry| entry.tag == Tag::OwningGroup));
        group.map_or(0, |entry| u32::from(entry.allows.bits()))
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (tag, id) = entry.tag.stored();
            bytes.extend(tag.to_le_bytes());
            bytes.extend(u16::from(entry.allows.bits()).to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// Whether somebody who does not own the file may do all of `wanted`.
    pub fn permits(&self, user: &User, owning_group: u32, wanted: Access) -> bool {
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
    fn a_grant_adds_a_user_and_changes_nothing_for_others() {
        let none = u32::MAX;
        // The mask keeps user 10 and the group 30 from writing.
        let acl = Acl::parse(&stored(&[
            (0x01, 7, none),
            (0x02, 6, 10),
            (0x04, 4, none),
            (0x08, 6, 30),
            (0x10, 4, none),
            (0x20, 0, none),
        ]))
        .unwrap();
        let rw = Access::READ | Access::WRITE;
        let granted = acl.granting(5, rw);
        assert_eq!(Acl::parse(&granted.encode()), Some(granted.clone()));
        assert!(granted.permits(&user(5, &[]), 20, rw));
        for other in [user(10, &[]), user(11, &[30]), user(11, &[20])] {
            assert!(granted.permits(&other, 20, Access::READ));
            assert!(!granted.permits(&other, 20, Access::WRITE), "{other:?}");
        }
        assert_eq!(granted.group_bits(), 6);
        assert_eq!(granted.granting(5, Access::READ), granted);
        let plain = Acl::of_mode(0o640).granting(5, Access::READ);
        assert!(
            plain.permits(&user(5, &[]), 20, Access::READ) && !plain.permits(&user(6, &[]), 20, Access::READ)
        );
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
