//! Words and numbers as people read them.

use std::time::Duration;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A text from an image or a path, made safe to print: it must not steer the terminal, or look like several lines.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            // Bidirectional overrides reorder what follows them, and so could hide a name behind another.
            let steers = c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
            if steers { char::REPLACEMENT_CHARACTER } else { c }
        })
        .collect()
}

/// A number of bytes in the largest binary unit that leaves three digits or so: `512 B`, `1.5 KiB`, `20 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    // What would be shown as 1024 is one of the next unit.
    while value >= 1023.5 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = Some(next);
    }
    // One decimal where it says something.
    let rounded = (value * 10.0).round() / 10.0;
    let digits = usize::from(value < 9.95 && rounded.fract() != 0.0);
    format!("{value:.digits$} {}", unit.unwrap_or(&"KiB"))
}

/// A number of bytes in the largest binary unit of which it is a multiple: `512 B`, `1536 KiB`, `20 GiB`. Such numbers
/// can be added up.
pub fn exact_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while value != 0 && value.is_multiple_of(1024) {
        value /= 1024;
        unit = units.next();
    }
    format!("{value} {}", unit.unwrap_or(&"B"))
}

/// Columns that a text takes up in a terminal.
pub fn columns(text: &str) -> usize {
    text.width()
}

/// A text without its middle, where it is too long for so many columns.
pub fn shorten(text: &str, columns: usize, cut: &str) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    // The end tells files of one folder apart, so it gets the larger half.
    let room = columns.saturating_sub(cut.width());
    let head = take(text.chars(), room / 3);
    let tail: String = take(text.chars().rev(), room - head.width())
        .chars()
        .rev()
        .collect();
    head + cut + &tail
}

/// The first characters that fit in so many columns.
fn take(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= columns
        })
        .collect()
}

/// A text as lines of at most so many columns, broken at blanks; a word that is longer has a line to itself.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && line.width() + 1 + word.width() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// A text in which nothing means anything to XML.
pub fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Lines as one quoted string for Graphviz, in which nothing of an image's names means anything.
pub fn dot_label(lines: &[String]) -> String {
    let escaped: Vec<_> = lines
        .iter()
        .map(|line| line.replace('\\', r"\\").replace('"', "\\\""))
        .collect();
    format!("\"{}\"", escaped.join("\\n"))
}

/// A share of a whole in per cent: `0%` is nothing at all, `<1%` is something, `100%` is everything.
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0%".to_owned();
    }
    let percent = part as f64 / whole as f64 * 100.0;
    if percent < 1.0 {
        "<1%".to_owned()
    } else if part < whole && percent > 99.0 {
        "99%".to_owned()
    } else {
        format!("{percent:.0}%")
    }
}

/// A count with its noun: `1 snapshot`, `2 snapshots`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}

/// How long ago something was, in its largest unit: `5 min`, `3 d`, `2 y`. What lies ahead is now.
pub fn ago(seconds: u64) -> String {
    const UNITS: [(u64, &str); 5] = [
        (365 * 86_400, "y"),
        (7 * 86_400, "w"),
        (86_400, "d"),
        (3600, "h"),
        (60, "min"),
    ];
    let unit = UNITS.iter().find(|(unit, _)| seconds >= *unit);
    unit.map_or_else(
        || "now".to_owned(),
        |(unit, name)| format!("{} {name}", seconds / unit),
    )
}

/// Reads how long something is, or how old: `36h`, `30d`, `2 weeks`, `1y 6mo`. Months and years are those before now.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is no time: a number and h, d, w, mo or y");
    let span: jiff::Span = text.parse().map_err(|_| bad())?;
    let now = jiff::Zoned::now();
    let then = now.checked_sub(span.abs()).map_err(|_| bad())?;
    Ok(now.duration_since(&then).unsigned_abs())
}

/// Reads a number of bytes as qemu-img does: `4096`, `64k`, `1.5G`; a suffix is a power of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is no number of bytes: digits, then k, M, G, T, P or E if need be");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(digits).ok_or_else(bad)?;
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        "P" | "p" => 50,
        "E" | "e" => 60,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let unit = 1u64 << shift;
    let part: f64 = format!("0.{fraction}").parse().map_err(|_| bad())?;
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add((part * unit as f64) as u64))
        .ok_or_else(|| format!("'{text}' is more than 2^64 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_few_digits_and_never_1024_of_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 10, "64 KiB"),
            ((1 << 20) - 1, "1 MiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn exact_sizes_are_whole_numbers() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1536 B"),
            (1 << 20, "1 MiB"),
            ((1 << 40) + (64 << 10), "1073741888 KiB"),
            (1 << 63, "8 EiB"),
            (u64::MAX, "18446744073709551615 B"),
        ] {
            assert_eq!(exact_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64k", Some(64 << 10)),
            ("1.5G", Some(3 << 29)),
            ("16E", None),
            ("k", None),
            ("-1", None),
            ("1.2.3M", None),
            ("1 M", None),
        ] {
            assert_eq!(parse_size(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn shares_tell_nothing_and_everything_from_nearly() {
        assert_eq!(percent(0, 10), "0%");
        assert_eq!(percent(1, 10_000), "<1%");
        assert_eq!(percent(9_999, 10_000), "99%");
        assert_eq!(percent(10_000, 10_000), "100%");
        assert_eq!(percent(0, 0), "0%");
    }

    #[test]
    fn long_names_keep_their_end_and_long_texts_their_words() {
        assert_eq!(shorten("abcdefghij", 10, "…"), "abcdefghij");
        assert_eq!(shorten("abcdefghijk", 10, "…"), "abc…fghijk");
        assert_eq!(shorten("日本語日本語", 7, "…"), "日…本語");
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible to us", 5), ["incomprehensible", "to us"]);
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(
            dot_label(&[r#"a"];b\"#.to_owned(), "c".to_owned()]),
            r#""a\"];b\\\nc""#
        );
        assert_eq!(xml("<a b=\"&\">"), "&lt;a b=&quot;&amp;&quot;&gt;");
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[31m\nb\u{202e}c"),
            "a\u{fffd}[31m\u{fffd}b\u{fffd}c"
        );
    }
}
