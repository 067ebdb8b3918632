//! An element being read: its attributes and children by name, with libvirt's sentence where one of them is wrong.

use crate::error::{XmlError, XmlErrorKind};
use roxmltree::{Attribute, Node};
use std::ops::Range;

pub(super) type Result<T> = std::result::Result<T, XmlError>;

/// An element without a namespace.
#[derive(Clone, Copy)]
pub(super) struct Element<'a, 'i> {
    node: Node<'a, 'i>,
}

impl<'a, 'i> Element<'a, 'i> {
    pub fn new(node: Node<'a, 'i>) -> Self {
        Self { node }
    }

    /// The name; empty where it is in a namespace, since libvirt then does not know it.
    pub fn name(self) -> &'a str {
        let name = self.node.tag_name();
        if name.namespace().is_none() {
            name.name()
        } else {
            ""
        }
    }

    pub fn span(self) -> Range<usize> {
        self.node.range()
    }

    /// The children of a name.
    pub fn children(self, name: &'static str) -> impl Iterator<Item = Element<'a, 'i>> {
        self.all().filter(move |child| child.name() == name)
    }

    /// All child elements.
    pub fn all(self) -> impl Iterator<Item = Element<'a, 'i>> {
        self.node.children().filter(Node::is_element).map(Element::new)
    }

    /// The first child of a name.
    pub fn child(self, name: &'static str) -> Option<Element<'a, 'i>> {
        self.children(name).next()
    }

    /// The first child of a name, in which libvirt looks for a value of a whole path.
    pub fn child_attribute(self, name: &'static str, attribute: &'static str) -> Option<&'a str> {
        self.child(name)?.attribute(attribute)
    }

    /// All text in it, whatever stands between.
    pub fn text(self) -> String {
        let nodes = self.node.descendants().filter(Node::is_text);
        nodes.filter_map(|node| node.text()).collect()
    }

    pub fn attribute(self, name: &str) -> Option<&'a str> {
        self.attribute_node(name).map(|attribute| attribute.value())
    }

    /// By its name alone: libvirt does not look at an attribute's namespace.
    fn attribute_node(self, name: &str) -> Option<Attribute<'a, 'i>> {
        self.node.attributes().find(|attribute| attribute.name() == name)
    }

    /// An attribute that libvirt takes for absent where it is empty.
    pub fn filled(self, name: &str) -> Option<&'a str> {
        self.attribute(name).filter(|value| !value.is_empty())
    }

    /// Where an attribute's value stands, without its quotes.
    pub fn value_span(self, name: &str) -> Option<Range<usize>> {
        Some(self.attribute_node(name)?.range_value())
    }

    pub fn error(self, kind: XmlErrorKind, message: impl Into<String>) -> XmlError {
        let position = self.node.document().text_pos_at(self.node.range().start);
        XmlError {
            kind,
            message: message.into(),
            line: position.row,
            column: position.col,
        }
    }

    pub fn malformed(self, message: impl Into<String>) -> XmlError {
        self.error(XmlErrorKind::Malformed, message)
    }

    pub fn unsupported(self, message: impl Into<String>) -> XmlError {
        self.error(XmlErrorKind::Unsupported, message)
    }

    pub fn invalid(self, name: &str, value: &str) -> XmlError {
        self.malformed(format!(
            "Invalid value for attribute '{name}' in element '{}': '{value}'.",
            self.name()
        ))
    }

    pub fn required(self, name: &str) -> Result<&'a str> {
        self.attribute(name).ok_or_else(|| {
            self.malformed(format!(
                "Missing required attribute '{name}' in element '{}'",
                self.name()
            ))
        })
    }

    /// An attribute that is one of several words.
    pub fn choice(self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>> {
        match self.attribute(name) {
            None => Ok(None),
            Some(value) => match words.iter().find(|word| **word == value) {
                Some(word) => Ok(Some(word)),
                None => Err(self.invalid(name, value)),
            },
        }
    }

    pub fn yes_no(self, name: &str) -> Result<Option<bool>> {
        Ok(self.choice(name, &["yes", "no"])?.map(|word| word == "yes"))
    }

    pub fn on_off(self, name: &str) -> Result<Option<bool>> {
        Ok(self.choice(name, &["on", "off"])?.map(|word| word == "on"))
    }

    /// A number in an attribute.
    pub fn number(self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.attribute(name) else {
            return Ok(None);
        };
        number(value).map(Some).ok_or_else(|| {
            self.malformed(format!(
                "Invalid value for attribute '{name}' in element '{}': '{value}'. Expected non-negative integer value",
                self.name()
            ))
        })
    }

    /// A number of bytes as text, in the unit of the attribute `unit`.
    pub fn scaled(self, otherwise: &str) -> Result<u64> {
        let bytes = number(&self.text()).ok_or_else(|| self.malformed(otherwise))?;
        let unit = self.attribute("unit").unwrap_or("bytes");
        let scale = scale(unit)
            .ok_or_else(|| self.error(XmlErrorKind::InvalidArgument, format!("unknown suffix '{unit}'")))?;
        bytes
            .checked_mul(scale)
            .ok_or_else(|| self.error(XmlErrorKind::Malformed, format!("value too large: {bytes}{unit}")))
    }
}

/// A number as C's `strtoul` reads it of any base, but without a sign.
pub(super) fn number(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, base).ok()
}

/// The bytes in a unit of libvirt's.
fn scale(unit: &str) -> Option<u64> {
    let lower = unit.to_ascii_lowercase();
    if matches!(lower.as_str(), "" | "b" | "byte" | "bytes") {
        return Some(1);
    }
    let mut letters = lower.chars();
    let power = 1 + "kmgtpe".find(letters.next()?)?;
    let base: u64 = match letters.as_str() {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return None,
    };
    base.checked_pow(u32::try_from(power).ok()?)
}
