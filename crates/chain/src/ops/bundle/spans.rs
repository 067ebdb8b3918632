//! Where a file with holes has bytes.
//!
//! Small holes are not told, and in a file with very many only the large ones, so that the list stays short.

use super::manifest::wrong;
use super::tape;
use catena_engine::Result;
use catena_storage::{SpanKind, Storage};

/// Holes that are smaller are written as zeros.
const SMALLEST_HOLE: u64 = 64 << 10;
/// Most stretches of a file.
const MOST: usize = 1 << 16;
/// Most bytes of a list: two numbers of at most 19 digits for each stretch, and the padding.
pub(super) const MOST_BYTES: u64 = (MOST as u64 + 2) * 40 + tape::BLOCK;

/// Stretches of a file with bytes, in order and apart from each other: offset and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spans {
    stretches: Vec<(u64, u64)>,
    length: u64,
}

impl Spans {
    /// Those of a store of some length. The first `whole` bytes are taken for bytes.
    pub fn of(storage: &dyn Storage, length: u64, whole: u64) -> Result<Self> {
        let mut found = Gathered {
            stretches: Vec::new(),
            smallest: SMALLEST_HOLE,
        };
        if whole > 0 {
            found.add(0, whole.min(length));
        }
        let mut at = 0;
        while at < length {
            let Some(span) = storage.span_at(at)? else {
                break;
            };
            let end = span.offset.saturating_add(span.len).min(length);
            if span.kind == SpanKind::Data {
                found.add(at, end);
            }
            at = end.max(at + 1);
        }
        Ok(Self {
            stretches: found
                .stretches
                .iter()
                .map(|(start, end)| (*start, end - start))
                .collect(),
            length,
        })
    }

    /// All of a file.
    pub fn whole(length: u64) -> Self {
        Self {
            stretches: if length > 0 { vec![(0, length)] } else { Vec::new() },
            length,
        }
    }

    /// Whether there are holes.
    pub fn is_sparse(&self) -> bool {
        *self != Self::whole(self.length)
    }

    /// The stretches: offset and length.
    pub fn stretches(&self) -> &[(u64, u64)] {
        &self.stretches
    }

    /// The list, with what it is padded with.
    pub fn encode(&self) -> Vec<u8> {
        let mut all = self.stretches.clone();
        // Where the file ends in a hole, the list says where it ends.
        if self.data_end() < self.length {
            all.push((self.length, 0));
        }
        let mut text = format!("{}\n", all.len());
        for (offset, len) in all {
            text.push_str(&format!("{offset}\n{len}\n"));
        }
        let mut bytes = text.into_bytes();
        let padding = tape::padding(bytes.len() as u64);
        bytes.resize(bytes.len() + padding, 0);
        bytes
    }

    /// Bytes in a bundle: the list, where there are holes, and the stretches.
    pub fn stored(&self) -> u64 {
        let list = if self.is_sparse() {
            self.encode().len() as u64
        } else {
            0
        };
        let data = self.stretches.iter().map(|(_, len)| len).sum::<u64>();
        list + data
    }

    /// Reads a list of a file of some length, of which so many bytes are stored with it, a block at a time.
    pub fn decode(length: u64, stored: u64, mut block: impl FnMut() -> Result<Vec<u8>>) -> Result<Self> {
        let bad = || wrong("a list of stretches in it is none");
        let mut all = Vec::new();
        let mut lines = 0;
        let mut wanted = None;
        while wanted.is_none_or(|wanted| lines < wanted) {
            if all.len() as u64 >= MOST_BYTES.min(stored) {
                return Err(bad());
            }
            let next = block()?;
            lines += next.iter().filter(|byte| **byte == b'\n').count();
            all.extend(next);
            if wanted.is_none() && lines > 0 {
                let count: usize = number(&all).ok_or_else(bad)?;
                wanted = Some(count)
                    .filter(|count| *count <= MOST + 1)
                    .map(|count| 2 * count + 1);
                wanted.ok_or_else(bad)?;
            }
        }
        let mut numbers = all.split(|byte| *byte == b'\n').skip(1).map(number::<u64>);
        let mut stretches = Vec::new();
        for _ in 0..wanted.unwrap_or_default() / 2 {
            let pair = numbers.next().flatten().zip(numbers.next().flatten());
            stretches.push(pair.ok_or_else(bad)?);
        }
        if stretches.last() == Some(&(length, 0)) {
            stretches.pop();
        }
        let spans = Self { stretches, length };
        let mut at = 0_u64;
        for (offset, len) in &spans.stretches {
            let end = offset.checked_add(*len).filter(|end| *end <= length);
            at = end.filter(|_| *offset >= at && *len > 0).ok_or_else(bad)?;
        }
        // Written in the one way, it is what was read.
        match spans.is_sparse() && spans.encode() == all && spans.stored() == stored {
            true => Ok(spans),
            false => Err(bad()),
        }
    }

    fn data_end(&self) -> u64 {
        self.stretches.last().map_or(0, |(offset, len)| offset + len)
    }
}

/// The number with which a line begins.
fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let digits = line.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(line).ok().filter(|_| digits)?.parse().ok()
}

/// Stretches as start and end, those joined that small holes lie between.
struct Gathered {
    stretches: Vec<(u64, u64)>,
    smallest: u64,
}

impl Gathered {
    fn add(&mut self, start: u64, end: u64) {
        match self.stretches.last_mut() {
            Some(last) if start < last.1.saturating_add(self.smallest) => last.1 = last.1.max(end),
            _ => self.stretches.push((start, end)),
        }
        while self.stretches.len() > MOST {
            self.smallest = self.smallest.saturating_mul(4);
            let all = std::mem::take(&mut self.stretches);
            all.into_iter().for_each(|(start, end)| self.add(start, end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena_engine::ErrorKind;
    use catena_storage::MemoryStorage;

    fn decoded(length: u64, stored: u64, list: &[u8]) -> Result<Spans> {
        let mut blocks = list.chunks(512);
        Spans::decode(length, stored, || {
            Ok(blocks.next().map_or_else(|| vec![0; 512], <[u8]>::to_vec))
        })
    }

    #[test]
    fn a_list_is_read_as_it_is_written() {
        let storage = MemoryStorage::with_len(64 << 20);
        for start in (0..60_u64).step_by(2) {
            storage.write_all_at(&[1; 4096], start << 20).unwrap();
        }
        for length in [64 << 20, 62 << 20] {
            let spans = Spans::of(&storage, length, 0).unwrap();
            assert!(spans.is_sparse());
            let list = spans.encode();
            assert_eq!(decoded(length, spans.stored(), &list).unwrap(), spans);
            assert!(decoded(length, spans.stored() + 1, &list).is_err());
            assert!(decoded(length / 2, spans.stored(), &list).is_err());
        }
    }

    #[test]
    fn small_holes_are_no_holes_and_many_are_fewer() {
        let mut gathered = Gathered {
            stretches: Vec::new(),
            smallest: SMALLEST_HOLE,
        };
        gathered.add(0, 4096);
        gathered.add(8192, 12288);
        gathered.add(1 << 20, (1 << 20) + 1);
        assert_eq!(gathered.stretches, [(0, 12288), (1 << 20, (1 << 20) + 1)]);
        for index in 2..200_000_u64 {
            gathered.add(index << 17, (index << 17) + 512);
        }
        assert!(gathered.stretches.len() <= MOST);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in [
            "",
            "x\n",
            "1\n0\n",
            "1\n0\n4096\n",
            "2\n4096\n512\n0\n512\n",
            "1\n1048000\n4096\n",
            "99999999999999999999\n",
            "18446744073709551615\n",
            "1\n00\n512\n",
            "1\n+0\n512\n",
        ] {
            let mut block = list.as_bytes().to_vec();
            block.resize(512, 0);
            let refused = decoded(1 << 20, 512 + 4096, &block).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidFormat, "{list}");
        }
    }
}
