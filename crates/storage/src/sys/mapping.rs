//! A mapping that is never looked into: it keeps an open file description, and the locks on it, without a descriptor (`mmap(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How much is mapped, in bytes. The kernel rounds it up to a page.
const LEN: usize = 1;

/// Keeps an open file as if a descriptor of it were open. It takes up one mapping of the process, and no memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: usize,
}

impl Mapping {
    /// Keeps the open file. An error where its file system cannot map files.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists. It has no access (`PROT_NONE`) and its
        // address goes nowhere but to the calls below, so that no pointer into it is ever used.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_NONE,
                libc::MAP_PRIVATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Else a child process would keep the locks, too.
        // SAFETY: the range is that of the mapping just made, and the advice changes nothing for this process.
        unsafe { libc::madvise(address, LEN, libc::MADV_DONTFORK) };
        Ok(Self {
            address: address.expose_provenance(),
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let address = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is the mapping made in `of`, which nothing else unmaps and nobody has a pointer into.
        unsafe { libc::munmap(address, LEN) };
    }
}
