//! Having the kernel begin to write a file to its medium (`sync_file_range(2)`): no wait, and no word on whether it arrived.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes one call, for all of the file that has been written and is on no way to the medium yet.
pub(crate) fn begin_write_back(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed; nothing else is passed by reference.
    let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
