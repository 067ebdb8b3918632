//! The blocks of a tar archive, written in one way only, so that they can be compared with what they have to be.
//!
//! Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; files with holes as GNU tar's manual has them
//! ("PAX Format, Version 1.0").

/// Bytes that everything is a multiple of.
pub(super) const BLOCK: u64 = 512;
/// What an archive ends with.
pub(super) const END: [u8; 1024] = [0; 1024];
/// Where a header has the length of what follows, and how many digits.
const SIZE: std::ops::Range<usize> = 124..135;
/// Bytes of a name in a header.
const NAME: usize = 100;

/// What stands before a file's bytes: its name, how many bytes are `stored`, who may do what with it; and its length, where it
/// has holes.
pub(super) fn header(name: &str, stored: u64, mode: u32, sparse: Option<u64>) -> Vec<u8> {
    let mut records = Vec::new();
    let short = match sparse {
        Some(length) => {
            record(&mut records, "GNU.sparse.major", "1");
            record(&mut records, "GNU.sparse.minor", "0");
            record(&mut records, "GNU.sparse.name", name);
            record(&mut records, "GNU.sparse.realsize", &length.to_string());
            format!("GNUSparseFile.0/{name}")
        }
        None => {
            if name.len() > NAME {
                record(&mut records, "path", name);
            }
            name.to_owned()
        }
    };
    let mut out = Vec::new();
    if !records.is_empty() {
        let len = records.len() as u64;
        out.extend(block(&format!("PaxHeaders/{name}"), len, 0o644, b'x'));
        out.append(&mut records);
        out.resize(out.len() + padding(len), 0);
    }
    out.extend(block(&short, stored, mode, b'0'));
    out
}

/// Zeros behind so many bytes.
pub(super) fn padding(len: u64) -> usize {
    usize::try_from(len.next_multiple_of(BLOCK) - len).unwrap_or_default()
}

/// How many bytes follow a header, where it says so in digits.
pub(super) fn stored(header: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(header.get(SIZE)?).ok()?;
    u64::from_str_radix(digits, 8).ok()
}

/// A record of an extended header: its own length, a key and a value.
fn record(out: &mut Vec<u8>, key: &str, value: &str) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend(format!("{len} {key}={value}\n").into_bytes());
}

fn block(name: &str, size: u64, mode: u32, kind: u8) -> Vec<u8> {
    let mut cut = name.len().min(NAME);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut out = name.get(..cut).unwrap_or_default().as_bytes().to_vec();
    out.resize(NAME, 0);
    out.extend(format!("{mode:07o}\0").into_bytes());
    // Nobody owns it.
    out.extend(b"0000000\x000000000\0");
    match format!("{size:011o}") {
        digits if digits.len() == 11 => out.extend(format!("{digits}\0").into_bytes()),
        // As GNU tar writes what digits are too few for.
        _ => {
            out.extend([0x80, 0, 0, 0]);
            out.extend(size.to_be_bytes());
        }
    }
    // It is of no time.
    out.extend(b"00000000000\0");
    let sum_at = out.len();
    out.extend([b' '; 8]);
    out.push(kind);
    out.resize(257, 0);
    out.extend(b"ustar\x0000");
    out.resize(329, 0);
    out.extend(b"0000000\x000000000\0");
    out.resize(512, 0);
    let sum: u32 = out.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (to, from) in out.iter_mut().skip(sum_at).zip(sum.bytes()) {
        *to = from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_digits() {
        for len in [1, 5, 80, 90, 91, 92, 93, 94, 95, 900, 985, 990, 995] {
            let mut out = Vec::new();
            record(&mut out, "path", &"x".repeat(len));
            let text = String::from_utf8(out).unwrap();
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, text.len());
        }
    }

    #[test]
    fn a_header_is_whole_blocks_and_tells_its_length() {
        for (stored_bytes, sparse) in [(0, None), (8 << 30, Some(1 << 40)), ((8 << 30) - 1, None)] {
            let header = header("disk.raw", stored_bytes, 0o600, sparse);
            assert_eq!(header.len() as u64 % BLOCK, 0);
            let last = &header[header.len() - 512..];
            let told = stored(last);
            assert_eq!(told, (stored_bytes < 8 << 30).then_some(stored_bytes));
        }
        assert_eq!(header(&"n".repeat(200), 1, 0o600, None).len(), 1536);
    }
}
