//! Lists of options: `key=value,key=value`, a comma in a value doubled.

use super::qdict::{Object, Value};
use super::size;

/// Whether a list can be joined to others: it does not begin or end with a lone comma.
pub fn is_list(text: &str) -> bool {
    let commas = text.bytes().rev().take_while(|byte| *byte == b',').count();
    !text.is_empty() && !text.starts_with(',') && commas % 2 == 0
}

/// Adds a list to those given before.
pub fn join(lists: &mut Option<String>, list: &str) -> Result<(), String> {
    if !is_list(list) {
        return Err(format!("Invalid option list: {list}"));
    }
    match lists {
        Some(all) => {
            all.push(',');
            all.push_str(list);
        }
        None => *lists = Some(list.to_owned()),
    }
    Ok(())
}

/// Whether a list asks which options there are.
pub fn asks_for_help(text: &str) -> bool {
    split(text)
        .iter()
        .any(|item| matches!(item.as_str(), "help" | "?"))
}

/// The items of a list: commas that are doubled are part of an item.
fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match items.last_mut() {
            Some(_) if c == ',' && !doubled => items.push(String::new()),
            Some(item) => item.push(c),
            None => {}
        }
    }
    items
}

/// Keys and values. A key alone is on, and one that begins with `no` is off.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        let (key, behind) = rest.split_at_checked(end).unwrap_or_default();
        match behind.strip_prefix('=') {
            Some(behind) => {
                let (value, behind) = value_of(behind);
                found.push((key.to_owned(), value));
                rest = behind;
            }
            None => {
                found.push(match key.strip_prefix("no") {
                    Some(off) => (off.to_owned(), "off".to_owned()),
                    None => (key.to_owned(), "on".to_owned()),
                });
                rest = behind.strip_prefix(',').unwrap_or(behind);
            }
        }
    }
    found
}

/// A value up to the next comma that is not doubled, and what is behind that comma.
fn value_of(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find(',').unwrap_or(rest.len());
        let (part, behind) = rest.split_at_checked(end).unwrap_or_default();
        value.push_str(part);
        match behind.strip_prefix(",,") {
            Some(behind) => {
                value.push(',');
                rest = behind;
            }
            None => return (value, behind.strip_prefix(',').unwrap_or(behind)),
        }
    }
}

/// Puts a value where the dots in its key say.
pub fn place(tree: &mut Object, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        tree.set(key, value);
        return;
    };
    let mut inner = match tree.take(first) {
        Some(Value::Object(inner)) => inner,
        _ => Object::new(),
    };
    place(&mut inner, rest, value);
    tree.set(first, inner);
}

/// A switch.
pub fn on_off(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

/// A size.
pub fn size(key: &str, value: &str) -> Result<u64, String> {
    size::parse(value).map_err(|why| match why {
        size::SizeError::Invalid => not_a_size(key),
        size::SizeError::OutOfRange => format!("Value '{value}' is out of range for parameter '{key}'"),
    })
}

/// A number as C's `strtoull` reads it: hexadecimal or octal by its prefix, wrapped around where it is negative.
pub fn number(key: &str, value: &str) -> Result<u64, String> {
    let text = value.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => (16, hexadecimal),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(format!("Parameter '{key}' expects a number"));
    }
    let number = u64::from_str_radix(digits, radix)
        .map_err(|_| format!("Value '{value}' is too large for parameter '{key}'"))?;
    Ok(if negative { number.wrapping_neg() } else { number })
}

/// The sentence for a size that is none.
pub fn not_a_size(key: &str) -> String {
    format!(
        "Parameter '{key}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_values_are_doubled() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            parse("a=b,,c,d,nofoo,e=,f=1=2"),
            [
                pair("a", "b,c"),
                pair("d", "on"),
                pair("foo", "off"),
                pair("e", ""),
                pair("f", "1=2")
            ]
        );
        assert!(is_list("a,,") && !is_list("a,") && !is_list(",a") && !is_list(""));
        assert!(asks_for_help("a=b,help") && asks_for_help("?") && !asks_for_help("a=help"));
    }

    #[test]
    fn numbers_wrap_around_as_in_c() {
        assert_eq!(number("n", " -1"), Ok(u64::MAX));
        assert_eq!(number("n", "0x10"), Ok(16));
        assert_eq!(number("n", "010"), Ok(8));
        assert!(number("n", "16k").is_err() && number("n", "").is_err());
    }
}
