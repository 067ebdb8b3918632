//! A chain as a picture: one SVG file that needs nothing else, for light and dark pages.

use super::model::{Shown, ShownEnd, ShownLayer};
use super::tree::features;
use crate::text::{count, percent, printable, shorten, size, xml};
use std::io::{self, Write};

/// Measures in pixels: the picture, a card in it, and the space between cards.
const WIDTH: usize = 760;
const LEFT: usize = 24;
const CARD: usize = WIDTH - 2 * LEFT;
const GAP: usize = 26;
/// Of a card: its lines, and the bar on the right.
const LINE: usize = 18;
const PAD: usize = 16;
const BAR: usize = 160;
/// Where the first card starts.
const TOP: usize = 84;
/// Characters of a name and of a smaller text that fit beside the bar.
const NAME_COLUMNS: usize = 52;
const TEXT_COLUMNS: usize = 96;

const STYLE: &str = "\
svg { font-family: ui-sans-serif, system-ui, 'Segoe UI', Roboto, sans-serif; }
.page { fill: #ffffff; } .card { fill: #f6f8fa; stroke: #d5dbe1; } .active { stroke: #2e8b57; stroke-width: 1.6; }
.title { font-size: 20px; font-weight: 600; } .name { font-size: 14px; font-weight: 600; } .small { font-size: 12px; }
.title, .name, .number { fill: #1f2730; } .small { fill: #5b6672; } .number { font-size: 12px; font-variant-numeric: tabular-nums; }
.track { fill: #e4e8ec; } .bar { fill: #3b7dd8; } .rail { stroke: #a9b3bd; stroke-width: 1.5; fill: none; }
.dot { fill: #a9b3bd; } .dot.top { fill: #2e8b57; } .note { fill: #9a6700; } .bad { fill: #c0392b; }
.broken { fill: none; stroke: #c0392b; stroke-dasharray: 5 4; } .open { fill: none; stroke: #b58900; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) {
.page { fill: #14181d; } .card { fill: #1c222a; stroke: #333d48; } .active { stroke: #4fbf85; }
.title, .name, .number { fill: #e8ecf0; } .small { fill: #98a4b0; } .track { fill: #2a333d; } .bar { fill: #5a9cf0; }
.rail { stroke: #55616d; } .dot { fill: #55616d; } .dot.top { fill: #4fbf85; } .note { fill: #d9a520; } .bad { fill: #ff7b6b; }
}";

/// A line of a card: its class and its text.
type Line = (&'static str, String);

/// Draws the picture.
pub fn draw(shown: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let cards: Vec<Vec<Line>> = shown.layers.iter().map(|layer| lines(shown, layer)).collect();
    let last = end_lines(shown);
    let heights = cards.iter().chain([&last]).map(|lines| card_height(lines) + GAP);
    let height = TOP + heights.sum::<usize>();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
    )?;
    writeln!(out, "<title>{}</title>", xml(&shown.target))?;
    writeln!(out, "<style>\n{STYLE}\n</style>")?;
    writeln!(
        out,
        "<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>"
    )?;
    let mut facts: Vec<_> = shown
        .virtual_size
        .map(|bytes| format!("{} disk", size(bytes)))
        .into_iter()
        .collect();
    facts.push(count(shown.depth as u64, "layer"));
    facts.extend(shown.data.map(|bytes| format!("{} of data", size(bytes))));
    text(
        out,
        LEFT,
        40,
        "title",
        &shorten(&printable(&shown.target), 64, "…"),
    )?;
    text(out, LEFT, 62, "small", &facts.join(" · "))?;
    let mut y = TOP;
    for (layer, lines) in shown.layers.iter().zip(&cards) {
        let height = card_height(lines);
        card(out, shown, layer, lines, y, height)?;
        y += height;
        rail(out, y)?;
        y += GAP;
    }
    end(out, shown, &last, y)?;
    writeln!(out, "</svg>")
}

fn card(
    out: &mut dyn Write,
    shown: &Shown,
    layer: &ShownLayer,
    lines: &[Line],
    y: usize,
    height: usize,
) -> io::Result<()> {
    let (class, dot) = if layer.index == 0 {
        ("card active", "dot top")
    } else {
        ("card", "dot")
    };
    writeln!(
        out,
        "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{CARD}\" height=\"{height}\" rx=\"8\"/>\
         <circle class=\"{dot}\" cx=\"{}\" cy=\"{}\" r=\"5\"/>",
        LEFT + 20,
        y + PAD + 8
    )?;
    write_lines(out, lines, y)?;
    let Some(bytes) = layer.contributes else {
        return Ok(());
    };
    let (x, total) = (LEFT + CARD - BAR - PAD, shown.counted_data());
    let filled = match bytes.data {
        0 => 0.0,
        data => (data as f64 / total as f64 * BAR as f64).max(2.0),
    };
    writeln!(
        out,
        "<rect class=\"track\" x=\"{x}\" y=\"{}\" width=\"{BAR}\" height=\"6\" rx=\"3\"/>\
         <rect class=\"bar\" x=\"{x}\" y=\"{0}\" width=\"{filled:.1}\" height=\"6\" rx=\"3\"/>",
        y + PAD + LINE + 4
    )?;
    text(out, x, y + PAD + 12, "number", &size(bytes.data))?;
    let share = percent(bytes.data, total);
    writeln!(
        out,
        "<text class=\"number\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{share}</text>",
        x + BAR,
        y + PAD + 12
    )
}

fn end(out: &mut dyn Write, shown: &Shown, lines: &[Line], y: usize) -> io::Result<()> {
    let class = match &shown.end {
        ShownEnd::Terminated => {
            return text(
                out,
                LEFT + 36,
                y + 2,
                "small",
                "end: the last layer needs no other image",
            );
        }
        ShownEnd::OpenEnded { .. } => "open",
        ShownEnd::Broken { .. } => "broken",
    };
    let height = card_height(lines);
    writeln!(
        out,
        "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{CARD}\" height=\"{height}\" rx=\"8\"/>"
    )?;
    write_lines(out, lines, y)
}

/// The line that leads from a card to what is below it.
fn rail(out: &mut dyn Write, y: usize) -> io::Result<()> {
    let x = LEFT + 20;
    writeln!(
        out,
        "<path class=\"rail\" d=\"M{x} {} V{} m-4 -5 l4 5 l4 -5\"/>",
        y + 3,
        y + GAP - 4
    )
}

fn write_lines(out: &mut dyn Write, lines: &[Line], y: usize) -> io::Result<()> {
    for (number, (class, line)) in lines.iter().enumerate() {
        text(out, LEFT + 36, y + PAD + 13 + number * LINE, class, line)?;
    }
    Ok(())
}

fn card_height(lines: &[Line]) -> usize {
    match lines.len() {
        0 => 0,
        lines => 2 * PAD + lines * LINE - 2,
    }
}

fn lines(shown: &Shown, layer: &ShownLayer) -> Vec<Line> {
    let mut lines = vec![("name", shorten(&printable(&layer.name), NAME_COLUMNS, "…"))];
    let mut facts = vec![format!("{} ({})", layer.format, layer.origin)];
    facts.extend(layer.virtual_size.map(size));
    facts.extend(layer.allocated.map(|bytes| format!("{} on disk", size(bytes))));
    lines.push(("small", facts.join(" · ")));
    let features = features(layer);
    if !features.is_empty() {
        lines.push(("small", features.join(" · ")));
    }
    if let Some(file) = &layer.data_file {
        let text = printable(&file.text);
        lines.push(match &file.error {
            None => ("small", format!("data in {text}")),
            Some(error) => (
                "small bad",
                format!("data file {text}: {}", printable(&error.full())),
            ),
        });
    }
    let findings = shown
        .troubles(layer.index)
        .filter(|finding| !shown.is_of_end(finding));
    lines.extend(findings.map(|finding| {
        let class = if finding.is_error() {
            "small bad"
        } else {
            "small note"
        };
        (class, printable(&finding.cause))
    }));
    shortened(lines)
}

fn end_lines(shown: &Shown) -> Vec<Line> {
    shortened(match &shown.end {
        ShownEnd::Terminated => Vec::new(),
        ShownEnd::OpenEnded { recorded, .. } => {
            let name = recorded.as_ref().map(|link| printable(&link.text));
            vec![
                ("name", name.unwrap_or_else(|| "open end".to_owned())),
                ("small note", "goes on where it cannot be followed".to_owned()),
            ]
        }
        ShownEnd::Broken {
            error,
            recorded,
            name,
            ..
        } => {
            let name = recorded.as_ref().map(|link| &link.text).or(name.as_ref());
            let mut lines = vec![("name bad", printable(name.unwrap_or(&shown.target)))];
            lines.extend(
                crate::text::wrap(&printable(&error.full()), TEXT_COLUMNS)
                    .into_iter()
                    .map(|line| ("small", line)),
            );
            lines
        }
    })
}

fn shortened(lines: Vec<Line>) -> Vec<Line> {
    let short = |(class, line): Line| (class, shorten(&line, TEXT_COLUMNS, "…"));
    lines.into_iter().map(short).collect()
}

fn text(out: &mut dyn Write, x: usize, y: usize, class: &str, text: &str) -> io::Result<()> {
    writeln!(
        out,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>",
        xml(text)
    )
}
