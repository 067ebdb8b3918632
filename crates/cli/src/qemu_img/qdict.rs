//! Objects and lists as QEMU prints them: as JSON, and as the indented lines of `info`.
//!
//! QEMU keeps an object's members in a hash table and prints them in its order, which is thus the same everywhere and part of what
//! scripts see. [`Object`] has that order.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt::{self, Write as _};

/// Buckets of the table.
const BUCKETS: u32 = 512;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Number(i128),
    /// A number that is not whole, as it was written.
    Fraction(String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// An object.
    Object(Object),
}

/// Members with QEMU's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Vec<(String, Value)>);

impl Object {
    /// No members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a member.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        if let Some((_, old)) = self.0.iter_mut().find(|(known, _)| known == key) {
            *old = value;
            return;
        }
        // In a bucket, what came last comes first.
        let at = self.0.partition_point(|(known, _)| bucket(known) < bucket(key));
        self.0.insert(at, (key.to_owned(), value));
    }

    /// Adds a member to an object under construction.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// A member.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value)
    }

    /// Takes a member out.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at).1)
    }

    /// A member that is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The members in order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

/// The bucket of a name: the hash function of Samba's trivial database, which QEMU's tables use.
fn bucket(name: &str) -> u32 {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut value = 0x238f_13af_u32.wrapping_mul(length);
    for (index, byte) in (0_u32..).zip(name.bytes()) {
        value = value.wrapping_add(u32::from(byte) << (index.wrapping_mul(5) % 24));
    }
    value.wrapping_mul(1_103_515_243).wrapping_add(12_345) % BUCKETS
}

impl Value {
    /// On one line.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, None);
        out
    }

    /// Indented by four spaces a level, as qemu-img prints it.
    pub fn to_pretty_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(0));
        out
    }

    fn write(&self, out: &mut String, indent: Option<usize>) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(number) => {
                // Writing to a string does not fail.
                let _ = write!(out, "{number}");
            }
            Self::Fraction(text) => out.push_str(text),
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                let items = items.iter().map(|item| (None, item));
                write_members(out, ['[', ']'], indent, items);
            }
            Self::Object(object) => {
                let members = object.members().map(|(key, value)| (Some(key), value));
                write_members(out, ['{', '}'], indent, members);
            }
        }
    }
}

fn write_members<'a>(
    out: &mut String,
    [open, close]: [char; 2],
    indent: Option<usize>,
    members: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
) {
    let break_line = |out: &mut String, indent: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", indent));
    };
    out.push(open);
    for (index, (key, value)) in members.enumerate() {
        match indent {
            Some(indent) => {
                if index > 0 {
                    out.push(',');
                }
                break_line(out, indent + 1);
            }
            None if index > 0 => out.push_str(", "),
            None => {}
        }
        if let Some(key) = key {
            write_text(key, out);
            out.push_str(": ");
        }
        value.write(out, indent.map(|indent| indent + 1));
    }
    if let Some(indent) = indent {
        break_line(out, indent);
    }
    out.push(close);
}

/// Text in quotes; everything but ASCII is escaped.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04X}");
                }
            }
        }
    }
    out.push('"');
}

/// The members as the lines of `info`: dashes become spaces, and what is below a member is indented.
pub fn write_lines(out: &mut String, indent: usize, object: &Object) {
    for (key, value) in object.members() {
        let name = key.replace('-', " ");
        write_line(out, indent, &name, value);
    }
}

fn write_line(out: &mut String, indent: usize, name: &str, value: &Value) {
    out.extend(std::iter::repeat_n("    ", indent));
    let _ = write!(out, "{name}:");
    match value {
        Value::Object(object) => {
            out.push('\n');
            write_lines(out, indent + 1, object);
        }
        Value::List(items) => {
            out.push('\n');
            for (index, item) in items.iter().enumerate() {
                write_line(out, indent + 1, &format!("[{index}]"), item);
            }
        }
        Value::Text(text) => {
            let _ = writeln!(out, " {text}");
        }
        other => {
            let _ = writeln!(out, " {}", other.to_json());
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Number(value.into())
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Number(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<Value>> for Value {
    fn from(value: Vec<Value>) -> Self {
        Self::List(value)
    }
}

impl From<Object> for Value {
    fn from(value: Object) -> Self {
        Self::Object(value)
    }
}

/// How the error begins for an object with a member twice.
pub const DUPLICATE: &str = "duplicate key";

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Fraction(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Object::new();
        while let Some((key, value)) = members.next_entry::<String, Value>()? {
            if object.get(&key).is_some() {
                return Err(serde::de::Error::custom(DUPLICATE));
            }
            object.set(&key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_the_order_of_their_buckets() {
        let object = Object::new().with("offset", 1024_u64).with("driver", "raw").with(
            "file",
            Object::new().with("filename", "a\"b").with("driver", "file"),
        );
        assert_eq!(
            Value::from(object).to_json(),
            r#"{"offset": 1024, "driver": "raw", "file": {"driver": "file", "filename": "a\"b"}}"#
        );
    }

    #[test]
    fn what_is_empty_still_takes_two_lines() {
        let object = Object::new().with("flags", Vec::new());
        assert_eq!(
            Value::from(object).to_pretty_json(),
            "{\n    \"flags\": [\n    ]\n}"
        );
    }
}
