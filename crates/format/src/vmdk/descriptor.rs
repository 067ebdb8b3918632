//! The text descriptor of a VMDK: which extents make the disk, and which disk is its parent.
//!
//! Source: VMware's Virtual Disk Format 5.0. What QEMU and libvirt do with the same text differs from what it says: both
//! search the whole text for `parentFileNameHint="`, comments included. [`parent_hints`] finds every name that either
//! of them, or VMware, could take for the parent.

use crate::error::{Error, Result};
use crate::limits::BACKING_NAME_BYTES;

const HINT: &[u8] = b"parentFileNameHint";
/// The content id that means "no parent".
const NO_PARENT: u32 = u32::MAX;

/// A descriptor, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// `createType`, such as `monolithicSparse`.
    pub create_type: Option<String>,
    /// `CID`: changes with the first write after an open.
    pub cid: Option<u32>,
    /// `parentCID`: the parent's `CID` when this disk was made; `None` where there is no parent.
    pub parent_cid: Option<u32>,
    /// The extents, in guest order.
    pub extents: Vec<Extent>,
}

/// One extent line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// `RW`, `RDONLY` or `NOACCESS`.
    pub access: String,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// `FLAT`, `SPARSE`, `ZERO`, `VMFS`, `VMFSSPARSE`, `SESPARSE`, …
    pub kind: String,
    /// The file, as recorded; relative ones are relative to the descriptor's folder.
    pub file: Option<String>,
    /// Where in the file the extent begins, in sectors; flat extents only.
    pub offset: Option<u64>,
}

impl Descriptor {
    /// Reads a descriptor, whatever it lacks; unknown lines are passed over.
    pub fn parse(text: &[u8]) -> Self {
        let mut descriptor = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.starts_with('#') {
                continue;
            }
            if let Some(extent) = Extent::parse(line) {
                descriptor.extents.push(extent);
            } else if let Some((key, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"');
                let cid = || u32::from_str_radix(value.trim_start_matches("0x"), 16).ok();
                match key.trim() {
                    "createType" if descriptor.create_type.is_none() => {
                        descriptor.create_type = Some(value.to_owned());
                    }
                    "CID" if descriptor.cid.is_none() => descriptor.cid = cid(),
                    "parentCID" if descriptor.parent_cid.is_none() => {
                        descriptor.parent_cid = cid().filter(|cid| *cid != NO_PARENT);
                    }
                    _ => {}
                }
            }
        }
        descriptor
    }
}

impl Extent {
    /// Reads `RW 4192256 SPARSE "disk-s001.vmdk" [offset]`; `None` where the line is none such.
    fn parse(line: &str) -> Option<Self> {
        let (access, rest) = line.split_once([' ', '\t'])?;
        if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
            return None;
        }
        let (sectors, rest) = rest.trim_start().split_once([' ', '\t'])?;
        let rest = rest.trim_start();
        let (kind, rest) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
        let (file, rest) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((file, rest)) => (Some(file), rest),
                None => (Some(quoted), ""),
            },
            None => (None, rest),
        };
        Some(Self {
            access: access.to_owned(),
            sectors: sectors.parse().ok()?,
            kind: kind.to_owned(),
            file: file.map(str::to_owned),
            offset: rest
                .split_whitespace()
                .next()
                .and_then(|offset| offset.parse().ok()),
        })
    }

    /// Whether the extent's bytes are the guest's bytes as they are.
    pub fn is_flat(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "FLAT" | "VMFS" | "VMFSRDM" | "VMFSRAW" | "VMFSRDMP"
        )
    }
}

/// Every non-empty parent name of a text and its offset therein, each name once, in the order of the text.
///
/// # Errors
/// `Invalid` where a name has no closing quote, `TooLarge` where it is longer than any backing name may be.
pub(super) fn parent_hints(text: &[u8]) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut hints: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut from = 0;
    while let Some(found) = find(text, from, HINT) {
        from = found + HINT.len();
        let rest = text.get(from..).unwrap_or_default();
        let blanks = |rest: &[u8]| {
            rest.iter()
                .take_while(|byte| matches!(byte, b' ' | b'\t'))
                .count()
        };
        // As VMware reads it: blanks may surround the equals sign.
        let before = blanks(rest);
        let after = rest
            .get(before..)
            .and_then(|rest| rest.strip_prefix(b"="))
            .map(|rest| before + 1 + blanks(rest));
        let name_at = match after {
            Some(at) if rest.get(at) == Some(&b'"') => at + 1,
            // As QEMU reads it: whatever the two bytes behind the key are, the name follows them.
            _ => 2,
        };
        let name = rest.get(name_at..).unwrap_or_default();
        let Some(len) = name.iter().position(|byte| *byte == b'"') else {
            return Err(Error::invalid("the parent's name has no closing quote").at(found as u64));
        };
        if len > BACKING_NAME_BYTES as usize {
            return Err(
                Error::too_large(format!("the parent's name of {len} bytes exceeds 1023")).at(found as u64),
            );
        }
        let name = name.get(..len).unwrap_or_default();
        if !name.is_empty() && hints.len() < MOST_HINTS && hints.iter().all(|(_, hint)| hint != name) {
            hints.push(((from + name_at) as u64, name.to_vec()));
        }
    }
    Ok(hints)
}

/// Most different parent names that are kept: one is right, a second is odd, more tell nothing.
const MOST_HINTS: usize = 8;

fn find(text: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    text.get(from..)?
        .windows(needle.len())
        .position(|window| window == needle)
        .map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_vmware_documents() {
        let d = Descriptor::parse(
            b"# Disk DescriptorFile\r\nversion=1\r\nCID=2e69cd9\r\nparentCID=ffffffff\r\n\
              createType=\"twoGbMaxExtentSparse\"\r\nRW 4192256 SPARSE \"a b-s001.vmdk\"\r\n\
              RDONLY 100 FLAT \"c.vmdk\" 7\r\nNOACCESS 8 ZERO\r\n",
        );
        assert_eq!(d.create_type.as_deref(), Some("twoGbMaxExtentSparse"));
        assert_eq!((d.cid, d.parent_cid), (Some(0x2e6_9cd9), None));
        let [a, b, c] = d.extents.as_slice() else { panic!() };
        assert_eq!((a.file.as_deref(), a.sectors), (Some("a b-s001.vmdk"), 4_192_256));
        assert_eq!((b.offset, b.is_flat()), (Some(7), true));
        assert_eq!((c.kind.as_str(), c.file.as_deref()), ("ZERO", None));
    }

    #[test]
    fn finds_every_name_that_any_reader_could_take_for_the_parent() {
        let names = |text: &[u8]| -> Vec<String> {
            parent_hints(text)
                .unwrap()
                .into_iter()
                .map(|(at, name)| {
                    assert_eq!(&text[usize::try_from(at).unwrap()..][..name.len()], name);
                    String::from_utf8(name).unwrap()
                })
                .collect()
        };
        assert_eq!(names(b"parentFileNameHint=\"a\""), ["a"]);
        assert_eq!(names(b"# parentFileNameHint=\"a\""), ["a"]);
        assert_eq!(names(b"parentFileNameHint = \"a\""), ["a"]);
        assert_eq!(names(b"parentFileNameHintXYa\""), ["a"]);
        assert_eq!(names(b"parentFileNameHint=\"\"\nparentFileNameHint=\"b\""), ["b"]);
        assert_eq!(
            names(b"parentFileNameHint=\"a\"\nparentFileNameHint=\"b\"\nparentFileNameHint=\"a\""),
            ["a", "b"]
        );
        assert!(parent_hints(b"parentFileNameHint=\"a").is_err());
    }
}
