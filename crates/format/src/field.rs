//! Reading fixed structures and text fields out of an image.
//!
//! Every helper bounds what it reads by a type's size or by its caller's limit; none decides what a value means.

use crate::error::{Error, ErrorKind, Result};
use crate::{Bytes, Format};
use zerocopy::FromBytes;

/// The structure at `offset`; [`ErrorKind::Truncated`] where the bytes end within it.
pub(crate) fn structure<T: FromBytes>(bytes: &dyn Bytes, offset: u64) -> Result<T> {
    let read = bytes.read_exact(offset, size_of::<T>())?;
    T::read_from_bytes(&read).map_err(|_| Error::truncated("the image ends within a structure").at(offset))
}

/// Whether the bytes at `offset` are `magic`.
pub(crate) fn has_magic(bytes: &dyn Bytes, offset: u64, magic: &[u8]) -> Result<bool> {
    Ok(bytes.read_some(offset, magic.len())? == magic)
}

/// The error for an absent magic number.
pub(crate) fn not_this(format: Format) -> Error {
    Error::new(
        ErrorKind::NotThisFormat,
        format!("not a {format} image: the magic number is absent"),
    )
}

/// The part of a fixed field before its first NUL.
pub(crate) fn before_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A fixed text field, up to its NUL and without surrounding blanks; `None` where nothing is left.
pub(crate) fn text(field: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(before_nul(field)).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// `count × unit`, held against the largest virtual size.
pub(crate) fn virtual_size(count: u64, unit: u64) -> Result<u64> {
    count
        .checked_mul(unit)
        .filter(|size| *size <= crate::limits::VIRTUAL_SIZE)
        .ok_or_else(|| Error::too_large("the virtual size exceeds what can be addressed"))
}

/// The byte order of 16-bit text.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    Little,
    Big,
}

/// UTF-16 text up to its first NUL, and whether decoding lost something (a lone surrogate, half a unit).
pub(crate) fn utf16(field: &[u8], order: Order) -> (String, bool) {
    let mut pairs = field.chunks_exact(2);
    let mut units: Vec<u16> = Vec::with_capacity(field.len() / 2);
    for pair in &mut pairs {
        let pair = <[u8; 2]>::try_from(pair).unwrap_or_default();
        let unit = match order {
            Order::Little => u16::from_le_bytes(pair),
            Order::Big => u16::from_be_bytes(pair),
        };
        if unit == 0 {
            return decode(&units, false);
        }
        units.push(unit);
    }
    decode(&units, !pairs.remainder().is_empty())
}

fn decode(units: &[u16], mut lossy: bool) -> (String, bool) {
    let text = char::decode_utf16(units.iter().copied())
        .map(|unit| {
            unit.unwrap_or_else(|_| {
                lossy = true;
                char::REPLACEMENT_CHARACTER
            })
        })
        .collect();
    (text, lossy)
}

/// The bytes of a UUID in print order, from the order of a Microsoft GUID: its first three fields are little-endian.
pub(crate) fn guid(bytes: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

/// A UUID printed with or without braces and dashes; `None` where it is not 32 hexadecimal digits.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.trim();
    let text = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
        .unwrap_or(text);
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// Whether a UUID is all zeroes, which means that there is none.
pub(crate) fn is_nil(uuid: &[u8; 16]) -> bool {
    uuid.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf16_stops_at_nul_and_tells_what_it_lost() {
        assert_eq!(utf16(b"a\0b\0\0\0c\0", Order::Little), ("ab".into(), false));
        assert_eq!(utf16(b"\0a\0b", Order::Big), ("ab".into(), false));
        assert_eq!(utf16(b"a\0b", Order::Little), ("a".into(), true));
        assert_eq!(utf16(&[0x00, 0xd8], Order::Little), ("\u{fffd}".into(), true));
    }

    #[test]
    fn a_guid_is_swapped_into_print_order_and_read_back_from_print() {
        let bytes = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let printed = crate::ParentId::Uuid(guid(bytes)).to_string();
        assert_eq!(printed, "03020100-0504-0706-0809-0a0b0c0d0e0f");
        assert_eq!(parse_uuid(&format!("{{{printed}}}")), Some(guid(bytes)));
        assert_eq!(parse_uuid("03020100-0504-0706-0809-0a0b0c0d0e0"), None);
        assert_eq!(parse_uuid("+3020100-0504-0706-0809-0a0b0c0d0e0f"), None);
    }
}
