//! A user, as the kernel knows one: a number and the numbers of the groups.

use catena_engine::{Error, ErrorKind, Result};
use nix::unistd::{self, Gid, Group, Uid};
use std::ffi::CString;

/// Somebody who opens images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name, or number where there is none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group ids: the primary one and the supplementary ones.
    pub groups: Vec<u32>,
}

impl User {
    /// `NAME` or `NUMBER`, with the groups that the system has for the user, or `USER:GROUP` with that group alone.
    ///
    /// A number that the system has no user for has no groups.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no such user or group.
    pub fn find(text: &str) -> Result<Self> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let unknown = |what: &str, name: &str| {
            Error::new(ErrorKind::NotFound, format!("there is no {what} '{name}'"))
                .with_hint("give a name, a number, or USER:GROUP")
        };
        let system = |error: nix::Error| {
            Error::new(ErrorKind::Io, "the system's users cannot be looked up")
                .with_source(std::io::Error::from(error))
        };
        let entry = match user.parse::<u32>() {
            Ok(uid) => unistd::User::from_uid(Uid::from_raw(uid)).map_err(system)?,
            Err(_) => Some(
                unistd::User::from_name(user)
                    .map_err(system)?
                    .ok_or_else(|| unknown("user", user))?,
            ),
        };
        let uid = entry
            .as_ref()
            .map_or_else(|| user.parse().ok(), |entry| Some(entry.uid.as_raw()));
        let uid = uid.ok_or_else(|| unknown("user", user))?;
        let groups = match (group, &entry) {
            (Some(group), _) => vec![match group.parse() {
                Ok(gid) => gid,
                Err(_) => Group::from_name(group)
                    .map_err(system)?
                    .ok_or_else(|| unknown("group", group))?
                    .gid
                    .as_raw(),
            }],
            (None, Some(entry)) => groups_of(entry).map_err(system)?,
            (None, None) => Vec::new(),
        };
        Ok(Self {
            name: entry.map_or_else(|| uid.to_string(), |entry| entry.name),
            uid,
            groups,
        })
    }

    /// A process that runs as this user and group: beside that group it has those that the system has for the user.
    pub fn of_process(uid: u32, gid: u32) -> Self {
        let entry = unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let groups = match &entry {
            Some(entry) => supplementary(entry, Gid::from_raw(gid)).unwrap_or_default(),
            None => Vec::new(),
        };
        let others = groups.into_iter().filter(|other| *other != gid);
        Self {
            name: entry.map_or_else(|| uid.to_string(), |entry| entry.name),
            uid,
            groups: std::iter::once(gid).chain(others).collect(),
        }
    }

    /// Who we are.
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let mut groups = vec![rustix::process::getegid().as_raw()];
        groups.extend(
            rustix::process::getgroups()
                .unwrap_or_default()
                .into_iter()
                .map(rustix::process::Gid::as_raw),
        );
        Self {
            name: name_of(uid),
            uid,
            groups,
        }
    }
}

fn groups_of(user: &unistd::User) -> nix::Result<Vec<u32>> {
    supplementary(user, user.gid)
}

/// The groups of a user whose first one is that.
fn supplementary(user: &unistd::User, first: Gid) -> nix::Result<Vec<u32>> {
    let name = CString::new(user.name.as_str()).unwrap_or_default();
    let groups = unistd::getgrouplist(&name, first)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// A user's name; the number where there is none.
pub fn name_of(uid: u32) -> String {
    match unistd::User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// A group's name; the number where there is none.
pub fn group_name_of(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = User::find("root").unwrap();
        assert_eq!((root.uid, root.name.as_str()), (0, "root"));
        assert!(root.groups.contains(&0));
        assert_eq!(User::find("0").unwrap(), root);
        let nobody = User::find("3999999").unwrap();
        assert_eq!((nobody.uid, nobody.groups.len()), (3_999_999, 0));
        assert_eq!(User::find("3999999:7").unwrap().groups, [7]);
        assert_eq!(
            User::find("no such user").unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(
            User::find("0:no such group").unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}
