//! What is held against a text before anything is built of it.

/// The longest document in bytes: the longest string that libvirt's remote protocol carries.
pub const MAX_BYTES: usize = 4 << 20;
/// How deep elements nest: the bound of libvirt's XML library, which also is why 200 layers are the most.
pub const MAX_NESTING: usize = 256;
/// How many attributes an element has: they are compared with one another.
pub const MAX_ATTRIBUTES: usize = 1000;
/// Most layers of a disk, as libvirt has it.
pub const MAX_LAYERS: usize = 200;

/// What a text is before it is known to be XML: where elements begin and end, as far as that can be told.
enum Part {
    Text,
    Tag,
}

/// Why a text is not read, and the byte where that shows; `None` where it may be.
///
/// Looks at each byte once. What it says of a text that is no XML does not matter: that is refused anyway.
pub(crate) fn exceeded(text: &str) -> Option<(usize, String)> {
    if text.len() > MAX_BYTES {
        return Some((
            0,
            format!("the document has {} bytes, more than {MAX_BYTES}", text.len()),
        ));
    }
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut values) = (0, 0_usize, 0_usize);
    let mut part = Part::Text;
    while let Some(byte) = bytes.get(at) {
        let rest = text.get(at..).unwrap_or_default();
        match (&part, byte) {
            (Part::Text, b'<') => {
                let skip = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")];
                if let Some((open, close)) = skip.iter().find(|(open, _)| rest.starts_with(open)) {
                    let inside = rest.get(open.len()..).unwrap_or_default();
                    let end = inside.find(close)?;
                    at += open.len() + end + close.len();
                    continue;
                }
                if rest.starts_with("</") {
                    depth = depth.saturating_sub(1);
                    let end = rest.find('>')?;
                    at += end + 1;
                    continue;
                }
                depth += 1;
                values = 0;
                part = Part::Tag;
                if depth > MAX_NESTING {
                    let message =
                        format!("Excessive depth in document: {MAX_NESTING} use XML_PARSE_HUGE option");
                    return Some((at, message));
                }
            }
            (Part::Tag, b'>') => {
                if at.checked_sub(1).and_then(|before| bytes.get(before)) == Some(&b'/') {
                    depth = depth.saturating_sub(1);
                }
                part = Part::Text;
            }
            (Part::Tag, quote @ (b'\'' | b'"')) => {
                values += 1;
                if values > MAX_ATTRIBUTES {
                    return Some((
                        at,
                        format!("an element has more than {MAX_ATTRIBUTES} attributes"),
                    ));
                }
                let inside = bytes.get(at + 1..).unwrap_or_default();
                let end = inside.iter().position(|byte| byte == quote)?;
                at += end + 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}
