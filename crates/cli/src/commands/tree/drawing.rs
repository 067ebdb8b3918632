//! A forest drawn in the terminal.

use super::model::Shown;
use super::rows::{INDENTED, Row, notes, rows};
use crate::text::{columns, count, printable, size};
use anstyle::{AnsiColor, Style};
use std::io::{self, Write};

const HEAD: Style = Style::new().dimmed();
const BASE: Style = Style::new().bold();
const LEAF: Style = AnsiColor::Green.on_default();
const NOTE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
/// The name's column is not made wider than this for the sake of a few long ones.
const NAME: usize = 72;
/// Columns of a size, of a format's name and of an age.
const SIZE: usize = 9;
const FORMAT: usize = 6;
const AGE: usize = 6;

/// Draws it.
pub fn draw(shown: &Shown, unicode: bool, out: &mut dyn Write) -> io::Result<()> {
    let rows = rows(shown);
    let labels: Vec<_> = rows
        .iter()
        .map(|row| (rail(row, unicode), printable(&row.name)))
        .collect();
    let widths = labels.iter().map(|(rail, name)| columns(rail) + columns(name));
    let width = widths.max().unwrap_or(0).clamp(4, NAME);
    if !rows.is_empty() {
        writeln!(
            out,
            "{HEAD}{:width$}  {:FORMAT$} {:>SIZE$} {:>SIZE$} {:>SIZE$} {:>AGE$}{HEAD:#}",
            "image", "format", "disk", "on disk", "alone", "age"
        )?;
    }
    for (row, (rail, name)) in rows.iter().zip(&labels) {
        let image = row.image;
        let style = if image.needed { BASE } else { LEAF };
        let gap = width.saturating_sub(columns(rail) + columns(name));
        let disk = image.virtual_size.map_or_else(|| "?".to_owned(), size);
        let alone = if image.needed {
            String::new()
        } else {
            size(image.alone)
        };
        writeln!(
            out,
            "{HEAD}{rail}{HEAD:#}{style}{name}{style:#}{:gap$}  {:FORMAT$} {disk:>SIZE$} {:>SIZE$} {alone:>SIZE$} {:>AGE$}",
            "",
            image.format,
            size(image.on_disk),
            image.age(),
        )?;
        let indent = " ".repeat(columns(rail) + 2);
        for (bad, note) in notes(row) {
            let style = if bad { BAD } else { NOTE };
            writeln!(out, "{indent}{style}{}{style:#}", printable(&note))?;
        }
    }
    let leaves = shown.images.iter().filter(|image| !image.needed).count();
    let broken = shown
        .images
        .iter()
        .filter(|image| image.broken().next().is_some())
        .count();
    let mut summary = vec![
        count(shown.images.len() as u64, "image"),
        format!("{leaves} that nothing needs"),
        format!(
            "{} on disk",
            size(shown.images.iter().map(|image| image.on_disk).sum())
        ),
    ];
    let changed = shown.images.iter().filter(|image| image.base_changed()).count();
    if changed > 0 {
        summary.push(format!("{changed} on a base that is not what it was"));
    }
    if broken > 0 {
        summary.push(format!("{broken} broken"));
    }
    if shown.others > 0 {
        summary.push(format!("{} not shown", count(shown.others as u64, "other file")));
    }
    writeln!(out, "{HEAD}{}{HEAD:#}", summary.join(", "))?;
    for error in &shown.errors {
        writeln!(out, "{BAD}{}{BAD:#}", printable(error))?;
    }
    Ok(())
}

fn rail(row: &Row<'_>, unicode: bool) -> String {
    let (more, last, line) = if unicode {
        ("├─ ", "└─ ", "│  ")
    } else {
        ("|- ", "`- ", "|  ")
    };
    let Some((own, below)) = row.follows.split_last() else {
        return String::new();
    };
    let mut rail: String = below
        .iter()
        .map(|follows| if *follows { line } else { "   " })
        .collect();
    rail.push_str(if *own { more } else { last });
    if row.depth > INDENTED {
        rail.push_str(&format!("{}: ", row.depth));
    }
    rail
}
