//! Counts on the command line: whole numbers without units, as C's `strtoll` reads them.

/// A number that must be within bounds, or the sentence for what is wrong with it. `name` is what it is a number of.
pub fn argument(name: &str, text: &str, min: u64, max: u64) -> Result<u64, String> {
    let (negative, radix, digits) = parts(text);
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(format!("Invalid {name} specified: '{text}'."));
    }
    let value = u64::from_str_radix(digits, radix)
        .ok()
        .filter(|value| !negative || *value == 0);
    value
        .filter(|value| (min..=max).contains(value))
        .ok_or_else(|| match max {
            u64::MAX => format!("Invalid {name} specified. Must be at least {min}."),
            _ => format!("Invalid {name} specified. Must be between {min} and {max}."),
        })
}

/// Whether it has a minus, its base, and its digits.
fn parts(text: &str) -> (bool, u32, &str) {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let negative = text.starts_with('-');
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => (negative, 16, hex),
        None if digits.len() > 1 && digits.starts_with('0') => (negative, 8, digits),
        None => (negative, 10, digits),
    }
}

#[cfg(test)]
mod tests {
    use super::argument;

    #[test]
    fn counts_have_no_units_but_bases() {
        let read = |text: &str| argument("count", text, 1, 100);
        assert_eq!(read(" +5"), Ok(5));
        assert_eq!(read("0x10"), Ok(16));
        assert_eq!(read("010"), Ok(8));
        for outside in ["0", "-1", "101", "99999999999999999999999"] {
            assert_eq!(
                read(outside).unwrap_err(),
                "Invalid count specified. Must be between 1 and 100."
            );
        }
        for bad in ["", "5k", "5.", "1e1", "x", "08"] {
            assert_eq!(
                read(bad).unwrap_err(),
                format!("Invalid count specified: '{bad}'.")
            );
        }
    }
}
