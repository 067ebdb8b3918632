//! The text.

use super::model::{Owner, Shown, ShownDisk, ShownFile, ShownObstacle};
use crate::text::printable;
use anstyle::{AnsiColor, Style};
use std::collections::BTreeSet;
use std::io::{self, Write};

const HEAD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

pub fn draw(shown: &Shown, out: &mut impl Write) -> io::Result<()> {
    let groups: Vec<_> = shown.user.groups.iter().map(ToString::to_string).collect();
    writeln!(
        out,
        "QEMU runs as {} (uid {}, groups {})",
        printable(&shown.user.name),
        shown.user.uid,
        groups.join(" ")
    )?;
    for disk in &shown.disks {
        draw_disk(disk, out)?;
    }
    let files = || shown.disks.iter().flat_map(|disk| &disk.files);
    let hints: BTreeSet<_> = files()
        .flat_map(|file| &file.started)
        .filter_map(|obstacle| obstacle.command.as_deref())
        .collect();
    for hint in hints {
        writeln!(out, "{CYAN}hint:{CYAN:#} {hint}")?;
    }
    Ok(())
}

fn draw_disk(disk: &ShownDisk, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{HEAD}{}{HEAD:#}", printable(&disk.disk))?;
    for file in &disk.files {
        draw_file(file, out)?;
    }
    if let Some(why) = &disk.no_chain {
        writeln!(out, "no chain: {}", printable(why))?;
    }
    match &disk.broken {
        Some(error) => writeln!(out, "{RED}broken:{RED:#} {}", printable(error)),
        None => Ok(()),
    }
}

fn draw_file(file: &ShownFile, out: &mut impl Write) -> io::Result<()> {
    let role = match file.role {
        "image" => String::new(),
        role => format!("{role} "),
    };
    writeln!(
        out,
        "{}  {role}{}, {}",
        file.layer,
        printable(&file.name),
        match file.access {
            "read" => "read",
            _ => "read and written",
        }
    )?;
    if file.path.is_none() {
        return writeln!(out, "   not on this host: nothing is granted");
    }
    let mut line = |title: &str, what: String| writeln!(out, "   {title:9} {}", printable(&what));
    let now = file.owner_now.as_ref().map(say_owner);
    let now = now.map_or_else(|| "not to be seen".to_owned(), |now| format!("now {now}"));
    line(
        "owner",
        match (&file.owner, &file.owner_kept) {
            (Some(owner), _) => {
                let back = if file.remembered {
                    ", given back at the end"
                } else {
                    ""
                };
                format!("{}, {now}{back}", say_owner(owner))
            }
            (None, why) => format!("stays, {now}: {}", why.as_deref().unwrap_or_default()),
        },
    )?;
    line(
        "selinux",
        match (&file.selinux, &file.selinux_kept) {
            (Some(label), _) if label.categories_drawn => {
                format!("{} with two categories drawn at the start", label.context)
            }
            (Some(label), _) => label.context.clone(),
            (None, why) => format!("stays: {}", why.as_deref().unwrap_or_default()),
        },
    )?;
    line(
        "apparmor",
        match (&file.apparmor, &file.apparmor_kept) {
            (Some(rules), _) if file.apparmor_misread => format!(
                "{} (libvirt writes the name as it is, and AppArmor reads it as a pattern for other files)",
                rules.join(" ")
            ),
            (Some(rules), _) => rules.join(" "),
            (None, why) => format!("no rule: {}", why.as_deref().unwrap_or_default()),
        },
    )?;
    for device in &file.devices {
        line(
            "device",
            format!(
                "{} {}:{} {}",
                device.kind, device.major, device.minor, device.access
            ),
        )?;
    }
    let lock = match file.image_lock {
        "reads" => "QEMU reads it, and nobody may write",
        "writes" => "QEMU writes it, and nobody else may",
        "shares" => "QEMU shares it with others who write",
        _ => "none",
    };
    let lease = match file.lease {
        "none" => String::new(),
        lease => format!("; libvirt's lease is {lease}"),
    };
    line("lock", format!("{lock}{lease}"))?;
    line("now", say_obstacles(&file.now))?;
    if file.owner.is_some() {
        line("started", say_obstacles(&file.started))?;
    }
    if let Some(server) = file.file_server {
        line(
            "server",
            format!("it lies on {server}, which may deny what modes allow, root not excepted (root_squash)"),
        )?;
    }
    Ok(())
}

fn say_owner(owner: &Owner) -> String {
    let mode = owner.mode.as_ref().map(|mode| format!(" {mode}"));
    format!("{}:{}{}", owner.user, owner.group, mode.unwrap_or_default())
}

fn say_obstacles(obstacles: &[ShownObstacle]) -> String {
    if obstacles.is_empty() {
        return "can be opened".to_owned();
    }
    let sentences: Vec<_> = obstacles.iter().map(|obstacle| obstacle.what.as_str()).collect();
    format!("cannot be opened: {}", sentences.join("; "))
}
