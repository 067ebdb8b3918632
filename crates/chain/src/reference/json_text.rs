//! The text after `json:` made a tree of plain nested objects: parsing with its limits, and undoing dotted keys.
//!
//! libvirt and QEMU both let `{"file.driver":"nbd"}` stand for `{"file":{"driver":"nbd"}}` and an object with the
//! keys 0, 1, … for an array. Recursion is bounded because the nesting is, before anything recurses.

use super::Reading;
use super::error::ReferenceError;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;

/// Deepest nesting libvirt 10.8 to 11 reads (its JSON library's limit of 32, less one).
const LIBVIRT_DEPTH: usize = 31;
/// Deepest nesting read here; QEMU reads 1024. A chain of wrappers this deep names nothing sensible.
const DEPTH: usize = 100;

/// The tree of a text, its keys without dots.
pub(super) fn parse(text: &str, reading: Reading) -> Result<Value, ReferenceError> {
    let text = match reading {
        Reading::Libvirt => Cow::Borrowed(text),
        Reading::Catena => requote(text),
    };
    let limit = match reading {
        Reading::Libvirt => LIBVIRT_DEPTH,
        Reading::Catena => DEPTH,
    };
    if nesting(&text) > limit {
        return Err(ReferenceError::json("failed to parse JSON: nesting too deep"));
    }
    let mut parser = serde_json::Deserializer::from_str(&text);
    let tree = Tree { reading }
        .deserialize(&mut parser)
        .and_then(|tree| parser.end().map(|()| tree))
        .map_err(|error| ReferenceError::json(format!("failed to parse JSON: {error}")))?;
    match tree {
        Value::Object(map) => Ok(gather_arrays(deflatten(map, reading, 0)?)),
        other => Ok(other),
    }
}

/// How deeply brackets nest, whatever else the text is.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// QEMU lets strings stand in single quotes, and `\'` in any: rewrites both in plain JSON.
pub(super) fn requote(text: &str) -> Cow<'_, str> {
    if !text.contains('\'') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => match chars.next() {
                Some('\'') => plain.push('\''),
                Some(next) => plain.extend(['\\', next]),
                None => plain.push('\\'),
            },
            (None, '\'' | '"') => {
                quote = Some(c);
                plain.push('"');
            }
            (Some(open), _) if open == c => {
                quote = None;
                plain.push('"');
            }
            (Some('\''), '"') => plain.push_str("\\\""),
            _ => plain.push(c),
        }
    }
    Cow::Owned(plain)
}

/// Builds a tree. QEMU refuses an object with the same key twice, libvirt's library takes the last.
#[derive(Clone, Copy)]
struct Tree {
    reading: Reading,
}

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self)?;
            if self.reading == Reading::Catena && map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key '{key}'")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Splits dotted keys into nested objects.
fn deflatten(map: Map<String, Value>, reading: Reading, depth: usize) -> Result<Value, ReferenceError> {
    let mut flat = Map::new();
    for (key, value) in map {
        let below = depth.saturating_add(key.matches('.').count()).saturating_add(1);
        if below > DEPTH {
            return Err(ReferenceError::json("failed to parse JSON: nesting too deep"));
        }
        let value = match value {
            Value::Object(inner) => deflatten(inner, reading, below)?,
            // libvirt leaves the inside of arrays as it is.
            Value::Array(items) if reading == Reading::Catena => Value::Array(
                items
                    .into_iter()
                    .map(|item| match item {
                        Value::Object(inner) => deflatten(inner, reading, below),
                        other => Ok(other),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            other => other,
        };
        insert(&mut flat, &key, value)?;
    }
    Ok(Value::Object(flat))
}

/// Puts a value under a key whose dots are levels.
fn insert(map: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), ReferenceError> {
    let mut map = map;
    let mut rest = key;
    while let Some((head, tail)) = rest.split_once('.') {
        let entry = map
            .entry(head.to_owned())
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(inner) = entry else {
            return Err(ReferenceError::json(
                "mixing nested objects and values is forbidden in JSON deflattening",
            ));
        };
        map = inner;
        rest = tail;
    }
    if map.contains_key(rest) {
        return Err(ReferenceError::json(format!(
            "can't deflatten colliding key '{rest}'"
        )));
    }
    map.insert(rest.to_owned(), value);
    Ok(())
}

/// Makes an array of every object whose keys are 0 to n-1. Arrays that were arrays stay as they are.
fn gather_arrays(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let map: Map<String, Value> = map
        .into_iter()
        .map(|(key, value)| (key, gather_arrays(value)))
        .collect();
    let mut places: Vec<Option<&Value>> = vec![None; map.len()];
    for (key, value) in &map {
        let place = key.parse::<usize>().ok().and_then(|index| places.get_mut(index));
        match place {
            Some(place @ None) => *place = Some(value),
            _ => return Value::Object(map),
        }
    }
    places.into_iter().flatten().cloned().collect()
}
