//! An image's facts as lines to read.

use super::model::{Backing, DataFile, Encrypted, Image};
use super::qcow2::{Bit, Qcow2, ShownSnapshot};
use crate::text::{count, printable, size};
use anstyle::{AnsiColor, Style};
use std::io::{self, Write};

const HEAD: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const NOTE: Style = AnsiColor::Yellow.on_default();

/// Writes them, in groups with a heading each.
pub fn write(image: &Image, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{HEAD}{}{HEAD:#}", printable(&image.image))?;
    let variant = image
        .variant
        .as_ref()
        .map(|variant| format!(" {}", printable(variant)));
    let belief = match image.origin {
        "probed" if image.format != "raw" => format!(" (probed: give '-f {}' to be sure)", image.format),
        "probed" => " (probed)".to_owned(),
        _ => " (as given)".to_owned(),
    };
    line(
        out,
        "format",
        &format!("{}{}{belief}", image.format, variant.unwrap_or_default()),
    )?;
    if let Some(bytes) = image.virtual_size {
        line(out, "virtual size", &exact(bytes))?;
    }
    if let Some(bytes) = image.file_size {
        line(out, "file size", &exact(bytes))?;
    }
    if let Some(bytes) = image.allocated {
        line(out, "on disk", &size(bytes))?;
    }
    if let Some(bytes) = image.cluster_size {
        line(out, "cluster size", &size(bytes))?;
    }
    if let Some(id) = &image.id {
        line(out, "identity", &printable(id))?;
    }
    if !image.features.is_empty() {
        line(out, "features", &printable(&image.features.join(", ")))?;
    }
    for writer in &image.writers {
        line(out, "written by", &printable(writer))?;
    }
    for oddity in &image.oddities {
        writeln!(out, "  {NOTE}! {}{NOTE:#}", printable(oddity))?;
    }
    if let Some(file) = &image.backing {
        backing(file, out)?;
    }
    if let Some(file) = &image.data_file {
        data_file(file, out)?;
    }
    if let Some(encrypted) = &image.encryption {
        encryption(encrypted, out)?;
    }
    image.qcow2.as_ref().map_or(Ok(()), |header| qcow2(header, out))
}

fn backing(backing: &Backing, out: &mut dyn Write) -> io::Result<()> {
    heading(out, "Backing image")?;
    line(out, "recorded", &printable(&backing.text))?;
    if let Some(offset) = backing.offset {
        line(out, "name lies at", &format!("{offset:#x}"))?;
    }
    line(
        out,
        "format",
        &backing
            .format
            .as_deref()
            .map_or("not recorded".to_owned(), printable),
    )?;
    if let Some(source) = &backing.source {
        line(out, "leads to", &printable(&source.to_string()))?;
    }
    if let Some(id) = &backing.parent_id {
        line(out, "its identity", &printable(id))?;
    }
    for other in &backing.alternatives {
        line(out, "or", &printable(other))?;
    }
    for lost in &backing.lost {
        line(out, "lost", &printable(lost))?;
    }
    match &backing.error {
        Some(error) => line(out, "leads nowhere", &printable(error)),
        None => Ok(()),
    }
}

fn data_file(file: &DataFile, out: &mut dyn Write) -> io::Result<()> {
    heading(out, "Data file")?;
    line(
        out,
        "recorded",
        &file.text.as_deref().map_or("no name".to_owned(), printable),
    )?;
    if let Some(path) = &file.path {
        line(out, "leads to", &printable(path))?;
    }
    line(
        out,
        "raw",
        if file.raw {
            "yes: its bytes are the guest's, in order"
        } else {
            "no"
        },
    )
}

fn encryption(encrypted: &Encrypted, out: &mut dyn Write) -> io::Result<()> {
    heading(out, "Encryption")?;
    line(out, "kind", &printable(&encrypted.summary))?;
    for (name, value) in [("hash", &encrypted.hash), ("uuid", &encrypted.uuid)] {
        if let Some(value) = value {
            line(out, name, &printable(value))?;
        }
    }
    if let Some(slots) = encrypted.active_key_slots {
        line(out, "keys", &format!("{} in use", count(slots.into(), "slot")))?;
    }
    if let Some(offset) = encrypted.payload_offset {
        line(
            out,
            "payload at",
            &format!("{offset:#x} behind the header's start"),
        )?;
    }
    Ok(())
}

fn qcow2(header: &Qcow2, out: &mut dyn Write) -> io::Result<()> {
    heading(out, "Header")?;
    line(
        out,
        "compatibility",
        &format!("{}, {} bytes", header.compat, header.header_length),
    )?;
    line(out, "compression", header.compression)?;
    line(out, "refcounts", &format!("{} bits", header.refcount_bits))?;
    let l1 = &header.l1_table;
    let entries = if l1.entries == 1 { "entry" } else { "entries" };
    line(
        out,
        "L1 table",
        &format!("{:#x}, {} {entries}", l1.offset, l1.entries),
    )?;
    let refcounts = &header.refcount_table;
    let clusters = count(refcounts.entries.into(), "cluster");
    line(
        out,
        "refcount table",
        &format!("{:#x}, {clusters}", refcounts.offset),
    )?;
    if let Some(table) = &header.snapshot_table {
        line(out, "snapshot table", &format!("{:#x}", table.offset))?;
    }
    for (name, set) in [
        ("incompatible", &header.incompatible),
        ("compatible", &header.compatible),
        ("autoclear", &header.autoclear),
    ] {
        if !set.is_empty() {
            line(out, name, &set.iter().map(bit).collect::<Vec<_>>().join(", "))?;
        }
    }
    if let Some(bytes) = &header.unknown_fields {
        line(out, "unknown fields", bytes)?;
    }
    if !header.extensions.is_empty() {
        heading(out, "Header extensions")?;
        for field in &header.extensions {
            let name = field.name.unwrap_or("unknown");
            writeln!(
                out,
                "  {QUIET}{:#010x}{QUIET:#}  {name:<14}  {}",
                field.kind,
                printable(&field.content)
            )?;
        }
    }
    snapshots(&header.snapshots, out)?;
    if !header.bitmaps.is_empty() {
        heading(out, "Bitmaps")?;
        for bitmap in &header.bitmaps {
            let auto = if bitmap.auto { ", records" } else { "" };
            let in_use = if bitmap.in_use {
                ", in use: not to be believed"
            } else {
                ""
            };
            line(
                out,
                &printable(&bitmap.name),
                &format!("granularity {}{auto}{in_use}", size(bitmap.granularity)),
            )?;
        }
    }
    for error in &header.errors {
        writeln!(out, "  {NOTE}! {}{NOTE:#}", printable(error))?;
    }
    Ok(())
}

fn bit(bit: &Bit) -> String {
    let name = bit
        .name
        .as_deref()
        .map_or_else(|| "not named".to_owned(), printable);
    let unknown = if bit.known { "" } else { ", unknown here" };
    format!("{name} (bit {}{unknown})", bit.bit)
}

/// The list, with qemu-img's columns.
fn snapshots(snapshots: &[ShownSnapshot], out: &mut dyn Write) -> io::Result<()> {
    if snapshots.is_empty() {
        return Ok(());
    }
    heading(out, "Snapshots")?;
    snapshot_rows(snapshots, out)
}

/// A table of snapshots.
pub fn snapshot_rows(snapshots: &[ShownSnapshot], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "  {QUIET}{:<6}  {:<20}  {:>9}  {:<23}  {:>14}  {:>10}{QUIET:#}",
        "id", "tag", "vm state", "date", "vm clock", "icount"
    )?;
    for snapshot in snapshots {
        let icount = snapshot.icount.map_or("-".to_owned(), |count| count.to_string());
        writeln!(
            out,
            "  {:<6}  {:<20}  {:>9}  {:<23}  {:>14}  {icount:>10}",
            printable(&snapshot.id),
            printable(&snapshot.name),
            size(snapshot.vm_state_size),
            date(snapshot.date),
            clock(snapshot.vm_clock_nanoseconds),
        )?;
    }
    Ok(())
}

/// Seconds since the epoch as a date, in UTC: the same wherever it is read.
fn date(seconds: u32) -> String {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u32::from(leap(year)) {
        days -= 365 + u32::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [
        31,
        28 + u32::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year}-{month:02}-{:02} {hours:02}:{minutes:02}:{seconds:02} UTC",
        days + 1
    )
}

/// How long a guest has been running: `0001:02:03.004`.
fn clock(nanoseconds: u64) -> String {
    let (seconds, milliseconds) = (nanoseconds / 1_000_000_000, nanoseconds / 1_000_000 % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:04}:{minutes:02}:{seconds:02}.{milliseconds:03}")
}

fn exact(bytes: u64) -> String {
    if bytes < 1024 {
        return size(bytes);
    }
    format!("{} ({bytes} bytes)", size(bytes))
}

fn heading(out: &mut dyn Write, text: &str) -> io::Result<()> {
    writeln!(out, "\n{HEAD}{text}{HEAD:#}")
}

fn line(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  {QUIET}{name:<14}{QUIET:#}  {value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_clocks_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(u32::MAX), "2106-02-07 06:28:15 UTC");
        assert_eq!(clock(3_723_004_000_000), "0001:02:03.004");
    }
}
