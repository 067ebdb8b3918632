//! A forest as a picture: one SVG file that needs nothing else, for light and dark pages.

use super::model::Shown;
use super::rows::{Row, notes, rows};
use crate::text::{count, printable, shorten, size, xml};
use std::io::{self, Write};

/// Measures in pixels: the picture, a row, a level, and where rows and columns start.
const WIDTH: usize = 1160;
const ROW: usize = 26;
const LEVEL: usize = 22;
const LEFT: usize = 24;
const TOP: usize = 84;
const COLUMNS: [usize; 5] = [700, 810, 930, 1050, 1130];
/// Pixels of a character of a name, or a bit more.
const CHARACTER: usize = 8;

const STYLE: &str = "\
svg { font-family: ui-sans-serif, system-ui, 'Segoe UI', Roboto, sans-serif; font-size: 13px; }
.page { fill: #ffffff; } .title { font-size: 20px; font-weight: 600; } .title, .name { fill: #1f2730; }
.small { fill: #5b6672; font-size: 12px; } .number { fill: #1f2730; font-variant-numeric: tabular-nums; text-anchor: end; }
.base { font-weight: 600; } .rail { stroke: #a9b3bd; stroke-width: 1.5; fill: none; }
.dot { fill: #8a94a0; } .dot.leaf { fill: #2e8b57; } .dot.bad { fill: #c0392b; } .note { fill: #9a6700; font-size: 12px; } .note.bad { fill: #c0392b; }
@media (prefers-color-scheme: dark) {
.page { fill: #14181d; } .title, .name, .number { fill: #e8ecf0; } .small { fill: #98a4b0; } .rail { stroke: #55616d; }
.dot { fill: #98a4b0; } .dot.leaf { fill: #4fbf85; } .dot.bad { fill: #ff7b6b; } .note { fill: #d9a520; } .note.bad { fill: #ff7b6b; }
}";

/// Draws the picture.
pub fn draw(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let rows = rows(shown);
    let lines: Vec<_> = rows.iter().map(|row| notes(row)).collect();
    let height = TOP + lines.iter().map(|notes| ROW * (1 + notes.len())).sum::<usize>() + ROW;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
    )?;
    writeln!(
        out,
        "<title>{}</title>",
        count(shown.images.len() as u64, "image")
    )?;
    writeln!(out, "<style>\n{STYLE}\n</style>")?;
    writeln!(
        out,
        "<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>"
    )?;
    let title = count(shown.images.len() as u64, "image");
    writeln!(out, "<text class=\"title\" x=\"{LEFT}\" y=\"40\">{title}</text>")?;
    for (x, head) in COLUMNS.iter().zip(["format", "disk", "on disk", "alone", "age"]) {
        writeln!(
            out,
            "<text class=\"small\" text-anchor=\"end\" x=\"{x}\" y=\"66\">{head}</text>"
        )?;
    }
    let mut y = TOP;
    // Where the last row of each level was: what stands on it hangs there.
    let mut levels: Vec<usize> = Vec::new();
    for (row, notes) in rows.iter().zip(&lines) {
        let level = row.follows.len();
        levels.truncate(level);
        let x = LEFT + level * LEVEL;
        if let Some(base) = level.checked_sub(1).and_then(|below| levels.get(below)) {
            let rail = x - LEVEL + 5;
            writeln!(
                out,
                "<path class=\"rail\" d=\"M{rail} {} V{} H{}\"/>",
                base + 6,
                y - 4,
                x
            )?;
        }
        levels.push(y);
        draw_row(row, notes, x, y, out)?;
        y += ROW;
        for (bad, note) in notes {
            let class = if *bad { "note bad" } else { "note" };
            let note = shorten(&printable(note), (WIDTH - LEFT - x) / CHARACTER, "…");
            writeln!(
                out,
                "<text class=\"{class}\" x=\"{}\" y=\"{}\">{}</text>",
                x + 14,
                y - 4,
                xml(&note)
            )?;
            y += ROW;
        }
    }
    writeln!(out, "</svg>")
}

fn draw_row(
    row: &Row<'_>,
    notes: &[(bool, String)],
    x: usize,
    y: usize,
    out: &mut dyn Write,
) -> io::Result<()> {
    let image = row.image;
    let state = match image.needed {
        _ if notes.iter().any(|(bad, _)| *bad) => " bad",
        false => " leaf",
        true => "",
    };
    writeln!(
        out,
        "<circle class=\"dot{state}\" cx=\"{}\" cy=\"{}\" r=\"4\"/>",
        x + 5,
        y - 4
    )?;
    let weight = if image.needed { " base" } else { "" };
    let room = COLUMNS.first().map_or(0, |column| column.saturating_sub(x + 80)) / CHARACTER;
    let name = shorten(&printable(&row.name), room, "…");
    writeln!(
        out,
        "<text class=\"name{weight}\" x=\"{}\" y=\"{y}\">{}</text>",
        x + 14,
        xml(&name)
    )?;
    let sizes = [
        image.format.to_owned(),
        image.virtual_size.map_or_else(|| "?".to_owned(), size),
        size(image.on_disk),
        if image.needed {
            String::new()
        } else {
            size(image.alone)
        },
        image.age(),
    ];
    for (x, text) in COLUMNS.iter().zip(sizes) {
        writeln!(out, "<text class=\"number\" x=\"{x}\" y=\"{y}\">{text}</text>")?;
    }
    Ok(())
}
