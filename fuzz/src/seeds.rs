//! Images to start from: small, of every format and with every feature.

pub mod foreign;
pub mod qcow2;

/// Overwrites bytes at offsets, growing the image where they reach past its end.
pub fn put<'a>(bytes: &mut Vec<u8>, parts: impl IntoIterator<Item = (usize, &'a [u8])>) {
    for (at, part) in parts {
        let end = at + part.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(part);
    }
}
