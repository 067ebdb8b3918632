//! Grants in the language of the system that enforces them.

use crate::text::printable;
use catena::detect::quoted;
use catena::doctor::Access;
use catena_virt::access::{Grant, Kept, Role, apparmor as profile, change::Plan};
use std::collections::HashSet;
use std::io::{self, Write};

/// Rules for a guest's profile. What libvirt overlooks is among them.
pub fn apparmor<'a>(grants: impl Iterator<Item = &'a Grant>, out: &mut impl Write) -> io::Result<()> {
    let mut known = HashSet::new();
    for grant in grants {
        let lines = match (&grant.apparmor, grant.path()) {
            (Ok(profile), _) => profile.escaped(),
            (Err(Kept::Unseen), Some(path)) if grant.role == Role::Extent => {
                let letters = if grant.access.contains(Access::WRITE) {
                    "rwk"
                } else {
                    "rk"
                };
                vec![
                    "# libvirt writes no rule for this file, which an image says its data is in; if that is so:".to_owned(),
                    format!("# {}", profile::rule(path, letters)),
                ]
            }
            (Err(Kept::Unseen), Some(path)) => {
                let letters = match grant.role {
                    Role::Socket => "rw",
                    _ => "r",
                };
                vec![
                    format!("# libvirt writes no rule for this {}", grant.role.as_str()),
                    profile::rule(path, letters),
                ]
            }
            (Err(kept), Some(path)) => vec![format!(
                "# no rule for {}: {kept}",
                printable(&path.display().to_string())
            )],
            (Err(_), None) => Vec::new(),
        };
        if known.insert(lines.clone()) {
            for line in lines {
                writeln!(out, "  {line}")?;
            }
        }
    }
    Ok(())
}

/// Commands that set labels.
pub fn selinux<'a>(grants: impl Iterator<Item = &'a Grant>, out: &mut impl Write) -> io::Result<()> {
    let mut known = HashSet::new();
    for grant in grants {
        let (Ok(label), Some(path)) = (&grant.selinux, grant.path()) else {
            continue;
        };
        if !known.insert(path) {
            continue;
        }
        if label.drawn {
            writeln!(
                out,
                "# libvirt adds two categories to this one, which it draws at each start"
            )?;
        }
        writeln!(out, "chcon {} -- {}", quoted(&label.context), quoted(path))?;
    }
    Ok(())
}

/// The commands that do what a plan does, and what stays in the way.
pub fn commands(plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    for command in plan.commands() {
        let words: Vec<_> = command.iter().map(quoted).collect();
        writeln!(out, "{}", words.join(" "))?;
    }
    for obstacle in &plan.left {
        writeln!(out, "# this stays: {}", printable(&obstacle.sentence()))?;
    }
    Ok(())
}

/// What a file is opened for, in one word.
pub fn access_word(access: Access) -> &'static str {
    if access.contains(Access::WRITE) {
        "read-write"
    } else {
        "read"
    }
}
