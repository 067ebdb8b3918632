//! Random access to the bytes of an image, without saying where they live.

use crate::error::{Error, Result};
use std::io;

/// The bytes of an image. A slice is one; so is an open file wrapped by its owner.
pub trait Bytes {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads up to `buf.len()` bytes at `offset`. Fewer come back only where the bytes end, none past the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads exactly `len` bytes; [`crate::ErrorKind::Truncated`] where there are fewer.
    ///
    /// The caller has bounded `len`; a length beyond the end of the bytes allocates nothing.
    fn read_exact(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(
                Error::truncated(format!("the image ends before the {len} bytes expected here")).at(offset),
            );
        }
        let bytes = self.read_some(offset, len)?;
        if bytes.len() < len {
            return Err(
                Error::truncated(format!("the image ends before the {len} bytes expected here")).at(offset),
            );
        }
        Ok(bytes)
    }

    /// Reads at most `len` bytes: what there is of them. The caller has bounded `len`.
    fn read_some(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let available = self.len().saturating_sub(offset).min(len as u64);
        let mut buf = vec![0; usize::try_from(available).unwrap_or(len)];
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_at(offset.saturating_add(filled as u64), rest)? {
                0 => break,
                n => filled += n,
            }
        }
        buf.truncate(filled);
        Ok(buf)
    }
}

impl Bytes for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let tail = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..))
            .unwrap_or_default();
        let n = tail.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(tail) {
            *to = *from;
        }
        Ok(n)
    }
}

impl Bytes for Vec<u8> {
    fn len(&self) -> u64 {
        Bytes::len(self.as_slice())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.as_slice().read_at(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_read_past_the_end_is_short_and_an_exact_one_is_truncated() {
        let bytes = vec![1u8, 2, 3];
        assert_eq!(bytes.read_some(1, 10).unwrap(), [2, 3]);
        assert!(bytes.read_some(u64::MAX, 10).unwrap().is_empty());
        assert_eq!(bytes.read_exact(0, 3).unwrap(), [1, 2, 3]);
        assert_eq!(bytes.read_exact(1, 3).unwrap_err().kind(), ErrorKind::Truncated);
        assert_eq!(
            bytes.read_exact(u64::MAX, 3).unwrap_err().kind(),
            ErrorKind::Truncated
        );
    }
}
