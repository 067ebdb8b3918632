//! Sharing a range of one file with another (`ioctl_ficlonerange(2)`): both then have the same blocks until either is written.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes one call. All of the range is shared, or none.
pub(crate) fn clone_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: u64,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: from_offset,
        src_length: len,
        dest_offset: to_offset,
    };
    loop {
        // SAFETY: both descriptors are open for as long as they are borrowed; the request takes a pointer to one
        // `file_clone_range`, which lives through the call and which the kernel only reads.
        let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
