//! A chain drawn in the terminal: a block for each layer, the active one on top, and how the chain ends.

use super::model::{Shown, ShownDataFile, ShownEnd, ShownLayer};
use crate::commands::facts::FindingFacts;
use crate::text::{self, count, percent, printable, size};
use anstyle::{AnsiColor, Style};
use std::io::{self, Write};

const NAME: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const ACTIVE: Style = AnsiColor::Green.on_default().bold();
const BAR: Style = AnsiColor::Blue.on_default();
const NOTE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const NEXT: Style = AnsiColor::Cyan.on_default();

/// Lines are not made longer than this, however wide the terminal is.
const MAX_WIDTH: usize = 110;
/// Columns of the rail on the left.
const RAIL: usize = 3;
/// Columns of a size, as in `1023 KiB`, and of a share.
const SIZE: usize = 8;
const SHARE: usize = 4;

/// How it is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Columns there are.
    pub width: usize,
    /// Whether there are more characters than those of ASCII.
    pub unicode: bool,
    /// Layers above and below the middle that is left out; nothing is left out where `None`.
    pub ends: Option<usize>,
}

/// The characters of the drawing.
struct Glyphs {
    active: &'static str,
    layer: &'static str,
    broken: &'static str,
    rail: &'static str,
    gap: &'static str,
    end: &'static str,
    dot: &'static str,
    error: &'static str,
    warn: &'static str,
    /// Before what to do.
    next: &'static str,
    cut: &'static str,
    /// From an eighth to the whole of a column.
    bar: &'static [&'static str],
}

const UNICODE: Glyphs = Glyphs {
    active: "◉",
    layer: "●",
    broken: "✗",
    rail: "│",
    gap: "┆",
    end: "╵",
    dot: " · ",
    error: "✖ ",
    warn: "▲ ",
    next: "→ ",
    cut: "…",
    bar: &["▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"],
};

const ASCII: Glyphs = Glyphs {
    active: "@",
    layer: "o",
    broken: "X",
    rail: "|",
    gap: ":",
    end: "'",
    dot: ", ",
    error: "x ",
    warn: "! ",
    next: "-> ",
    cut: "...",
    bar: &["#"],
};

/// Draws a chain.
pub fn draw(shown: &Shown, look: Look, out: &mut dyn Write) -> io::Result<()> {
    let glyphs = if look.unicode { &UNICODE } else { &ASCII };
    let mut tree = Tree {
        width: look.width.min(MAX_WIDTH),
        glyphs,
        total: shown.counted_data(),
        out,
    };
    tree.heading(shown)?;
    let hidden = look
        .ends
        .map_or(0..0, |ends| ends..shown.layers.len().saturating_sub(ends));
    for layer in &shown.layers {
        if !hidden.contains(&layer.index) {
            tree.layer(shown, layer)?;
        } else if layer.index == hidden.start {
            tree.hidden(shown, shown.layers.get(hidden.clone()).unwrap_or_default())?;
        }
    }
    tree.end(shown)
}

struct Tree<'a> {
    width: usize,
    glyphs: &'static Glyphs,
    /// Bytes of data that all layers contribute.
    total: u64,
    out: &'a mut dyn Write,
}

impl Tree<'_> {
    fn heading(&mut self, shown: &Shown) -> io::Result<()> {
        let mut parts = Vec::new();
        parts.extend(shown.virtual_size.map(|bytes| format!("{} disk", size(bytes))));
        parts.push(count(shown.depth as u64, "layer"));
        parts.extend(shown.data.map(|bytes| format!("{} of data", size(bytes))));
        if shown.depth == 0 {
            return Ok(());
        }
        writeln!(self.out, "{QUIET}{}{QUIET:#}", parts.join(self.glyphs.dot))?;
        if let Some(error) = &shown.contributions_error {
            let hint = error.hint.iter().map(|hint| format!("; {hint}"));
            let text = format!(
                "what they hold is not counted: {}{}",
                error.full(),
                hint.collect::<String>()
            );
            for line in text::wrap(&printable(&text), self.width) {
                writeln!(self.out, "{NOTE}{line}{NOTE:#}")?;
            }
        }
        writeln!(self.out)
    }

    fn layer(&mut self, shown: &Shown, layer: &ShownLayer) -> io::Result<()> {
        let (glyph, style) = match layer.index {
            0 => (self.glyphs.active, ACTIVE),
            _ => (self.glyphs.layer, Style::new()),
        };
        self.title(
            style,
            glyph,
            &printable(&layer.name),
            layer.contributes.map(|bytes| bytes.data),
        )?;
        let mut facts = vec![format!("{} ({})", layer.format, belief(layer))];
        facts.extend(layer.virtual_size.map(size));
        facts.extend(layer.allocated.map(|bytes| format!("{} on disk", size(bytes))));
        self.detail(QUIET, &facts.join(self.glyphs.dot))?;
        let features = features(layer);
        if !features.is_empty() {
            self.detail(QUIET, &features.join(self.glyphs.dot))?;
        }
        if let Some(file) = &layer.data_file {
            self.data_file(file)?;
        }
        for user in &layer.writers {
            self.detail(NOTE, &format!("written by {}", printable(user)))?;
        }
        for finding in shown
            .troubles(layer.index)
            .filter(|finding| !shown.is_of_end(finding))
        {
            self.finding(finding)?;
        }
        if let Some(corrupt) = layer
            .contributes
            .map(|bytes| bytes.corrupt)
            .filter(|bytes| *bytes > 0)
        {
            let text = format!("the mapping of {} is damaged", size(corrupt));
            self.marked(BAD, self.glyphs.error, &text)?;
        }
        writeln!(self.out, "{QUIET}{}{QUIET:#}", self.glyphs.rail)
    }

    fn finding(&mut self, finding: &FindingFacts) -> io::Result<()> {
        let (style, mark) = if finding.is_error() {
            (BAD, self.glyphs.error)
        } else {
            (NOTE, self.glyphs.warn)
        };
        self.marked(style, mark, &printable(&finding.cause))?;
        for line in finding.advice.iter().chain(&finding.commands) {
            self.marked(NEXT, self.glyphs.next, &printable(line))?;
        }
        Ok(())
    }

    fn data_file(&mut self, file: &ShownDataFile) -> io::Result<()> {
        let raw = if file.raw { " (raw)" } else { "" };
        let state = match (&file.error, file.allocated) {
            (Some(_), _) => format!("{}not open", self.glyphs.dot),
            (None, Some(bytes)) => format!("{}{} on disk", self.glyphs.dot, size(bytes)),
            (None, None) => String::new(),
        };
        self.detail(QUIET, &format!("data in {}{raw}{state}", printable(&file.text)))
    }

    /// The layers of a collapsed middle.
    fn hidden(&mut self, shown: &Shown, layers: &[ShownLayer]) -> io::Result<()> {
        let data = layers
            .iter()
            .map(|layer| layer.contributes.map(|bytes| bytes.data))
            .sum();
        let text = count(layers.len() as u64, "more layer");
        self.title(QUIET, self.glyphs.gap, &text, data)?;
        let mut facts = Vec::new();
        let on_disk: u64 = layers.iter().filter_map(|layer| layer.allocated).sum();
        facts.push(format!("{} on disk", size(on_disk)));
        let odd = layers
            .iter()
            .filter(|layer| shown.troubles(layer.index).next().is_some())
            .count();
        if odd > 0 {
            facts.push(format!("{} of them with something wrong", odd));
        }
        facts.push("--all shows them".to_owned());
        let text = facts.join(self.glyphs.dot);
        for line in text::wrap(&text, self.width.saturating_sub(RAIL)) {
            writeln!(self.out, "{QUIET}{}  {line}{QUIET:#}", self.glyphs.gap)?;
        }
        writeln!(self.out, "{QUIET}{}{QUIET:#}", self.glyphs.rail)
    }

    fn end(&mut self, shown: &Shown) -> io::Result<()> {
        match &shown.end {
            ShownEnd::Terminated => {
                writeln!(
                    self.out,
                    "{QUIET}{}  end: the last layer needs no other image{QUIET:#}",
                    self.glyphs.end
                )
            }
            ShownEnd::OpenEnded { recorded: None, .. } => self.last(
                NOTE,
                self.glyphs.gap,
                "open end: the last layer is not on this host, so its header was not read",
            ),
            ShownEnd::OpenEnded {
                recorded: Some(link), ..
            } => {
                let text = format!(
                    "open end: goes on in {}, whose reference carries credentials",
                    printable(&link.text)
                );
                self.last(NOTE, self.glyphs.gap, &text)
            }
            ShownEnd::Broken {
                error,
                recorded,
                name,
                ..
            } => {
                let text = recorded
                    .as_ref()
                    .map(|link| link.text.clone())
                    .or_else(|| name.clone());
                let title = printable(&text.unwrap_or_else(|| shown.target.clone()));
                let title = text::shorten(&title, self.width.saturating_sub(RAIL), self.glyphs.cut);
                writeln!(self.out, "{BAD}{}  {title}{BAD:#}", self.glyphs.broken)?;
                let rest = self.width.saturating_sub(RAIL);
                for line in text::wrap(&printable(&error.full()), rest) {
                    writeln!(self.out, "   {line}")?;
                }
                let about = shown.findings.iter().filter(|finding| shown.is_of_end(finding));
                let cure: Vec<_> = about
                    .flat_map(|found| found.advice.iter().chain(&found.commands))
                    .collect();
                let cure = if cure.is_empty() {
                    error.hint.iter().collect()
                } else {
                    cure
                };
                for line in cure
                    .into_iter()
                    .flat_map(|line| text::wrap(&printable(line), rest))
                {
                    writeln!(self.out, "   {NEXT}{line}{NEXT:#}")?;
                }
                Ok(())
            }
        }
    }

    fn last(&mut self, style: Style, glyph: &str, text: &str) -> io::Result<()> {
        for (number, line) in text::wrap(text, self.width.saturating_sub(RAIL))
            .iter()
            .enumerate()
        {
            let glyph = if number == 0 { glyph } else { " " };
            writeln!(self.out, "{style}{glyph}  {line}{style:#}")?;
        }
        Ok(())
    }

    /// A block's first line: the name on the left, on the right how much of the data it is.
    fn title(&mut self, style: Style, glyph: &str, name: &str, data: Option<u64>) -> io::Result<()> {
        let bar = match self.width {
            0..60 => 0,
            60..80 => 8,
            _ => 20,
        };
        let right = bar + 2 + SIZE + 2 + SHARE;
        let room = self.width.saturating_sub(RAIL + right + 2);
        let name = text::shorten(name, room, self.glyphs.cut);
        let pad = " ".repeat(room.saturating_sub(text::columns(&name)));
        write!(self.out, "{style}{glyph}{style:#}  {NAME}{name}{NAME:#}")?;
        let Some(data) = data else {
            return writeln!(self.out, "{pad}  {QUIET}{:>right$}{QUIET:#}", "not counted");
        };
        let full = self.bar(data, bar);
        let rest = " ".repeat(bar.saturating_sub(text::columns(&full)));
        let (bytes, share) = (size(data), percent(data, self.total));
        let quiet = if data == 0 { QUIET } else { Style::new() };
        writeln!(
            self.out,
            "{pad}  {BAR}{full}{BAR:#}{rest}  {quiet}{bytes:>SIZE$}  {share:>SHARE$}{quiet:#}"
        )
    }

    fn bar(&self, part: u64, columns: usize) -> String {
        let steps = self.glyphs.bar.len();
        if part == 0 || self.total == 0 || columns == 0 {
            return String::new();
        }
        // What contributes at all shows.
        let share = part as f64 / self.total as f64;
        let filled = ((share * (columns * steps) as f64).round() as usize).clamp(1, columns * steps);
        let whole = self.glyphs.bar.last().unwrap_or(&"#").repeat(filled / steps);
        let rest = (filled % steps)
            .checked_sub(1)
            .and_then(|rest| self.glyphs.bar.get(rest));
        whole + rest.unwrap_or(&"")
    }

    fn detail(&mut self, style: Style, text: &str) -> io::Result<()> {
        self.marked(style, "", text)
    }

    /// A text behind a mark, its further lines below its first.
    fn marked(&mut self, style: Style, mark: &str, text: &str) -> io::Result<()> {
        let blank = " ".repeat(text::columns(mark));
        let room = self.width.saturating_sub(RAIL + blank.len());
        for (number, line) in text::wrap(text, room).iter().enumerate() {
            let mark = if number == 0 { mark } else { &blank };
            writeln!(
                self.out,
                "{QUIET}{}{QUIET:#}  {style}{mark}{line}{style:#}",
                self.glyphs.rail
            )?;
        }
        Ok(())
    }
}

/// Why the format is believed, in a word or a few.
fn belief(layer: &ShownLayer) -> String {
    match (layer.origin, layer.consent) {
        ("specified", _) => "as given".to_owned(),
        ("recorded", _) => "recorded".to_owned(),
        _ if layer.is_unsure() => format!("probed: give '-f {}' to be sure", layer.format),
        (_, Some("leaf")) => "not recorded: probed, and a leaf".to_owned(),
        (_, Some("trusted")) => "not recorded: probed, and trusted".to_owned(),
        (_, Some("qed")) => "not recorded: probed, as libvirt does below QED".to_owned(),
        _ => "probed".to_owned(),
    }
}

/// What is special about the image.
pub fn features(layer: &ShownLayer) -> Vec<String> {
    // Bitmaps are counted instead.
    let named = layer.features.iter().filter(|feature| *feature != "bitmaps");
    let mut features: Vec<_> = named.map(|feature| printable(feature)).collect();
    if layer.snapshots > 0 {
        features.push(count(layer.snapshots.into(), "snapshot"));
    }
    if layer.bitmaps > 0 {
        features.push(count(layer.bitmaps.into(), "bitmap"));
    }
    features.extend(
        layer
            .encryption
            .iter()
            .map(|kind| format!("encrypted: {}", printable(kind))),
    );
    features
}
