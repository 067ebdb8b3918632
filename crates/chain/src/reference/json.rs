//! `json:` references: the wrappers around a protocol driver, and what each loses.
//!
//! libvirt accepts a protocol driver, one `raw` around it, and one `file` around either. QEMU nests format drivers
//! and filters as it likes; of those, [`Reading::Catena`] accepts whatever comes down to one format over one (part
//! of an) object.

use super::error::ReferenceError;
use super::json_drivers;
use super::lost::Losses;
use super::source::{Slice, Source};
use super::{Reading, json_text};
use catena_format::Format;
use serde_json::{Map, Value};

/// Filter drivers that hand the bytes of their `file` through unchanged.
const FILTERS: [&str; 4] = ["throttle", "copy-on-read", "preallocate", "compress"];

/// What the text after `json:` names.
pub(super) fn parse(text: &str, reading: Reading, losses: &mut Losses) -> Result<Source, ReferenceError> {
    let tree = json_text::parse(text, reading)?;
    match reading {
        Reading::Libvirt => parse_libvirt(text, &tree, losses),
        Reading::Catena => parse_qemu(text, &tree, losses),
    }
}

/// The fields of one driver object.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    pub(super) reading: Reading,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, reading: Reading) -> Self {
        Self { map, reading }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// A string; libvirt takes anything else for absent.
    pub(super) fn str(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A string or a number, as text.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    pub(super) fn object(&self, key: &str) -> Option<Fields<'a>> {
        let map = self.get(key)?.as_object()?;
        Some(Fields::new(map, self.reading))
    }

    /// A number that is not negative: `None` where absent, an error where it is something else.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ()> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Some).ok_or(()),
            Some(Value::String(text)) if self.reading == Reading::Catena => size(text).map(Some).ok_or(()),
            Some(_) => Err(()),
        }
    }

    /// Records as lost every field that is not in `known`: those in `meaning` name other bytes, others do not.
    pub(super) fn rest(&self, known: &[&str], meaning: &[&str], losses: &mut Losses) {
        for (key, value) in self.map {
            let unset = matches!(value, Value::Null)
                || value.as_str() == Some("")
                || value.as_u64() == Some(0)
                || value.as_object().is_some_and(Map::is_empty)
                || value.as_array().is_some_and(Vec::is_empty);
            if key == "driver" || known.contains(&key.as_str()) {
                continue;
            }
            if !meaning.contains(&key.as_str()) {
                losses.setting(key, "libvirt has no place for it");
            } else if !unset || key == "backing" {
                losses.location(
                    key,
                    "QEMU reads other bytes because of it, and libvirt has no place for it",
                );
            }
        }
    }
}

/// A size as QEMU's options spell it: decimal, with at most one binary suffix.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.strip_prefix(digits)? {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

fn lacks_driver(text: &str) -> ReferenceError {
    ReferenceError::missing(format!(
        "JSON backing volume definition '{text}' lacks driver name"
    ))
}

fn lacks_file(text: &str) -> ReferenceError {
    ReferenceError::missing(format!(
        "JSON backing volume definition '{text}' lacks 'file' object"
    ))
}

fn nests_formats(text: &str) -> ReferenceError {
    ReferenceError::unsupported(format!(
        "JSON backing volume definition '{text}' must not have nested format drivers"
    ))
}

/// The slice of a `raw` object, where it has one.
fn slice(fields: &Fields<'_>) -> Result<Option<Slice>, ReferenceError> {
    let malformed = |key| ReferenceError::malformed(format!("malformed '{key}' property of 'raw' driver"));
    let offset = fields.number("offset").map_err(|()| malformed("offset"))?;
    let size = fields.number("size").map_err(|()| malformed("size"))?;
    Ok((offset.is_some() || size.is_some()).then(|| Slice {
        offset: offset.unwrap_or(0),
        size,
    }))
}

fn parse_libvirt(text: &str, tree: &Value, losses: &mut Losses) -> Result<Source, ReferenceError> {
    let Value::Object(root) = tree else {
        return Err(lacks_driver(text));
    };
    let root = Fields::new(root, Reading::Libvirt);
    let fields = match root.object("file").filter(|_| root.get("driver").is_none()) {
        Some(file) => {
            root.rest(&["file"], &["backing", "offset", "size"], losses);
            file
        }
        None => root,
    };
    let driver = fields.str("driver").ok_or_else(|| lacks_driver(text))?;
    if driver != "raw" {
        return json_drivers::parse(text, driver, &fields, losses).map(Source::from);
    }
    let mut slice = slice(&fields)?;
    let file = fields.object("file").ok_or_else(|| lacks_file(text))?;
    fields.rest(&["file", "offset", "size"], &["backing"], losses);
    if let Some(Slice {
        size: size @ None, ..
    }) = &mut slice
    {
        losses.location(
            "size",
            "libvirt takes an absent size for 0, QEMU for the rest of the object",
        );
        *size = Some(0);
    }
    let driver = file.str("driver").ok_or_else(|| lacks_driver(text))?;
    if driver == "raw" {
        return Err(nests_formats(text));
    }
    let location = json_drivers::parse(text, driver, &file, losses)?;
    Ok(Source {
        slice,
        ..Source::from(location)
    })
}

fn parse_qemu(text: &str, tree: &Value, losses: &mut Losses) -> Result<Source, ReferenceError> {
    let Value::Object(root) = tree else {
        return Err(lacks_driver(text));
    };
    let mut fields = Fields::new(root, Reading::Catena);
    let mut format: Option<Format> = None;
    let mut part: Option<Slice> = None;
    let mut top = true;
    // Every turn goes one level down, and the nesting is bounded.
    loop {
        let Some(driver) = fields.str("driver") else {
            if fields.get("driver").is_some() {
                return Err(lacks_driver(text));
            }
            let location = match fields.object("file") {
                Some(file) if top => {
                    fields.rest(&["file"], &["backing", "offset", "size", "data-file"], losses);
                    fields = file;
                    top = false;
                    continue;
                }
                // A protocol node that only has a name is what that name says, but for json.
                _ if !top => json_drivers::by_filename(&fields, losses)?,
                _ => None,
            };
            return match location {
                Some(location) => Ok(Source {
                    location,
                    slice: part,
                    format,
                }),
                None => Err(lacks_driver(text)),
            };
        };
        top = false;
        if driver == "raw" {
            if let Some(new) = slice(&fields)?
                && part.replace(new).is_some()
            {
                return Err(ReferenceError::unsupported("a slice of a slice is not supported"));
            }
            fields.rest(&["file", "offset", "size"], &["backing"], losses);
            format = format.or(Some(Format::Raw));
        } else if FILTERS.contains(&driver) {
            fields.rest(&["file"], &[], losses);
        } else if let Some(wrapped) = wrapper(driver) {
            if part.is_some() {
                return Err(ReferenceError::unsupported(format!(
                    "a slice of what a '{driver}' image shows is not supported"
                )));
            }
            if format.is_some_and(|format| format != Format::Raw) {
                return Err(nests_formats(text));
            }
            format = Some(wrapped);
            fields.rest(&["file"], &["backing", "data-file"], losses);
        } else {
            let location = json_drivers::parse(text, driver, &fields, losses)?;
            return Ok(Source {
                location,
                slice: part,
                format,
            });
        }
        fields = fields.object("file").ok_or_else(|| lacks_file(text))?;
    }
}

/// The format of a format driver other than `raw`.
fn wrapper(driver: &str) -> Option<Format> {
    Format::from_qemu(driver).filter(|format| !matches!(format, Format::Raw | Format::Fat))
}
