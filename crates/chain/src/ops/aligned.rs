//! Bytes that begin at a page of memory.
//!
//! The kernel copies whole pages from its cache; where they do not land on pages, that takes a third more time.

use std::ops::{Deref, DerefMut};

/// Bytes of a page.
const PAGE: usize = 4096;

/// A buffer that begins at a page and is used again and again.
#[derive(Debug, Default)]
pub(super) struct AlignedBytes {
    /// A page more than is used, to begin in.
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// Makes it so long, without clearing what will be overwritten.
    pub fn resize(&mut self, len: u64) {
        self.len = usize::try_from(len).unwrap_or_default();
        if self.room.len() < self.len.saturating_add(PAGE) {
            self.room = vec![0; self.len.saturating_add(PAGE)];
            self.start = self.room.as_ptr().align_offset(PAGE).min(PAGE);
        }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.room
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.room
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_pages_and_are_as_long_as_told() {
        let mut bytes = AlignedBytes::default();
        assert!(bytes.is_empty());
        for len in [1, 4096, 100_000, 512] {
            bytes.resize(len);
            assert_eq!(bytes.len() as u64, len);
            assert_eq!(bytes.as_ptr().addr() % PAGE, 0);
            bytes.fill(7);
        }
    }
}
